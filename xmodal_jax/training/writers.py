"""Where a run's numbers go beside metrics.jsonl, by `config.log.to`: TensorBoard, Weights & Biases, or both."""

import pathlib
from typing import Any, Protocol

from xmodal_jax.settings import LogConfig


class Writer(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        """Add one point of each scalar; values that are no finite number are left out."""

    def close(self) -> None:
        """Write what is buffered."""


class Writers:
    """Several writers as one."""

    def __init__(self, writers: list[Writer]) -> None:
        self._all = writers

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        """Add one point of each scalar to all of them."""
        for writer in self._all:
            writer.write(step, scalars)

    def close(self) -> None:
        """Close all of them."""
        for writer in self._all:
            writer.close()


def open_writers(
    log: LogConfig, workdir: pathlib.Path, first_step: int, name: str, config: dict[str, Any]
) -> Writers | None:
    """Return the writers that `log.to` names, for steps after `first_step`; None where it names none."""
    found: list[Writer] = []
    if "tensorboard" in log.to:
        from xmodal_jax.training.tensorboard import EventWriter

        found.append(EventWriter(workdir / "tensorboard", first_step))
    if "wandb" in log.to:
        from xmodal_jax.training.wandb_run import WandbWriter

        found.append(WandbWriter(workdir, log.project, name, config))
    return Writers(found) if found else None
