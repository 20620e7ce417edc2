"""Show the package's log on a terminal, for as long as a command or a call lasts."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TextIO


def _is_news(record: logging.LogRecord) -> bool:
    """Return True for a line on how training begins or ends."""
    return record.levelno <= logging.INFO and record.name == "xmodal_jax.training.loop"


@contextlib.contextmanager
def logging_to_terminal(news_to: TextIO | None = None) -> Iterator[None]:
    """Show how training begins and ends on a stream (default: stdout), everything else that is logged on stderr.

    A program that has log handlers of its own keeps them, and is told the rest by these.
    """
    root, package, form = logging.getLogger(), logging.getLogger("xmodal_jax"), logging.Formatter("%(message)s")
    level = package.level
    package.setLevel(logging.INFO)
    news, rest = logging.StreamHandler(news_to or sys.stdout), logging.StreamHandler(sys.stderr)
    news.addFilter(_is_news)
    rest.addFilter(lambda record: not _is_news(record))
    added = [(package, news)] + ([] if root.handlers else [(root, rest)])
    for logger, handler in added:
        handler.setFormatter(form)
        logger.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(level)
        for logger, handler in added:
            logger.removeHandler(handler)
