"""Find the files that changed since a data set was made from them; `DIR/files.jsonl.gz` has the state of each."""

import collections
import contextlib
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator

from xmodal_jax.data.media import ABSENT, FileState, UnreadableFile, file_state, read_file
from xmodal_jax.errors import UserError

STATES_FILE = "files.jsonl.gz"


@contextlib.contextmanager
def kept_states(folder: os.PathLike | str) -> Iterator[Callable[[Iterable[FileState]], None]]:
    """Yield a function that appends the states of files to the list, which is closed after the `with` block."""
    with gzip.open(pathlib.Path(folder) / STATES_FILE, "wt", compresslevel=3, encoding="utf-8") as file:
        yield lambda states: file.writelines(json.dumps(state) + "\n" for state in states)


def changed_files(folder: os.PathLike | str) -> dict[str, list[str]]:
    """Return {"replaced" | "new" | "gone": paths} of the files that changed since the data set was made.

    A file with the same size and another time is read, and counts as replaced only if its content differs. Raises
    `UserError` if the list of files cannot be read.
    """
    found = collections.defaultdict(list)
    path = pathlib.Path(folder) / STATES_FILE
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                before = FileState(*json.loads(line))
                if kind := _change(before):
                    found[kind].append(before.path)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read ({error}); prepare the data set again (option 'force')") from error
    return dict(found)


def _change(before: FileState) -> str:
    """Return the kind of change of one file, "" if there is none."""
    now = file_state(before.path)
    if now[:3] == before[:3] or now.size == before.size == ABSENT:
        return ""
    if ABSENT in (now.size, before.size):
        return "new" if before.size == ABSENT else "gone"
    if now.size == before.size and before.digest:
        try:
            return "" if file_state(before.path, read_file(before.path)).digest == before.digest else "replaced"
        except UnreadableFile:
            return "gone"
    return "replaced"


def as_sentence(found: dict[str, list[str]]) -> str:
    """Return a clause such as "files of its source are 31 replaced (/data/1.png first), 2 gone (/data/7.png first)"."""
    parts = [f"{len(paths)} {kind} ({paths[0]}{' first' if paths[1:] else ''})" for kind, paths in found.items()]
    return "files of its source are " + ", ".join(parts)
