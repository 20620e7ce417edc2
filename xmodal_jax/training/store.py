"""Give orbax folders that it can write, and check what it wrote: paths without glob characters, merged parts.

Orbax 0.12 looks for the parts of a checkpoint with a glob over the whole, unescaped path
(merge_ocdbt_per_process_files, array_metadata_store), so below a folder with `[`, `*` or `?` in its name it finds none,
says so in a log line, and leaves a checkpoint that nothing can read.
"""

import contextlib
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

from etils import epath

from xmodal_jax.errors import UserError
from xmodal_jax.training.orbax import ocp

OPEN_FILES = pathlib.Path("/proc/self/fd")  # where Linux names the open files of a process
MANIFEST = "manifest.ocdbt"  # of the merged parts


def refuse_unwritable_name(folder: pathlib.Path) -> None:
    """Raise UserError for a path that orbax would take for a pattern on a system where it has no other name."""
    if glob.has_magic(str(folder)) and not OPEN_FILES.is_dir():
        raise UserError(
            f"checkpoints cannot be kept in '{folder}', because a folder there has one of the characters [ * ? in its "
            "name; write another work directory"
        )


@contextlib.contextmanager
def plain_name(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a path to `folder` that is no pattern, itself or by way of its open parent, until the context ends."""
    if not glob.has_magic(str(folder)):
        yield folder
        return
    parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield OPEN_FILES / str(parent) / folder.name  # the same last part in all processes, as orbax's barriers want
    finally:
        os.close(parent)


def unmerged(folder: pathlib.Path, items: Sequence[str]) -> str:
    """Return why the arrays of a checkpoint's `items` cannot be found, "" when the description of each is read back.

    An item that is not there has no arrays.
    """
    return next((fault for name in items if (folder / name).is_dir() and (fault := _unlisted(folder / name))), "")


def _unlisted(item: pathlib.Path) -> str:
    """Return why the arrays of one item cannot be listed; "" where they can."""
    manifest = item / MANIFEST
    if not manifest.is_file():
        return f"{item.name}/{MANIFEST} is missing: its parts were not merged"
    try:
        ocp.StandardCheckpointHandler().metadata(epath.Path(item))  # opens every array that it names
    except (OSError, ValueError, KeyError) as error:
        return f"{item.name} cannot be listed: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
    return ""
