"""A record of what the threads of a loader are doing, and a watch that logs it when a batch does not come.

A disk that hangs, a mount that is gone or a slow tokenizer all look the same from the train step: it waits. The threads
therefore note what they begin, which costs a dictionary write, and a watch reads it when a wait has been long.
"""

import logging
import threading
import time

log = logging.getLogger(__name__)


class Activity:
    """{thread: (what, row, where, since)} of the threads that are busy.

    There are no locks, since a thread writes only its own entry.
    """

    def __init__(self) -> None:
        self._at: dict[str, tuple[str, int, str, float]] = {}

    def note(self, what: str, row: int, where: str = "") -> None:
        """Note that this thread begins `what` ("reading") with number `row` ("row 7") of `where`."""
        self._at[threading.current_thread().name] = (what, row, where, time.monotonic())

    def done(self) -> None:
        """Note that this thread is no longer busy."""
        self._at.pop(threading.current_thread().name, None)

    def described(self) -> str:
        """Return one clause for each busy thread: its name, what it does, and for how long."""
        now, at = time.monotonic(), dict(self._at)
        return "; ".join(
            f"thread {name} is {what} {row}{f' of {where}' if where else ''} for {now - since:.1f} s"
            for name, (what, row, where, since) in sorted(at.items())
        )


class Watch:
    """A watch that warns in the log when a wait lasts `seconds`, and again after twice, four times ... as long.

    `begin` and `end` mark a wait and may be nested (the outermost counts); the watch itself is a
    thread that mostly sleeps.
    """

    def __init__(self, activity: Activity, seconds: float) -> None:
        self.activity, self.seconds = activity, seconds
        self._depth, self._since = 0, None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Begin a wait, or a wait inside one."""
        self._depth += 1
        if self._depth == 1:
            self._since = time.monotonic()

    def end(self) -> None:
        """End the wait that began last."""
        self._depth -= 1
        if not self._depth:
            self._since = None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        """Sleep, and warn when a wait has been too long."""
        seen, limit = None, self.seconds
        while not self._closed.wait(self.seconds / 4):
            since = self._since
            if since != seen:
                seen, limit = since, self.seconds
            waited = time.monotonic() - since if since is not None else 0.0
            if waited >= limit:
                log.warning(
                    "no training batch for %.1f s: %s", waited, self.activity.described() or "no thread is busy"
                )
                limit *= 2
