"""Log a run while it runs: metrics.jsonl for programs, one line at a time for people."""

import io
import json
import logging
import math
import pathlib
import time
from typing import Any, TextIO

import jax

from xmodal_jax.atomic import write_file
from xmodal_jax.eval.tables import flat
from xmodal_jax.training.writers import Writer

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
PACE_STEPS = 5  # steps after the first one by which the time that a run takes is told


def duration(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    whole = int(max(0, seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def roughly(seconds: float) -> str:
    """Return seconds in words, as a person would say them: "40 seconds", "12 minutes", "3.5 hours", "2.1 days"."""
    if seconds < 100:
        return f"{max(round(seconds), 1)} second{'' if round(seconds) <= 1 else 's'}"
    if seconds < 100 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def recall_text(side: dict[str, float]) -> str:
    """Return the recalls of one direction in percent with their k, which end at the size of the gallery.

    Examples:
      >>> recall_text({"R@1": 12.34, "R@5": 30.0, "median_rank": 7.0}), recall_text({"R@1": 9.0})
      ('R@1/5 12.3 30.0', 'R@1 9.0')
    """
    found = {name.removeprefix("R@"): value for name, value in side.items() if name.startswith("R@")}
    return " ".join([f"R@{'/'.join(found)}", *(f"{value:.1f}" for value in found.values())])


def memory_gb() -> float:
    """Return the memory in use, 10^9 bytes: of the fullest local
    device, or of this process where devices do not tell (CPU).
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = max((one.get("bytes_in_use", 0) for one in stats), default=0)
    if not used:
        import resource

        used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the largest so far, in KiB on Linux
    return used / 1e9


def read_log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Read the records of a run's log; lines torn by a crash are left out. Raises FileNotFoundError without a log."""
    found = []
    for line in (workdir / METRICS_FILE).read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            found.append(record)
    return found


class TrainLog:
    """Appends one JSON line per logged step and shows progress with pairs/s and time left.

    stream: shows progress, on a terminal as a line that is rewritten; None: lines go to this module's logger. flops: of
    one pair in training; peak: FLOP/s of all devices together (0: unknown), for MFU; seen: pairs before
    `first_step`, whatever the batch size was then. Of several processes only the first (`active`) writes anything.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        steps: int,
        batch_size: int,
        first_step: int,
        stream: TextIO | None = None,
        flops: float = 0.0,
        peak: float = 0.0,
        events: Writer | None = None,
        active: bool = True,
        seen: int = 0,
    ) -> None:
        self.path = workdir / METRICS_FILE
        self.steps, self.batch_size, self.flops, self.peak = steps, batch_size, flops, peak
        self.events, self.active = events, active
        self.first_step, self.seen = first_step, seen
        self.stream = stream if active else io.StringIO()
        self.last_step, self.last_time, self.last_wait = first_step, time.perf_counter(), 0.0
        self.rate = self.first_seconds = 0.0
        self._open_line = False  # a progress line that the next one overwrites
        self.evaluations: dict[int, dict[str, Any]] = {}  # by step
        self._ends: set[int] = set()  # steps at which the run stopped early
        self._pace = (first_step, self.last_time)  # step and time of the last step that counts no rate
        if active:
            self._drop_after(first_step)

    def compiled(self, step: int, wait_seconds: float = 0.0) -> None:
        """Note that the first step is done: its time, mostly compilation, does not count in the rates, nor the wait."""
        now = time.perf_counter()
        self.say(f"first step, compilation included: {duration(now - self.last_time)}")
        self.first_seconds = max(now - self.last_time, 1e-9)
        self.last_step, self.last_time, self.last_wait = step, now, wait_seconds
        self._pace = (step, now)

    def pace(self, step: int) -> None:
        """Say how long the run takes from here, by the steps since the first one."""
        first, began = self._pace
        rate = (step - first) / max(time.perf_counter() - began, 1e-9)
        if step < self.steps:
            left = roughly((self.steps - step) / rate)
            self.say(f"about {left} to go ({rate:.3g} steps/s, {rate * self.batch_size:.3g} pairs/s)")

    def stopped_early(self, step: int, standing: dict[str, Any]) -> None:
        """Keep that the run stopped at `step` because its evaluations got no better, once for each step."""
        if step not in self._ends:
            self.write({"step": step, "stopped_early": standing})
        self._ends.add(step)

    def say(self, text: str) -> None:
        """Show one line."""
        if self.stream is None:
            log.info("%s", text)
            return
        self.stream.write(("\n" if self._open_line else "") + text + "\n")
        self._open_line = False
        self.stream.flush()

    def evaluated(self, step: int, mean: dict[str, Any], seconds: float) -> None:
        """Keep the quick evaluation at `step` and say its recalls; its `seconds` do not count in the rates."""
        self.write({"step": step, "eval": mean})
        self.evaluations[step] = mean
        if self.events is not None:
            self.events.write(step, {f"eval/{name}": value for name, value in flat(mean).items()})
        table = mean["itc"]
        sides = ", ".join(f"{side} {recall_text(table[side])}" for side in ("i2t", "t2i"))
        self.say(f"evaluation at step {step}: {sides}, rSum {table['rSum']:.1f}")
        for name, own in mean.get("evals", {}).items():
            self.say(f"{name} at step {step}: " + ", ".join(f"{path} {value:.3g}" for path, value in flat(own).items()))
        self.leave_out(seconds)

    def leave_out(self, seconds: float) -> None:
        """Count seconds that were no training in no rate."""
        self.last_time += seconds
        self._pace = (self._pace[0], self._pace[1] + seconds)

    def _drop_after(self, step: int) -> None:
        """Drop lines of steps after the checkpoint that this run starts from: they come again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text("utf-8").splitlines():
            try:
                record = json.loads(line)
                if record["step"] <= step:
                    kept.append(line + "\n")
                    self.evaluations |= {record["step"]: record["eval"]} if "eval" in record else {}
                    self._ends |= {record["step"]} if "stopped_early" in record else set()
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a crash
        write_file(self.path, "".join(kept))  # killed here, the old lines are still all there

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        if not self.active:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:  # a full disk: writing, unlike opening, does not say where
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def step(self, step: int, metrics: dict[str, float], wait_seconds: float, **counts: float) -> None:
        """Log the mean rate since the last call, MFU, the share of time spent waiting for data, memory and the losses.

        counts: more numbers for the record, such as bad_rows and lr.
        """
        now = time.perf_counter()
        passed, count = max(now - self.last_time, 1e-9), step - self.last_step
        if not count:  # the first step is logged too
            passed, count = self.first_seconds, 1
        rate = count * self.batch_size / passed
        self.rate = rate if not self.rate else 0.7 * self.rate + 0.3 * rate
        wait = (wait_seconds - self.last_wait) / passed
        self.last_step, self.last_time, self.last_wait = step, now, wait_seconds
        pairs = self.seen + (step - self.first_step) * self.batch_size
        record = {"step": step, "pairs": pairs, "pairs_per_s": rate, "data_wait": wait}
        if self.flops:
            record["tflop_per_s"] = self.flops * rate / 1e12
        if self.flops and self.peak:
            record["mfu"] = self.flops * rate / self.peak
        record |= {"memory_gb": memory_gb(), **counts}
        shown = {name: value for name, value in metrics.items() if not name.startswith("nonfinite/") or value}
        record |= {name: value if math.isfinite(value) else None for name, value in shown.items()}
        self.write(record)
        if self.events is not None:
            self.events.write(step, {name: value for name, value in record.items() if name != "step"})
        self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        """Show the line of a logged step."""
        step = record["step"]
        left = duration((self.steps - step) * self.batch_size / max(self.rate, 1e-9))
        parts = [f"[{'#' * round(20 * step / self.steps):<20}] {step}/{self.steps}"]
        parts.append(f"{record['pairs_per_s']:.0f} pairs/s")
        parts += [f"MFU {100 * record['mfu']:.0f} %"] if "mfu" in record else []
        parts += [f"{left} left", f"wait {100 * record['data_wait']:.0f} %", f"{record['memory_gb']:.1f} GB"]
        losses = (f"{k.removeprefix('loss/')} {_short(v)}" for k, v in record.items() if k.startswith("loss/"))
        parts.append(" ".join(losses))
        parts += [f"{text} {record[name]:.2g}" for text, name in SHOWN if record.get(name) is not None]
        parts += [f"{text} {record[name]:.0f}" for text, name in COUNTED if record.get(name)]
        if self.stream is None:
            log.info("%s", "  ".join(parts))
            return
        end = "\n" if not self.stream.isatty() or step >= self.steps else ""
        self._open_line = not end
        self.stream.write(("\r\x1b[K" if self.stream.isatty() else "") + "  ".join(parts) + end)
        self.stream.flush()

    def close(self) -> None:
        """Write what is buffered, and end the progress line."""
        if self._open_line and self.stream is not None:
            self.stream.write("\n")
        if self.events is not None:
            self.events.close()


SHOWN = (("drift", "teacher/drift"), ("temperature", "itc/temperature"))
COUNTED = (("skipped", "skipped"), ("bad rows", "bad_rows"))  # said when there are any


def _short(value: float | None) -> str:
    """Return a loss as text."""
    return "not finite" if value is None else f"{value:.3f}"
