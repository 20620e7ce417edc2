"""Checkpoints by orbax: asynchronous, whole state and data position, restored into explicit shapes and shardings."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.train.state import TrainState

FOLDER = "checkpoints"
RUN_FILE = "run.json"


class Checkpoints:
    """The checkpoints of one work directory. Use as a context manager: leaving it waits for the last save."""

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2) -> None:
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint, None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Start an asynchronous save; an earlier save that failed raises here."""
        self._manager.check_for_errors()
        step = int(state.step)
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

    def restore(self, abstract: Any) -> TrainState:
        """The newest state, placed as `abstract` (ShapeDtypeStructs with shardings) says.

        Raises UserError when the checkpoint is of another architecture, naming the first leaf that differs.
        """
        step = self.latest()
        refuse_unless(step is not None, f"there is no checkpoint in '{self.folder}'; run `xmodal train` first")
        self._refuse_other_architecture(step, abstract)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=args)["state"]

    def _refuse_other_architecture(self, step: int, abstract: Any) -> None:
        handler = ocp.StandardCheckpointHandler()
        saved = named_shapes(handler.metadata(self.folder / str(step) / "state").tree)
        wanted = named_shapes(abstract)
        for name in sorted(set(saved) | set(wanted)):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"the checkpoint in '{self.folder}' is of another architecture: '{name}' is {saved.get(name)} there "
                    f"and {wanted.get(name)} in this config; use the config it was trained with or another --workdir"
                )


def named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every array leaf (empty containers have none)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def write_run(workdir: pathlib.Path, description: dict[str, Any]) -> None:
    """run.json: the resolved config and what else is needed to use the weights without the training data."""
    temporary = workdir / (RUN_FILE + ".tmp")
    temporary.write_text(json.dumps(description, indent=1, ensure_ascii=False))
    temporary.replace(workdir / RUN_FILE)


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """What `write_run` wrote. Raises UserError when the folder holds no run."""
    path = pathlib.Path(workdir) / RUN_FILE
    refuse_unless(
        path.is_file(), f"'{workdir}' holds no run ({RUN_FILE} is missing); name the --workdir of `xmodal train`"
    )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); restore it or train again in another --workdir")
