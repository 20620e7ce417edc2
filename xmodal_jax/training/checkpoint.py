"""Checkpoints by orbax: asynchronous, whole state and data position, restored into explicit shapes and shardings.

A checkpoint has three items: the parameters, the teacher, and the rest of the state (optimizer, memories, counters), so
that evaluation reads the weights it uses and not a byte of the others.

A save is written into a temporary folder, summed (checksums.py), and renamed last: a folder with a step as its name is
whole, however the process ended. What disks and copies do to it later is found at the restore, which then takes the
one before.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from xmodal_jax.atomic import write_file
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.processes import first_says, lost_peer, with_causes
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.training import checksums, store
from xmodal_jax.training.orbax import ocp
from xmodal_jax.training.quiet import TEMPORARY, note_abandoned
from xmodal_jax.training.state import TrainState

log = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]

FOLDER = "checkpoints"
PARAMS, TEACHER, REST = ITEMS = ("params", "teacher", "rest")  # of a checkpoint; one without arrays is left out
RUN_FILE = "run.json"
NOTES_FILE = "notes.json"  # of a checkpoint; written anew at times, so that it is in no checksum
FORMAT = 1  # of run.json and the checkpoints beside it
DAMAGED = "damaged-"
NONE, NO_GOOD = -1, -2  # what the first process tells the others in place of a step
FAILURES = (OSError, ValueError, RuntimeError)  # what orbax and the array store raise when the disk does not take it
KNOWN = re.compile(
    "No space left on device|Read-only file system|File too large|Disk quota exceeded|Permission denied|"
    "No such file or directory|Input/output error|Stale file handle"
)


class Checkpoints:
    """The checkpoints of one work directory. Use as a context manager: leaving it waits for the last save.

    All processes of a run make and call it alike. With `read_only` (for looking at a run that may be training) nothing
    is created, renamed or removed, and `save` is refused. Without, folders left by a save that was killed are removed
    at once: they were never checkpoints.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2, read_only: bool = False) -> None:
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        self.keep, self.read_only = keep, read_only
        self._manager: ocp.CheckpointManager | None = None  # made by the first save, when the folder is in order
        self._names = contextlib.ExitStack()  # holds the name that the manager has for the folder
        self._saved = self._pending = NONE  # the last step known to be on disk, and the one being written
        self._notes: dict[str, Any] = {}  # of the step being written
        self._kept = NONE  # a step that stays beside the last ones
        if not read_only:
            store.refuse_unwritable_name(self.folder)
        if not read_only and jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"*{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)  # what stays is still no checkpoint

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            log.warning("%s", error)  # what ended the run comes first
        finally:
            if self._manager is not None:
                self._manager.close()
            self._names.close()

    def steps(self) -> list[int]:
        """Return the steps that have a finished checkpoint on disk, oldest first; nothing is read."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, None when the run has not saved yet.

        Raises UserError when the only ones left are damaged: such a run must not start again from nothing.
        """
        aside = sorted(path.name for path in self.folder.glob(f"{DAMAGED}*"))
        found = max(self.steps(), default=NO_GOOD if aside else NONE)
        found = first_says(found)
        if found == NO_GOOD:
            raise UserError(
                f"'{self.folder}' has no good checkpoint left, only {', '.join(aside)}; put a copy of a good one "
                "there, or start again in another work directory"
            )
        return None if found == NONE else found

    def notes(self, step: int) -> dict[str, Any]:
        """Return the notes that a checkpoint was saved with; {} for one without, or whose notes cannot be read."""
        try:
            found = json.loads((self.folder / str(step) / NOTES_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def fault(self, step: int, items: Sequence[str]) -> str:
        """Return what is wrong with the checkpoint of `step` in these items; "" for a good one."""
        folder = self.folder / str(step)
        if not folder.is_dir():
            return "it is not there"
        return checksums.fault(folder, items) or store.unmerged(folder, items)

    def save(self, state: TrainState, notes: dict[str, Any] | None = None, keep: int = NONE) -> None:
        """Start an asynchronous save; it counts once `wait` returns.

        Args:
          state: the state to save; where its step is on disk already, only the notes are written.
          notes: kept beside it as JSON, see `notes`.
          keep: a step whose checkpoint stays, however old it is.

        Raises UserError when this or an earlier save failed, naming the last step that is on disk.
        """
        if self.read_only:
            raise UserError(f"'{self.folder}' was opened for reading only; open it without read_only")
        self.wait()
        step = int(state.step)
        self._notes, self._kept = notes or {}, keep
        if step == self._saved:
            self._write_notes(self.folder / str(step))
            return
        self._pending = step
        with self._told():
            self._manager = self._manager or self._new_manager()
            items = {name: ocp.args.StandardSave(tree) for name, tree in items_of(state).items()}
            if not self._manager.save(step, args=ocp.args.Composite(**items)):
                raise ValueError(f"there is a checkpoint of a later step, {self._manager.latest_step()}")

    def wait(self) -> None:
        """Wait for the save in flight, if any. Raises UserError when it failed."""
        if self._manager is None or self._pending == NONE:
            return
        with self._told():
            self._manager.wait_until_finished()
        self._saved, self._pending = self._pending, NONE

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an error of the pending save, such as a full disk, into a `UserError`."""
        try:
            yield
        except FAILURES as error:
            note_abandoned()
            if lost_peer(error):  # the disk is well: the same command goes on
                raise
            raise self._failure(error) from error

    def restore(self, abstract: TrainState) -> TrainState:
        """Return the newest good state, placed as `abstract` (ShapeDtypeStructs with shardings) says.

        A damaged checkpoint is named in the log, set aside as `damaged-STEP` (unless `read_only`) and the one before
        is taken. Raises UserError when none is good, and when the checkpoint is of another architecture, naming the
        first leaf that differs.
        """
        self._saved, found = self._newest(ITEMS, lambda folder: self._read(folder, ITEMS, items_of(abstract)))
        return TrainState(params=found[PARAMS], teacher=found.get(TEACHER, {}), **found[REST])

    def restore_some(self, wanted: dict[str, Any], among: Sequence[int] | None = None) -> tuple[int, dict[str, Any]]:
        """Return the step of the newest checkpoint whose items of these names are good, and the leaves asked for.

        Other items may be damaged or gone: nothing of them is read. Faults of those that are read are as in `restore`.

        Args:
          wanted: {item: tree of ShapeDtypeStructs with shardings}, a part of what the item has.
          among: the steps to look at; None for all.
        """
        items = tuple(wanted)
        return self._newest(items, lambda folder: self._read(folder, items, wanted, part=True), among)

    def shapes(self, items: tuple[str, ...], among: Sequence[int] | None = None) -> tuple[int, dict[str, Any]]:
        """Return the step of the newest checkpoint with good `items`, and {item: tree of array descriptions}."""

        def described(folder: pathlib.Path) -> dict[str, Any]:
            return {name: _described(folder / name) for name in items if (folder / name).is_dir()}

        return self._newest(items, described, among)

    def _newest(
        self, items: tuple[str, ...], read: Callable[[pathlib.Path], Any], among: Sequence[int] | None = None
    ) -> tuple[int, Any]:
        """Read the newest checkpoint with good `items` by `read`, set damaged ones aside, and return (step, result)."""
        faults: dict[int, str] = {}
        step = self._newest_good(items, faults, among)
        folder = self.folder / str(step)
        try:
            found = read(folder)
        except Exception as error:  # orbax raises the bare class too
            note_abandoned()
            if isinstance(error, UserError) or lost_peer(error):
                raise
            raise UserError(
                f"the checkpoint '{folder}' cannot be read ({reason(error)}); move it away to go on from the one "
                "before, or put a copy of a good one there"
            ) from error
        self._set_aside(faults, step)
        return step, found

    def _newest_good(self, items: tuple[str, ...], faults: dict[int, str], among: Sequence[int] | None = None) -> int:
        """Return the newest step whose `items` are good, the same in all processes, and add the faults of others."""
        found = NONE
        if jax.process_index() == 0:
            for step in sorted(self.steps() if among is None else among, reverse=True):
                fault = self.fault(step, items)
                if not fault:
                    found = step
                    break
                faults[step], found = fault, NO_GOOD
        found = first_says(found)
        if found == NONE:
            raise UserError(f"there is no checkpoint in '{self.folder}'; run `xmodal train` first")
        said = "; ".join(f"{step}: {fault}" for step, fault in faults.items())
        if found == NO_GOOD:
            raise UserError(
                f"no checkpoint in '{self.folder}' is good ({said}); put a copy of a good one there, or start again in "
                "another work directory"
            )
        return found

    def _read(
        self, folder: pathlib.Path, items: tuple[str, ...], wanted: dict[str, Any], part: bool = False
    ) -> dict[str, Any]:
        """Return the trees `wanted` of a checkpoint, whose `items` have these leaves and, but for a `part`, no more."""
        there = named_shapes({name: _described(folder / name) for name in items if (folder / name).is_dir()})
        asked = named_shapes(wanted)
        self._refuse_other_architecture({name: there[name] for name in there if name in asked or not part}, asked)
        found = {}
        for name, tree in wanted.items():
            how = ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True)
            with store.plain_name(folder / name) as plain, ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                found[name] = reader.restore(plain, how)
        return found

    def _set_aside(self, faults: dict[int, str], good: int) -> None:
        """Say which newer checkpoints are damaged, and rename them so that they are never counted again."""
        if jax.process_index() != 0:
            return
        for step, fault in faults.items():
            place = "left as it is"
            if not self.read_only:
                target = self.folder / f"{DAMAGED}{step}"
                while target.exists():
                    target = target.with_name(target.name + "-again")
                (self.folder / str(step)).rename(target)
                place = f"set aside as '{target}'"
            log.warning("checkpoint %d is damaged (%s): %s; going on from step %d", step, fault, place, good)

    def _new_manager(self) -> ocp.CheckpointManager:
        """Return orbax's manager; all processes of a job make it at the same point."""
        asynchronous = ocp.options.AsyncOptions(
            post_finalization_callback=self._record,
            create_directories_asynchronously=False,  # else a read-only disk leaves threads that wait for five minutes
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndOne(self), create=True, async_options=asynchronous
        )
        return ocp.CheckpointManager(self._names.enter_context(store.plain_name(self.folder)), options=options)

    def _record(self) -> None:
        """Check and sum a written checkpoint: called in the first process, while its folder has a temporary name."""
        (folder,) = self.folder.glob(f"{self._pending}{TEMPORARY}*")
        fault = store.unmerged(folder, ITEMS)
        if fault:
            raise ValueError(fault)
        checksums.write(folder)
        self._write_notes(folder)

    def _write_notes(self, folder: pathlib.Path) -> None:
        """Write the notes of a checkpoint into its folder, in the first process, where they are new."""
        if jax.process_index() == 0 and self._notes and self._notes != self.notes(int(folder.name.split(".")[0])):
            write_file(folder / NOTES_FILE, json.dumps(self._notes))

    def _failure(self, error: Exception) -> UserError:
        """Return the sentence for the pending save that failed with `error`."""
        step, self._pending = self._pending, NONE
        good = max((other for other in self.steps() if other != step), default=None)
        last = f"the last good one is step {good}" if good is not None else "there is no earlier one"
        return UserError(
            f"checkpoint {step} could not be saved in '{self.folder}' ({reason(error)}); {last}: make room or make the "
            "folder writable, then the same command goes on from there"
        )

    def _refuse_other_architecture(self, saved: Shapes, wanted: Shapes) -> None:
        """Raise UserError for the first leaf whose shape differs or that only one side has."""
        for name in sorted(set(saved) | set(wanted)):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"the checkpoint in '{self.folder}' is of another architecture: '{name}' is {saved.get(name)} "
                    f"there and {wanted.get(name)} in this config; use the config it was trained with or another "
                    "work directory"
                )


class _LastAndOne:
    """Orbax's policy for what stays: the last `keep` checkpoints, and the one that the latest save named."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._of = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return for each checkpoint, oldest first, whether it stays."""
        steps = [one.step for one in checkpoints]
        return [step in steps[-self._of.keep :] or step == self._of._kept for step in steps]


def reason(error: BaseException) -> str:
    """Return why a file operation failed, in the system's words where some (chained, nested) error has them."""
    known = next((match for part in with_causes(error) if (match := KNOWN.search(str(part)))), None)
    while type(error) is Exception and error.__cause__:  # orbax wraps what the array store said
        error = error.__cause__
    return known[0] if known else (str(error).splitlines() or [type(error).__name__])[0][:200]


def items_of(state: TrainState) -> dict[str, Any]:
    """Return the items of a checkpoint of `state` (arrays, or their shapes); no teacher where none is kept."""
    names = [field.name for field in dataclasses.fields(state)]
    rest = {name: getattr(state, name) for name in names if name not in (PARAMS, TEACHER)}
    items = {PARAMS: state.params, TEACHER: state.teacher, REST: rest}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _described(folder: pathlib.Path) -> dict[str, Any]:
    """Return the tree of an item of a checkpoint by its metadata: names, shapes and types; no array is read."""
    with store.plain_name(folder) as plain:
        return ocp.StandardCheckpointHandler().metadata(epath.Path(plain)).tree


def named_shapes(tree: Any) -> Shapes:
    """Return {path: shape} of every array leaf (empty containers have none)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def write_run(workdir: pathlib.Path, description: dict[str, Any]) -> None:
    """Write run.json: the resolved config and what else is needed to use the weights without the training data."""
    write_file(workdir / RUN_FILE, json.dumps({"format": FORMAT} | description, indent=1, ensure_ascii=False))


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Return what `write_run` wrote. Raises UserError when the folder holds no run, or one of another format."""
    path = pathlib.Path(workdir) / RUN_FILE
    if not path.is_file():
        raise UserError(f"'{workdir}' holds no run ({RUN_FILE} is missing); name the work directory of a run")
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise UserError(
            f"'{path}' is not valid JSON ({error}); restore it or train again in another work directory"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not {"config", "data"} <= found.keys():
        raise UserError(
            f"'{path}' is not of the format that this version of the program reads ({FORMAT}); train again in another "
            "work directory"
        )
    config = found["config"]
    if isinstance(config, dict) and config.pop("tensorboard", False):  # the field's name before `log.to`
        config.setdefault("log", {"to": ["tensorboard"]})
    return found
