"""Move host batches to sharded device arrays, one step ahead of the computation."""

import collections
import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Sharding

from xmodal_jax.data.loader import Loader
from xmodal_jax.types import Batch


def to_device(batch: dict[str, np.ndarray], sharding: Sharding | dict[str, Sharding]) -> Batch:
    """Return global arrays made of this process's rows of each field.

    `sharding` is one `jax.sharding.Sharding` for all fields or a dict with one per field; a batch's leading axis is the
    global batch, of which every process passes its own contiguous part. The copy is asynchronous.
    """
    shardings = sharding if isinstance(sharding, dict) else dict.fromkeys(batch, sharding)
    return {name: jax.make_array_from_process_local_data(shardings[name], rows) for name, rows in batch.items()}


class Prefetch(contextlib.AbstractContextManager):
    """Device batches of a loader, `depth` of them in flight, so that copies overlap with the step.

    `cursor` counts the examples handed out, not those in flight: a checkpoint stores it. Closing it closes the loader.
    """

    def __init__(self, loader: Loader, sharding: Sharding | dict[str, Sharding], depth: int = 2):
        self.loader, self.sharding, self.depth = loader, sharding, depth
        self.cursor = loader.cursor
        self._ready: collections.deque[Batch] = collections.deque()

    @property
    def wait_seconds(self) -> float:
        """Seconds spent waiting for the loader so far."""
        return self.loader.wait_seconds

    @property
    def bad_rows(self) -> int:
        """Rows that the loader could not read so far."""
        return self.loader.bad_rows

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._ready) < self.depth:
            self._ready.append(self._copied(next(self.loader)))
        self.cursor += self.loader.dataset.batch_size
        return self._ready.popleft()

    def _copied(self, batch: dict[str, np.ndarray]) -> Batch:
        """Start the copy of a batch to the devices."""
        watch = self.loader.watch
        watch.begin()
        watch.activity.note("copying to the devices the batch before example", self.loader.cursor)
        try:
            return to_device(batch, self.sharding)
        finally:
            watch.activity.done()
            watch.end()

    def close(self) -> None:
        """Drop the batches in flight and close the loader."""
        self._ready.clear()
        self.loader.close()

    def __exit__(self, *error: object) -> None:
        self.close()
