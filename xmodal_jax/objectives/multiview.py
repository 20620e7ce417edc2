"""MVJRC: multi-view joint representation contrast (MTGFE, Zhang et al. 2023).

The paper's abstract names the task and its purpose, joint representations that stay the same for pictures "with
significant differences in resolution, color, and angle"; the formula is not public. Read here as InfoNCE (van den Oord
et al. 2018) between the student's fused [CLS] of a picture with its text and the teacher's of another view with the same
text, in both directions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Encoded, Forward, stop
from xmodal_jax.models.layers import every_row
from xmodal_jax.objectives.base import Plain, Schedule, Term, products, same
from xmodal_jax.objectives.contrastive import MATCHED
from xmodal_jax.objectives.fused import fused_ring, with_queue
from xmodal_jax.parallel.ring import NEVER
from xmodal_jax.types import Array, Batch


def fused_embedding(fwd: Forward, image: Encoded, text: Encoded) -> Array:
    """Unit joint embeddings [B,E] of aligned pairs, by `fwd`'s fusion."""
    return fwd.call("fused_embed", fwd.fuse(image, text).tokens)


def lone_positives(query: Array, keys: Array, allowed: Array, temperature: Array) -> tuple[Array, Array]:
    """InfoNCE of rows [B,E] whose positive is the key of the same number; columns that are not `allowed` [B,M] are out.

    Returns losses [B] and whether each row's highest logit is its own key, bool [B].
    """
    logits = products(query, keys) / temperature
    logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
    losses = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    return losses, logits.argmax(1) == jnp.arange(logits.shape[0])


@dataclass(frozen=True)
class MVJRC(Plain):
    """The student's fused representation of `image` with its text against the teacher's of `image2` with the same text.

    Pairs with the same id or the identical caption are no negatives (in remote sensing up to nine captions in ten occur
    with several pictures); they are left out of the softmax.
    """

    weight: Schedule = 1.0
    temperature: float = 0.07
    queue: int = 0  # rows of the teacher's fused keys as further negatives
    every: int = 1  # fuse every n-th row only
    swapped: bool = False  # a further negative for each row: its text with the picture of the row before

    parts: ClassVar[frozenset[str]] = frozenset({"fusion", "fused"})
    needs: ClassVar[frozenset[str]] = frozenset({"image2"})
    contrasts: ClassVar[bool] = True
    record: ClassVar[str] = "multiview"  # name of its queue

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(self.queue >= 0, f"{where}.queue is {self.queue}; write 0 for none or a number of rows")
        refuse_unless(
            self.temperature > 0, f"{where}.temperature is {self.temperature}; write a number above 0, such as 0.07"
        )

    def memory(self, model: Any) -> dict[str, Any]:
        """One ring of fused keys."""
        return fused_ring(self.record, self.queue, model.config.joint.embed)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Mean of both directions, [b] for the b = B / every fused rows."""
        fused = lambda of, field: fused_embedding(of, of.encode(field, "image").every(self.every), of.encode("text").every(self.every))
        one, two = fused(fwd, "image"), stop(fused(fwd.teacher, "image2"))
        batch = {field: every_row(batch[field], self.every) for field in MATCHED}
        columns = with_queue(fwd, self.record, two, batch)
        own = jnp.arange(columns["id"].shape[0])[None, :] == jnp.arange(one.shape[0])[:, None]
        allowed = (own | ~same(batch, columns)) & (columns["id"] != NEVER)[None, :]
        temperature = jnp.float32(self.temperature)
        keys = columns["fused"]
        if self.swapped:
            wrong, differ = self.wrong_pictures(fwd, batch)
            keys, allowed = jnp.concatenate([keys, wrong]), jnp.concatenate([allowed, differ], axis=1)
        there, hits = lone_positives(one, keys, allowed, temperature)
        back, _ = lone_positives(two, one, allowed[:, : one.shape[0]], temperature)
        rows = {"fused": two} | {field: batch[field] for field in MATCHED}
        metrics = {"accuracy": hits.astype(jnp.float32).mean()}
        return Term(
            0.5 * (there + back), jnp.ones_like(there), metrics, {self.record: stop(rows)} if self.queue else {}
        )

    def wrong_pictures(self, fwd: Forward, batch: Batch) -> tuple[Array, Array]:
        """Keys [b,E] of each text with the second view of the row before, and whose negatives they are, bool [b,b].

        The wrong key of a row is a negative of that row alone, unless the two rows are the same thing.
        """
        image, text = fwd.teacher.encode("image2", "image").every(self.every), fwd.teacher.encode("text").every(self.every)
        before = jnp.roll(jnp.arange(text.tokens.shape[0]), 1)
        other = ~jnp.diagonal(same(batch, {field: rows[before] for field, rows in batch.items()}))
        return stop(fused_embedding(fwd.teacher, image.rows(before), text)), jnp.diag(other)
