"""Find the run that made an index and the data sets of its rows again, also after they have moved.

The header's `extra` names both as absolute paths and relative to the index, which stays right when all move together:
"workdir" and "workdir_from_index"; "data", the set of rows that do not name another, and "sets", {path: {"from_index",
"fingerprint"}}. A folder that holds another run or data set is not taken.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.errors import UserError
from xmodal_jax.search.index import Index, fingerprint
from xmodal_jax.settings import as_dict
from xmodal_jax.training.checkpoint import RUN_FILE
from xmodal_jax.types import Params


def model_of(assembly: Assembly, params: Params) -> str:
    """Return 16 hex digits that change when any parameter does, or how an encoder reads its input."""
    told = json.dumps(as_dict(assembly.config)["encoders"], sort_keys=True)
    return fingerprint(params | {"encoders": np.frombuffer(told.encode(), np.uint8)})


def remembered_run(workdir: str | os.PathLike, index: str | os.PathLike) -> dict[str, str]:
    """Return the facts about a run that an index at `index` keeps."""
    return {"workdir": os.path.abspath(workdir), "workdir_from_index": from_index(workdir, index)}


def remembered_set(data: str | os.PathLike, index: str | os.PathLike) -> dict[str, dict[str, str]]:
    """Return the facts about a data set that an index at `index` keeps: one entry of "sets"."""
    told = {"from_index": from_index(data, index), "fingerprint": Card.load(data).fingerprint}
    return {os.path.abspath(data): told}


def from_index(path: str | os.PathLike, index: str | os.PathLike) -> str:
    """Return the path of a folder relative to the index, links resolved: later the index may be reached by others."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(index))


def open_origin(opened: Index, workdir: str | os.PathLike = "") -> tuple[Assembly, Params]:
    """Open the run whose weights made an index: at `workdir`, else relative to the index, else where it was then.

    Raises UserError where none of these is that run, and says what each of them is.
    """
    from xmodal_jax.workdir import open_run

    if not workdir and "workdir" not in opened.extra:
        raise UserError(
            f"the index {opened.path} names no work directory; name its run (option 'workdir'), or index again"
        )
    seen, told = [], opened.extra
    for place in [workdir] if workdir else _places(opened, told.get("workdir_from_index"), told["workdir"]):
        found, other = _run_at(pathlib.Path(place), open_run, opened.model)
        if found is not None:
            return found
        seen.append(f"'{place}' {other}")
    raise UserError(
        f"the index {opened.path} was made by model {opened.model}, and {'; '.join(seen)}: name the run that made it "
        "(option 'workdir'), or index again"
    )


def _run_at(place: pathlib.Path, open_run: Any, model: str) -> tuple[tuple[Assembly, Params] | None, str]:
    """Open the run at a folder if it is that of `model`; else return None and what the folder is."""
    if not (place / RUN_FILE).is_file():
        return None, "is gone" if not place.exists() else f"holds no run (no {RUN_FILE})"
    try:
        assembly, params, step = open_run(place)
    except UserError as error:
        return None, f"cannot be opened ({error})"
    found = model_of(assembly, params)
    if found != model:
        return None, f"is another run, or was trained on since (model {found} of step {step})"
    return (assembly, params), ""


def open_set(opened: Index, told: str, given: str | os.PathLike = "") -> str:
    """Return the folder of the data set that rows of an index call `told`: `given`, relative to the index, or as told.

    Raises UserError where none of these is that data set.
    """
    known = opened.extra.get("sets", {}).get(told, {})
    seen = []
    for place in ([given] if given else []) + _places(opened, known.get("from_index"), told):
        if not (pathlib.Path(place) / CARD_FILE).is_file():
            seen.append(f"'{place}' holds no data set")
            continue
        found = Card.load(place).fingerprint
        if known.get("fingerprint", found) == found:
            return str(place)
        seen.append(f"'{place}' is another data set, or was prepared again with other records")
    raise UserError(
        f"the pictures of the index {opened.path} are needed again, and {'; '.join(seen)}: write the folder where the "
        "data set that was indexed is now (option 'data'), search without re-ranking, or index again"
    )


def _places(opened: Index, beside: str | None, told: str) -> list[str]:
    """Return the folders to look in, each once: relative to the index, and as told."""
    first = [] if beside is None else [os.path.normpath(os.path.join(os.path.realpath(opened.path), beside))]
    return first if told and os.path.realpath(told) in first else [*first, told]
