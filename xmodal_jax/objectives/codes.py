"""What the losses on hash codes share: one pass of each hash head, every length of `config.joint.nested`, and pairs.

Nested codes (our addition; Kusupati et al. 2022 do the same with float embeddings): a loss is the mean of its values on
the first k bits, over all lengths k and the whole code, so that one model's first 16, 32, 64 ... bits are each a code.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from xmodal_jax.forward import Forward
from xmodal_jax.objectives.base import Paired, Term, marks, products, row_weight, same
from xmodal_jax.types import Array, Batch, Metrics

Losses = tuple[Array, Metrics]


class Rows(NamedTuple):
    """The rows of a batch as a code loss sees them: which match, and which count (float32 [B], 1 or 0)."""

    match: Array  # bool [B,B]: the same id, identical captions or, `by_label`, a shared label
    real: Array

    @property
    def similar(self) -> Array:
        """S [B,B] float32: 1 where two rows match."""
        return self.match.astype(jnp.float32)

    @property
    def negative(self) -> Array:
        """Which rows are negatives of which, bool [B,B]."""
        return ~self.match & (self.real > 0)[None, :]

    def mean(self, values: Array) -> Array:
        """The mean of `values` [B,...] over the rows that count, [...]; 0 where none does."""
        weight = self.real.reshape(-1, *(1,) * (values.ndim - 1))
        return (values * weight).sum(0) / jnp.maximum(self.real.sum(), 1.0)

    def column_mean(self, values: Array) -> Array:
        """The mean of `values` [B,B] over the columns that count, [B]."""
        return (values * self.real[None, :]).sum(1) / jnp.maximum(self.real.sum(), 1.0)


def batch_rows(batch: Batch, pair: tuple[str, str], by_label: bool) -> Rows:
    """Which rows of a batch match and which have both fields of `pair`."""
    own = marks(batch, pair)
    match = same(own, own)
    if by_label:
        match = match | (products(batch["labels"], batch["labels"]) > 0)
    return Rows(match, row_weight(batch, pair))


def signs(codes: Array) -> Array:
    """Relaxed codes -> -1 or +1 by the rule of the packed codes: what is not above zero is -1."""
    return jnp.where(codes > 0, 1.0, -1.0).astype(codes.dtype)


@dataclass(frozen=True)
class CodeLoss(Paired):
    """A loss on the relaxed codes of a pair of fields. A subclass writes `values`, and `shared` for what all lengths share."""

    @property
    def parts(self) -> frozenset[str]:
        """The hash heads."""
        return frozenset({"hash"})

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair, and labels where they say what matches."""
        return (*super().reads, "labels") if self.by_label else super().reads

    def shared(self, fwd: Forward, batch: Batch, rows: Rows, key: Array) -> Any:
        """What does not depend on the length of the codes."""
        return None

    def values(self, shared: Any, rows: Rows, one: Array, two: Array) -> Losses:
        """Values [B] and metrics of the codes of both fields, [B,k] each."""
        raise NotImplementedError

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """The mean over the lengths, [B]; metrics are those of the whole codes, with each length's loss beside them."""
        rows = batch_rows(batch, self.pair, self.by_label)
        shared, pairs = self.shared(fwd, batch, rows, key), list(zip(*map(fwd.codes, self.pair), strict=True))
        found = [self.values(shared, rows, one, two) for one, two in pairs]
        values = sum(values for values, _ in found) / len(found)
        each = {f"loss_{one.shape[1]}": rows.mean(part) for (one, _), (part, _) in zip(pairs, found, strict=True)}
        return Term(values, rows.real, found[-1][1] | (each if len(found) > 1 else {}))
