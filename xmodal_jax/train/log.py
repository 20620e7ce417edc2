"""What a run says while it runs: metrics.jsonl for programs, one line at a time for people."""

import json
import math
import pathlib
import sys
import time
from typing import Any

METRICS_FILE = "metrics.jsonl"


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    whole = int(max(0, seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


class TrainLog:
    """Appends one JSON line per logged step and shows progress with pairs/s and time left."""

    def __init__(self, workdir: pathlib.Path, steps: int, batch_size: int, first_step: int, stream: Any = None) -> None:
        self.path = workdir / METRICS_FILE
        self.steps, self.batch_size = steps, batch_size
        self.stream = stream if stream is not None else sys.stderr
        self.last_step, self.last_time, self.last_wait = first_step, time.perf_counter(), 0.0
        self.rate = self.first_seconds = 0.0
        self._drop_after(first_step)

    def compiled(self, step: int) -> None:
        """The first step is done: its time, mostly compilation, does not count in the rates."""
        now = time.perf_counter()
        self.stream.write(f"first step, compilation included: {duration(now - self.last_time)}\n")
        self.first_seconds = max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now

    def evaluated(self, step: int, mean: dict[str, Any], seconds: float) -> None:
        """Keep the quick evaluation at `step` and say its recalls; its `seconds` do not count in the rates."""
        self.write({"step": step, "eval": mean})
        table = mean["itc"]
        shown = lambda side: " ".join(f"{value:.1f}" for name, value in table[side].items() if name.startswith("R@"))
        sides = (f"{side} {shown(side)}" for side in ("i2t", "t2i"))
        self.stream.write(f"evaluation at step {step}: R@k {', '.join(sides)}, rSum {table['rSum']:.1f}\n")
        self.last_time += seconds

    def _drop_after(self, step: int) -> None:
        """Lines of steps after the checkpoint this run starts from are of a past that did not happen."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # a line torn by a crash
        whole = self.path.with_suffix(".tmp")
        whole.write_text("".join(kept))
        whole.replace(self.path)  # killed here, the old lines are still all there

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def step(self, step: int, metrics: dict[str, float], wait_seconds: float, flops: float = 0.0) -> None:
        """Log the mean rate since the last call, the share of time spent waiting for data, and the losses."""
        now = time.perf_counter()
        passed, count = max(now - self.last_time, 1e-9), step - self.last_step
        if not count:  # the first step is logged too
            passed, count = self.first_seconds, 1
        rate = count * self.batch_size / passed
        self.rate = rate if not self.rate else 0.7 * self.rate + 0.3 * rate
        wait = (wait_seconds - self.last_wait) / passed
        self.last_step, self.last_time, self.last_wait = step, now, wait_seconds
        record = {"step": step, "pairs": step * self.batch_size, "pairs_per_s": rate, "data_wait": wait}
        if flops:
            record["tflop_per_s"] = flops * rate / 1e12
        record |= {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self.write(record)
        left = (self.steps - step) * self.batch_size / max(self.rate, 1e-9)
        self._show(step, metrics, rate, wait, left)

    def _show(self, step: int, metrics: dict[str, float], rate: float, wait: float, left: float) -> None:
        bar = "#" * round(20 * step / self.steps)
        losses = " ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in metrics.items() if k.startswith("loss/"))
        text = f"[{bar:<20}] {step}/{self.steps}  {rate:.0f} pairs/s  {duration(left)} left  wait {100 * wait:.0f} %  {losses}"
        end = "\n" if not self.stream.isatty() or step >= self.steps else ""
        self.stream.write(("\r\x1b[K" if self.stream.isatty() else "") + text + end)
        self.stream.flush()
