"""Checkpoints by orbax: asynchronous, whole state and data position, restored into explicit shapes and shardings.

A save is written into a temporary folder, summed (checksums.py), and renamed last: a folder with a step as its name is
whole, however the process ended. What disks and copies do to it later is found at the restore, which then takes the
one before.
"""

import json
import logging
import os
import pathlib
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.parallel.processes import first_says, lost_peer
from xmodal_jax.train import checksums
from xmodal_jax.train.state import TrainState

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
RUN_FILE = "run.json"
DAMAGED = "damaged-"
TEMPORARY = ".orbax-checkpoint-tmp"
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
        self._saved = self._pending = NONE  # the last step known to be on disk, and the one being written
        _quiet()
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

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint on disk, oldest first; nothing is read."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def latest(self) -> int | None:
        """The step of the newest checkpoint, None when the run has not saved yet.

        Raises UserError when the only ones left are damaged: such a run must not start again from nothing.
        """
        aside = sorted(path.name for path in self.folder.glob(f"{DAMAGED}*"))
        found = max(self.steps(), default=NO_GOOD if aside else NONE)
        found = first_says(found)
        refuse_unless(
            found != NO_GOOD,
            f"'{self.folder}' has no good checkpoint left, only {', '.join(aside)}; put a copy of a good one there, "
            "or start again in another --workdir",
        )
        return None if found == NONE else found

    def save(self, state: TrainState) -> None:
        """Start an asynchronous save; it counts once `wait` returns.

        Raises UserError when this or an earlier save failed, naming the last step that is on disk.
        """
        refuse_unless(not self.read_only, f"'{self.folder}' was opened for reading only; open it without read_only")
        self.wait()
        step = int(state.step)
        if step == self._saved:
            return
        self._pending = step
        try:
            self._manager = self._manager or self._new_manager()
            if not self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state))):
                raise ValueError(f"there is a checkpoint of a later step, {self._manager.latest_step()}")
        except FAILURES as error:
            if lost_peer(error):  # the disk is well: the same command goes on
                raise
            raise self._failure(error) from error

    def wait(self) -> None:
        """Wait for the save in flight, if any. Raises UserError when it failed."""
        if self._manager is None or self._pending == NONE:
            return
        try:
            self._manager.wait_until_finished()
        except FAILURES as error:
            if lost_peer(error):  # the disk is well: the same command goes on
                raise
            raise self._failure(error) from error
        self._saved, self._pending = self._pending, NONE

    def restore(self, abstract: Any) -> TrainState:
        """The newest good state, placed as `abstract` (ShapeDtypeStructs with shardings) says.

        A damaged checkpoint is named in the log, set aside as `damaged-STEP` (unless `read_only`) and the one before
        is taken. Raises UserError when none is good, and when the checkpoint is of another architecture, naming the
        first leaf that differs.
        """
        faults: dict[int, str] = {}
        while True:
            step = self._newest_good(faults)
            try:
                state = self._read(step, abstract)
                break
            except Exception as error:
                if isinstance(error, UserError) or checksums.recorded(self.folder / str(step)):
                    raise
                faults[step] = reason(error)  # from before there were checksums: reading is the only check
        self._set_aside(faults, step)
        self._saved = step
        return state

    def _newest_good(self, faults: dict[int, str]) -> int:
        """The newest step without a fault, the same in all processes; adds the faults found on the way."""
        found = NONE
        if jax.process_index() == 0:
            steps = [step for step in reversed(self.steps()) if step not in faults]
            found = NO_GOOD if faults else NONE
            for step in steps:
                folder = self.folder / str(step)
                fault = checksums.fault(folder) if checksums.recorded(folder) else ""
                if not fault:
                    found = step
                    break
                faults[step], found = fault, NO_GOOD
        found = first_says(found)
        refuse_unless(found != NONE, f"there is no checkpoint in '{self.folder}'; run `xmodal train` first")
        said = "; ".join(f"{step}: {fault}" for step, fault in faults.items())
        refuse_unless(
            found != NO_GOOD,
            f"no checkpoint in '{self.folder}' is good ({said}); put a copy of a good one there, or start again in "
            "another --workdir",
        )
        return found

    def _read(self, step: int, abstract: Any) -> TrainState:
        folder = self.folder / str(step) / "state"
        if not checksums.recorded(folder.parent):
            log.warning("checkpoint %d has no %s; it is read without checking its bytes", step, checksums.FILE)
        self._refuse_other_architecture(folder, abstract)
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(folder, abstract)

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
        """Orbax's manager: all processes of a job make it at the same point."""
        asynchronous = ocp.options.AsyncOptions(
            post_finalization_callback=self._record,
            create_directories_asynchronously=False,  # else a read-only disk leaves threads that wait for five minutes
        )
        options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, create=True, async_options=asynchronous)
        return ocp.CheckpointManager(self.folder, options=options)

    def _record(self) -> None:
        """Called in the first process when all have written and the folder still has its temporary name."""
        (folder,) = self.folder.glob(f"{self._pending}{TEMPORARY}*")
        checksums.write(folder)

    def _failure(self, error: Exception) -> UserError:
        step, self._pending = self._pending, NONE
        good = max((other for other in self.steps() if other != step), default=None)
        last = f"the last good one is step {good}" if good is not None else "there is no earlier one"
        return UserError(
            f"checkpoint {step} could not be saved in '{self.folder}' ({reason(error)}); {last}: make room or make the "
            "folder writable, then the same command goes on from there"
        )

    def _refuse_other_architecture(self, folder: pathlib.Path, abstract: Any) -> None:
        saved = named_shapes(ocp.StandardCheckpointHandler().metadata(folder).tree)
        wanted = named_shapes(abstract)
        for name in sorted(set(saved) | set(wanted)):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"the checkpoint in '{self.folder}' is of another architecture: '{name}' is {saved.get(name)} there "
                    f"and {wanted.get(name)} in this config; use the config it was trained with or another --workdir"
                )


def reason(error: BaseException) -> str:
    """Why a file operation failed, in the system's words where they are somewhere in the (chained, nested) error."""
    parts, seen = [error], []
    while parts:
        part = parts.pop(0)
        if part is None or part in seen:
            continue
        seen.append(part)
        parts += [*getattr(part, "exceptions", ()), part.__cause__, part.__context__]
    known = next((match for part in seen if (match := KNOWN.search(str(part)))), None)
    return known[0] if known else (str(error).splitlines() or [type(error).__name__])[0][:200]


def _quiet() -> None:
    """What orbax says besides raising when it fails: a traceback per array. Here all of it is one sentence."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _no_orbax_traceback not in logger.filters:
            logger.addFilter(_no_orbax_traceback)
    if getattr(sys.unraisablehook, "__module__", "") != __name__:
        sys.unraisablehook = _no_closed_loop(sys.unraisablehook)


def _no_orbax_traceback(record: logging.LogRecord) -> bool:
    if not record.exc_info:
        return True
    frames = traceback.extract_tb(record.exc_info[2])
    return not any(
        f"orbax{os.sep}checkpoint" in name for name in (record.pathname, *(each.filename for each in frames))
    )


def _no_closed_loop(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """After the first file that fails, orbax leaves the others to call into an event loop that it has closed."""

    def unraisable(info: Any) -> None:
        if str(info.exc_value) != "Event loop is closed":
            hook(info)

    return unraisable


def named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every array leaf (empty containers have none)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def copy_whole(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a file so that `target` is never half of it, whenever the process ends."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


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
