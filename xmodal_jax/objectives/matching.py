"""ITM: does this text belong to this image? On the fusion encoder, with hard negatives from inside the batch.

Li et al. 2021 (ALBEF, section 3.2). Negatives are drawn by the Gumbel trick on masked logits, which cannot underflow.

At retrieval the score is added to ITC's, because negatives drawn with probability proportional to exp(ITC /
temperature) make matching a noise-contrastive estimate with ITC as the noise (Gutmann and Hyvaerinen 2010),
whose optimum is log p(match) - ITC / temperature + constant. Matching learns the correction of ITC, and the sum
is the posterior.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, named_key, stop
from xmodal_jax.models.layers import every_row, pick_rows
from xmodal_jax.objectives.base import Term, marks, mean_over, products, same
from xmodal_jax.objectives.robust import Robust, refurbished
from xmodal_jax.settings import Config
from xmodal_jax.types import NEVER, Array, Batch, DataFacts


def draw_negatives(key: Array, logits: Array, allowed: Array, count: int) -> Array:
    """Draw `count` columns per row without replacement, with probability proportional to exp(logits) where `allowed`.

    logits [B,M], allowed bool [B,M] -> int [B,count] (Gumbel top-k, as `count` times the largest: XLA splits an
    argmax over devices and gathers everything for a top-k). A row with fewer allowed columns gets others; `ITM` gives
    it no weight.
    """
    noisy = jnp.where(allowed, logits + jax.random.gumbel(key, logits.shape), -jnp.inf)
    picked, columns = [], jnp.arange(logits.shape[1])[None, :]
    for _ in range(count):
        picked.append(noisy.argmax(1))
        noisy = jnp.where(columns == picked[-1][:, None], -jnp.inf, noisy)
    return jnp.stack(picked, axis=1).astype(jnp.int32)


class Pairs(NamedTuple):
    """The rows of each fused pair: for each row 1 positive, then n negatives of the first field, then n of the second.

    Row numbers count the matched rows inside their group.
    """

    first: Array
    """Rows of the first field, int [G,g,1+2n]."""
    second: Array
    """Rows of the second field, int [G,g,1+2n]."""
    usable: Array
    """True for rows that have negatives enough, bool [G,g]."""

    def flat(self) -> tuple[Array, Array]:
        """Return the rows of both fields as `pick_rows` takes them, int [G, g * (1+2n)] each."""
        return self.first.reshape(self.first.shape[0], -1), self.second.reshape(self.second.shape[0], -1)


def in_groups(x: Array, group: int) -> Array:
    """Split x [B, ...] into blocks of consecutive rows [B / group, group, ...]."""
    return x.reshape(-1, group, *x.shape[1:])


def draw_pairs(key: Array, logits: Array, allowed: Array, count: int) -> Pairs:
    """Draw hard negatives of both directions inside each group, from logits of the first field by the second [G,g,g].

    With a group at most the rows of one device no row crosses devices, and the draw is the same on every mesh.
    """
    groups, size, _ = logits.shape
    draw = jax.vmap(draw_negatives, in_axes=(0, 0, 0, None))
    keys = [jax.random.split(one, groups) for one in jax.random.split(key)]
    firsts = draw(keys[0], jnp.swapaxes(logits, 1, 2), allowed, count)
    seconds = draw(keys[1], logits, allowed, count)
    own = jnp.broadcast_to(jnp.arange(size, dtype=firsts.dtype)[None, :, None], (groups, size, 1))
    repeated = jnp.broadcast_to(own, firsts.shape)
    return Pairs(
        jnp.concatenate([own, firsts, repeated], axis=2),
        jnp.concatenate([own, repeated, seconds], axis=2),
        allowed.sum(2) >= count,
    )


@dataclass(frozen=True)
class ITM(Robust):
    """Binary matching over 1 positive and 2 x `negatives` pairs a row, or listwise over the same pairs.

    The tokens of the pair's second field read those of the first. "listwise" lets the true one of the first field
    compete with the negatives of its row (and the other way round) in one softmax.
    """

    negatives: int = limited(1, least=1)
    """Negatives per direction and row."""
    group: int = limited(0, least=0)
    """Consecutive rows that share negatives (at most a device's: no tokens travel); 0: the whole batch."""
    every: int = limited(1, least=1)
    """n: match every n-th row only, which allows a large batch for ITC without its cost in fusion."""
    hardness: float = limited(1.0, least=0)
    """Negatives follow exp(hardness * ITC / temperature); 0: uniform."""
    loss: str = limited("binary", among=("binary", "listwise"))
    """"binary": each pair matches or not; "listwise": the positive competes with its negatives."""

    contrasts: ClassVar[bool] = True

    @property
    def parts(self) -> frozenset[str]:
        """Fusion and the matching head."""
        return frozenset({"fusion", "match"})

    def check(self, where: str) -> None:
        """Refuse a group that `every` and `negatives` do not fit."""
        if self.group:
            self.group_size(self.group)

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse groups that do not fit the batch, and a `robust` that is no entry."""
        super().check_fit(where, config, facts)
        self.group_size(config.batch_size)

    def group_size(self, rows: int) -> int:
        """Return the matched rows of a group in a batch of `rows`; raise UserError for a size that does not fit."""
        whole, where = self.group or rows, f"config.objectives.{self.name}"
        if rows % whole:
            raise UserError(
                f"{where}.group is {whole}, which does not divide the batch of {rows} rows; write a divisor"
            )
        if self.negatives >= whole:
            raise UserError(
                f"{where}.negatives is {self.negatives}, and a group of {whole} rows has {whole - 1} at most; "
                "write fewer, or a larger group"
            )
        fits = [step for step in range(1, whole + 1) if whole % step == 0 and whole // step > self.negatives]
        if self.every not in fits:
            raise UserError(
                f"{where}.every is {self.every}, which must divide the {whole} rows of a group and leave more than the "
                f"{self.negatives} of {where}.negatives; write a divisor of {whole} up to {max(fits)}"
            )
        return whole // self.every

    def pairs(self, fwd: Forward, batch: Batch, key: Array) -> Pairs:
        """Draw the pairs to fuse among the matched rows 0, `every`, 2 * `every` ... of the batch."""
        size = self.group_size(batch["id"].shape[0])

        def matched(x: Array) -> Array:
            return in_groups(every_row(x, self.every), size)

        own = {name: matched(values) for name, values in marks(batch, self.pair).items()}
        one, two = (matched(fwd.encode(field).unit) for field in self.pair)
        logits = jax.vmap(products)(one, two) * (self.hardness / fwd.call("temperature"))
        present = own["id"] != NEVER
        allowed = ~jax.vmap(same)(own, own) & present[:, None, :] & present[:, :, None]
        return draw_pairs(key, stop(logits), allowed, self.negatives)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average over the pairs of a row, [b] for the b = B / every matched rows."""
        pairs = self.pairs(fwd, batch, key)
        first, second = (fwd.encode(field).every(self.every) for field in self.pair)
        firsts, seconds = pairs.flat()
        fused = fwd.fuse(first, second.rows(seconds), firsts)
        embeds = stop((pick_rows(first.unit, firsts), pick_rows(second.unit, seconds)))
        logits = fwd.call("match_logits", fused.tokens, fused.mask, *embeds, key=named_key(key, "match"))
        odds = (logits[:, 1] - logits[:, 0]).reshape(-1, pairs.first.shape[2])
        target, trust = jnp.ones(len(odds)), self.trust(fwd, batch)
        if trust is not None:
            target = refurbished(every_row(trust, self.every), jax.nn.sigmoid(odds[:, 0]))
        values = self.binary(odds, target) if self.loss == "binary" else self.listwise(odds) * target
        label = jnp.arange(odds.shape[1]) == 0
        right = ((odds > 0) == label[None, :]).astype(jnp.float32).mean(1)
        usable = pairs.usable.reshape(-1).astype(jnp.float32)
        return Term(values, usable, {"accuracy": mean_over(right, usable), "rows": usable.mean()})

    def binary(self, odds: Array, target: Array | float = 1.0) -> Array:
        """Return the cross-entropy [B] with labels target [B], 0, ..., 0 of log-odds [B, 1 + 2n]."""
        own = target * jax.nn.softplus(-odds[:, 0]) + (1.0 - target) * jax.nn.softplus(odds[:, 0])
        return (own + jax.nn.softplus(odds[:, 1:]).sum(1)) / odds.shape[1]

    def listwise(self, odds: Array) -> Array:
        """Return the softmax cross-entropy [B] of the positive against the negatives of each direction, averaged."""
        firsts, seconds = jnp.split(odds[:, 1:], 2, axis=1)

        def against(negatives: Array) -> Array:
            return jax.nn.logsumexp(jnp.concatenate([odds[:, :1], negatives], axis=1), axis=1) - odds[:, 0]

        return 0.5 * (against(firsts) + against(seconds))
