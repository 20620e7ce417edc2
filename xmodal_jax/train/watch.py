"""Steps that were skipped because something was not finite: named as they happen, and the end after too many in a row."""

import logging
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)

LOSS, GRADIENT = "loss/", "nonfinite/"


def cause(metrics: dict[str, float]) -> str:
    """What was not finite in a skipped step: objectives by name, or else the modules whose gradient was not."""
    bad = [name.removeprefix(LOSS) for name, x in metrics.items() if name.startswith(LOSS) and not np.isfinite(x)]
    if bad:
        return f"the loss of {', '.join(bad)} is not finite"
    modules = [name.removeprefix(GRADIENT) for name, x in metrics.items() if name.startswith(GRADIENT) and x]
    return f"every loss is finite but the gradient is not (of {', '.join(modules)})"


class SkipWatch:
    """Looks at each step when the next one has been sent, so that the device never waits for the host."""

    def __init__(self, limit: int, say: Any = log.warning) -> None:
        self.limit, self.say = limit, say
        self._waiting: tuple[int, dict[str, Any]] | None = None

    def sent(self, step: int, metrics: dict[str, Any]) -> None:
        """`step` is under way, with these metrics; the one before is looked at. Raises UserError after too many skips."""
        self.finish()
        self._waiting = (step, metrics)

    def finish(self) -> None:
        """Look at the last step that was sent."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or not int(waiting[1]["skips_in_row"]):
            return
        step, metrics = waiting[0], {name: float(value) for name, value in waiting[1].items()}
        self.say(f"step {step}: update skipped, {cause(metrics)}; skipped {int(metrics['skipped'])} in all")
        if metrics["skips_in_row"] >= self.limit:
            raise UserError(
                f"{self.limit} steps in a row were skipped: {cause(metrics)}; lower config.optimizer.lr or look at the "
                "data, then run again: it goes on from the last checkpoint, or starts anew where there is none yet"
            )
