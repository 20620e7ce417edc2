"""Start a run from the weights of another one (`config.init`): leaves by path and shape, rows of word tables by word.

The weights are those that the other run's `eval.params` names, of its best checkpoint where it keeps one. They start
the student, and the teacher is copied from it. A run that goes on does not read them again.
"""

import logging
import pathlib
import re
from collections.abc import Iterable
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

WordRows = dict[str, tuple[np.ndarray, Array]]  # {path: (ids int32 [N], their rows float32 [N,D])} of word tables
WORD_TABLE = re.compile(r"/tower/(embed/word|word|words/kernel)$")  # of a text tower, a row for each id
STATISTICS = re.compile(r"/tower/idf$")  # counted on a run's own captions
NAMED = 5  # of the leaves that are left out, so many are named


def read_init(workdir: str) -> dict[str, Any]:
    """Return the description of the run that `config.init` names. Raises UserError for a folder without a run."""
    if not (pathlib.Path(workdir) / RUN_FILE).is_file():
        raise UserError(
            f"config.init is '{workdir}', which holds no run ({RUN_FILE} is missing); write the work "
            "directory of another run, or '' to start without"
        )
    return read_run(pathlib.Path(workdir))


def weights_of_run(assembly: Assembly, params: Params) -> tuple[dict[str, Array], WordRows]:
    """Return the leaves of the run `config.init` that fit, by path, and the rows of word tables by common words.

    `params`: the run's own parameters as ShapeDtypeStructs with shardings, which the leaves are read into.

    Raises UserError for a folder without a run, where nothing fits, and where a frozen leaf would stay random.
    """
    config = assembly.config
    workdir, description = pathlib.Path(config.init), read_init(config.init)
    own: dict[str, Any] = flatten_dict(params, sep="/")
    words = _common_words(assembly, description, workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        used = eval_section(description)
        names = (PARAMS, TEACHER) if used.params == "teacher" else (PARAMS,)
        step, there = checkpoints.shapes(names, usable_steps(checkpoints, used))
        shapes = {name: named_shapes(there.get(name, {})) for name in (PARAMS, TEACHER)}
        source = dict.fromkeys(shapes[PARAMS], PARAMS) | dict.fromkeys(shapes[TEACHER], TEACHER)
        bound = _bound_to_words(assembly, description, source, words)
        whole = [path for path in own if path in source and path not in bound]
        whole = [path for path in whole if shapes[source[path]][path] == own[path].shape]
        tables = [path for path in bound if path in own and _table_fits(shapes[source[path]][path], own[path].shape)]
        tables = [path for path in tables if len(words.get(path.split("/")[0], ((), ()))[0])]
        if not any(own[path].shape for path in whole):  # a scalar fits anywhere
            raise UserError(
                f"config.init is '{config.init}', whose weights have no path and shape in common with this config's; "
                "write a run of the same architecture, or '' to start without"
            )
        found = _read(checkpoints, step, own, shapes, source, whole, tables)
    rows = {path: _rows(found.pop(path), *words[path.split("/")[0]]) for path in tables}
    left = [path for path in own if path not in found and path not in rows]
    _refuse_frozen(config, [*left, *rows])
    if is_first():
        log.info(
            "starting from step %d of '%s': %d of %d leaves%s%s",
            step,
            workdir,
            len(own) - len(left),
            len(own),
            f", {sum(len(ids) for ids, _ in rows.values())} word rows by word" if rows else "",
            left_out(left),
        )
    return found, rows


def left_out(paths: list[str]) -> str:
    """Return the end of a sentence that counts leaves which start anew and names the first of them; "" for none."""
    more = ", ..." if len(paths) > NAMED else ""
    return f"; {len(paths)} start anew ({', '.join(paths[:NAMED])}{more})" if paths else ""


def _common_words(
    assembly: Assembly, description: dict[str, Any], workdir: pathlib.Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {encoder: (own ids, the other run's ids)} of the tokens that both know, where the vocabularies differ."""
    encoders, found = description["config"]["encoders"], {}
    for name, own in assembly.tokenizers.items():
        kind = encoders.get(name, {}).get("tokenizer")
        kept = workdir / tokenizer_file(name)
        if kind is None or (kind != "minilm" and not kept.is_file()):
            continue
        other = load_tokenizer("minilm" if kind == "minilm" else str(kept))
        if other.path.read_bytes() != own.path.read_bytes():
            found[name] = common_ids(own, other)
    return found


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


def _bound_to_words(
    assembly: Assembly, description: dict[str, Any], paths: Iterable[str], words: dict[str, Any]
) -> set[str]:
    """Return the leaves that ids index and that the other vocabulary gives another meaning; statistics always count."""
    same_output = list(assembly.model.output_ids) == list(description["output_ids"])
    asks = assembly.config.fusion.pair[1]
    bound = set()
    for path in paths:
        encoder = path.split("/")[0]
        if STATISTICS.search(path) or (WORD_TABLE.search(path) and encoder in words):
            bound.add(path)
        if path == "vocabulary/bias" and (asks in words or not same_output):
            bound.add(path)
    return bound


def _table_fits(there: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Return True for two word tables [V,D] of the same width."""
    return len(there) == len(own) == 2 and there[1] == own[1]


def _read(
    checkpoints: Checkpoints,
    step: int,
    own: dict[str, Any],
    shapes: dict[str, dict[str, tuple[int, ...]]],
    source: dict[str, str],
    whole: list[str],
    tables: list[str],
) -> dict[str, Array]:
    """Return the leaves of these paths, each read from its item and placed as the run's own leaf."""
    wanted: dict[str, Any] = {}
    for path in [*whole, *tables]:
        leaf, item = own[path], source[path]
        place = leaf.sharding if path in whole else _replicated(leaf.sharding)
        asked = jax.ShapeDtypeStruct(shapes[item][path], jnp.float32, sharding=place)
        wanted.setdefault(item, {})[path] = asked
    if PARAMS in wanted:
        wanted[PARAMS] = unflatten_dict(wanted[PARAMS], sep="/")
    _, found = checkpoints.restore_some(wanted, [step])
    own_leaves: dict[str, Any] = flatten_dict(found.get(PARAMS, {}), sep="/")
    return own_leaves | found.get(TEACHER, {})


def _replicated(place: Any) -> Any:
    """Return a sharding of whole arrays on all devices of another sharding."""
    if isinstance(place, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    return place


def _rows(table: Array, ids: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, Array]:
    """Return the ids and their rows in another run's word table [V,D]; ids beyond it are left out."""
    inside = others < table.shape[0]
    return ids[inside], table[others[inside]]


def _refuse_frozen(config: Config, left: list[str]) -> None:
    """Raise UserError for a frozen tower's leaf that does not come whole from the other run: it would stay random."""
    freeze = config.optimizer.freeze
    for path in left:
        encoder, _, rest = path.partition("/")
        random = rest.startswith("tower/") and not config.encoders[encoder].init and not STATISTICS.search(path)
        if freeze and random and re.search(freeze, path):
            raise UserError(
                f"config.optimizer.freeze '{freeze}' freezes '{path}', which config.init='{config.init}' does not have "
                "in this shape; write a config.optimizer.freeze that leaves it to train"
            )
