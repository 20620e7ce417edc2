"""ITC: image-text contrastive learning against a momentum teacher and queues of its keys.

He et al. 2020 (MoCo) for the queue, Li et al. 2021 (ALBEF, section 3.2 and equation 6) for the soft targets.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Forward, stop
from xmodal_jax.objectives.base import MATCHED, Plain, Schedule, Term, products, ramped, same
from xmodal_jax.parallel.ring import NEVER, Scalars, Softmax, contrast
from xmodal_jax.types import Array, Batch

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
    logits = masked(products(query, keys) / temperature, valid)
    targets = hard_targets(positive & valid[None, :])
    if teacher_query is not None:
        soft = jax.nn.softmax(masked(products(teacher_query, keys) / stop(temperature), valid), axis=1)
        targets = alpha * soft + (1.0 - alpha) * targets
    return soft_cross_entropy(logits, stop(targets)), logits


def joined(keys: Batch, queue: Batch | None) -> Batch:
    """Columns of the logits: the batch's keys, then the queue's, as one record of [M,...] arrays."""
    if queue is None:
        return keys
    return {name: jnp.concatenate([x, queue[name].astype(x.dtype)]) for name, x in keys.items()}


def nearest_is(positive: Array, logits: Array) -> Array:
    """Whether each row's highest logit [B,M] is a positive -> bool [B]."""
    return jnp.take_along_axis(positive, logits.argmax(1)[:, None], axis=1)[:, 0]


def dense_softmax(rows: Batch, keys: Batch, queue: Batch | None, scalars: Scalars) -> tuple[Array, Array]:
    """Losses [B] and hits [B] with the whole matrix of logits; records and scalars as in `parallel.ring.contrast`."""
    columns = joined(keys, queue)
    positive, valid = same(rows, columns), columns["id"] != NEVER
    losses, logits = direction(
        rows["embed"], columns["embed"], positive, valid, scalars["temperature"], rows.get("teacher"), scalars["alpha"]
    )
    return losses, nearest_is(positive, logits)


@dataclass(frozen=True)
class Contrast(Plain):
    """What contrastive objectives share: where keys come from, the queue of the teacher's, and how logits are made.

    Rows with the same id or the identical caption are positives wherever they stand, in the batch or in the queue.
    `student_keys` contrasts with the student's own keys of the batch too, which trains both towers from both directions;
    the queue then still holds teacher keys. With `bridge` the teacher's keys and soft targets are those that leave the
    residual attention (ReCap; `Forward.bridge`), for the sides that `config.bridge` names. With `ring` no matrix of logits exists (parallel/ring.py): the same loss and
    gradient, in memory that does not grow with the number of devices.
    """

    weight: Schedule = 1.0
    queue: int = 4096  # rows; 0: none
    student_keys: bool = False
    ring: bool = False
    bridge: bool = False

    contrasts: ClassVar[bool] = True
    record: ClassVar[str] = RING  # name of its queue

    @property
    def parts(self) -> frozenset[str]:
        """The temperature, and the residual attention where keys cross it."""
        return frozenset({"temperature", "bridge"}) if self.bridge else frozenset({"temperature"})

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(self.queue >= 0, f"{where}.queue is {self.queue}; write 0 for none or a number of rows")

    def memory(self, model: Any) -> dict[str, Any]:
        """One ring of records: image key, text key, id and caption key of a pair share one cursor."""
        if not self.queue:
            return {}
        shape = (self.queue, model.config.joint.embed)
        features = {name: jnp.zeros(shape, jnp.float32) for name in ("image", "text")}
        return {self.record: features | {name: jnp.full(shape[:1], NEVER, jnp.int32) for name in MATCHED}}

    def records(self, fwd: Forward, batch: Batch, query: str, key: str) -> tuple[Batch, Batch, Batch | None]:
        """One direction: rows of the student's `query` side, the batch's keys and the queue's of the `key` side."""
        matched = {name: batch[name] for name in MATCHED}
        own = embedding(fwd, key) if self.student_keys else self.momentum_key(fwd, key)
        rows, keys = {"embed": embedding(fwd, query)} | matched, {"embed": own} | matched
        ring = fwd.memory.get(self.record) if self.queue else None
        queue = None if ring is None else {"embed": ring[key]} | {name: ring[name] for name in MATCHED}
        return rows, keys, queue

    def momentum_key(self, fwd: Forward, side: str) -> Array:
        """The teacher's unit embeddings [B,E] of one side, through the bridge where the config says so."""
        if self.bridge and side in fwd.model.config.bridge.sides:
            return fwd.bridge(side)[0].embed
        return embedding(fwd.teacher, side)

    def enqueued(self, fwd: Forward, batch: Batch) -> dict[str, dict[str, Array]]:
        """The teacher's keys of this batch, for the queue."""
        if not self.queue:
            return {}
        rows = {side: self.momentum_key(fwd, side) for side in ("image", "text")}
        return {self.record: stop(rows | {name: batch[name] for name in MATCHED})}


def embedding(fwd: Forward, side: str) -> Array:
    """Unit embeddings [B,E] of the pass "image" or "text"."""
    return fwd.encode(side).embed


def drift(fwd: Forward, side: str, key: Array) -> Array:
    """1 - cosine between the student's embeddings of `side` and other unit embeddings [B,E] of the same rows."""
    own = stop(embedding(fwd, side)).astype(jnp.float32)
    return 1.0 - (own * stop(key).astype(jnp.float32)).sum(1).mean()


@dataclass(frozen=True)
class ITC(Contrast):
    """Softmax over this batch's and the queue's keys in both directions, towards positives and the teacher's softmax.

    With student keys, no queue and alpha 0 it is CLIP's loss.
    """

    alpha: float = 0.4  # share of the teacher's soft targets
    alpha_steps: int = 0  # ramp of alpha from 0 (ALBEF: one epoch)
    second_view_keys: bool = False  # the teacher's image keys, in the queue too, are of "image2" (TCL)

    @property
    def needs(self) -> frozenset[str]:
        """The second view, where keys are made of it."""
        return frozenset({"image2"} if self.second_view_keys else ())

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        super().check(where)
        refuse_unless(0.0 <= self.alpha <= 1.0, f"{where}.alpha is {self.alpha}; write a share from 0 to 1")
        refuse_unless(
            self.alpha_steps >= 0, f"{where}.alpha_steps is {self.alpha_steps}; write 0 for none or a number of steps"
        )
        refuse_unless(
            not (self.second_view_keys and (self.student_keys or self.bridge)),
            f"{where}.second_view_keys is True, which takes the teacher's keys of the second view, and with "
            "student_keys or bridge they are others; write one of them",
        )

    def momentum_key(self, fwd: Forward, side: str) -> Array:
        """The teacher's unit embeddings [B,E] of one side, of the second view of pictures where the config says so."""
        if self.second_view_keys and side == "image":
            return fwd.teacher.encode("image2", "image").embed
        return super().momentum_key(fwd, side)

    def _direction(self, fwd: Forward, batch: Batch, query: str, key: str) -> tuple[Array, Array]:
        """Losses [B] and hits [B] of one direction. The teacher runs only where keys, targets or the queue need it."""
        rows, keys, queue = self.records(fwd, batch, query, key)
        if self.alpha:
            rows |= {"teacher": self.momentum_key(fwd, query)}
        scalars = {"temperature": fwd.temperature(), "alpha": ramped(self.alpha, self.alpha_steps, fwd.step)}
        if self.ring:
            return contrast(Softmax(), same, rows, keys, queue, scalars, self.student_keys)
        return dense_softmax(rows, keys, queue, scalars)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Mean of both directions, [B]."""
        i2t, hits = self._direction(fwd, batch, "image", "text")
        t2i, _ = self._direction(fwd, batch, "text", "image")
        metrics = {"accuracy": hits.astype(jnp.float32).mean(), "temperature": fwd.temperature()} | self.drifts(fwd)
        return Term(0.5 * (i2t + t2i), jnp.ones_like(i2t), metrics, self.enqueued(fwd, batch))

    def drifts(self, fwd: Forward) -> dict[str, Array]:
        """How far the student's embeddings are from the teacher's, and from the keys where these are others."""
        if not (self.queue or self.alpha or not self.student_keys):
            return {}
        sides = ("image", "text")
        if self.second_view_keys:  # the teacher's pass over the first view is not needed for anything else
            return {"drift_text": drift(fwd, "text", embedding(fwd.teacher, "text"))}
        found = {f"drift_{side}": drift(fwd, side, embedding(fwd.teacher, side)) for side in sides}
        bridged = [side for side in sides if self.bridge and side in fwd.model.config.bridge.sides]
        return found | {f"key_drift_{side}": drift(fwd, side, self.momentum_key(fwd, side)) for side in bridged}
