"""Write captions: greedy or beam search with the captioning decoder.

The whole prefix is decoded again at each position: captions are short, and the program stays one compiled step.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.errors import refuse_unless
from xmodal_jax.types import Array, Params


def next_log_probs(model: Any, params: Params, tokens: Array, rows: Array, ids: Array, position: Array) -> Array:
    """Log-probabilities [b,V] of the token after `position`, for ids [b,L] that read the image tokens' `rows` [b]."""
    hidden = model.apply({"params": params}, tokens, ids, rows, method="decode")
    logits = model.apply({"params": params}, hidden[:, position], method="token_logits")
    return jax.nn.log_softmax(logits)


def forbid(log_probs: Array, columns: tuple[int, ...], when: Array) -> Array:
    """Log-probabilities [b,V] with some columns impossible where `when` (a boolean scalar)."""
    if not columns:
        return log_probs
    return jnp.where(when, log_probs.at[:, jnp.asarray(columns)].set(-jnp.inf), log_probs)


@partial(jax.jit, static_argnums=(0, 3, 4, 5, 6, 7))
def beam_search(model: Any, params: Params, tokens: Array, length: int, beam: int, min_length: int,
                special: tuple[int, ...], output_ids: tuple[int, ...]) -> tuple[Array, Array]:  # fmt: skip
    """Image tokens [B,N,D] -> the best ids [B,L] and their mean log-probability [B] (Li et al. 2022: beam 3).

    `special` is (start id, [SEP] id, ids never written...). Finished captions keep their score and add padding.
    """
    tokens = model.apply({"params": params}, tokens, method="caption_tokens")
    bos, sep, *never = special
    batch = tokens.shape[0]
    table = np.asarray(output_ids or range(model.config.asking.vocab_size), np.int32)
    column = {int(word): i for i, word in enumerate(table)}
    blocked = tuple(column[word] for word in [bos, *never] if word in column)
    end = column[sep]
    rows = jnp.repeat(jnp.arange(batch), beam)
    ids = jnp.zeros((batch, beam, length), jnp.int32).at[:, :, 0].set(bos)
    scores = jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf)[None, :] + jnp.zeros((batch, 1))

    def step(position: Array, carry: tuple) -> tuple:
        ids, scores, done = carry
        flat = next_log_probs(model, params, tokens, rows, ids.reshape(-1, length), position)
        flat = forbid(flat, blocked, jnp.array(True))
        flat = forbid(flat, (end,), position < min_length)
        log_probs = flat.reshape(batch, beam, -1)
        stay = jnp.where(jnp.arange(len(table)) == end, 0.0, -jnp.inf)[None, None, :]
        total = scores[:, :, None] + jnp.where(done[:, :, None], stay, log_probs)
        scores, place = jax.lax.top_k(total.reshape(batch, -1), beam)
        parent, choice = place // len(table), place % len(table)
        ids, done = (
            jnp.take_along_axis(x, parent.reshape(batch, beam, *[1] * (x.ndim - 2)), axis=1) for x in (ids, done)
        )
        word = jnp.where(done, 0, jnp.asarray(table)[choice])
        return ids.at[:, :, position + 1].set(word), scores, done | (choice == end)

    ids, scores, _ = jax.lax.fori_loop(0, length - 1, step, (ids, scores, jnp.zeros((batch, beam), bool)))
    mean = scores / jnp.maximum((ids != 0).sum(2).astype(jnp.float32) - 1.0, 1.0)
    best = mean.argmax(1)
    pick = lambda x: jnp.take_along_axis(x, best.reshape(batch, *[1] * (x.ndim - 1)), axis=1)[:, 0]
    return pick(ids), pick(mean)


BLOCK = 32  # pictures whose captions are written at once; fewer are not padded to it


def write_captions(
    assembly: Assembly, params: Params, tokens: np.ndarray, beam: int = 3, min_length: int = 1
) -> list[str]:
    """Captions of image tokens [n,N,D], in blocks of one compiled shape.

    Raises UserError when the run has no decoder (its config has no `lm` objective).
    """
    refuse_unless(
        "decoder" in params, "this run has no captioning decoder; train it with the objective 'lm' in its config"
    )
    tokenizer, model = assembly.tokenizer, assembly.model
    never = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.mask_id)
    special = (tokenizer.bos_id, tokenizer.sep_id, *never)
    length, size, captions = assembly.config.data.length, min(BLOCK, max(len(tokens), 1)), []
    for start in range(0, len(tokens), size):
        block = tokens[start : start + size]
        padded = np.concatenate([block, np.zeros((size - len(block), *block.shape[1:]), block.dtype)])
        ids, _ = beam_search(model, params, jnp.asarray(padded), length, beam, min_length, special, model.output_ids)
        captions += [tokenizer.decode(row) for row in np.asarray(ids)[: len(block)]]
    return captions
