"""Starts of the heads kept beside the data set: the same data, towers and settings need not be solved twice.

A file `DATA/starts/<digest>.npz` holds the linear paths that `cca.linear_start` found. The digest is over everything
they depend on: the split's files, the pictures' and captions' settings, the towers' weights, the size and the ridge.
"""

import hashlib
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable

import jax
import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.atomic import write_file
from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError
from xmodal_jax.settings import Config, as_dict
from xmodal_jax.types import Params

log = logging.getLogger(__name__)

Heads = dict[str, Params]  # the linear path of each encoder
HEAD_FIELDS = ("head_hidden", "head_dropout", "token_hidden", "neck_layers", "dropout", "remat", "cache_tokens")
DATA_FIELDS = ("split", "fields", "languages", "views", "features")


def settings(config: Config) -> dict:
    """Return the fields of the config and the data card that the start depends on."""
    card, data = Card.load(config.data.path), as_dict(config.data)
    joint = config.joint
    return {
        "data": {name: data[name] for name in DATA_FIELDS},
        "files": card.splits[config.data.split],
        "made with": card.arguments,
        "caches": [card.features[name] for name in config.data.caches],
        "encoders": {
            name: {key: value for key, value in as_dict(own).items() if key not in HEAD_FIELDS}
            for name, own in config.encoders.items()
        },
        "joint": [joint.embed, joint.start_ridge],
        "pair": config.eval.pairs[0],
        "dtype": config.dtype,
    }


def digest(assembly: Assembly, params: Params) -> str:
    """Return a name for the start of these towers on this data."""
    sha = hashlib.sha256(json.dumps(settings(assembly.config), sort_keys=True, default=list).encode())
    for own in assembly.tokenizers.values():
        sha.update(own.path.read_bytes())
    towers = {name: params[name].get("tower", {}) for name in assembly.config.encoders}
    for path, leaf in jax.tree_util.tree_leaves_with_path(towers):
        sha.update(jax.tree_util.keystr(path).encode())
        sha.update(np.ascontiguousarray(leaf).data)
    return sha.hexdigest()[:32]


def kept_start(assembly: Assembly, params: Params, solve: Callable[[], Heads]) -> Heads:
    """Return the start of an earlier run if there is one for exactly this, else `solve()`, which is then kept.

    A folder that cannot be written only means that nothing is kept, a file that cannot be read that it is solved again.
    With several processes each solves for itself: all must take the same.
    """
    if jax.process_count() > 1:
        return solve()
    path = pathlib.Path(assembly.config.data.path) / "starts" / f"{digest(assembly, params)}.npz"
    try:
        with path.open("rb") as file, np.load(file) as found:
            sides = dict.fromkeys(name.rpartition(".")[0] for name in found.files)
            return {side: {leaf: found[f"{side}.{leaf}"] for leaf in ("kernel", "bias")} for side in sides}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); solving CCA again", path, error)
    heads = solve()
    _keep(path, heads)
    return heads


def _keep(path: pathlib.Path, heads: Heads) -> None:
    """Write in one step, or not at all."""
    flat = {f"{side}.{leaf}": x for side, head in heads.items() for leaf, x in head.items()}
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(path, lambda file: np.savez(file, **flat))
    except (OSError, UserError) as error:
        log.info("the start is not kept: %s", error)
