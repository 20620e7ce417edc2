"""Start a run from the weights of another one (`config.init`): leaves by path and shape, some by rows.

Rows of word tables go by word, acquirers and the starts of captions by language; `config.init_paths` reads leaves under
other paths.

The weights are those that the other run's `eval.params` names, of its best checkpoint where it keeps one. They start
the student, and the teacher is copied from it. A run that goes on does not read them again.
"""

import logging
import pathlib
import re
from collections.abc import Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax.assemble import Assembly, tokenizer_file
from xmodal_jax.data.text import Tokenizer, load_tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.processes import is_first
from xmodal_jax.settings import Config
from xmodal_jax.training.checkpoint import PARAMS, RUN_FILE, TEACHER, Checkpoints, named_shapes, read_run
from xmodal_jax.training.which import eval_section, usable_steps
from xmodal_jax.types import Array, Params

log = logging.getLogger(__name__)

Rows = dict[str, tuple[np.ndarray, Array]]  # {path: (places int32 [N], their rows float32 [N,...])} of tables
Common = tuple[np.ndarray, np.ndarray]  # the places int32 [N] of the same rows, in the own table and in the other
LANGUAGES = re.compile(r"/tower/acquirers/")  # of a text tower, a row for each language
STARTS = "decoder/start"  # a row for each language
WORD_TABLE = re.compile(r"/tower/(embed/word|word|words/kernel)$")  # of a text tower, a row for each id
STATISTICS = re.compile(r"/tower/idf$")  # counted on a run's own captions
OUTPUT = "vocabulary/bias"  # of the heads that predict words
NOTHING = np.zeros(0, np.int32), np.zeros(0, np.int32)
NAMED = 5  # of the leaves that are left out, so many are named


def read_init(workdir: str) -> dict[str, Any]:
    """Return the description of the run that `config.init` names. Raises UserError for a folder without a run."""
    if not (pathlib.Path(workdir) / RUN_FILE).is_file():
        raise UserError(
            f"config.init is '{workdir}', which holds no run ({RUN_FILE} is missing); write the work "
            "directory of another run, or '' to start without"
        )
    return read_run(pathlib.Path(workdir))


def weights_of_run(assembly: Assembly, params: Params, started: Container[str]) -> tuple[dict[str, Array], Rows]:
    """Return the leaves of the run `config.init` that fit, by path, and rows of tables by common words or languages.

    Args:
      params: the run's own parameters as ShapeDtypeStructs with shardings, which the leaves are read into.
      started: the paths that other weights start.

    Raises UserError for a folder without a run, where nothing fits, and where a frozen leaf would stay random.
    """
    config = assembly.config
    workdir, description = pathlib.Path(config.init), read_init(config.init)
    own: dict[str, Any] = flatten_dict(params, sep="/")
    there = {path: path_there(path, config.init_paths) for path in own}
    _refuse_unmatched(config, own)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        used = eval_section(description)
        names = (PARAMS, TEACHER) if used.params == "teacher" else (PARAMS,)
        step, found = checkpoints.shapes(names, usable_steps(checkpoints, used))
        shapes = named_shapes(found.get(PARAMS, {})) | named_shapes(found.get(TEACHER, {}))
        items = dict.fromkeys(named_shapes(found.get(PARAMS, {})), PARAMS)
        items |= dict.fromkeys(named_shapes(found.get(TEACHER, {})), TEACHER)
        common = _common_rows(assembly, description, workdir, there)
        known = [path for path in own if there[path] in shapes]
        whole = [path for path in known if path not in common and shapes[there[path]] == own[path].shape]
        tables = [path for path in known if _table_fits(shapes[there[path]], own[path].shape)]
        tables = [path for path in tables if len(common.get(path, ((), ()))[0])]
        if not any(own[path].shape for path in whole):  # a scalar fits anywhere
            raise UserError(
                f"config.init is '{config.init}', whose weights have no path and shape in common with this config's; "
                "write a run of the same architecture, or '' to start without"
            )
        asked = {path: (own[path].shape, own[path].sharding) for path in whole}
        asked |= {path: (shapes[there[path]], _replicated(own[path].sharding)) for path in tables}
        leaves = _read(checkpoints, step, {path: (there[path], *one) for path, one in asked.items()}, items)
    rows = {path: _rows(leaves.pop(path), *common[path]) for path in tables}
    left = [path for path in own if path not in leaves and path not in rows]
    _refuse_frozen(config, [path for path in (*left, *rows) if path not in started])
    if is_first():
        log.info(
            "starting from step %d of '%s': %d of %d leaves%s%s",
            step,
            workdir,
            len(own) - len(left),
            len(own),
            f", {sum(len(places) for places, _ in rows.values())} rows by name" if rows else "",
            left_out(left),
        )
    return leaves, rows


def _refuse_unmatched(config: Config, own: dict[str, Any]) -> None:
    """Raise UserError for an entry of `config.init_paths` that no parameter begins with."""
    for start, _ in config.init_paths:
        if not any(path.startswith(start) for path in own):
            raise UserError(
                f"config.init_paths has '{start}', which no parameter begins with; paths look like '{next(iter(own))}'"
            )


def path_there(path: str, renamed: tuple[tuple[str, str], ...]) -> str:
    """Return the path of a leaf in the other run: that of the first of `renamed` ((own start, its start), ...).

    Example:
        >>> path_there("text/head/bias", (("text/head/", "english/head/"),)), path_there("image/x", ())
        ('english/head/bias', 'image/x')
    """
    for start, other in renamed:
        if path.startswith(start):
            return other + path.removeprefix(start)
    return path


def left_out(paths: list[str]) -> str:
    """Return the end of a sentence that counts leaves which start anew and names the first of them; "" for none."""
    more = ", ..." if len(paths) > NAMED else ""
    return f"; {len(paths)} start anew ({', '.join(paths[:NAMED])}{more})" if paths else ""


def _common_rows(
    assembly: Assembly, description: dict[str, Any], workdir: pathlib.Path, there: dict[str, str]
) -> dict[str, Common]:
    """Return the rows in common of the leaves that words or languages index, where these differ, by path.

    Leaves of which no row may be taken have none: statistics always, and outputs of other words.
    """
    encoders, asks = assembly.config.encoders, assembly.config.fusion.pair[1]
    same_output = list(assembly.model.output_ids) == list(description["output_ids"])
    found: dict[str, Common] = {}
    for path, other in there.items():
        name, theirs = path.split("/")[0], other.split("/")[0]
        if STATISTICS.search(path):
            found[path] = NOTHING
        elif path == OUTPUT and not (same_output and _common_words(assembly, description, workdir, asks, asks) is None):
            found[path] = NOTHING
        elif WORD_TABLE.search(path):
            words = _common_words(assembly, description, workdir, name, theirs)
            found |= {} if words is None else {path: words}
        elif LANGUAGES.search(path):
            own, known = (
                encoders[name].languages,
                description["config"]["encoders"].get(theirs, {}).get("languages", ()),
            )
            found |= {} if list(own) == list(known) else {path: common_places(own, known)}
        elif path == STARTS:
            own, known = assembly.model.starts, description.get("starts", ())
            found |= {} if list(own) == list(known) else {path: common_places(own, known)}
    return found


def common_places(own: Sequence[str], other: Sequence[str]) -> Common:
    """Return the places in two lists of the names that both have.

    Example:
        >>> common_places(("de", "fr", "ja"), ("ja", "de"))
        (array([0, 2], dtype=int32), array([1, 0], dtype=int32))
    """
    common = [name for name in own if name in other]
    places = ([list(names).index(name) for name in common] for names in (own, other))
    one, two = (np.array(found, np.int32) for found in places)
    return one, two


def _common_words(
    assembly: Assembly, description: dict[str, Any], workdir: pathlib.Path, name: str, other: str
) -> Common | None:
    """Return the ids of the tokens that the encoder `name` and the run's `other` both know, where these differ."""
    kind, kept = description["config"]["encoders"].get(other, {}).get("tokenizer"), workdir / tokenizer_file(other)
    if name not in assembly.tokenizers or kind is None or (kind != "minilm" and not kept.is_file()):
        return None
    own, theirs = assembly.tokenizers[name], load_tokenizer("minilm" if kind == "minilm" else str(kept))
    return None if theirs.path.read_bytes() == own.path.read_bytes() else common_ids(own, theirs)


def common_ids(own: Tokenizer, other: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids int32 [N] in both tokenizers of the tokens that both know."""
    ours, theirs = _ids(own), _ids(other)
    common = sorted(ours.keys() & theirs.keys(), key=lambda token: ours[token])
    return np.array([ours[token] for token in common], np.int32), np.array(
        [theirs[token] for token in common], np.int32
    )


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return {token: id} of a tokenizer, special tokens included."""
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(tokenizer.path)).get_vocab(with_added_tokens=True)


def _table_fits(there: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Return True for two tables whose rows have the same shape."""
    return len(there) == len(own) >= 2 and there[1:] == own[1:]


def _read(
    checkpoints: Checkpoints, step: int, asked: dict[str, tuple[str, tuple[int, ...], Any]], items: dict[str, str]
) -> dict[str, Array]:
    """Return leaves by their own paths, from {own path: (path there, shape, sharding)} and the item of each there."""
    wanted: dict[str, Any] = {}
    for there, shape, place in asked.values():
        wanted.setdefault(items[there], {})[there] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
    if PARAMS in wanted:
        wanted[PARAMS] = unflatten_dict(wanted[PARAMS], sep="/")
    _, found = checkpoints.restore_some(wanted, [step])
    leaves: dict[str, Any] = flatten_dict(found.get(PARAMS, {}), sep="/") | found.get(TEACHER, {})
    return {path: leaves[there] for path, (there, *_) in asked.items()}


def _replicated(place: Any) -> Any:
    """Return a sharding of whole arrays on all devices of another sharding."""
    if isinstance(place, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    return place


def _rows(table: Array, ids: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, Array]:
    """Return the places of rows and these rows of another run's table; those beyond it are left out."""
    inside = others < table.shape[0]
    return ids[inside], table[others[inside]]


def _refuse_frozen(config: Config, left: list[str]) -> None:
    """Raise UserError for a frozen leaf of a tower or head that does not come whole from the other run, but random."""
    freeze = config.optimizer.freeze
    for path in left:
        if freeze and path.partition("/")[2].startswith(("tower/", "head/")) and re.search(freeze, path):
            raise UserError(
                f"config.optimizer.freeze '{freeze}' freezes '{path}', which config.init='{config.init}' does not have "
                "in this shape; write a config.optimizer.freeze that leaves it to train"
            )
