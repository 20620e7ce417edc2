"""The log as TensorBoard events, without TensorFlow."""

import math
import pathlib
import time
from typing import Any


class EventWriter:
    """Writes scalars to an event file in `folder`; needs the package tensorboard (the extra of that name)."""

    def __init__(self, folder: pathlib.Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # generated: its stubs have no names
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(folder))
        # TensorBoard drops what an earlier start wrote for later steps: after a crash those steps come again.
        log: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        start = log(status=log.START)
        self._add(first_step + 1, session_log=start)

    def _add(self, step: int, **what: Any) -> None:
        """Add one event."""
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step, **what))

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        """Add one point of each scalar; values that are no finite number are left out."""
        numbers = {k: v for k, v in scalars.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        values = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._add(step, summary=self._summary.Summary(value=values))

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()
