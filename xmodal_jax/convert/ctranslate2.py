"""Read the weights in a `model.bin` of CTranslate2, by NumPy alone.

The file: a version, the name of the model's class, a revision; the number of variables, and of each its name, rank,
dimensions, type, number of bytes, and bytes; then other names of variables. Numbers are little-endian, names begin with
their length (two bytes) and end with a zero.
"""

import math
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from xmodal_jax.errors import UserError

VERSIONS = range(4, 7)  # of the layout; what other versions changed is not read here
MOST_RANK = 8
DTYPES = (np.dtype("<f4"), np.dtype("i1"), np.dtype("<i2"), np.dtype("<i4"), np.dtype("<f2"), ml_dtypes.bfloat16)


def read_variables(paths: Sequence[pathlib.Path], prefix: str = "") -> dict[str, np.ndarray]:
    """Read the variables whose names begin with `prefix`, by name, from a file or from its parts, in order.

    Raises UserError for a file that is missing, cut, or of another format.
    """
    where = " + ".join(map(str, paths))
    try:
        content = b"".join(pathlib.Path(path).read_bytes() for path in paths)
    except OSError as error:
        raise UserError(
            f"'{error.filename}' cannot be read ({error.strerror}); write the path of a model.bin"
        ) from error
    try:
        return _Cursor(content).variables(prefix)
    except (struct.error, ValueError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"'{where}' is no whole model.bin of CTranslate2 ({error}); download it again") from error


class _Cursor:
    """A place in the bytes of a file, which moves with each read."""

    def __init__(self, content: bytes):
        self.content, self.place = memoryview(content), 0

    def variables(self, prefix: str) -> dict[str, np.ndarray]:
        """Read the whole file; errors are `ValueError` and those of `struct` and `numpy`."""
        (version,) = self.take("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, not one of {', '.join(map(str, VERSIONS))}")
        self.name()  # of the class
        self.take("I")  # its revision
        (count,) = self.take("I")
        found = {}
        for _ in range(count):
            name, array = self.name(), self.array()
            if name.startswith(prefix):
                found[name] = array.copy()
        (aliases,) = self.take("I")
        for _ in range(aliases):
            name, target = self.name(), self.name()
            if target in found and name.startswith(prefix):
                found[name] = found[target]
        return found

    def take(self, form: str) -> tuple[Any, ...]:
        """Read numbers by a format of `struct`, without gaps."""
        found = struct.unpack_from("<" + form, self.content, self.place)
        self.place += struct.calcsize("<" + form)
        return found

    def name(self) -> str:
        """Read a text."""
        (length,) = self.take("H")
        return self._bytes(length).tobytes().decode().removesuffix("\0")

    def array(self) -> np.ndarray:
        """Read the shape, type and numbers of a variable."""
        (rank,) = self.take("B")
        if rank > MOST_RANK:
            raise ValueError(f"a variable has {rank} dimensions")
        shape = self.take(f"{rank}I")
        kind, length = self.take("BI")
        dtype = np.dtype(DTYPES[kind])
        if length != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"a variable of shape {shape} has {length} bytes")
        return np.frombuffer(self._bytes(length), dtype).reshape(shape)

    def _bytes(self, length: int) -> memoryview:
        """Read bytes."""
        found = self.content[self.place : self.place + length]
        if len(found) != length:
            raise ValueError(f"it ends {length - len(found)} bytes early")
        self.place += length
        return found
