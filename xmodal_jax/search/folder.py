"""The folder of an index while it is written: one writer at a time, and which files may be deleted.

A writer locks the file .NAME.lock beside the index at NAME from its first look to its last write; the lock ends with
the process. Files of blocks are never written over: new ones are numbered behind all that are there, and belong to the
index from the moment a header that names them takes the old header's place in one step. So a writer that is killed
leaves the old index or the new one. Files that no header names are left by such a writer, or belonged to an index that
was replaced; the next writer deletes them. A reader keeps the files that it has mapped, also when they are deleted.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
from collections.abc import Iterator

from xmodal_jax.errors import UserError
from xmodal_jax.search.files import HEADER, OWN, VERIFIED, named_files, read_header
from xmodal_jax.search.header import FIELDS

log = logging.getLogger(__name__)
LOCKLESS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def resolved(path: str | os.PathLike) -> pathlib.Path:
    """Return the folder itself where `path` is a link to it."""
    return pathlib.Path(os.path.realpath(path))


def refuse_taken(path: str | os.PathLike, overwrite: bool) -> None:
    """Raise `UserError` if no index may be written at `path`.

    A new one may be written where nothing is, in an empty folder, and over what a killed writer left of its first
    index; with `overwrite` also over an index, unless there are files that no index writes.
    """
    path = resolved(path)
    if not path.exists():
        return
    other = f"{path} exists and is not an index; write another folder name."
    if not path.is_dir():
        raise UserError(other)
    names = sorted(os.listdir(path))
    foreign = [name for name in names if not OWN.fullmatch(name)]
    if HEADER not in names:
        if foreign:
            raise UserError(other)
        return
    if not overwrite:
        raise UserError(f"{path} already holds an index; write another folder name, or 'overwrite' it.")
    if foreign:
        raise UserError(
            f"{path} holds {foreign[0]}, which no index writes; move it away, or write another folder name."
        )
    if not any(name.endswith(".npy") for name in names) and not _is_header(path / HEADER):
        raise UserError(other)


def _is_header(file: pathlib.Path) -> bool:
    """Return True if a file looks like the header of an index, damaged or not."""
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.keys() >= FIELDS.keys()


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
    """Lock the index at `path` for one writer; wait, and say so, while there is another."""
    lock = path.with_name(f".{path.name}.lock")
    handle = _locked(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # a waiting process notices that it is gone, and makes another
        os.close(handle)


def _locked(lock: pathlib.Path, path: pathlib.Path) -> int:
    """Return the descriptor of the lock file, locked."""
    wait = fcntl.LOCK_NB
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | wait)
            if is_still(handle, lock):
                return handle
        except BlockingIOError:
            log.warning("waiting for another process that writes %s", path)
            wait = 0
        except OSError as error:
            if error.errno not in LOCKLESS:
                os.close(handle)
                raise
            log.warning("no locks on the file system of %s: let no other process write it", path)
            return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def is_still(handle: int, path: pathlib.Path) -> bool:
    """Return True if `path` still refers to the file opened as `handle`."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[int]:
    """Open a folder and yield its descriptor."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


def tidy(path: pathlib.Path) -> None:
    """Delete the files of the locked index at `path` that its header does not name.

    Where the header cannot be read, every file may be one of its blocks, and all stay.
    """
    there, keep = {name for name in os.listdir(path) if OWN.fullmatch(name)}, set()
    if HEADER in there:
        try:
            keep = {HEADER, VERIFIED} | named_files(read_header(path))
        except UserError:
            return
    for name in there - keep:
        with contextlib.suppress(OSError):
            (path / name).unlink()
