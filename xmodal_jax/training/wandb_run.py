"""The log as a run of Weights & Biases (the package wandb, the extra of that name)."""

import math
import pathlib
from typing import Any

from xmodal_jax.atomic import write_file
from xmodal_jax.errors import UserError

ID_FILE = "wandb-id"  # in the work directory: a run that goes on is the same run there


class WandbWriter:
    """Sends scalars to a run of Weights & Biases; where and whether it sends them is up to WANDB_MODE and its like."""

    def __init__(self, workdir: pathlib.Path, project: str, name: str, config: dict[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]: an extra
        from wandb.errors import Error  # pyright: ignore[reportMissingImports]

        path = workdir / ID_FILE
        known = path.read_text("utf-8").strip() if path.is_file() else ""
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                dir=str(workdir),
                config=config,
                id=known or None,
                resume="allow" if known else None,
            )
        except Error as error:
            raise UserError(
                f"config.log.to names 'wandb', which does not start ({str(error).splitlines()[0]}); run `wandb login`, "
                "or set WANDB_MODE=offline"
            ) from error
        if self._run.id != known:
            write_file(path, f"{self._run.id}\n")
        self._run.define_metric(
            "*", step_metric="step"
        )  # after a crash steps come again, which wandb's own step refuses

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        """Add one point of each scalar; values that are no finite number are left out."""
        numbers = {k: v for k, v in scalars.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
