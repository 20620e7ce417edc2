"""The files of a search index, and how they are read.

    index.json            version, id, model fingerprint, width, bits, dtype, count, extra, blocks, checksum of all that
    dense-00000.npy       float32 [rows, E] of unit length, or int8 (see `store.as_int8`); absent in an index of codes alone
    codes-00000.npy       uint8 [rows, K/8]; absent when the model has no hash head
    items-00000.jsonl     line i describes the block's record i; absent when nobody wants anything back with a hit
    lines-00000.npy       int64 [rows], where each of these lines ends
    verified.json         which files a reader compared with their checksum, and how they were dated then

Blocks of all kinds are cut at the same rows; the header has the rows, bytes and sha256 of each file. The size of a file is
looked at whenever an index is opened. Its checksum is compared the first time, and again when its size or one of its two
times (of its content, of its inode) has changed; a file is remembered as compared only when it had been left alone for
`SETTLED` seconds, so that no change can hide in the grain of the clock. Bits that rot on the disk without a write are
found by comparing everything again (`xmodal search --verify`).

The id is random and stays with the rows that are there when others are appended. What a header must be: `header`.
"""

import ctypes
import glob
import hashlib
import json
import math
import mmap
import os
import pathlib
import re
import tempfile
import time
import weakref
from collections.abc import Iterator

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search.header import FIELDS, is_whole

VERSION = 3
HEADER = "index.json"
VERIFIED = "verified.json"
OWN = re.compile(r"index\.json(\.new)?|verified\.json(\.\w+)?|(dense|codes|lines)-\d{5,}\.npy|items-\d{5,}\.jsonl")
KINDS = ("dense", "codes")
SETTLED = 2  # seconds

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class _Mapping:
    """Mapped memory as NumPy sees it; unmapped when the last array over it is gone."""

    def __init__(self, address: int, size: int):
        self.__array_interface__ = {"data": (address, True), "shape": (size,), "typestr": "|u1", "version": 3}
        weakref.finalize(self, _LIBC.munmap, address, size).atexit = False


def mapped(file: str | os.PathLike) -> np.ndarray:
    """The bytes of a file, uint8 [n], mapped for reading. What is mapped stays readable when the file is deleted.

    Python's own `mmap` keeps a descriptor for each file, and an index may have thousands of blocks; this keeps none.
    """
    with open(file, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size == 0:
            return np.zeros(0, np.uint8)
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle.fileno(), 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    return np.asarray(_Mapping(address, size))


def read_header(path: pathlib.Path) -> dict:
    """The header of the index at `path`.

    Raises:
      UserError: not an index, a damaged header, another version, an index whose replacement was stopped halfway.
    """
    left = None if path.exists() else stepped_aside(path)
    if left is not None:
        raise UserError(
            f"{path} is being replaced, or that was stopped halfway; if no process writes it: mv {left} {path}"
        )
    if not (path / HEADER).is_file():
        raise UserError(f"{path} is not an index (no {HEADER} in it); make one with `xmodal index`.")
    try:
        header = json.loads((path / HEADER).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        header = None
    damaged = f"{path / HEADER} is damaged; index again."
    if not isinstance(header, dict) or not header.keys() >= FIELDS.keys():
        raise UserError(damaged)
    version = header["version"]
    if version != VERSION:
        raise UserError(f"{path} is an index of version {version!r}, this program reads {VERSION}; index again.")
    told = header.pop("checksum", None)
    if told != header_sum(header) or not is_whole(header):
        raise UserError(damaged)
    return header


def stepped_aside(path: pathlib.Path) -> pathlib.Path | None:
    """The index that a writer moved out of the way of `path` before it was killed, None where there is none."""
    found = path.parent.glob(glob.escape(f".{path.name}.xmodal-") + "*.old")
    found = [folder for folder in found if (folder / HEADER).exists()]
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)


def header_sum(header: dict) -> str:
    """The checksum of a header: of what JSON gives back of it."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(header)), sort_keys=True).encode()).hexdigest()


def sha256(file: pathlib.Path) -> str:
    """The checksum of a file."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Verified:
    """The files of an index that were compared with their checksum (see above). again: whatever was compared before."""

    def __init__(self, path: pathlib.Path, again: bool = False):
        self.path = path
        self._before = self._read()
        self._known = {} if again else self._before
        self._now: dict[str, list] = {}

    def _read(self) -> dict[str, list]:
        try:
            found = json.loads((self.path / VERIFIED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def whole(self, file: pathlib.Path, told: str) -> bool:
        """Whether the file has the checksum `told`."""
        stat = file.stat()
        stamp = [told, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        if self._known.get(file.name) == stamp:
            return True
        if sha256(file) != told:
            return False
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED * 10**9:
            self._now[file.name] = stamp
        return True

    def keep(self) -> None:
        """Write down what was compared now; nothing where the folder cannot be written."""
        if not self._now or self._now.items() <= self._before.items():
            return
        try:
            with tempfile.NamedTemporaryFile("w", dir=self.path, prefix=f"{VERIFIED}.", delete=False) as file:
                json.dump(self._before | self._now, file)
            os.chmod(file.name, (self.path / HEADER).stat().st_mode & 0o666)
            os.replace(file.name, self.path / VERIFIED)
        except OSError:
            return


def usable(path: pathlib.Path, header: dict, verify: bool = True, again: bool = False) -> tuple[int, str]:
    """Rows before the first damaged file of any kind, and the sentence about that file ("" when all are whole).

    Sizes are always compared; with `verify` checksums too, with `again` also those of files that were compared before.
    """
    count, said, verified = header["count"], "", Verified(path, again) if verify else None
    for entries in header["blocks"].values():
        start = 0
        for entry in entries:
            if start >= count:
                break
            found = next(filter(None, (damage(path, part, verified) for part in _parts(entry))), "")
            if found:
                count, said = start, found
            start += entry["rows"]
    if verified is not None:
        verified.keep()
    return count, said


def _parts(entry: dict) -> Iterator[dict]:
    yield entry
    if "lines" in entry:
        yield entry["lines"]


def damage(path: pathlib.Path, entry: dict, verified: Verified | None) -> str:
    """What is wrong with one file of an index: a sentence, "" when nothing is."""
    file = path / entry["file"]
    if not file.is_file():
        return f"{file} is missing from its index; index again, or open the rows before it with --prefix."
    torn = file.stat().st_size != entry["bytes"]
    if torn or (verified is not None and not verified.whole(file, entry["sha256"])):
        return f"{file} is torn or was changed; index again, or open the rows before it with --prefix."
    return ""


def open_array(path: pathlib.Path, entry: dict, width: int, dtype: str) -> np.ndarray:
    """The rows of one block, [rows, width], memory-mapped. Raises `UserError` where the file is anything else."""
    array = _npy(path / entry["file"], (entry["rows"], width), dtype)
    if array is None:
        raise UserError(f"{path / entry['file']} is torn; index again, or open the rows before it with --prefix.")
    return array


def _npy(file: pathlib.Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """An array of this shape that an index has, memory-mapped; None where the file is no such array, or not all of it."""
    with open(file, "rb") as handle:
        try:
            np.lib.format.read_magic(handle)
            found = np.lib.format.read_array_header_1_0(handle)
        except OSError:
            raise
        except Exception:  # the parser of a torn header raises what Python's own parser does
            return None
        start = handle.tell()
    data = mapped(file)[start:]
    if found != (shape, False, np.dtype(dtype)) or data.size != math.prod(shape) * np.dtype(dtype).itemsize:
        return None
    return data.view(dtype).reshape(shape)


class Lines:
    """The items of one block, memory-mapped when made: line i of a JSON lines file by its place."""

    def __init__(self, path: pathlib.Path, entry: dict):
        self.file = path / entry["file"]
        self._text = mapped(self.file)
        self._ends = _npy(path / entry["lines"]["file"], (entry["rows"],), "int64")
        if self._ends is None:
            raise UserError(f"{self.file} has torn lines; index again, or open the rows before it with --prefix.")

    def __getitem__(self, line: int) -> dict:
        start = 0 if line == 0 else int(self._ends[line - 1])
        try:
            item = json.loads(self._text[start : int(self._ends[line])].tobytes())
        except (ValueError, RecursionError):  # no JSON, or no UTF-8
            item = None
        if not isinstance(item, dict):
            raise UserError(
                f"line {line + 1} of {self.file} is torn or was changed; search with --verify, or index again."
            )
        return item
