"""Columns: files of values of one type, written as they come and read as arrays that the system pages in.

The card keeps the size and the checksum of each column, so that a file that was cut or changed is refused when it is
opened. Texts are two columns: their UTF-8 bytes, one text after the other, and the place where each text begins.
"""

import array
import functools
import mmap
import operator
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError

TYPECODES = {"u1": "B", "i2": "h", "i4": "i", "i8": "q", "f4": "f"}  # types of columns, as `array` calls them
BUFFER = 1 << 16  # values kept in memory before they are written
READ = 1 << 20  # bytes read at a time for a checksum
BLOCK = 4096  # texts whose places are looked up at once


class ColumnWriter:
    """Writer of one column."""

    def __init__(self, path: pathlib.Path, dtype: str):
        self._file, self._values = path.open("wb"), array.array(TYPECODES[np.dtype(dtype).str[1:]])
        self._bytes = self._crc = 0

    @property
    def count(self) -> int:
        """Number of values written so far."""
        return self._bytes // self._values.itemsize + len(self._values)

    def put(self, value: float) -> None:
        """Append one value."""
        self._values.append(value)
        if len(self._values) >= BUFFER:
            self._flush()

    def write(self, data: bytes) -> None:
        """Append values, given by their bytes in memory."""
        self._values.frombytes(data)
        if len(self._values) >= BUFFER:
            self._flush()

    def _flush(self) -> None:
        """Write the values in memory to the file."""
        data = self._values.tobytes()
        self._crc, self._bytes = zlib.crc32(data, self._crc), self._bytes + len(data)
        self._file.write(data)
        del self._values[:]

    def close(self) -> dict[str, int]:
        """Finish the file and return the facts that the card keeps of it, {"bytes", "crc"}."""
        with self._file:
            self._flush()
        return {"bytes": self._bytes, "crc": self._crc}

    def abort(self) -> None:
        """Close the file without finishing it."""
        self._file.close()


def open_column(
    path: pathlib.Path,
    dtype: str,
    facts: Mapping[str, int] | None,
    remedy: str = "prepare the data set again (option 'force')",
) -> np.ndarray:
    """Map a column from its file, as a read-only array [n].

    Raises `UserError`, which ends in the `remedy`, if the file is missing or does not match the card's `facts` (None:
    the card has no such column).
    The checksum is computed once in a process, as long as the file's size and time stay.
    """
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            whole = (
                facts is not None
                and state.st_size == facts["bytes"]
                and _checksum(str(path), state.st_size, state.st_mtime_ns) == facts["crc"]
            )
            if not whole or state.st_size % np.dtype(dtype).itemsize != 0:
                raise UserError(f"'{path}' is damaged: it is not what the card says of it; {remedy}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if state.st_size else b""
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); {remedy}") from error
    return np.frombuffer(data, dtype)


@functools.lru_cache(maxsize=1024)
def _checksum(path: str, size: int, changed: int) -> int:
    """Return the CRC-32 of a file; its size and time of change only make the cached value invalid."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(READ):
            crc = zlib.crc32(block, crc)
    return crc


class Texts(Sequence[str]):
    """The texts of a column, or those with the numbers `rows` int64 [n], decoded when they are asked for.

    `data` uint8 [T] holds the bytes, `starts` int64 [m+1] the place where each text begins. Equal to any
    sequence of the same texts.
    """

    def __init__(self, data: np.ndarray | memoryview, starts: np.ndarray, rows: np.ndarray | None = None):
        self._data = data if isinstance(data, memoryview) else memoryview(data.data)
        self._starts, self._rows = starts, rows

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._rows is None else len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        """Return the text with a number, or the `Texts` of a slice."""
        if isinstance(number, slice):
            return self.take(np.arange(*number.indices(len(self))))
        at = operator.index(number)
        at = at + len(self) if at < 0 else at
        if not 0 <= at < len(self):
            raise IndexError(f"text {number} of {len(self)}")
        row = at if self._rows is None else self._rows[at]
        return str(self._data[self._starts[row] : self._starts[row + 1]], "utf-8")

    def take(self, numbers: np.ndarray) -> "Texts":
        """Return the texts with these numbers [k], in this order."""
        return Texts(self._data, self._starts, numbers if self._rows is None else self._rows[numbers])

    def encoded(self, numbers: np.ndarray) -> Iterator[bytes]:
        """Yield the UTF-8 bytes of the texts with these numbers [k]."""
        rows = numbers if self._rows is None else self._rows[numbers]
        for start, stop in zip(self._starts[rows].tolist(), self._starts[rows + 1].tolist(), strict=True):
            yield bytes(self._data[start:stop])

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), BLOCK):
            for data in self.encoded(np.arange(first, min(first + BLOCK, len(self)))):
                yield data.decode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))
