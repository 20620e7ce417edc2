"""Read PyTorch checkpoints without PyTorch and without running what is inside them.

A `.pth` file is a pickle, and a pickle is a program: loading one from a stranger runs the stranger's code. The
unpickler here knows tensors, storages and `OrderedDict`; any other name stops the load. Both containers are read: the
legacy one (PyTorch < 1.6: five pickles, then the raw storages) and the zip archive of today.
"""

import io
import math
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from xmodal_jax.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


DROPPED = {  # the parts of a NumPy scalar, a plain value among others
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Dropped:
    """Stand-in for a value that is not kept: it takes what a pickle gives it, and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Storage(NamedTuple):
    """A flat block of numbers that tensors view: its key in the file, element type and element count."""

    key: str
    dtype: np.dtype
    count: int


class View(NamedTuple):
    """A tensor before its storage is read: start, shape and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_checkpoint(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch checkpoint by name.

    Nested dicts, and lists and tuples of them, give names joined by dots; other plain values are dropped. Raises
    UserError for a missing file, a file that is no checkpoint, and for any pickled object other than tensors, dicts
    and NumPy's scalars, by its name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; write the path of a .pth or .pt file.")
    with path.open("rb") as stream:
        tree, storages = (_read_zip if zipfile.is_zipfile(stream) else _read_legacy)(stream, path)
    if not isinstance(tree, (dict, list, tuple)) or isinstance(tree, View):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not a dict of tensors.")
    try:
        views = _flatten(tree)
    except RecursionError:  # a list that holds itself
        raise UserError(f"{path}: its lists and dicts go too deep; it is damaged.") from None
    return {name: _gather(view, storages, path) for name, view in views}


class _Unpickler(pickle.Unpickler):
    """A pickle machine that knows only the names that tensors need."""

    def __init__(self, stream: BinaryIO, path: pathlib.Path) -> None:
        super().__init__(stream, encoding="utf-8")
        self.path = path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for one of PyTorch's names; raise a UserError for every other name."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) in DROPPED:
            return _Dropped
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]()
        raise UserError(
            f"{self.path}: the checkpoint asks for '{module}.{name}', which is neither a tensor nor a dict and is not "
            "run; save only model.state_dict() to the file."
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Note a reference ('storage', type, key, device, count[, view]) to numbers that lie outside the pickle."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise UserError(f"{self.path}: unknown reference in the checkpoint; save it again with a current PyTorch.")
        _, dtype, key, _, count, *view = pid
        if view and view[0] is not None:
            raise UserError(f"{self.path}: storage views are not read; save the file again.")
        storage = Storage(str(key), dtype, int(count))
        self.storages[storage.key] = storage
        return storage


def _tensor_rebuilder() -> Callable[..., View]:
    """Return a fresh stand-in for torch._utils._rebuild_tensor_v2 (fresh: the pickle may write attributes on it)."""

    def rebuild(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> View:
        return View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    return rebuild


def _parameter_rebuilder() -> Callable[..., View]:
    """Return a fresh stand-in for torch._utils._rebuild_parameter: it gives the tensor that it wraps."""
    return lambda view, *_: view


_REBUILD = {
    "_rebuild_tensor": _tensor_rebuilder,
    "_rebuild_tensor_v2": _tensor_rebuilder,
    "_rebuild_parameter": _parameter_rebuilder,
}


def _load(stream: BinaryIO, path: pathlib.Path) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from the stream, and the storages it names."""
    machine = _Unpickler(stream, path)
    try:
        return machine.load(), machine.storages
    except UserError:
        raise
    except Exception as error:  # a broken or hostile pickle may raise anything; all of it means the same to the user
        raise UserError(f"{path}: not a readable PyTorch checkpoint ({error}); download or save it again.") from error


def _read_legacy(stream: BinaryIO, path: pathlib.Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Read the legacy container.

    It holds a magic number, the protocol, facts of the machine, the object, the keys in file order; then count and
    bytes of each storage.
    """
    stream.seek(0)
    magic, protocol, facts = (_load(stream, path)[0] for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise UserError(f"{path}: not a PyTorch checkpoint.")
    little = isinstance(facts, dict) and facts.get("little_endian") is True
    if not little:
        raise UserError(f"{path}: big-endian checkpoints are not read; save it again on a little-endian machine.")
    tree, storages = _load(stream, path)
    keys = _load(stream, path)[0]
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise UserError(f"{path}: the storage list is damaged.")
    blocks = {}
    for key in keys:
        written = int.from_bytes(stream.read(8), "little")
        if written != storages[key].count:
            raise UserError(f"{path}: storage '{key}' has {written} elements; it is damaged.")
        size = min(written * storages[key].dtype.itemsize, path.stat().st_size)  # a false count must not ask for memory
        blocks[key] = _block(stream.read(size), storages[key], path)
    return tree, blocks


def _read_zip(stream: BinaryIO, path: pathlib.Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Read the zip container: the object in <name>/data.pkl, each storage in <name>/data/<key>."""
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        root = next((name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise UserError(f"{path}: a zip file without data.pkl is no PyTorch checkpoint.")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        if order != b"little":
            raise UserError(f"{path}: big-endian checkpoints are not read.")
        tree, storages = _load(io.BytesIO(archive.read(f"{root}data.pkl")), path)
        missing = [key for key in storages if f"{root}data/{key}" not in names]
        if missing:
            raise UserError(f"{path}: the checkpoint is cut short, storage '{missing[0]}' is missing.")
        return tree, {k: _block(archive.read(f"{root}data/{k}"), s, path) for k, s in storages.items()}


def _block(data: bytes, storage: Storage, path: pathlib.Path) -> np.ndarray:
    """Return the numbers of one storage, flat."""
    whole = len(data) == storage.count * storage.dtype.itemsize
    if not whole:
        raise UserError(f"{path}: the checkpoint is cut short at storage '{storage.key}'; download it again.")
    return np.frombuffer(data, storage.dtype)


def _flatten(tree: dict | list | tuple, prefix: str = "") -> list[tuple[str, View]]:
    """List (dotted name, tensor) of every tensor in nested dicts, lists and tuples."""
    found = []
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, View):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, (dict, list, tuple)) and not isinstance(value, Storage):
            found.extend(_flatten(value, f"{prefix}{name}."))
    return found


def _gather(view: View, storages: dict[str, np.ndarray], path: pathlib.Path) -> np.ndarray:
    """Copy a tensor out of its storage; strides that leave it are refused, as they would read foreign memory."""
    block, shape, strides = storages[view.storage.key], view.shape, view.strides
    sane = len(shape) == len(strides) and min((view.offset, *shape, *strides)) >= 0
    inside = sane and view.offset <= block.size and math.prod(shape) <= block.size
    if inside and 0 in shape:
        return np.zeros(shape, block.dtype)
    last = view.offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) if inside else -1
    if not 0 <= last < block.size:
        raise UserError(f"{path}: a tensor of shape {shape} does not fit its storage; it is damaged.")
    steps = tuple(step * block.itemsize for step in strides)
    return np.array(np.lib.stride_tricks.as_strided(block[view.offset :], shape, steps), order="C")
