"""Multi-label classification of embeddings: an auxiliary task that asks each side alone what a record is of.

MVSEN (Qin et al. 2024) trains it beside image-text and text-text matching "for semantic constraints"; its labels,
weights and classifier are in no source that we could read. CVSE (Wang et al. 2020) is the published precedent: 300
words mined from captions (`xmodal data concepts`), and the mean of binary cross-entropies over them.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.forward import Forward
from xmodal_jax.models.crossmodal import classifier_part
from xmodal_jax.objectives.alignment import Sided
from xmodal_jax.objectives.base import Term, positive, present, row_weight
from xmodal_jax.types import Array, Batch

TARGETS = ("concepts", "labels")


def binary_cross_entropy(logits: Array, target: Array, balance: float = 1.0) -> Array:
    """Return the mean [B] over C of the binary cross-entropies of logits [B,C] against a target [B,C] of 0 and 1.

    Terms of labels that a row has count `balance` times (PyTorch's `pos_weight`).

    Example:
        >>> float(binary_cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), 3.0)[0]) / float(jnp.log(2.0))
        2.0
    """
    there, absent = target * jax.nn.softplus(-logits), (1.0 - target) * jax.nn.softplus(logits)
    return (balance * there + absent).mean(1)


def f1(logits: Array, target: Array, weight: Array) -> Array:
    """Return the F1 of logits [B,C] above 0, over all labels of the rows with a weight [B]; 0 where nothing is right.

    Example:
        >>> found, weight = jnp.array([[1.0, 1.0, -1.0]]), jnp.ones(1)
        >>> round(float(f1(found, jnp.array([[1.0, 0.0, 0.0]]), weight)), 3)
        0.667
    """
    told = (logits > 0).astype(jnp.float32) * weight[:, None]
    right, there = (told * target).sum(), (target * weight[:, None]).sum()
    return 2.0 * right / jnp.maximum(told.sum() + there, 1.0)


@dataclass(frozen=True)
class MultiLabel(Sided):
    """Linear classifiers of the unit embeddings of some fields onto the labels or the concepts of a record.

    A row without any label, or without captions for concepts to be in, does not count. Metrics are the loss of each
    field and, as "NAME_f1", its F1 at a probability of 0.5.
    """

    target: str = limited("concepts", among=TARGETS)
    """What is told: "concepts" (`config.data.concepts`), or the "labels" of the data set."""
    shared: bool = False
    """Whether one classifier serves all fields, so that what a label looks like is one direction of the joint space.

    False gives each encoder its own.
    """
    balance: float = positive(1.0)
    """Factor on the terms of labels that a row has, few of all; 1: none."""

    contrasts: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields, and what is told of them."""
        return (*self.sides, self.target)

    @property
    def parts(self) -> frozenset[str]:
        """A classifier for each field, or one."""
        return frozenset(classifier_part(self.target, field) for field in (("",) if self.shared else self.sides))

    def here(self, batch: Batch, side: str) -> Array:
        """Return float32 [B]: 1 for rows that have the field, and of which the target is known."""
        known = present(batch, (self.target,))
        known = (batch[self.target] > 0).any(1) if known is None else known
        return row_weight(batch, (side,)) * known.astype(jnp.float32)

    def logits(self, fwd: Forward, side: str) -> Array:
        """Return the logits [B,C] of a field."""
        encoder = "" if self.shared else fwd.encoder_of(side)
        return fwd.call("classify", fwd.encode(side).unit, self.target, encoder)

    def side(self, fwd: Forward, batch: Batch, side: str) -> Array:
        """Compute the losses [B] of one field."""
        return binary_cross_entropy(self.logits(fwd, side), batch[self.target], self.balance)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average the losses over the fields, [B]."""
        term = super().__call__(fwd, batch, key)
        scores = {
            f"{side}_f1": f1(self.logits(fwd, side), batch[self.target], self.here(batch, side)) for side in self.sides
        }
        return replace(term, metrics=term.metrics | scores)
