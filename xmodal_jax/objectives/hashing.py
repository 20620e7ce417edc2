"""Hashing: K-bit codes of both modalities from the pairwise likelihood, quantisation and balance.

The likelihood is DCMH's (Jiang and Li 2017, equation 1): Theta = f.g / 2, loss log(1 + exp Theta) - S Theta, with S = 1
for pairs that match (same id, identical caption, or a shared label).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Forward, stop
from xmodal_jax.objectives.base import Plain, Schedule, Term, same
from xmodal_jax.types import Array, Batch


def similarity(batch: Batch, by_label: bool) -> Array:
    """S [B,B], float32: 1 where two rows match."""
    match = same(batch, batch)
    if by_label:
        labels = batch["labels"]
        match = match | (labels @ labels.T > 0)
    return match.astype(jnp.float32)


def pairwise_likelihood(left: Array, right: Array, target: Array, scale: Array) -> Array:
    """Negative log-likelihood of S [B,B] under Theta = scale * left @ right.T, averaged over positives and negatives

    separately for each row -> [B] (a batch has far more negatives than positives; DCMH's plain sum would drown them).
    """
    theta = scale * left @ right.T
    losses = jax.nn.softplus(theta) - target * theta
    positive = (losses * target).sum(1) / jnp.maximum(target.sum(1), 1.0)
    other = 1.0 - target
    return positive + (losses * other).sum(1) / jnp.maximum(other.sum(1), 1.0)


@dataclass(frozen=True)
class Hash(Plain):
    """Codes whose inner products tell matching pairs from others, near ±1, with balanced bits."""

    weight: Schedule = 1.0
    similarity: float = 1.0
    quantization: float = 0.1
    balance: float = 0.1
    by_label: bool = False  # S also counts shared labels (the data set must have them)
    scale: float = 16.0  # Theta = scale * mean product of the codes; K/2 is DCMH's, too steep for long codes

    parts: ClassVar[frozenset[str]] = frozenset({"hash"})

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(self.scale > 0, f"{where}.scale is {self.scale}; write a number above 0, such as 16")

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Weighted sum of the three parts, [B]; the towers are trained through the codes as well."""
        image = fwd.call("hash_image_codes", fwd.image().embed)
        text = fwd.call("hash_text_codes", fwd.text().embed)
        target = similarity(batch, self.by_label)
        scale = jnp.float32(self.scale / image.shape[1])
        likelihood = 0.5 * sum(pairwise_likelihood(*pair, target, scale) for pair in ((image, text), (text, image)))
        shared = stop(jnp.sign(image + text))
        quantization = 0.5 * (jnp.square(image - shared).mean(1) + jnp.square(text - shared).mean(1))
        # Each bit should be on for half of the rows; a row's share of |mean|^2 is spread over all rows alike.
        balance = jnp.square(image.mean(0)).mean() + jnp.square(text.mean(0)).mean()
        values = self.similarity * likelihood + self.quantization * quantization + self.balance * balance
        agree = (jnp.sign(image) == jnp.sign(text)).astype(jnp.float32).mean()
        return Term(values, jnp.ones_like(values), {"bits_agree": agree, "balance": balance})
