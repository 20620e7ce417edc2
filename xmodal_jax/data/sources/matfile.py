"""Variables of MATLAB files: version 5 (read by SciPy) and version 7.3, which is HDF5 (read by h5py, row by row).

HDF5 lists the axes of an array in reverse, so that MATLAB's [224,224,3,n] is [n,3,224,224] in h5py. All axes
here are in MATLAB's order.
"""

import contextlib
import dataclasses
import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError

HDF5 = b"\x89HDF\r\n\x1a\n"
SLICE_BYTES = 1 << 25  # bytes read at once
BLOCK_ROWS = 32
MOST_VALUES = 1032  # values that one byte of a file can stand for: zlib's best with values of one byte


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of a MATLAB file, not read yet."""

    file: pathlib.Path
    """File that holds it."""
    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """Its shape, in MATLAB's order."""
    kind: str
    """"number", "text" (characters, or a cell of them) or "other" (a structure, or a sparse matrix of version 7.3)."""
    hdf5: bool
    """Whether the file is of version 7.3."""

    def __str__(self) -> str:
        return f"'{self.name}' of {self.file}"

    def marks(self) -> np.ndarray:
        """Read a matrix of 0 and 1 as bool [rows,columns]. Raises `UserError` for anything else."""
        if self.kind != "number" or len(self.shape) != 2:
            raise UserError(
                f"{self} is no full matrix of numbers (its shape is {list(self.shape)}); save it as one of 0 and 1."
            )
        return _hdf5_marks(self) if self.hdf5 else self._as_marks(_read_version5(self))

    def _as_marks(self, values: Any) -> np.ndarray:
        """Convert numbers that are 0 or 1 to bool."""
        values = values.toarray() if hasattr(values, "toarray") else values  # SciPy keeps MATLAB's sparse matrices
        marks = values == 1
        if not (marks | (values == 0)).all():
            raise UserError(f"{self} has values that are not 0 or 1: give 0/1 vectors.")
        return marks

    def texts(self) -> list[list[str]]:
        """Read the texts of each row of a cell or of characters, without the spaces that MATLAB pads them with.

        Rows lie along the longest axis. Raises `UserError`.
        """
        if self.kind != "text":
            raise UserError(f"{self} is no list of texts; save it as a cell of character vectors.")
        cells = _hdf5_texts(self) if self.hdf5 else _read_version5(self)
        cells = np.moveaxis(cells, int(np.argmax(cells.shape)), 0) if cells.ndim else cells.reshape(1)
        return [[text.strip() for text in _flat(row)] for row in cells]

    def blocks(self, axes: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Yield the array with its axes in the order `axes`, a few dozen rows of the first axis at a time.

        Of a version 7.3 file, no more than that is in memory. Raises `UserError` if the file cannot be read.
        """
        if not self.hdf5:
            whole = _read_version5(self).transpose(axes)
            yield from (whole[start : start + BLOCK_ROWS] for start in range(0, len(whole), BLOCK_ROWS))
            return
        count, axis = self.shape[axes[0]], len(axes) - 1 - axes[0]
        with _opened(self.file) as file:
            data = file[self.name]
            rows = _block_rows(data, axis)
            for start in range(0, count, rows):
                part = (slice(None),) * axis + (slice(start, start + rows),)
                yield data[part].T.transpose(axes)


def variables(path: pathlib.Path) -> list[Variable]:
    """Return the variables of a MATLAB file; its first bytes tell how to read it. Raises `UserError`."""
    with path.open("rb") as file:
        head = file.read(520)
    if HDF5 in (head[:8], head[512:520]):
        return _hdf5_variables(path)
    if not head.startswith(b"MATLAB 5.0"):
        raise UserError(f"{path} is no MATLAB file of version 5 or 7.3; give a .mat file, or download it again.")
    import scipy.io

    with _readable(path):
        listed = scipy.io.whosmat(path)
    room = MOST_VALUES * path.stat().st_size
    for name, shape, kind in listed:  # a damaged shape would keep SciPy busy for minutes
        if kind != "sparse" and math.prod(shape) > room:
            raise UserError(
                f"{path} is damaged: it is too small for the {list(shape)} values of '{name}'; download it again."
            )
    kinds = {"cell": "text", "char": "text", "struct": "other", "object": "other", "function": "other"}
    return [Variable(path, name, tuple(shape), kinds.get(kind, "number"), False) for name, shape, kind in listed]


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Raise any error of a reader as a `UserError`: SciPy, zlib and h5py raise a dozen kinds for damaged files."""
    try:
        with warnings.catch_warnings(action="ignore"):  # they are of odd files; unreadable ones raise
            yield
    except UserError:
        raise
    except Exception as error:  # even MemoryError, if a damaged size asks for too much
        raise UserError(f"{path} cannot be read ({error}); download it again.") from error


def _flat(cell: Any) -> Iterator[str]:
    """Yield all texts in a cell."""
    if isinstance(cell, np.ndarray):
        for part in cell.flat:
            yield from _flat(part)
    elif isinstance(cell, str):
        yield cell
    else:
        raise UserError(f"a cell holds {cell!r} where a text must be; save texts as character vectors.")


# --- version 5 ------------------------------------------------------------------------------------------------------


def _read_version5(variable: Variable) -> Any:
    """Read a variable of a version 5 file."""
    import scipy.io

    with _readable(variable.file):
        return scipy.io.loadmat(variable.file, variable_names=[variable.name])[variable.name]


# --- version 7.3 ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """Open an HDF5 file."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} is of MATLAB's version 7.3 and needs h5py: pip install -e '.[mat]'.") from error
    with _readable(path), h5py.File(path, "r") as file:
        yield file


def _hdf5_variables(path: pathlib.Path) -> list[Variable]:
    """Return the variables of a version 7.3 file."""
    with _opened(path) as file:
        names = [name for name in file if not name.startswith("#")]  # "#refs#" holds what the cells point to
        return [
            Variable(path, name, tuple(getattr(file[name], "shape", ())[::-1]), _hdf5_kind(file[name]), True)
            for name in names
        ]


def _hdf5_kind(data: Any) -> str:
    """Return the kind of an HDF5 data set, as in `Variable`."""
    import h5py

    if not isinstance(data, h5py.Dataset):
        return "other"
    if h5py.check_ref_dtype(data.dtype) or _is_char(data):
        return "text"
    return "number" if data.dtype.kind in "biuf" else "other"


def _is_char(data: Any) -> bool:
    """Return True if an HDF5 data set holds characters."""
    return bytes(data.attrs.get("MATLAB_class", b"")) == b"char"


def _hdf5_marks(variable: Variable) -> np.ndarray:
    """Read a matrix of 0 and 1, a few rows at a time."""
    with _opened(variable.file) as file:
        data = file[variable.name]
        marks = np.empty(data.shape, bool)
        step = max(1, SLICE_BYTES // max(1, data.shape[1] * data.dtype.itemsize))
        for start in range(0, len(marks), step):
            marks[start : start + step] = variable._as_marks(data[start : start + step])
    return marks.T


def _hdf5_texts(variable: Variable) -> np.ndarray:
    """Read a cell, or characters."""
    with _opened(variable.file) as file:
        return _hdf5_cell(file, file[variable.name])


def _hdf5_cell(file: Any, data: Any) -> np.ndarray:
    """Return an array of texts, or of such arrays if a cell holds cells."""
    if data.attrs.get("MATLAB_empty"):  # then the numbers stored are its shape
        return np.array([""], object)
    if data.dtype.kind == "O":
        references = data[()].T
        cell = np.empty(references.shape, object)
        for place, reference in np.ndenumerate(references):
            cell[place] = _hdf5_cell(file, file[reference])
        return cell
    if not _is_char(data):
        raise UserError(f"a cell of {file.filename} holds numbers where a text must be; save texts there.")
    rows = np.atleast_2d(data[()].T).astype("<u2")
    return np.array([row.tobytes().decode("utf-16-le", "replace") for row in rows], object)


def _block_rows(data: Any, axis: int) -> int:
    """Return how many rows to read at once: a few dozen, or as many as are compressed together, if not too many."""
    row_bytes = data.dtype.itemsize * int(np.prod(data.shape)) // max(1, data.shape[axis])
    together = data.chunks[axis] if data.chunks else 1
    return max(BLOCK_ROWS, min(together, SLICE_BYTES // max(1, row_bytes)))
