"""Show the package's log, for as long as a command or a call lasts."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TextIO


def _is_news(record: logging.LogRecord) -> bool:
    """Return True for a line on how training begins or ends."""
    return record.levelno <= logging.INFO and record.name == "xmodal_jax.training.loop"


@contextlib.contextmanager
def _handling(*added: tuple[logging.Logger, logging.Handler]) -> Iterator[None]:
    """Add handlers to loggers, and let the package log from INFO on unless the program has chosen a level for it."""
    package = logging.getLogger("xmodal_jax")
    level = package.level
    if level == logging.NOTSET:
        package.setLevel(logging.INFO)
    for logger, handler in added:
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(level)
        for logger, handler in added:
            logger.removeHandler(handler)


@contextlib.contextmanager
def logging_to_terminal() -> Iterator[None]:
    """Show how training begins and ends on stdout, everything else that any package logs on stderr: for a command.

    A program that has log handlers of its own keeps them, and is told the rest by these.
    """
    root, news, rest = logging.getLogger(), logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    news.addFilter(_is_news)
    rest.addFilter(lambda record: not _is_news(record))
    with _handling((logging.getLogger("xmodal_jax"), news), *([] if root.handlers else [(root, rest)])):
        yield


class LastResort(logging.Handler):
    """Show a record that no other handler takes as Python does where there is none: from warnings on, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show the record, unless another handler does."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        own = [handler for handler in logging.getLogger().handlers if isinstance(handler, LastResort)]
        taken = own[:1] != [self]  # of two threads that hold one each, one shows
        while logger is not None and not taken:
            taken = any(not isinstance(handler, LastResort) for handler in logger.handlers)
            logger = logger.parent if logger.propagate else None
        if not taken and logging.lastResort and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Keep a root logger without handlers from getting one: of orbax and array_record the first line would add it.

    It would stay, so that a program's own `logging.basicConfig` did nothing from then on. Until the context ends,
    warnings are shown as Python shows them where there is no handler.
    """
    root, held = logging.getLogger(), LastResort()
    if not all(isinstance(handler, LastResort) for handler in root.handlers):
        yield
        return
    root.addHandler(held)
    try:
        yield
    finally:
        root.removeHandler(held)


@contextlib.contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Show what is logged on a stream: for a call from Python, whose program may have set up no logging.

    Where it has, such as by `logging.basicConfig`, nothing is added and its own handlers show each line, once. Else the
    root logger has a handler until the context ends: without any, orbax's first line would give it one for good.
    """
    own = logging.getLogger("xmodal_jax").hasHandlers()
    with _handling(*([] if own else [(logging.getLogger(), logging.StreamHandler(stream))])):
        yield
