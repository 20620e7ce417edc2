"""Processes that are alive but stuck: every process says what it is at, and watches what the others say.

A process that is stopped, or hangs on a disk, keeps its connections, so nothing fails: the others wait for it until some
time-out of the runtime, which names no one. Here each writes a beat into the key-value store of jax's coordination service
and reads everybody's. The store is there on every platform, without a port, a file or clocks that agree: each process
counts how often it looked and found nothing new. It lives in process 0; where it does not answer, process 0 is stuck.

Two threads: one talks to the store and may hang in it, the other only counts, so that nothing keeps it from speaking.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

BEATS = 10  # in the time after which a process is stuck
LONGEST = 5.0  # seconds between two beats at most
PATIENCE = 0.6  # share of that time after which it is named: what is left is for beats under way and for leaving
SUSPICIOUS = 3  # looks without news after which a time-out of the runtime is put down to a process
FOLDER = "xmodal_jax/beats"
ENDED = "ended"

_current: "PeerWatch | None" = None


def at(stage: str) -> None:
    """Note what this process's main thread begins, such as "step 7"; all processes must note the same stages."""
    if _current is not None:
        _current.note(stage)


def suspect() -> str:
    """Who seems to hold up the others, in words; "" for nobody, or where nobody watches."""
    return "" if _current is None else _current.stuck(SUSPICIOUS)


class Job:
    """The beats of all processes as one of them has read them, and how many looks ago each brought something new."""

    def __init__(self, process: int, count: int) -> None:
        self.process = process
        self.beats = {number: (0, 0, "starting") for number in range(count)}  # (beat, stages so far, stage)
        self.seen = dict(self.beats)
        self.silent = dict.fromkeys(range(count), 0)  # looks since its last beat
        self.behind = dict.fromkeys(range(count), 0)  # looks at the same stage, while another one is further
        self.unanswered = 0  # looks since the store answered

    def look(self, answered: bool) -> None:
        """Count one look; `answered`: whether the store has given all beats since the last one."""
        self.unanswered = 0 if answered else self.unanswered + 1
        if not answered:
            return  # of the others nothing is known: the store is in process 0
        beats = dict(self.beats)
        furthest = max((beat[1] for beat in beats.values() if beat[2] != ENDED), default=0)
        for number, (beat, stages, stage) in beats.items():
            before = self.seen[number]
            ended, waited_for = stage == ENDED, 0 < stages < furthest  # the start may take one process longer
            self.silent[number] = 0 if beat != before[0] or ended else self.silent[number] + 1
            still = stages == before[1] and waited_for and not ended
            self.behind[number] = self.behind[number] + 1 if still else 0
        self.seen = beats

    def stuck(self, looks: int, interval: float) -> str:
        """The process without news for `looks` looks of `interval` seconds, in words; "" for none."""
        if self.unanswered >= looks and self.process:
            return self._said(0, "silent for", self.unanswered * interval)
        for counted, how in ((self.silent, "silent for"), (self.behind, "the others have waited for it for")):
            number = max(counted, key=lambda one: (counted[one], -one))
            if counted[number] >= looks and (how != "silent for" or number != self.process):
                return self._said(number, how, counted[number] * interval)
        return ""

    def _said(self, number: int, how: str, seconds: float) -> str:
        own = ", this one," if number == self.process else ""
        return f"process {number} of {len(self.seen)}{own} is stuck: {how} {seconds:.0f} s, last at: {self.seen[number][2]}"


class PeerWatch:
    """Beats for this process and watches the others; a context manager, in every process of a job.

    `leave(said, after)` is called by a thread when a process has brought no news for most of `seconds`; it must end this
    process, `after` so many seconds: process 0 is the last, for jax aborts the others when the store goes. `client` is jax's,
    of the coordination service.
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
        """The main thread begins `stage`."""
        self._at = (self._at[0] + 1, stage)

    def stuck(self, looks: int) -> str:
        """Who has brought no news for so many looks, in words."""
        return self.job.stuck(looks, self.interval)

    def _exchange(self) -> None:
        count = 0
        while not self._closed.wait(self.interval):
            count += 1
            self._trade(count, self._at)
        self._trade(count + 1, (self._at[0], ENDED))

    def _trade(self, count: int, at: tuple[int, str]) -> None:
        """Write the own beat and read all; a store that cannot be reached has not answered."""
        try:
            own = f"{FOLDER}/{self.job.process}"
            self.client.key_value_set(own, json.dumps([count, *at]), allow_overwrite=True)
            for key, value in self.client.key_value_dir_get(FOLDER):
                beat, stages, stage = json.loads(value)
                self.job.beats[int(key.rpartition("/")[2])] = (beat, stages, stage)
            self._answers += 1
        except Exception:  # whatever a store says that is going: the watch counts
            return

    def _watch(self) -> None:
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
