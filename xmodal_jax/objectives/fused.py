"""Contrast with fused representations: ReCap's third momentum queue.

ReCap (Tao et al. 2024) speaks of momentum queues "obtained through multi-tasking" that align ambiguous language around
image features. Read here as a queue of fused keys, the teacher's joint embeddings of matched pairs (models/heads.py,
`JoinedHead`): the student's pictures and texts look for the fused key of their pair, and the student's joint embedding
for the picture's key, which is what keeps it around the image features.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Encoded, Forward, stop
from xmodal_jax.models.layers import every_row
from xmodal_jax.objectives.base import Plain, Schedule, Term, same
from xmodal_jax.objectives.contrastive import MATCHED, direction, joined, nearest_is
from xmodal_jax.parallel.ring import NEVER
from xmodal_jax.types import Array, Batch


def joined_embedding(fwd: Forward, image: Encoded, text: Encoded) -> Array:
    """Unit joint embeddings [B,E] of aligned pairs in the space of the embeddings, by `fwd`'s fusion."""
    return fwd.call("joined_embed", fwd.fuse(image, text).tokens, image.embed, text.embed)


def fused_ring(name: str, rows: int, embed: int) -> dict[str, Any]:
    """A ring of fused keys [Q,E] with the ids and caption keys of their pairs; nothing for 0 rows."""
    if not rows:
        return {}
    matched = {field: jnp.full((rows,), NEVER, jnp.int32) for field in MATCHED}
    return {name: {"fused": jnp.zeros((rows, embed), jnp.float32)} | matched}


def with_queue(fwd: Forward, name: str, keys: Array, batch: Batch) -> Batch:
    """The batch's fused keys [B,E] and, behind them, those of the ring `name` where the state has it."""
    own = {"fused": keys} | {field: batch[field] for field in MATCHED}
    ring = fwd.memory.get(name)
    return joined(own, None if ring is None else {field: ring[field] for field in own})


@dataclass(frozen=True)
class Fused(Plain):
    """Picture and text against fused keys of the batch and a queue, and the fused representation against pictures' keys.

    Softmax cross-entropy towards the pairs with the same id or the identical caption; the mean of the three. With
    `bridge` the teacher's tokens cross the residual attention before they are fused.
    """

    weight: Schedule = 1.0
    queue: int = 1024  # rows of fused keys; 0: those of the batch alone
    every: int = 1  # fuse every n-th row only
    bridge: bool = False

    contrasts: ClassVar[bool] = True
    record: ClassVar[str] = "fused"  # name of its queue

    @property
    def parts(self) -> frozenset[str]:
        """Fusion, its joint embedding, the temperature, and the bridge where keys cross it."""
        return frozenset({"fusion", "joined", "temperature"}) | ({"bridge"} if self.bridge else set())

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(self.queue >= 0, f"{where}.queue is {self.queue}; write 0 for none or a number of rows")

    def memory(self, model: Any) -> dict[str, Any]:
        """One ring of fused keys."""
        return fused_ring(self.record, self.queue, model.config.joint.embed)

    def teacher_side(self, fwd: Forward, side: str) -> Encoded:
        """What the teacher fuses of one side."""
        bridged = self.bridge and side in fwd.model.config.bridge.sides
        return fwd.bridge(side)[0] if bridged else fwd.teacher.encode(side)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Mean of the three directions, [b] for the b = B / every fused rows."""
        image, text = (self.teacher_side(fwd, side).every(self.every) for side in ("image", "text"))
        batch = {field: every_row(batch[field], self.every) for field in MATCHED}
        fused_key = stop(joined_embedding(fwd.teacher, image, text))
        columns = with_queue(fwd, self.record, fused_key, batch)
        positive, valid = same(batch, columns), columns["id"] != NEVER
        ask = lambda query, keys, right, real: direction(
            query, keys, right, real, fwd.temperature(), None, jnp.float32(0)
        )
        losses, logits = zip(
            *(
                ask(fwd.encode(side).every(self.every).embed, columns["fused"], positive, valid)
                for side in ("image", "text")
            )
        )
        fused = joined_embedding(fwd, fwd.encode("image").every(self.every), fwd.encode("text").every(self.every))
        own = slice(0, fused.shape[0])
        anchored, _ = ask(fused, stop(image.embed), positive[:, own], valid[own])
        metrics = {"accuracy": nearest_is(positive, logits[0]).astype(jnp.float32).mean()}
        rows = {"fused": fused_key} | {field: batch[field] for field in MATCHED}
        enqueue = {self.record: stop(rows)} if self.queue else {}
        return Term((losses[0] + losses[1] + anchored) / 3.0, jnp.ones_like(anchored), metrics, enqueue)
