"""Complementary contrastive loss: learn from negatives alone, which are right even where pairs are wrong (RCL).

Hu et al. 2023 ("Cross-modal retrieval with partially mismatched pairs").
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.forward import Forward
from xmodal_jax.objectives.base import Paired, Term, add_all, marks, mean_over, positive, products, row_weight
from xmodal_jax.objectives.contrastive import LOW, masked
from xmodal_jax.objectives.robust import negatives_of
from xmodal_jax.types import NEVER, Array, Batch


def log_complement(logits: Array) -> Array:
    """Return -log(1 - p) [B,M] of the softmax p of each row of logits [B,M].

    Of the highest logit by two sums of exponentials: its 1 - p would have no digits and no gradient where p is near 1.
    """
    top = jnp.arange(logits.shape[1])[None, :] == logits.argmax(1)[:, None]
    rest = jax.nn.logsumexp(jnp.where(top, LOW, logits), axis=1, keepdims=True)
    of_top = jax.nn.logsumexp(logits, axis=1, keepdims=True) - rest
    return jnp.where(top, of_top, -jnp.log1p(-jnp.where(top, 0.0, jax.nn.softmax(logits, axis=1))))


def complement(logits: Array, kind: str, power: float) -> Array:
    """Return the loss [B,M] of each column as a negative, from its share p of the softmax of logits [B,M].

    "log": -log(1 - p); "tan": tan p; "abs": p; "exp": exp(p - 1), less its value at 0; "gce": (1 - (1 - p)^q) / q with
    q = `power`.
    """
    if kind == "log":
        return log_complement(logits)
    chance = jax.nn.softmax(logits, axis=1)
    if kind == "tan":
        return jnp.tan(chance)
    if kind == "exp":
        return jnp.exp(chance - 1.0) - jnp.exp(-1.0)
    return chance if kind == "abs" else (1.0 - jnp.power(jnp.maximum(1.0 - chance, 1e-6), power)) / power


@dataclass(frozen=True)
class Complementary(Paired):
    """The sum over negatives of a loss of their softmax probabilities, both directions averaged.

    A pair's own probability is in the softmax and is never pulled, so a wrong pair does little harm.
    """

    temperature: float = positive(0.05)
    """Temperature of the softmax over the batch."""
    loss: str = limited("log", among=("log", "tan", "abs", "exp", "gce"))
    """Loss of a negative's probability p: -log(1-p), tan p, p, exp(p-1) or (1-(1-p)^power)/power."""
    power: float = positive(0.5)
    """Exponent of "gce"."""

    contrasts: ClassVar[bool] = True

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average both directions, [B]."""
        one, two = (fwd.encode(field).unit for field in self.pair)
        logits = products(one, two) / self.temperature
        negative, valid = negatives_of(batch, self.pair), marks(batch, self.pair)["id"] != NEVER
        both = [complement(masked(own, valid), self.loss, self.power) for own in (logits, logits.T)]
        values = 0.5 * add_all(jnp.where(negative, own, 0.0).sum(1) for own in both)
        weight = row_weight(batch, self.pair)
        right = masked(logits, valid).argmax(1) == jnp.arange(len(logits))
        return Term(values, weight, {"accuracy": mean_over(right, weight)})
