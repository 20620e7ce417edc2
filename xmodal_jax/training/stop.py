"""Asked to stop: SIGTERM and SIGINT as something that the loop and an evaluation poll between two pieces of work."""

import signal
from typing import Any

import jax


class Stopped(Exception):
    """Raised by `StopSignal.check` inside an evaluation that must end now."""


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag, so that the loop saves before it leaves.

    Signals are handled only inside its context, in the main thread, and unless `handle` is False.

    With several processes the signal may come to any of them: jax's preemption service then names a poll, the same for
    all, at which every process sees it. So all must poll equally often.
    """

    def __init__(self, handle: bool = True) -> None:
        self.handle = handle
        self.seen = 0  # the number of the signal
        self._polls = 0
        self._interrupted = False
        self._together = jax.process_count() > 1
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if not self.handle:
            return self
        # With several processes the service has a handler for SIGTERM of its own, which Python's would replace.
        handlers = (
            {signal.SIGINT: self._to_all} if self._together else {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        )
        for number, handler in handlers.items():
            try:
                self._old[number] = signal.signal(number, handler)
            except ValueError:  # not in the main thread: nothing to catch
                return self
        return self

    def _note(self, number: int, _: Any) -> None:
        """Keep the signal's number and let a second one end the process."""
        self.seen = number
        signal.signal(number, self._old[number])  # a second one ends the process at once

    def _to_all(self, number: int, _: Any) -> None:
        """Turn SIGINT into SIGTERM, of which jax's service tells the other processes."""
        self._interrupted = True
        signal.signal(number, self._old[number])
        signal.raise_signal(signal.SIGTERM)

    def poll(self) -> bool:
        """Return True if it is time to stop."""
        if self._together and not self.seen:
            from jax.experimental.multihost_utils import reached_preemption_sync_point

            self._polls += 1
            if reached_preemption_sync_point(self._polls):
                self.seen = signal.SIGINT if self._interrupted else signal.SIGTERM
        return bool(self.seen)

    def check(self) -> None:
        """Raise `Stopped` when it is time to stop."""
        if self.poll():
            raise Stopped

    def check_alone(self) -> None:
        """Do as `check` with one process, and nothing with several,
        which must poll equally often: for waits of one alone.
        """
        if not self._together:
            self.check()

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
