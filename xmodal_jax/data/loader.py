"""The batches of a `TrainDataset` one after the other, made ahead of time by threads."""

import collections
import concurrent.futures
import time
from collections.abc import Callable

from xmodal_jax.data.pipeline import Arrays, TrainDataset
from xmodal_jax.data.stall import Watch


class Loader:
    """Iterates over the batches of a `TrainDataset` from a cursor, made ahead of time by threads.

    `cursor`: the example that the next batch begins with. `wait_seconds`: time spent waiting for data so far (the stall
    meter); a wait of `config.data.stall_seconds` is a warning that names what each thread is at. `bad_rows`: rows that
    could not be read. `threads` and `prefetch` are the config's unless given; threads are enough, for decoders and the
    tokenizer release the interpreter lock. Close it, or use it in `with`.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        cursor: int = 0,
        process: int = 0,
        count: int = 1,
        threads: int = 0,
        prefetch: int = 0,
    ):
        cfg = dataset.split.cfg
        self.dataset, self.cursor, self.wait_seconds = dataset, cursor, 0.0
        self._share, self._prefetch, self._ahead = (process, count), prefetch or cfg.prefetch, cursor
        self.watch = Watch(dataset.split.stages, cfg.stall_seconds)
        self._threads = concurrent.futures.ThreadPoolExecutor(threads or cfg.threads, "batch")
        self._waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        self.poll: Callable[[], None] | None = None  # called each second of a wait; what it raises ends the wait
        self.stuck = False  # whether a thread was left where it hung

    @property
    def bad_rows(self) -> int:
        """Rows that could not be read so far, by this process; each was replaced by the next one."""
        return len(self.dataset.bad.rows)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Arrays:
        while len(self._waiting) < self._prefetch:
            self._waiting.append(self._threads.submit(self.dataset.batch_from, self._ahead, *self._share))
            self._ahead += self.dataset.batch_size
        started = time.perf_counter()
        self.watch.begin()
        try:
            batch = self._result(self._waiting.popleft())
        finally:
            self.watch.end()
        self.wait_seconds += time.perf_counter() - started
        self.cursor += self.dataset.batch_size
        return batch

    def _result(self, future: concurrent.futures.Future) -> Arrays:
        if self.poll is None:
            return future.result()
        while not concurrent.futures.wait([future], timeout=1.0).done:
            try:
                self.poll()
            except BaseException:
                self.stuck = True
                raise
        return future.result()

    def close(self) -> None:
        """Stop the threads; batches made ahead are dropped. A thread that hangs is not waited for."""
        self._threads.shutdown(wait=not self.stuck, cancel_futures=True)
        self._waiting.clear()
        self.watch.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error) -> None:
        self.close()
