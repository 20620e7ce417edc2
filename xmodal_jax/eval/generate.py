"""Write captions: greedy or beam search with the captioning decoder.

The whole prefix is decoded again at each position: captions are short, and the program stays one compiled step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.encode.apply import apply
from xmodal_jax.errors import UserError
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.models.layers import real_tokens
from xmodal_jax.origin import trained_languages
from xmodal_jax.parallel.mesh import filled, put_like, to_host
from xmodal_jax.settings import as_dict
from xmodal_jax.types import Array, Params


def next_log_probs(
    model: CrossModal,
    params: Params,
    tokens: Array,
    rows: Array,
    ids: Array,
    position: Array,
    language: Array | None = None,
) -> Array:
    """Compute log-probabilities [b,V] of the token after `position`.

    The ids [b,L] read the image tokens' `rows` [b]; `language` int [b] is the place of theirs in `model.starts`.
    """
    hidden = apply(model, params, tokens, ids, rows, None, None, language, method="decode")
    logits = apply(model, params, hidden[:, position], method="token_logits")
    return jax.nn.log_softmax(logits)


def forbid(log_probs: Array, columns: tuple[int, ...], when: Array) -> Array:
    """Make some columns of log-probabilities [b,V] impossible if `when` (a boolean scalar)."""
    if not columns:
        return log_probs
    return jnp.where(when, log_probs.at[:, jnp.asarray(columns)].set(-jnp.inf), log_probs)


PASSES = 16  # more beams than this are found at once


def largest(x: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` largest of x [n] and their places, descending; of equal ones the first.

    A small `count` takes one pass each: XLA (jax 0.10.2) gathers the input of `lax.top_k` from all devices, but splits
    these passes.
    """
    if count > PASSES:
        return jax.lax.top_k(x, count)
    column = jnp.arange(len(x))

    def pick(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        place = left.argmax()
        return jnp.where(column == place, -jnp.inf, left), (left.max(), place)

    return jax.lax.scan(pick, x, None, length=count)[1]


@partial(jax.jit, static_argnums=(0, 3, 4, 5, 6, 7, 8))
def beam_search(
    model: CrossModal,
    params: Params,
    tokens: Array,
    length: int,
    beam: int,
    min_length: int,
    special: tuple[int, ...],
    output_ids: tuple[int, ...],
    bridged: bool = False,
    language: Array | None = None,
) -> tuple[Array, Array]:
    """Search the best ids [B,L] for image tokens [B,N,D], with their mean log-probability [B] (Li et al. 2022: beam 3).

    `special` is (start id, [SEP] id, ids never written...); `bridged` says that the captioner was trained to read
    through the bridge; `language` int [] is the place of the language to write in `model.starts`. Finished captions
    keep their score and add padding. Under `vmap` each picture has a search of its own, whose beams read only data on
    the picture's device.
    """
    tokens = apply(model, params, tokens, method="bridged_tokens") if bridged else tokens
    how = length, beam, min_length, special, output_ids
    return jax.vmap(lambda own: _search(model, params, own, *how, language))(tokens)


def _search(
    model: CrossModal,
    params: Params,
    tokens: Array,
    length: int,
    beam: int,
    min_length: int,
    special: tuple[int, ...],
    output_ids: tuple[int, ...],
    language: Array | None,
) -> tuple[Array, Array]:
    """Run `beam_search` for one picture: tokens [N,D] -> ids [L] and their mean log-probability."""
    tokens = tokens[None]
    bos, sep, *never = special
    table = np.asarray(output_ids or range(model.config.asking.vocab_size), np.int32)
    column = {int(word): i for i, word in enumerate(table)}
    blocked = tuple(column[word] for word in [bos, *never] if word in column)
    end = column[sep]
    ids = jnp.zeros((beam, length), jnp.int32).at[:, 0].set(bos)
    scores = jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf)
    begun = None if language is None else jnp.full(beam, language)

    def step(position: Array, carry: tuple) -> tuple:
        ids, scores, done = carry
        log_probs = next_log_probs(model, params, tokens, jnp.zeros(beam, jnp.int32), ids, position, begun)
        log_probs = forbid(log_probs, blocked, jnp.array(True))
        log_probs = forbid(log_probs, (end,), position < min_length)
        stay = jnp.where(jnp.arange(len(table)) == end, 0.0, -jnp.inf)[None, :]
        total = scores[:, None] + jnp.where(done[:, None], stay, log_probs)
        scores, place = largest(total.reshape(-1), beam)
        parent, choice = place // len(table), place % len(table)
        word = jnp.where(done[parent], 0, jnp.asarray(table)[choice])
        return ids[parent].at[:, position + 1].set(word), scores, done[parent] | (choice == end)

    ids, scores, _ = jax.lax.fori_loop(0, length - 1, step, (ids, scores, jnp.zeros(beam, bool)))
    mean = scores / jnp.maximum(real_tokens(ids).sum(1).astype(jnp.float32) - 1.0, 1.0)
    best = mean.argmax()
    return ids[best], mean[best]


BLOCK = 32  # the most pictures whose captions are written at once


def start_of(assembly: Assembly, language: str = "") -> np.ndarray | None:
    """Return the place int32 [] of a language among those that the run begins captions in; "": the first of them.

    It is None for a run that does not tell languages apart. Raises UserError for a language that the run does not know,
    with those that it knows.
    """
    known, config = assembly.model.starts, assembly.config
    if known:
        if language and language not in known:
            raise UserError(f"the run writes captions in {', '.join(known)}, not in '{language}'; write one of these")
        return np.asarray(known.index(language) if language else 0, np.int32)
    spoken = (assembly.origin.languages if assembly.origin else trained_languages(as_dict(config.data))).get(
        config.fusion.pair[1], ()
    )
    if language and len(spoken) == 1 and language not in spoken:
        raise UserError(f"the run writes captions in {spoken[0]}, not in '{language}'; leave the language out")
    if language and len(spoken) != 1:
        raise UserError(
            f"the run was trained on captions in {', '.join(spoken)}, and not on being asked for one, such as "
            f"'{language}'; leave the language out, or train with config.objectives.lm.languages=True"
        )
    return None


def write_captions(
    assembly: Assembly, params: Params, tokens: np.ndarray, beam: int = 3, min_length: int = 1, language: str = ""
) -> list[str]:
    """Write captions of image tokens [n,N,D], in blocks of one compiled shape.

    A block is split over the devices that have the parameters. Raises UserError when the run has no decoder (its config
    has no `lm` objective), and for a `language` that it does not write (see `start_of`).
    """
    if "decoder" not in params:
        raise UserError("this run has no captioning decoder; train it with the objective 'lm' in its config")
    tokenizer, model = assembly.tokenizer, assembly.model
    never = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.mask_id)
    special = (tokenizer.bos_id, tokenizer.sep_id, *never)
    bridged, begun = "bridged_decoder" in assembly.parts, start_of(assembly, language)
    length, size, captions = assembly.config.asking.extent, min(BLOCK, max(len(tokens), 1)), []
    for start in range(0, len(tokens), size):
        block = tokens[start : start + size]
        rows = put_like(params, filled(block, size))
        ids, _ = beam_search(model, params, rows, length, beam, min_length, special, model.output_ids, bridged, begun)
        captions += [tokenizer.decode(row) for row in to_host(ids, len(block))]
    return captions
