"""The batches of a `TrainDataset`, one after the other, made ahead of time by threads."""

import collections
import concurrent.futures
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from xmodal_jax.data.split import Arrays
from xmodal_jax.data.stall import Watch
from xmodal_jax.data.train import TrainDataset

LEAVE = 3.0  # seconds that closing waits for the batches under way
_left: list[threading.Thread] = []


def threads_left() -> bool:
    """Return True if a thread of a closed loader still hangs.

    Such a process must end without Python's own exit, which may abort.
    """
    return any(thread.is_alive() for thread in _left)


class Threads:
    """Daemon threads that run calls in their order.

    The threads of Python's own pool are waited for at exit, even if one hangs.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable, *args: Any) -> concurrent.futures.Future:
        """Return the future result of `call(*args)`."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._calls.put((future, call, args))
        return future

    def _run(self) -> None:
        """Run calls until the end is queued."""
        while (item := self._calls.get()) is not None:
            future, call, args = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call(*args))
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)

    def close(self, seconds: float) -> bool:
        """End the threads after the calls under way, and drop the others; return True if they end within `seconds`."""
        until = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while item := self._calls.get_nowait():
                item[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        alive = [thread for thread in self._threads if thread.is_alive()]
        _left.extend(alive)
        return not alive


class Loader:
    """Iterator over the batches of a `TrainDataset` from a cursor, made ahead of time by threads.

    Close it, or use it in `with`. Threads are enough, since decoders and the tokenizer release the interpreter lock.
    Their number, and that of the batches made ahead, are the config's unless given.

    Attributes:
      cursor: the example that the next batch begins with.
      wait_seconds: seconds spent waiting for data so far (the stall meter). A wait of `config.data.stall_seconds` logs
        a warning that tells what each thread is doing.
      poll: called each second of a wait, if it is set; an exception it raises ends the wait.
      stuck: whether a thread was left where it hung.
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
        self.watch = Watch(dataset.split.activity, cfg.stall_seconds)
        self._threads = Threads(threads or cfg.threads, "batch")
        self._waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        self.poll: Callable[[], None] | None = None
        self.stuck = False

    @property
    def bad_rows(self) -> int:
        """Rows that this process could not read so far; each was replaced by the next one."""
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
        """Wait for a batch, polling meanwhile."""
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
        """Stop the threads and drop the batches made ahead; a thread that hangs is left behind (`stuck`)."""
        self.stuck = not self._threads.close(0.0 if self.stuck else LEAVE) or self.stuck
        self._waiting.clear()
        self.watch.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
