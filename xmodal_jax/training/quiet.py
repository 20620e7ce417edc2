"""Keep orbax quiet about failed writes: the error that it raises
becomes one sentence, so its tracebacks only repeat it.

The filters and the hook are the whole process's, so a program enters them (`xmodal` does), never the library by itself.
"""

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a checkpoint's folder until it is whole
OF_ORBAX = f"orbax{os.sep}checkpoint"  # in the path of each of its files
LOGGERS = ("absl", "asyncio")  # that tell of a write that failed
_abandoned = threading.Event()  # whether orbax has left reads or writes unfinished


def note_abandoned() -> None:
    """Note that orbax failed, and has left tasks behind that would speak when they are collected."""
    _abandoned.set()


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Drop the log records and unraisable errors of orbax's abandoned reads and writes.

    Filters and hook go when the context ends, unless orbax has failed in this process.
    """
    before = sys.unraisablehook
    added = [logger for name in LOGGERS if _no_traceback not in (logger := logging.getLogger(name)).filters]
    for logger in added:
        logger.addFilter(_no_traceback)
    sys.unraisablehook = _without_orbax(before)
    try:
        yield
    finally:
        if not _abandoned.is_set():  # else its tasks speak when they are collected, at the end of the process
            sys.unraisablehook = before
            for logger in added:
                logger.removeFilter(_no_traceback)


def _no_traceback(record: logging.LogRecord) -> bool:
    """Return False for a record of an error in orbax, or of a write into an unfinished checkpoint."""
    if OF_ORBAX in record.pathname and any(isinstance(part, BaseException) for part in record.args or ()):
        return False  # a kept record would also keep the error's frames, with the tasks that speak when they go
    if not record.exc_info:
        return True
    if TEMPORARY in str(record.exc_info[1]):  # of a write that nobody waited for: it names a file and has no frames
        return False
    return not (OF_ORBAX in record.pathname or _through_orbax(record.exc_info[2]))


def _through_orbax(trace: Any) -> bool:
    """Return True if a traceback has a frame of orbax."""
    return any(OF_ORBAX in frame.filename for frame in traceback.extract_tb(trace))


def _without_orbax(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return an unraisable hook that passes on to `hook` what does not come from orbax.

    After the first file that fails, orbax leaves the others unfinished, or to call into an event loop that it has
    closed.
    """

    def unraisable(info: Any) -> None:
        if str(info.exc_value) != "Event loop is closed" and not _through_orbax(info.exc_traceback):
            hook(info)

    return unraisable
