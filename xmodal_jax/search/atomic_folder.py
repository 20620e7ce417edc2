"""Where an index folder appears: written beside its place, moved there in one step, one writer at a time.

Writers of the index at PATH hold a lock on the file .NAME.lock beside it, which ends with the process: `append` all the
time, a new index while it starts and while it moves. A new index is written in .NAME.xmodal-XXXXXXXX. Where the system
can exchange two folders in one step (Linux, on most file systems) a reader sees the old index or the new one and nothing
else. Elsewhere the old one is renamed to .NAME.xmodal-XXXXXXXX.old first; killed between the two renames, it is still
there, is named to whoever opens PATH, and goes back with the next write. What dead writers left is deleted by the next
one; a living one holds a lock on its folder.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import pathlib
import re
import secrets
from collections.abc import Callable, Iterator

from xmodal_jax.errors import UserError
from xmodal_jax.search.files import HEADER, OWN, stepped_aside
from xmodal_jax.search.header import FIELDS

log = logging.getLogger(__name__)
HERE, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
LOCKLESS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def resolved(path: str | os.PathLike) -> pathlib.Path:
    """The folder itself where `path` is a link to it."""
    return pathlib.Path(os.path.realpath(path))


def refuse_taken(path: str | os.PathLike, overwrite: bool) -> None:
    """Raise `UserError` when `path` is not free: something else is there, an index and no `overwrite`, or an index with
    files beside it that no index writes, which would be deleted with it."""
    path = resolved(path)
    if not path.exists():
        return
    other = f"{path} exists and is not an index; write another folder name."
    if not (path / HEADER).exists():
        raise UserError(other)
    if not overwrite:
        raise UserError(f"{path} already holds an index; write another folder name, or pass --overwrite.")
    names = sorted(os.listdir(path))
    foreign = [name for name in names if not OWN.fullmatch(name)]
    if foreign:
        raise UserError(
            f"{path} holds {foreign[0] if foreign else ''}, which no index writes and --overwrite would delete; "
            "move it away, or write another folder name."
        )
    if not any(name.endswith(".npy") for name in names) and not _is_header(path / HEADER):
        raise UserError(other)


def _is_header(file: pathlib.Path) -> bool:
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.keys() >= FIELDS.keys()


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
    """One writer of the index at `path` at a time; waits, and says so, while there is another."""
    lock = path.with_name(f".{path.name}.lock")
    handle = _locked(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # who waits for it sees that it is gone and makes another
        os.close(handle)


def _locked(lock: pathlib.Path, path: pathlib.Path) -> int:
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
    """Whether what was opened as `handle` is what lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[int]:
    """A descriptor of a folder."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def made(path: pathlib.Path, overwrite: bool, check: Callable[[], None] = lambda: None) -> Iterator[pathlib.Path]:
    """A hidden folder to write in, which is at `path` when the body has ended well and gone when it has not.

    `check` is called before it goes there, when no other process can write, and raises where it should not.

    Raises UserError as `refuse_taken`, before the body and, for what appeared meanwhile, after it.
    """
    refuse_taken(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path):
        _tidy(path)
        refuse_taken(path, overwrite)
        folder = path.with_name(f".{path.name}.xmodal-{secrets.token_hex(4)}")
        folder.mkdir()
        handle = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # no locks here: then nobody deletes it either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield folder
        with alone(path):
            refuse_taken(path, overwrite)
            check()
            _move(folder, path, overwrite)
    finally:
        discard(folder)
        os.close(handle)


def _move(folder: pathlib.Path, path: pathlib.Path, overwrite: bool) -> None:
    """Put `folder` at `path`; the index that was there, if any, is deleted or left at `folder`."""
    if not (overwrite and path.exists()):
        try:
            os.rename(folder, path)  # onto a folder with anything in it this fails
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            raise UserError(f"{path} appeared meanwhile; write another folder name, or pass --overwrite.") from None
    elif not exchange(folder, path):
        aside = folder.with_name(folder.name + ".old")
        os.rename(path, aside)
        os.rename(folder, path)
        discard(aside)
    with opened(path.parent) as handle:
        os.fsync(handle)


def exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Each takes the other's name, in one step. False where the system or the file system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    swap.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if swap(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _tidy(path: pathlib.Path) -> None:
    """Put back an index that a dead writer had moved aside, and delete what such writers left."""
    left = stepped_aside(path)
    if left is not None and not path.exists():
        os.rename(left, path)
        log.warning("put back %s, which a stopped process had moved aside", path)
    ours = re.compile(re.escape(f".{path.name}.xmodal-") + r"[0-9a-f]{8}(\.old)?")
    for folder in path.parent.iterdir():
        if ours.fullmatch(folder.name) and _is_dead(folder):
            discard(folder)


def _is_dead(folder: pathlib.Path) -> bool:
    try:
        with opened(folder) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def discard(folder: pathlib.Path) -> None:
    """Delete a folder that an index was in: the files of an index, the header first, and the folder if that was all."""
    with contextlib.suppress(OSError):
        (folder / HEADER).unlink(missing_ok=True)
        for name in os.listdir(folder):
            if OWN.fullmatch(name):
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()
