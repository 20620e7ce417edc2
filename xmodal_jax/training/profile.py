"""A profiler trace of some steps of a run."""

import logging
import pathlib
from typing import Any

import jax

from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)


class Profile:
    """A profiler trace of the steps `first` to `last`, in `folder`; nothing without them."""

    def __init__(self, folder: pathlib.Path, first: int, last: int) -> None:
        self.folder = folder / f"process{jax.process_index()}" if jax.process_count() > 1 else folder
        self.first, self.last, self._on = first, last, False

    def check(self, first: int, last: int) -> None:
        """Refuse steps that a run from step `first` to `last` does not take."""
        if self.last and not first < self.last <= last:
            raise UserError(
                f"profile ends at step {self.last}, and this run takes steps {first + 1} to {last}; write some of these"
            )

    def before(self, step: int) -> None:
        """Start where the trace begins."""
        if self.last and not self._on and self.first <= step <= self.last:
            jax.profiler.start_trace(str(self.folder))
            self._on = True

    def after(self, step: int, metrics: Any) -> None:
        """Stop where it ends, once the step is done."""
        if self._on and step >= self.last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Write the trace when one is under way."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            log.info("wrote the trace to '%s'", self.folder)
