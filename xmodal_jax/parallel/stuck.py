"""Detect processes that are alive but stuck: each one reports its stage, and watches the reports of the others.

A process that is stopped, or hangs on a disk, keeps its connections, so nothing fails: the others wait for it until
some time-out of the runtime, which names no one. Here each process writes a beat into the key-value store of jax's
coordination service and reads everybody's. The store is there on every platform and needs no port, file or synchronised
clock: each process counts how often it looked and found nothing new. The store lives in process 0; if it does not
answer, process 0 is stuck.

Two threads: one talks to the store and may hang in it; the other only counts, so nothing can keep it from acting. They
run while a `PeerWatch` is entered; importing this module starts nothing.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

BEATS = 10  # in the time after which a process counts as stuck
LONGEST = 5.0  # seconds between two beats at most
PATIENCE = 0.6  # share of that time after which it is named: the rest is for beats under way and for leaving
SUSPICIOUS = 3  # looks without news after which a process is blamed for a time-out of the runtime
FOLDER = "xmodal_jax/beats"
ENDED = "ended"

_current: "PeerWatch | None" = None


def at(stage: str) -> None:
    """Note the stage that the main thread begins, such as "step 7"; all processes note the same stages."""
    if _current is not None:
        _current.note(stage)


def suspect() -> str:
    """Name the process that seems to hold up the others; "" if there is none, or no watch."""
    return "" if _current is None else _current.stuck(SUSPICIOUS)


class Job:
    """The beats of all processes as one of them has read them, and how many looks ago each brought something new."""

    def __init__(self, process: int, count: int) -> None:
        self.process = process
        self.beats = {number: (0, 0, "starting") for number in range(count)}  # (beat, stages so far, stage)
        self.seen = dict(self.beats)
        self.silent = dict.fromkeys(range(count), 0)  # looks since its last beat
        self.behind = dict.fromkeys(range(count), 0)  # looks at the same stage, while another one is further
        self.unanswered = 0  # looks since the store last answered

    def look(self, answered: bool) -> None:
        """Count one look; `answered` says whether the store has given all beats since the last one."""
        self.unanswered = 0 if answered else self.unanswered + 1
        if not answered:
            return  # nothing is known of the others: the store is in process 0
        beats = dict(self.beats)
        furthest = max((beat[1] for beat in beats.values() if beat[2] != ENDED), default=0)
        for number, (beat, stages, stage) in beats.items():
            before = self.seen[number]
            ended, waited_for = stage == ENDED, 0 < stages < furthest  # one process may take longer to start
            self.silent[number] = 0 if beat != before[0] or ended else self.silent[number] + 1
            still = stages == before[1] and waited_for and not ended
            self.behind[number] = self.behind[number] + 1 if still else 0
        self.seen = beats

    def stuck(self, looks: int, interval: float) -> str:
        """Describe the process without news for `looks` looks of `interval` seconds; "" if there is none."""
        if self.unanswered >= looks and self.process:
            return self._said(0, "silent for", self.unanswered * interval)
        for counted, how in ((self.silent, "silent for"), (self.behind, "the others have waited for it for")):
            number = max(counted, key=lambda one: (counted[one], -one))
            if counted[number] >= looks and (how != "silent for" or number != self.process):
                return self._said(number, how, counted[number] * interval)
        return ""

    def _said(self, number: int, how: str, seconds: float) -> str:
        """Write the sentence for a stuck process."""
        own = ", this one," if number == self.process else ""
        who, stage = f"process {number} of {len(self.seen)}{own}", self.seen[number][2]
        return f"{who} is stuck: {how} {seconds:.0f} s, last at: {stage}"


class PeerWatch:
    """A context manager that sends this process's beats and watches the others; every process of a job enters one.

    A thread calls `leave(said, after)` when a process has brought no news for most of `seconds`. `leave` must end this
    process after `after` seconds: process 0 goes last, because jax aborts the others when the store goes. `client` is
    the client of jax's coordination service.
    """

    def __init__(
        self, seconds: float, leave: Callable[[str, float], None], client: Any, process: int, count: int
    ) -> None:
        self.interval = min(LONGEST, seconds / BEATS)
        self.looks = max(SUSPICIOUS, round(PATIENCE * seconds / self.interval))
        self.job, self.leave, self.client = Job(process, count), leave, client
        self._at, self._answers = (0, "starting"), 0
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in ((self._exchange, "beats"), (self._watch, "peer-watch"))
        ]

    def note(self, stage: str) -> None:
        """Record that the main thread begins `stage`."""
        self._at = (self._at[0] + 1, stage)

    def stuck(self, looks: int) -> str:
        """Describe the process without news for this many looks; "" if there is none."""
        return self.job.stuck(looks, self.interval)

    def _exchange(self) -> None:
        """Trade beats at every interval until the watch closes, then send a last one that says so."""
        count = 0
        while not self._closed.wait(self.interval):
            count += 1
            self._trade(count, self._at)
        self._trade(count + 1, (self._at[0], ENDED))

    def _trade(self, count: int, at: tuple[int, str]) -> None:
        """Write this process's beat and read all; a store that cannot be reached counts as no answer."""
        try:
            own = f"{FOLDER}/{self.job.process}"
            self.client.key_value_set(own, json.dumps([count, *at]), allow_overwrite=True)
            for key, value in self.client.key_value_dir_get(FOLDER):
                beat, stages, stage = json.loads(value)
                self.job.beats[int(key.rpartition("/")[2])] = (beat, stages, stage)
            self._answers += 1
        except Exception:  # a store that is going may raise anything: the watch counts the missing answer
            return

    def _watch(self) -> None:
        """Count looks at every interval, and call `leave` once a process is stuck."""
        answers = 0
        while not self._closed.wait(self.interval):
            before, answers = answers, self._answers
            self.job.look(answers != before)
            said = self.stuck(self.looks)
            if said and not self._closed.is_set():
                self.leave(said, 2 * self.interval if self.job.process == 0 else 0.0)

    def __enter__(self) -> "PeerWatch":
        global _current
        _current = self
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = None
        self._closed.set()
        for thread in self._threads:
            thread.join(self.interval + 1.0)
