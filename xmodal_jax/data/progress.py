"""One line of progress for jobs over a known or unknown number of items: count, rate and time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

TERMINAL_SECONDS, LOG_SECONDS = 0.2, 15.0
BAR_WIDTH = 24


def progress_line(title: str, unit: str, done: int, total: int, seconds: float) -> str:
    """Return a line such as "prepare [###### ] 40/80 records, 20/s, 0:02 left"; without a total only count and rate."""
    rate = done / seconds if seconds > 0 else 0.0
    speed = f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
    if not total:
        return f"{title}: {done} {unit}, {speed}"
    filled = min(BAR_WIDTH, BAR_WIDTH * done // total)
    left = max(0, total - done) / rate if rate > 0 else 0.0
    bar = "#" * filled + " " * (BAR_WIDTH - filled)
    return f"{title} [{bar}] {done}/{total} {unit}, {speed}, {int(left) // 60}:{int(left) % 60:02d} left"


class Progress(Generic[T]):
    """Iterate over `items` and show the progress on stderr: in place on a terminal, a line every 15 s in a log.

    `total` 0 means unknown. With `size`, an item counts for `size(item)` units. With `late`, nothing is shown if the
    work ends before the first line would be due in a log.
    """

    def __init__(
        self,
        items: Iterable[T],
        title: str,
        unit: str,
        total: int = 0,
        size: Callable[[T], int] | None = None,
        late: bool = False,
    ):
        self.items, self.title, self.unit, self.total, self.size = items, title, unit, total, size
        self.late = late

    def __iter__(self) -> Iterator[T]:
        started = shown = time.perf_counter()
        terminal, done = sys.stderr.isatty(), 0
        for item in self.items:
            yield item
            done += 1 if self.size is None else self.size(item)
            now = time.perf_counter()
            due = now - started > LOG_SECONDS or not self.late
            if due and now - shown > (TERMINAL_SECONDS if terminal else LOG_SECONDS):
                self._show(done, now - started, "\r" if terminal else "\n")
                shown = now
        if shown > started or not self.late:
            self._show(done, time.perf_counter() - started, "\n")

    def _show(self, done: int, seconds: float, end: str) -> None:
        """Print one line."""
        line = progress_line(self.title, self.unit, done, self.total, seconds)
        # on a terminal the next line overwrites this one; blanks cover a longer line that was there before
        with contextlib.suppress(BrokenPipeError):  # the reader of stderr is gone; the work goes on
            print(line.ljust(80), end=end, file=sys.stderr, flush=True)
