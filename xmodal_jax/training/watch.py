"""Look at each step: updates that were skipped because something was not finite, and batches without a negative."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)

LOSS, GRADIENT = "loss/", "nonfinite/"


def cause(metrics: dict[str, float]) -> str:
    """Return what was not finite in a skipped step: objectives by name, or else the modules whose gradient was not."""
    bad = [name.removeprefix(LOSS) for name, x in metrics.items() if name.startswith(LOSS) and not np.isfinite(x)]
    if bad:
        return f"the loss of {', '.join(bad)} is not finite"
    modules = [name.removeprefix(GRADIENT) for name, x in metrics.items() if name.startswith(GRADIENT) and x]
    return f"every loss is finite but the gradient is not (of {', '.join(modules)})"


FIRST_BATCHES = 3  # so many at the start without one negative end the run


class SkipWatch:
    """Looks at each step when the next one has been sent, so that the device never waits for the host.

    `contrasting` names the objectives that need negatives: one that has none in a batch is said, once, and one that has
    none in any of the first batches ends the run.
    """

    def __init__(self, limit: int, say: Callable[[str], None] = log.warning, contrasting: tuple[str, ...] = ()) -> None:
        self.limit, self.say, self.contrasting = limit, say, contrasting
        self._waiting: tuple[int, dict[str, Any]] | None = None
        self._said: set[str] = set()
        self._alone = set(contrasting)  # those that have met no negative yet
        self._looked = 0

    def sent(self, step: int, metrics: dict[str, Any]) -> None:
        """Note that `step` is under way with these metrics, and look at the one before.

        Raises UserError after too many skips.
        """
        self.finish()
        self._waiting = (step, metrics)

    def finish(self) -> None:
        """Look at the last step that was sent."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        self._look_for_negatives(*waiting)
        if not int(waiting[1]["skips_in_row"]):
            return
        step, metrics = waiting[0], {name: float(value) for name, value in waiting[1].items()}
        self.say(f"step {step}: update skipped, {cause(metrics)}; skipped {int(metrics['skipped'])} in all")
        if metrics["skips_in_row"] >= self.limit:
            raise UserError(
                f"{self.limit} steps in a row were skipped: {cause(metrics)}; lower config.optimizer.lr or look at the "
                "data, then run again: it goes on from the last checkpoint, or starts anew where there is none yet"
            )

    def _look_for_negatives(self, step: int, metrics: dict[str, Any]) -> None:
        """Say which objectives have no negative in this batch. Raises
        UserError where none of the first batches has one.
        """
        if not self.contrasting:
            return
        rows = {name: metrics.get(f"{name}/rows", metrics["negatives"]) for name in self.contrasting}
        lacking = [name for name, count in rows.items() if not float(count)]
        new = [name for name in lacking if name not in self._said]
        self._said.update(new)
        self._alone.intersection_update(lacking)
        self._looked += 1
        if new:
            self.say(
                f"step {step}: {', '.join(new)}: no negative in this batch, for all rows show the same thing or carry "
                "the same caption; its loss says nothing (this is said once)"
            )
        if self._alone and self._looked == FIRST_BATCHES:
            raise UserError(
                f"none of the first {FIRST_BATCHES} batches has a negative for {', '.join(sorted(self._alone))}: all "
                "rows show the same thing or carry the same caption; write a larger config.batch_size, or look at the "
                "data"
            )
