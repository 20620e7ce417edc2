"""MVJRC: multi-view joint representation contrast (MTGFE, Zhang et al. 2023).

The paper's abstract names the task and its purpose, joint representations that stay the same for pictures "with
significant differences in resolution, color, and angle"; the formula is not public. Read here as InfoNCE (van den Oord
et al. 2018) between the student's fused [CLS] of a picture with its text and the teacher's of another view with the
same text, in both directions.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from xmodal_jax.forward import Encoded, Forward, stop
from xmodal_jax.objectives.base import Term, marks, mean_over, positive, products, same
from xmodal_jax.objectives.fused import FusedKeys
from xmodal_jax.types import NEVER, Array, Batch


def fused_embedding(fwd: Forward, image: Encoded, text: Encoded) -> Array:
    """Return unit joint embeddings [B,E] of aligned pairs, by `fwd`'s fusion."""
    return fwd.call("fused_embed", fwd.fuse(image, text).tokens)


def lone_positives(query: Array, keys: Array, allowed: Array, temperature: Array) -> tuple[Array, Array]:
    """Compute InfoNCE of rows [B,E] whose only positive is the key of the same number; `allowed` [B,M] masks columns.

    Returns losses [B] and hits bool [B]: True if the row's highest logit is its own key.
    """
    logits = products(query, keys) / temperature
    logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
    losses = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    return losses, logits.argmax(1) == jnp.arange(logits.shape[0])


@dataclass(frozen=True)
class MVJRC(FusedKeys):
    """Contrast of the student's fused pair with the teacher's, which sees another view of the pair's first field.

    Pairs with the same id or the identical caption are no negatives (in remote sensing up to nine captions in ten occur
    with several pictures); they are left out of the softmax.
    """

    view: str = ""
    """The field of the other view of the pair's first field; "": that field's name and a 2, as in image2."""
    temperature: float = positive(0.07)
    """Temperature of the softmax over keys."""
    keys: str = "multiview"
    """Name of its ring."""
    swapped: bool = False
    """True adds a negative for each row: its text with the picture of the row before."""

    @property
    def parts(self) -> frozenset[str]:
        """Fusion and its joint embedding."""
        return frozenset({"fusion", "fused"})

    @property
    def reads(self) -> tuple[str, ...]:
        """The pair and the other view."""
        return (*super().reads, self.other)

    @property
    def other(self) -> str:
        """The field of the other view."""
        return self.view or f"{self.pair[0]}2"

    def fused(self, fwd: Forward, first: str) -> Array:
        """Return unit joint embeddings [b,E] of `first` with the pair's second field, by `fwd`."""
        return fused_embedding(fwd, *(fwd.encode(field).every(self.every) for field in (first, self.pair[1])))

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average both directions, [b] for the b = B / every fused rows."""
        one, two = self.fused(fwd, self.pair[0]), stop(self.fused(fwd.teacher, self.other))
        rows = self.rows(batch)
        matched, weight = marks(rows, self.reads), self.counts(fwd, batch, rows)
        columns = self.columns(fwd, two, rows)
        own = jnp.arange(columns["id"].shape[0])[None, :] == jnp.arange(one.shape[0])[:, None]
        allowed = (own | ~same(matched, columns)) & (columns["id"] != NEVER)[None, :]
        temperature, keys = jnp.float32(self.temperature), columns["fused"]
        if self.swapped:
            wrong, differ = self.wrong_pictures(fwd, matched)
            keys, allowed = jnp.concatenate([keys, wrong]), jnp.concatenate([allowed, differ], axis=1)
        forward, hits = lone_positives(one, keys, allowed, temperature)
        backward, _ = lone_positives(two, one, allowed[:, : one.shape[0]], temperature)
        return Term(0.5 * (forward + backward), weight, {"accuracy": mean_over(hits, weight)}, self.enqueued(two, rows))

    def wrong_pictures(self, fwd: Forward, matched: Batch) -> tuple[Array, Array]:
        """Return keys [b,E] of each text with the other view of the row before, and which rows they are negatives of.

        The mask is bool [b,b]: the wrong key of a row is a negative of that row alone, unless the two rows are the same
        thing or one lacks a field.
        """
        one, two = (fwd.teacher.encode(field).every(self.every) for field in (self.other, self.pair[1]))
        before = jnp.roll(jnp.arange(two.tokens.shape[0]), 1)
        others = {field: rows[before] for field, rows in matched.items()}
        apart = ~jnp.diagonal(same(matched, others)) & (others["id"] != NEVER)
        return stop(fused_embedding(fwd.teacher, one.rows(before), two)), jnp.diag(apart)
