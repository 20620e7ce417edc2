"""The folder of a data set while a process makes it: one process at a time, and complete or absent.

A data set is built in the folder PART inside its own folder, which may be the current one or a mount point,
and moved up with the card last. The remains of a killed process are removed by the next one, or put in
place if they are complete.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO

from xmodal_jax.data.card import CARD_FILE
from xmodal_jax.data.records import SHARD_NAME
from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)

PART, LOCK = ".prepare.part", ".prepare.lock"
CARD_LOCK = ".card.lock"
NOTHING = {PART, LOCK, CARD_LOCK, "lost+found"}  # a folder with these counts as empty; the last is in a new file system
OF_A_SET = (  # the parts of a data set beside its card and shards
    "digests",
    "sidecar",
    "features",
    "embeddings",
    "concepts",
    "texts",
    "starts",
    "tokenizer*.json",
    "taxonomy.json",
    "noise-words.txt",
    "files.jsonl.gz",
)


@contextlib.contextmanager
def only_process(lock: pathlib.Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold the file `lock`, which exists only meanwhile.

    If another process holds it, wait with `wait`; otherwise raise `UserError` at once.
    """
    with contextlib.closing(_locked(lock, doing, 0 if wait else fcntl.LOCK_NB)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: pathlib.Path, doing: str, blocking: int) -> IO:
    """Open and lock a file that is still there once it is locked."""
    while True:
        file = lock.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | blocking)
        except BlockingIOError:
            file.close()
            raise UserError(f"another process is {doing}; wait until it has ended, or stop it") from None
        except OSError as error:
            log.warning("'%s' cannot be locked (%s); see that no other process is %s", lock, error, doing)
            return file
        with contextlib.suppress(OSError):
            if os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                return file
        file.close()  # the process that held it has just removed it


def holds_set(out: pathlib.Path) -> bool:
    """Return True if `out` has a data set, and none that a killed process had not yet put in place."""
    return (out / CARD_FILE).is_file() and not (out / PART).exists()


def refuse_foreign(out: pathlib.Path) -> None:
    """Raise `UserError` if `out` is a file, or a folder with content that is not a data set."""
    if (out / CARD_FILE).is_file() or (out / PART / CARD_FILE).is_file() or not out.exists():
        return
    if not out.is_dir() or set(os.listdir(out)) - NOTHING:
        raise UserError(f"{out} exists and is not a data set: choose another folder; nothing was overwritten.")


@contextlib.contextmanager
def being_made(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the folder to build in, and keep other processes out.

    It is removed afterwards, and so is `out` if it is new and empty. Raises `UserError` if another process is at work
    there, and if `out` cannot be written.
    """
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    part = out / PART
    try:
        with only_process(out / LOCK, f"preparing a data set in '{out}'"):
            if (part / CARD_FILE).is_file():
                with changing_card(out):
                    move_up(part, out)
            _removed(part)
            part.mkdir()
            try:
                yield part
            finally:
                if not (part / CARD_FILE).is_file():  # otherwise it is complete, and the next process moves it
                    _removed(part)
    except OSError as error:
        if error.filename or isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"'{out}' cannot be written ({error}); make room, or choose another folder") from error
    finally:
        if new:
            with contextlib.suppress(OSError):  # the data set is in it
                out.rmdir()


def changing_card(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Wait until no other process changes the card of a data set, and hold it."""
    return only_process(folder / CARD_LOCK, f"changing the card of '{folder}'", wait=True)


def move_up(part: pathlib.Path, out: pathlib.Path) -> None:
    """Move a complete data set into `out`, replacing the one that is there; after a kill it can be called again."""
    if (out / CARD_FILE).is_file():  # the old card, since the new one is moved last
        for name in ("*.arrayrecord", *OF_A_SET):
            for path in out.glob(name):
                if name in OF_A_SET or SHARD_NAME.fullmatch(path.name):
                    _removed(path)
        (out / CARD_FILE).unlink()
    for name in sorted(os.listdir(part), key=lambda name: name == CARD_FILE):
        os.replace(part / name, out / name)


def _removed(path: pathlib.Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
