"""What the losses on hash codes share: one pass of each hash head, every length of `config.joint.nested`, and pairs.

Nested codes (our addition; Kusupati et al. 2022 do the same with float embeddings): a loss is the mean of its values on
the first k bits, over all lengths k and the whole code, so that one model's first 16, 32, 64 ... bits are each a code.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from xmodal_jax.forward import Forward
from xmodal_jax.objectives.base import Plain, Schedule, Term, products, same
from xmodal_jax.types import Array, Batch, Metrics

Rows = tuple[Array, Metrics]


def similarity(batch: Batch, by_label: bool) -> Array:
    """S [B,B], float32: 1 where two rows match (same id, identical caption or, `by_label`, a shared label)."""
    match = same(batch, batch)
    if by_label:
        labels = batch["labels"]
        match = match | (products(labels, labels) > 0)
    return match.astype(jnp.float32)


def signs(codes: Array) -> Array:
    """Relaxed codes -> -1 or +1 by the rule of the packed codes: what is not above zero is -1."""
    return jnp.where(codes > 0, 1.0, -1.0).astype(codes.dtype)


@dataclass(frozen=True)
class CodeLoss(Plain):
    """A loss on the relaxed codes of both sides. A subclass writes `rows`, and `shared` for what all lengths share."""

    weight: Schedule = 1.0

    parts: ClassVar[frozenset[str]] = frozenset({"hash"})

    def shared(self, fwd: Forward, batch: Batch, key: Array) -> Any:
        """What does not depend on the length of the codes."""
        return None

    def rows(self, shared: Any, image: Array, text: Array) -> Rows:
        """Values [B] and metrics of codes image and text [B,k]."""
        raise NotImplementedError

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """The mean over the lengths, [B]; metrics are those of the whole codes, with each length's loss beside them."""
        shared, pairs = self.shared(fwd, batch, key), list(zip(fwd.codes("image"), fwd.codes("text"), strict=True))
        found = [self.rows(shared, image, text) for image, text in pairs]
        values = sum(values for values, _ in found) / len(found)
        each = {f"loss_{image.shape[1]}": part.mean() for (image, _), (part, _) in zip(pairs, found, strict=True)}
        return Term(values, jnp.ones_like(values), found[-1][1] | (each if len(found) > 1 else {}))
