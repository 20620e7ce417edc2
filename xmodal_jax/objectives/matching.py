"""ITM: does this text belong to this image? On the fusion encoder, with hard negatives from inside the batch.

Li et al. 2021 (ALBEF, section 3.2). Negatives are drawn by the Gumbel trick on masked logits, which cannot underflow.

Why the score is added to ITC's at retrieval: negatives drawn with probability proportional to exp(ITC / temperature)
make matching a noise-contrastive estimate with ITC as the noise (Gutmann and Hyvaerinen 2010), whose optimum is
log p(match) - ITC / temperature + constant. What matching learns is the correction of ITC, and the sum is the posterior.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Forward, named_key, stop
from xmodal_jax.objectives.base import Plain, Schedule, Term, same
from xmodal_jax.types import Array, Batch


def draw_negatives(key: Array, logits: Array, allowed: Array, count: int) -> Array:
    """`count` columns per row without replacement, with probability proportional to exp(logits) where `allowed`.

    logits [B,M], allowed bool [B,M] -> int [B,count] (Gumbel top-k). A row with fewer allowed columns repeats others'
    -inf entries; `ITM` gives such rows no weight.
    """
    noisy = jnp.where(allowed, logits + jax.random.gumbel(key, logits.shape), -jnp.inf)
    return jax.lax.top_k(noisy, count)[1]


def blocks(matrix: Array, group: int) -> Array:
    """The diagonal blocks of [B,B] -> [B/group, group, group]."""
    count = matrix.shape[0] // group
    cut = matrix.reshape(count, group, count, group)
    return jnp.moveaxis(jnp.diagonal(cut, axis1=0, axis2=2), -1, 0)


def draw_in_groups(key: Array, logits: Array, allowed: Array, group: int, count: int) -> Array:
    """Negatives from inside blocks of `group` consecutive rows -> global row numbers int [B,count].

    With `group` at most the rows of one device no token crosses devices, and the loss is the same on every mesh.
    """
    local = jax.vmap(draw_negatives, in_axes=(0, 0, 0, None))
    keys = jax.random.split(key, logits.shape[0] // group)
    picked = local(keys, blocks(logits, group), blocks(allowed, group), count)
    offset = group * jnp.arange(picked.shape[0], dtype=picked.dtype)[:, None, None]
    return (picked + offset).reshape(logits.shape[0], count)


@dataclass(frozen=True)
class ITM(Plain):
    """Binary matching over 1 positive and 2 x `negatives` pairs a row, or listwise over the same pairs.

    "listwise" lets the true image compete with the negatives of its text (and the other way round) in one softmax.
    """

    weight: Schedule = 1.0
    negatives: int = 1  # per direction and row
    group: int = 0  # consecutive rows of the batch that negatives are drawn from; 0: all
    every: int = 1  # match every n-th row only: a large batch for ITC without its cost in fusion
    hardness: float = 1.0  # negatives follow exp(hardness * ITC / temperature); 0: uniform
    loss: str = "binary"  # or "listwise"

    parts: ClassVar[frozenset[str]] = frozenset({"fusion", "match"})

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(self.every > 0, f"{where}.every is {self.every}; write 1 for all rows, or more")
        refuse_unless(self.negatives > 0, f"{where}.negatives is {self.negatives}; write 1 or more")
        refuse_unless(self.loss in ("binary", "listwise"), f"{where}.loss is '{self.loss}'; write binary or listwise")

    def pairs(self, fwd: Forward, batch: Batch, key: Array) -> tuple[Array, Array, Array]:
        """Which image and which text each fused pair takes: int [b, 1 + 2n] each, and bool [b], rows with negatives.

        b = B / every rows are matched; the numbers are rows of the whole batch [B].
        """
        own = np.arange(0, batch["id"].shape[0], self.every)
        size, group = len(own), (self.group or batch["id"].shape[0]) // self.every
        if size % group or (self.group or batch["id"].shape[0]) % self.every:
            raise ValueError(
                f"itm.group={self.group} or itm.every={self.every} does not divide the batch of {batch['id'].shape[0]} rows; "
                "write divisors"
            )
        if self.negatives >= group:
            raise ValueError(f"itm.negatives={self.negatives} needs a group above {self.negatives} rows, not {group}")
        mine = {name: batch[name][own] for name in ("id", "text_key")}
        allowed = ~same(mine, mine)
        logits = stop(self.hardness * fwd.image().embed[own] @ fwd.text().embed[own].T / fwd.temperature())
        image_key, text_key = jax.random.split(key)
        images = self.every * draw_in_groups(image_key, logits.T, allowed, group, self.negatives)
        texts = self.every * draw_in_groups(text_key, logits, allowed, group, self.negatives)
        own = jnp.asarray(own[:, None], images.dtype)
        repeated = jnp.broadcast_to(own, images.shape)
        usable = blocks(allowed, group).sum(-1).reshape(size) >= self.negatives
        image_rows = jnp.concatenate([own, images, repeated], axis=1)
        return image_rows, jnp.concatenate([own, repeated, texts], axis=1), usable

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Mean over the pairs of a row, [b]."""
        image_rows, text_rows, usable = self.pairs(fwd, batch, key)
        shape = image_rows.shape
        images = fwd.image() if self.every == 1 else fwd.image().rows(image_rows[:, 0])  # fusion projects these only
        fused = fwd.fuse(images, fwd.text().rows(text_rows.reshape(-1)), image_rows.reshape(-1) // self.every)
        image, text = stop((fwd.image().embed, fwd.text().embed))
        logits = fwd.call(
            "match_logits", fused.tokens, fused.mask, image[image_rows.reshape(-1)], text[text_rows.reshape(-1)],
            key=named_key(key, "match"),
        ).reshape(*shape, 2)  # fmt: skip
        odds = logits[..., 1] - logits[..., 0]
        values = self.binary(odds) if self.loss == "binary" else self.listwise(odds)
        label = jnp.arange(shape[1]) == 0
        right = ((odds > 0) == label[None, :]).astype(jnp.float32).mean()
        return Term(values, usable.astype(jnp.float32), {"accuracy": right, "rows": usable.astype(jnp.float32).mean()})

    def binary(self, odds: Array) -> Array:
        """Cross-entropy with labels 1, 0, ..., 0 on log-odds [B, 1 + 2n] -> [B]."""
        return (jax.nn.softplus(-odds[:, 0]) + jax.nn.softplus(odds[:, 1:]).sum(1)) / odds.shape[1]

    def listwise(self, odds: Array) -> Array:
        """Softmax cross-entropy of the positive against the negatives of each direction -> [B]."""
        images, texts = jnp.split(odds[:, 1:], 2, axis=1)
        against = lambda rest: jax.nn.logsumexp(jnp.concatenate([odds[:, :1], rest], axis=1), axis=1) - odds[:, 0]
        return 0.5 * (against(images) + against(texts))
