"""ITC: image-text contrastive learning against a momentum teacher and queues of its keys.

He et al. 2020 (MoCo) for the queue, Li et al. 2021 (ALBEF, section 3.2 and equation 6) for the soft targets.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Forward, stop
from xmodal_jax.objectives.base import Plain, Schedule, Term, at, same
from xmodal_jax.types import Array, Batch

NEVER = -1  # id of an empty queue row
RING = "pairs"


def hard_targets(positive: Array) -> Array:
    """bool [B,M] -> rows that sum to 1, spread evenly over the positives."""
    weight = positive.astype(jnp.float32)
    return weight / weight.sum(1, keepdims=True)


def soft_cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy of rows [B,M] against target rows that sum to 1 -> [B]."""
    return -(targets * jax.nn.log_softmax(logits, axis=1)).sum(1)


def masked(logits: Array, valid: Array) -> Array:
    """Logits [B,M] with the columns that are not `valid` [M] out of the softmax."""
    return jnp.where(valid[None, :], logits, jnp.finfo(logits.dtype).min)


def direction(query: Array, keys: Array, positive: Array, valid: Array, temperature: Array,
              teacher_query: Array | None, alpha: Array) -> tuple[Array, Array]:  # fmt: skip
    """One direction of ITC -> losses [B] and logits [B,M].

    query [B,E] of the student against keys [M,E]; the target is `alpha` times the teacher's own softmax plus (1 - alpha)
    times the positives, or the positives alone without a teacher query [B,E].
    """
    logits = masked(query @ keys.T / temperature, valid)
    targets = hard_targets(positive & valid[None, :])
    if teacher_query is not None:
        soft = jax.nn.softmax(masked(teacher_query @ keys.T / stop(temperature), valid), axis=1)
        targets = alpha * soft + (1.0 - alpha) * targets
    return soft_cross_entropy(logits, stop(targets)), logits


@dataclass(frozen=True)
class ITC(Plain):
    """Student embeddings against the teacher's, of this batch and of the queue, in both directions.

    Rows with the same id or the identical caption are positives wherever they stand, in the batch or in the queue.
    `student_keys` contrasts with the student's own keys of the batch too (CLIP's loss), which trains both towers from
    both directions; the queue then still holds teacher keys.
    """

    weight: Schedule = 1.0
    queue: int = 4096  # rows; 0: none
    alpha: float = 0.4  # share of the teacher's soft targets
    alpha_steps: int = 0  # ramp of alpha from 0 (ALBEF: one epoch)
    student_keys: bool = False

    parts: ClassVar[frozenset[str]] = frozenset()

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(self.queue >= 0, f"{where}.queue is {self.queue}; write 0 for none or a number of rows")
        refuse_unless(0.0 <= self.alpha <= 1.0, f"{where}.alpha is {self.alpha}; write a share from 0 to 1")

    def memory(self, model: Any) -> dict[str, Any]:
        """One ring of records: image key, text key, id and caption key of a pair share one cursor."""
        if not self.queue:
            return {}
        shape = (self.queue, model.config.joint.embed)
        features = {name: jnp.zeros(shape, jnp.float32) for name in ("image", "text")}
        return {RING: features | {name: jnp.full(shape[:1], NEVER, jnp.int32) for name in ("id", "text_key")}}

    def _keys(self, fwd: Forward, batch: Batch) -> dict[str, Array]:
        """Columns of the logits: this batch's keys, then the queue's, as one record of [M,...] arrays."""
        source = fwd if self.student_keys else fwd.teacher
        own = {"image": source.image().embed, "text": source.text().embed}
        own |= {"id": batch["id"], "text_key": batch["text_key"]}
        ring = fwd.memory.get(RING) if self.queue else None
        return own if ring is None else {name: jnp.concatenate([own[name], ring[name]]) for name in own}

    def _alpha(self, step: Array | int) -> Array:
        """The share of soft targets at `step`, ramped from 0."""
        ramp = at(((0, 0.0), (self.alpha_steps, 1.0)), step) if self.alpha_steps else jnp.float32(1.0)
        return jnp.float32(self.alpha) * ramp

    def _enqueue(self, fwd: Forward, batch: Batch) -> dict[str, dict[str, Array]]:
        """The teacher's keys of this batch, for the queue."""
        if not self.queue:
            return {}
        rows = {"image": fwd.teacher.image().embed, "text": fwd.teacher.text().embed}
        return {RING: stop(rows | {"id": batch["id"], "text_key": batch["text_key"]})}

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Mean of both directions, [B]. The teacher runs only where keys, soft targets or the queue need it."""
        image, text, keys = fwd.image().embed, fwd.text().embed, self._keys(fwd, batch)
        soft = (fwd.teacher.image().embed, fwd.teacher.text().embed) if self.alpha else (None, None)
        shared = (same(batch, keys), keys["id"] != NEVER, fwd.temperature())
        i2t, logits = direction(image, keys["text"], *shared, soft[0], self._alpha(fwd.step))
        t2i, _ = direction(text, keys["image"], *shared, soft[1], self._alpha(fwd.step))
        hit = jnp.take_along_axis(shared[0], logits.argmax(1)[:, None], axis=1)
        metrics = {"accuracy": hit.astype(jnp.float32).mean(), "temperature": fwd.temperature()}
        return Term(0.5 * (i2t + t2i), jnp.ones_like(i2t), metrics, self._enqueue(fwd, batch))
