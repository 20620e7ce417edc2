"""ITM: does this text belong to this image? On the fusion encoder, with hard negatives from inside the batch.

Li et al. 2021 (ALBEF, section 3.2). Negatives are drawn by the Gumbel trick on masked logits, which cannot underflow.

Why the score is added to ITC's at retrieval: negatives drawn with probability proportional to exp(ITC / temperature)
make matching a noise-contrastive estimate with ITC as the noise (Gutmann and Hyvaerinen 2010), whose optimum is
log p(match) - ITC / temperature + constant. What matching learns is the correction of ITC, and the sum is the posterior.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Forward, named_key, stop
from xmodal_jax.models.layers import every_row, pick_rows
from xmodal_jax.objectives.base import Plain, Schedule, Term, products, same
from xmodal_jax.types import Array, Batch


def draw_negatives(key: Array, logits: Array, allowed: Array, count: int) -> Array:
    """`count` columns per row without replacement, with probability proportional to exp(logits) where `allowed`.

    logits [B,M], allowed bool [B,M] -> int [B,count] (Gumbel top-k, as `count` times the largest: XLA splits an argmax over
    devices and gathers everything for a top-k). A row with fewer allowed columns gets others; `ITM` gives it no weight.
    """
    noisy = jnp.where(allowed, logits + jax.random.gumbel(key, logits.shape), -jnp.inf)
    picked, columns = [], jnp.arange(logits.shape[1])[None, :]
    for _ in range(count):
        picked.append(noisy.argmax(1))
        noisy = jnp.where(columns == picked[-1][:, None], -jnp.inf, noisy)
    return jnp.stack(picked, axis=1).astype(jnp.int32)


class Pairs(NamedTuple):
    """Which image and which text each fused pair takes: 1 positive, then n negative images, then n negative texts a row.

    image, text int [G,g,1+2n] number the matched rows inside their group; usable bool [G,g]: the row has negatives enough.
    """

    image: Array
    text: Array
    usable: Array

    def flat(self, side: str) -> Array:
        """The rows of one side as `pick_rows` takes them, int [G, g * (1+2n)]."""
        rows = getattr(self, side)
        return rows.reshape(rows.shape[0], -1)


def in_groups(x: Array, group: int) -> Array:
    """x [B, ...] -> [B / group, group, ...], blocks of consecutive rows."""
    return x.reshape(-1, group, *x.shape[1:])


def draw_pairs(key: Array, logits: Array, allowed: Array, count: int) -> Pairs:
    """Hard negatives of both directions from inside each group: image-to-text logits and `allowed` [G,g,g].

    With a group at most the rows of one device no row crosses devices, and the draw is the same on every mesh.
    """
    groups, size, _ = logits.shape
    draw = jax.vmap(draw_negatives, in_axes=(0, 0, 0, None))
    keys = [jax.random.split(one, groups) for one in jax.random.split(key)]
    images = draw(keys[0], jnp.swapaxes(logits, 1, 2), allowed, count)
    texts = draw(keys[1], logits, allowed, count)
    own = jnp.broadcast_to(jnp.arange(size, dtype=images.dtype)[None, :, None], (groups, size, 1))
    repeated = jnp.broadcast_to(own, images.shape)
    return Pairs(
        jnp.concatenate([own, images, repeated], axis=2),
        jnp.concatenate([own, repeated, texts], axis=2),
        allowed.sum(2) >= count,
    )


@dataclass(frozen=True)
class ITM(Plain):
    """Binary matching over 1 positive and 2 x `negatives` pairs a row, or listwise over the same pairs.

    "listwise" lets the true image compete with the negatives of its text (and the other way round) in one softmax.
    """

    weight: Schedule = 1.0
    negatives: int = 1  # per direction and row
    group: int = (
        0  # negatives come from blocks of this many consecutive rows (at most a device's: no tokens travel); 0: all
    )
    every: int = 1  # match every n-th row only: a large batch for ITC without its cost in fusion
    hardness: float = 1.0  # negatives follow exp(hardness * ITC / temperature); 0: uniform
    loss: str = "binary"  # or "listwise"

    parts: ClassVar[frozenset[str]] = frozenset({"fusion", "match"})
    contrasts: ClassVar[bool] = True

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(
            self.group >= 0, f"{where}.group is {self.group}; write 0 for the whole batch, or a number of rows"
        )
        refuse_unless(self.every > 0, f"{where}.every is {self.every}; write 1 for all rows, or more")
        refuse_unless(self.negatives > 0, f"{where}.negatives is {self.negatives}; write 1 or more")
        refuse_unless(self.loss in ("binary", "listwise"), f"{where}.loss is '{self.loss}'; write binary or listwise")
        refuse_unless(
            self.hardness >= 0, f"{where}.hardness is {self.hardness}; write 0 for uniform negatives, or more"
        )
        if self.group:
            self.group_size(self.group, where)

    def group_size(self, rows: int, where: str = "config.objectives.itm") -> int:
        """Matched rows of a group, of a batch of `rows`; a size that does not fit is a UserError."""
        whole = self.group or rows
        refuse_unless(
            rows % whole == 0,
            f"{where}.group is {whole}, which does not divide the batch of {rows} rows; write a divisor",
        )
        refuse_unless(
            self.negatives < whole,
            f"{where}.negatives is {self.negatives}, and a group of {whole} rows has {whole - 1} at most; "
            "write fewer, or a larger group",
        )
        fits = [step for step in range(1, whole + 1) if whole % step == 0 and whole // step > self.negatives]
        refuse_unless(
            self.every in fits,
            f"{where}.every is {self.every}, which must divide the {whole} rows of a group and leave more than the "
            f"{self.negatives} of {where}.negatives; write a divisor of {whole} up to {max(fits)}",
        )
        return whole // self.every

    def pairs(self, fwd: Forward, batch: Batch, key: Array) -> Pairs:
        """The pairs to fuse, among the matched rows 0, `every`, 2 * `every` ... of the batch."""
        size = self.group_size(batch["id"].shape[0])
        matched = lambda x: in_groups(every_row(x, self.every), size)
        own = {name: matched(batch[name]) for name in ("id", "text_key")}
        image, text = matched(fwd.encode("image").embed), matched(fwd.encode("text").embed)
        logits = jax.vmap(products)(image, text) * (self.hardness / fwd.call("temperature"))
        return draw_pairs(key, stop(logits), ~jax.vmap(same)(own, own), self.negatives)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Mean over the pairs of a row, [b] for the b = B / every matched rows."""
        pairs = self.pairs(fwd, batch, key)
        image, text = fwd.encode("image").every(self.every), fwd.encode("text").every(self.every)
        rows = {side: pairs.flat(side) for side in ("image", "text")}
        fused = fwd.fuse(image, text.rows(rows["text"]), rows["image"])
        image, text = stop((pick_rows(image.embed, rows["image"]), pick_rows(text.embed, rows["text"])))
        logits = fwd.call("match_logits", fused.tokens, fused.mask, image, text, key=named_key(key, "match"))
        odds = (logits[:, 1] - logits[:, 0]).reshape(-1, pairs.image.shape[2])
        values = self.binary(odds) if self.loss == "binary" else self.listwise(odds)
        label = jnp.arange(odds.shape[1]) == 0
        right = ((odds > 0) == label[None, :]).astype(jnp.float32).mean()
        usable = pairs.usable.reshape(-1).astype(jnp.float32)
        return Term(values, usable, {"accuracy": right, "rows": usable.mean()})

    def binary(self, odds: Array) -> Array:
        """Cross-entropy with labels 1, 0, ..., 0 on log-odds [B, 1 + 2n] -> [B]."""
        return (jax.nn.softplus(-odds[:, 0]) + jax.nn.softplus(odds[:, 1:]).sum(1)) / odds.shape[1]

    def listwise(self, odds: Array) -> Array:
        """Softmax cross-entropy of the positive against the negatives of each direction -> [B]."""
        images, texts = jnp.split(odds[:, 1:], 2, axis=1)
        against = lambda rest: jax.nn.logsumexp(jnp.concatenate([odds[:, :1], rest], axis=1), axis=1) - odds[:, 0]
        return 0.5 * (against(images) + against(texts))
