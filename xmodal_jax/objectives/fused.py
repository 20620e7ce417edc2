"""Contrast with fused representations: ReCap's third momentum queue.

ReCap (Tao et al. 2024) speaks of momentum queues "obtained through multi-tasking" that align ambiguous language around
image features. Read here as a queue of fused keys, the teacher's joint embeddings of matched pairs (models/heads.py,
`JoinedHead`): the student's pictures and texts look for the fused key of their pair, and the student's joint embedding
for the picture's key, which keeps it around the image features.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.forward import Encoded, Forward, stop
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.models.layers import every_row
from xmodal_jax.objectives.base import Term, marks, mean_over, ring_marks, row_weight, same
from xmodal_jax.objectives.contrastive import direction, joined, nearest_is
from xmodal_jax.objectives.robust import Robust
from xmodal_jax.types import NEVER, Array, Batch, DataFacts


def joined_embedding(fwd: Forward, image: Encoded, text: Encoded) -> Array:
    """Return unit joint embeddings [B,E] of aligned pairs in the space of the embeddings, by `fwd`'s fusion."""
    return fwd.call("joined_embed", fwd.fuse(image, text).tokens, image.unit, text.unit)


@dataclass(frozen=True)
class FusedKeys(Robust):
    """The base of objectives over a queue of fused keys, the teacher's joint embeddings of matched pairs.

    With `robust` a row counts as much as it is trusted.
    """

    queue: int = limited(0, least=0)
    """Rows of the queue of fused keys, further negatives; 0: those of the batch alone."""
    every: int = limited(1, least=1)
    """n: fuse every n-th row only."""
    keys: str = "fused"
    """Name of its ring."""

    contrasts: ClassVar[bool] = True

    @property
    def fills(self) -> dict[str, str]:
        """Its fused keys: no two objectives have the same."""
        return {f"{self.keys}/fused": f"of {self.name}"} if self.queue else {}

    def memory(self, model: CrossModal, facts: DataFacts) -> dict[str, Any]:
        """Return one ring of fused keys."""
        return self.empty(model, facts, self.queue, {"fused": model.config.joint.embed})

    def rows(self, batch: Batch) -> Batch:
        """Take every n-th row of the entries that decide which rows match and which are there."""
        return {name: every_row(values, self.every) for name, values in ring_marks(batch, self.reads).items()}

    def columns(self, fwd: Forward, keys: Array, rows: Batch) -> Batch:
        """Return the batch's fused keys [b,E] and, behind them, those of the ring if the state has it."""
        ring = fwd.memory.get(self.keys) if self.queue else None
        queue = None if ring is None else {"fused": ring["fused"]} | marks(ring, self.reads)
        return joined({"fused": keys} | marks(rows, self.reads), queue)

    def counts(self, fwd: Forward, batch: Batch, rows: Batch) -> Array:
        """Return the weight [b] of each fused row: 0 if it lacks a field, else how far it is trusted."""
        weight, trust = row_weight(rows, self.reads), self.trust(fwd, batch)
        return weight if trust is None else weight * every_row(trust, self.every)

    def enqueued(self, keys: Array, rows: Batch) -> dict[str, dict[str, Array]]:
        """Return the fused keys of this batch for the ring."""
        return {self.keys: stop({"fused": keys} | rows)} if self.queue else {}


@dataclass(frozen=True)
class Fused(FusedKeys):
    """Contrast of both fields of a pair with fused keys, and of the fused representation with the first field's keys.

    Fused keys are those of the batch and a queue. Softmax cross-entropy towards the pairs with the same id or the
    identical caption; the mean of the three. With `bridge` the teacher's tokens cross the residual attention before
    they are fused.
    """

    queue: int = limited(1024, least=0)
    """Rows of the queue of fused keys, further negatives; 0: those of the batch alone."""
    bridge: bool = False
    """True sends the teacher's tokens through the residual attention before they are fused (ReCap)."""

    @property
    def parts(self) -> frozenset[str]:
        """Fusion, its joint embedding, the temperature, and the bridge if keys cross it."""
        return frozenset({"fusion", "joined", "temperature"}) | ({"bridge"} if self.bridge else set())

    def teacher_side(self, fwd: Forward, field: str) -> Encoded:
        """Return the pass of one field that the teacher fuses."""
        bridged = self.bridge and fwd.encoder_of(field) in fwd.model.config.bridge.sides
        return fwd.bridge(field)[0] if bridged else fwd.teacher.encode(field)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average the three directions, [b] for the b = B / every fused rows."""
        one, two = (self.teacher_side(fwd, field).every(self.every) for field in self.pair)
        rows = self.rows(batch)
        weight = self.counts(fwd, batch, rows)
        fused_key = stop(joined_embedding(fwd.teacher, one, two))
        columns = self.columns(fwd, fused_key, rows)
        positive, valid = same(marks(rows, self.pair), columns), columns["id"] != NEVER

        def search(query: Array, keys: Array, positive: Array, valid: Array) -> tuple[Array, Array]:
            return direction(query, keys, positive, valid, fwd.temperature(), None, jnp.float32(0))

        students = [fwd.encode(field).every(self.every) for field in self.pair]
        losses, logits = zip(*(search(side.unit, columns["fused"], positive, valid) for side in students), strict=True)
        fused, own = joined_embedding(fwd, *students), slice(0, weight.shape[0])
        anchored, _ = search(fused, stop(one.unit), positive[:, own], valid[own])
        metrics = {"accuracy": mean_over(nearest_is(positive, logits[0]), weight)}
        return Term((losses[0] + losses[1] + anchored) / 3.0, weight, metrics, self.enqueued(fused_key, rows))
