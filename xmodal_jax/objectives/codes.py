"""The base of losses on hash codes: one pass of each hash head, every length of `config.joint.nested`, and pairs.

Nested codes (our addition; Kusupati et al. 2022 do the same with float embeddings): a loss is the mean of its values on
the first k bits, over all lengths k and the whole code, so that one model's first 16, 32, 64 ... bits are each a code.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from xmodal_jax.forward import Forward
from xmodal_jax.objectives.base import Term, add_all, marks, products, row_weight, same
from xmodal_jax.objectives.robust import Robust
from xmodal_jax.types import Array, Batch, Metrics

Losses = tuple[Array, Metrics]


class Rows(NamedTuple):
    """The rows of a batch as a code loss sees them."""

    match: Array
    """True for rows with the same id, identical captions or, `by_label`, a shared label, bool [B,B]."""
    real: Array
    """1 for rows that count and 0 for others, float32 [B]."""

    @property
    def similar(self) -> Array:
        """S float32 [B,B]: 1 where two rows match."""
        return self.match.astype(jnp.float32)

    @property
    def negative(self) -> Array:
        """Mask bool [B,B], True where the column's row is a negative of the row."""
        return ~self.match & (self.real > 0)[None, :]

    def mean(self, values: Array) -> Array:
        """Average `values` [B,...] over the rows that count -> [...]; 0 where none does."""
        weight = self.real.reshape(-1, *(1,) * (values.ndim - 1))
        return (values * weight).sum(0) / jnp.maximum(self.real.sum(), 1.0)

    def column_mean(self, values: Array) -> Array:
        """Average `values` [B,B] over the columns that count -> [B]."""
        return (values * self.real[None, :]).sum(1) / jnp.maximum(self.real.sum(), 1.0)


def batch_rows(batch: Batch, pair: tuple[str, str], by_label: bool) -> Rows:
    """Determine which rows of a batch match and which have both fields of `pair`."""
    own = marks(batch, pair)
    match = same(own, own)
    if by_label:
        match = match | (products(batch["labels"], batch["labels"]) > 0)
    return Rows(match, row_weight(batch, pair))


def signs(codes: Array) -> Array:
    """Round relaxed codes to -1 or +1 by the rule of the packed codes: numbers not above zero become -1."""
    return jnp.where(codes > 0, 1.0, -1.0).astype(codes.dtype)


@dataclass(frozen=True)
class CodeLoss(Robust):
    """A loss on the relaxed codes of a pair of fields.

    A subclass defines `values`, and `shared` for results that all lengths share. With `robust` a row counts as much as
    it is trusted.
    """

    @property
    def parts(self) -> frozenset[str]:
        """The hash heads."""
        return frozenset({"hash"})

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair, and labels if they decide which rows match."""
        return (*super().reads, "labels") if self.by_label else super().reads

    def shared(self, fwd: Forward, batch: Batch, rows: Rows, key: Array) -> Any:
        """Compute results that do not depend on the length of the codes."""
        return None

    def values(self, shared: Any, rows: Rows, one: Array, two: Array) -> Losses:
        """Compute losses [B] and metrics from the codes of both fields, [B,k] each."""
        raise NotImplementedError

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average the losses over the lengths, [B]; metrics are those of the whole codes, and each length's loss."""
        rows = batch_rows(batch, self.pair, self.by_label)
        shared, pairs = self.shared(fwd, batch, rows, key), list(zip(*map(fwd.codes, self.pair), strict=True))
        found = [self.values(shared, rows, one, two) for one, two in pairs]
        values = add_all(values for values, _ in found) / len(found)
        each = {f"loss_{one.shape[1]}": rows.mean(part) for (one, _), (part, _) in zip(pairs, found, strict=True)}
        trust = self.trust(fwd, batch)
        weight = rows.real if trust is None else rows.real * trust
        return Term(values, weight, found[-1][1] | (each if len(found) > 1 else {}))
