"""ITC: image-text contrastive learning against a momentum teacher and queues of its keys.

He et al. 2020 (MoCo) for the queue, Li et al. 2021 (ALBEF, section 3.2 and equation 6) for the soft targets.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.objectives.base import (
    Steps,
    Term,
    marks,
    mean_over,
    products,
    ramped,
    ring_marks,
    row_weight,
    same,
)
from xmodal_jax.objectives.robust import Robust, refurbished
from xmodal_jax.parallel.ring import Scalars, Softmax, contrast
from xmodal_jax.settings import Config
from xmodal_jax.types import NEVER, Array, Batch, DataFacts

LOW = float(jnp.finfo(jnp.float32).min)  # logit of what is left out
KEYS = "keys"  # name of the ring of the teacher's keys


def hard_targets(positive: Array) -> Array:
    """Normalise positives bool [B,M] to rows that sum to 1; a row without any is 0.

    Example:
        >>> hard_targets(jnp.array([[True, True, False], [False, False, False]])).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    weight = positive.astype(jnp.float32)
    return weight / jnp.maximum(weight.sum(1, keepdims=True), 1.0)


def soft_cross_entropy(logits: Array, targets: Array) -> Array:
    """Return the cross-entropy [B] of logits [B,M] against target rows that sum to 1."""
    return -(targets * jax.nn.log_softmax(logits, axis=1)).sum(1)


def masked(logits: Array, valid: Array) -> Array:
    """Take the columns that are not `valid` [M] out of the softmax of logits [B,M]."""
    return jnp.where(valid[None, :], logits, jnp.finfo(logits.dtype).min)


def direction(
    query: Array,
    keys: Array,
    positive: Array,
    valid: Array,
    temperature: Array,
    teacher_query: Array | None,
    alpha: Array,
    trust: Array | None = None,
) -> tuple[Array, Array]:
    """Compute one direction of ITC: losses [B] and logits [B,M].

    query [B,E] of the student is compared with keys [M,E]; the target is `alpha` times the teacher's own softmax plus
    (1 - alpha) times the positives, or the positives alone without a teacher query [B,E]. With `trust` [B], the
    posterior that each pair matches, a row's only positive is the key of its own number, whose target is refurbished
    (`soft_positives`), and other keys that match are left out.

    Example:
        >>> embed, ids = jnp.eye(2), jnp.array([3, 4])
        >>> positive, valid = ids[:, None] == ids[None, :], jnp.ones(2, bool)
        >>> losses, logits = direction(embed, embed, positive, valid, jnp.float32(0.5), None, jnp.float32(0.0))
        >>> print(losses.round(3), logits.tolist())
        [0.127 0.127] [[2.0, 0.0], [0.0, 2.0]]
    """
    logits, others = masked(products(query, keys) / temperature, valid), ~positive & valid[None, :]
    if trust is not None:  # of other captions of the picture, some may be wrong: they are neither right nor wrong
        own = jnp.arange(len(query))[:, None] == jnp.arange(len(keys))[None, :]
        logits, positive = jnp.where(own | others, logits, LOW), own
    targets = hard_targets(positive & valid[None, :])
    if trust is not None:
        targets = soft_positives(logits, targets, others, trust)
    if teacher_query is not None:
        soft = masked(products(teacher_query, keys) / stop(temperature), valid)
        soft = jax.nn.softmax(soft if trust is None else jnp.where(positive | others, soft, LOW), axis=1)
        targets = alpha * soft + (1.0 - alpha) * targets
    return soft_cross_entropy(logits, stop(targets)), logits


def soft_positives(logits: Array, hard: Array, others: Array, trust: Array) -> Array:
    """Return refurbished targets [B,M]: y of a row goes to its positives `hard`, the rest evenly to `others` [B,M].

    y is `robust.refurbished`, with the share of the row's softmax on its positives as its prediction.

    Example:
        >>> hard, others = jnp.array([[1.0, 0.0]]), jnp.array([[False, True]])
        >>> print(soft_positives(jnp.zeros((1, 2)), hard, others, jnp.array([0.5])))
        [[0.75 0.25]]
    """
    predicted = jnp.where(hard > 0, jax.nn.softmax(logits, axis=1), 0.0).sum(1)
    target = jnp.where(others.any(1), refurbished(trust, predicted), 1.0)[:, None]
    return target * hard + (1.0 - target) * hard_targets(others)


def joined(keys: Batch, queue: Batch | None) -> Batch:
    """Append the queue's keys to the batch's, as one record of [M,...] arrays: the columns of the logits."""
    if queue is None:
        return keys
    return {name: jnp.concatenate([x, queue[name].astype(x.dtype)]) for name, x in keys.items()}


def nearest_is(positive: Array, logits: Array) -> Array:
    """Return bool [B]: True if the row's highest logit in [B,M] is a positive."""
    return jnp.take_along_axis(positive, logits.argmax(1)[:, None], axis=1)[:, 0]


def dense_softmax(rows: Batch, keys: Batch, queue: Batch | None, scalars: Scalars) -> tuple[Array, Array]:
    """Return losses [B] and hits [B] by the whole matrix of logits, as `parallel.ring.contrast` takes its arguments."""
    columns = joined(keys, queue)
    positive, valid = same(rows, columns), columns["id"] != NEVER
    losses, logits = direction(
        rows["embed"],
        columns["embed"],
        positive,
        valid,
        scalars["temperature"],
        rows.get("teacher"),
        scalars["alpha"],
        rows.get("trust"),
    )
    return losses, nearest_is(positive, logits)


@dataclass(frozen=True)
class Contrast(Robust):
    """The base of contrastive objectives: where keys come from, the teacher's queue, and how logits are made.

    Rows with the same id or the identical caption are positives wherever they stand, in the batch or in the queue;
    rows in which a field of the pair is missing count nowhere. `student_keys` trains both encoders from both
    directions; the queue then still holds teacher keys. With `bridge` the teacher's keys and soft targets are the
    output of the residual attention (ReCap; `Forward.bridge`), for the encoders that `config.bridge` names. With
    `ring` no matrix of logits exists (parallel/ring.py): the same loss and gradient, in memory that does not grow with
    the number of devices.

    Example:
        >>> sorted(Contrast(queue=0, bridge=True).parts)
        ['bridge', 'temperature']
    """

    queue: int = limited(4096, least=0)
    """Rows of the queue of earlier keys, further negatives; 0: none."""
    keys: str = KEYS
    """Name of its ring: entries share one, with the fields of all of them."""
    student_keys: bool = False
    """True contrasts with the student's own keys of the batch, False with the teacher's."""
    ring: bool = False
    """True makes logits in blocks and keeps no matrix of them, to save memory on many devices."""
    bridge: bool = False
    """True sends the teacher's keys through the residual attention (ReCap)."""

    contrasts: ClassVar[bool] = True

    @property
    def parts(self) -> frozenset[str]:
        """The temperature, and the residual attention if keys cross it."""
        return frozenset({"temperature", "bridge"}) if self.bridge else frozenset({"temperature"})

    @property
    def fills(self) -> dict[str, str]:
        """The teacher's keys of both fields."""
        made = f"queue={self.queue}, bridge={self.bridge}"
        return {f"{self.keys}/{field}": made for field in self.pair} if self.queue else {}

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse refurbished targets with logits in blocks."""
        super().check_fit(where, config, facts)
        if self.robust and self.ring:
            raise UserError(f"{where}.robust needs the whole matrix of logits; write {where}.ring=False, or robust=''")

    def memory(self, model: CrossModal, facts: DataFacts) -> dict[str, Any]:
        """Return one ring of records: the keys of both fields, id and caption keys of a row share one cursor."""
        return self.empty(model, facts, self.queue, dict.fromkeys(self.pair, model.config.joint.embed))

    def records(self, fwd: Forward, batch: Batch, query: str, key: str) -> tuple[Batch, Batch, Batch | None]:
        """Return rows of the student's `query` field, and the batch's and the queue's keys of the `key` field."""
        matched = marks(batch, self.pair)
        own = fwd.encode(key).unit if self.student_keys else self.momentum_key(fwd, key)
        rows, keys = {"embed": fwd.encode(query).unit} | matched, {"embed": own} | matched
        if (trust := self.trust(fwd, batch)) is not None:
            rows["trust"] = trust
        ring = fwd.memory.get(self.keys) if self.queue else None
        return rows, keys, None if ring is None else {"embed": ring[key]} | marks(ring, self.pair)

    def momentum_key(self, fwd: Forward, field: str) -> Array:
        """Return the teacher's unit embeddings [B,E] of one field, through the bridge if the config says so."""
        if self.bridged(fwd, field):
            return fwd.bridge(field)[0].unit
        return fwd.teacher.encode(field).unit

    def bridged(self, fwd: Forward, field: str) -> bool:
        """Return True if the teacher's keys of `field` cross the residual attention."""
        return self.bridge and fwd.encoder_of(field) in fwd.model.config.bridge.sides

    def enqueued(self, fwd: Forward, batch: Batch) -> dict[str, dict[str, Array]]:
        """Return the teacher's keys of this batch for the queue, with the marks of rows that have them."""
        if not self.queue:
            return {}
        rows = {field: self.momentum_key(fwd, field) for field in self.pair}
        return {self.keys: stop(rows | ring_marks(batch, self.pair))}


def drift(fwd: Forward, field: str, key: Array) -> Array:
    """Return 1 - cosine of the student's embeddings of `field` and unit embeddings `key` [B,E], averaged over rows."""
    own = stop(fwd.encode(field).unit).astype(jnp.float32)
    apart = 1.0 - (own * stop(key).astype(jnp.float32)).sum(1)
    return mean_over(apart, row_weight(fwd.batch, (field,)))


@dataclass(frozen=True)
class ITC(Contrast):
    """Softmax over this batch's and the queue's keys in both directions, towards positives and the teacher's softmax.

    With student keys, no queue and alpha 0 it is CLIP's loss.

    Example:
        >>> clip = ITC(student_keys=True, queue=0, alpha=0.0)
        >>> clip.reads, sorted(clip.parts), clip.fills
        (('image', 'text'), ['temperature'], {})
    """

    alpha: float = limited(0.4, least=0, most=1)
    """Share of the teacher's soft targets, from 0 to 1."""
    alpha_steps: Steps = limited(0, least=0)
    """Steps, or epochs such as "1 epoch" (ALBEF), in which alpha climbs from 0; 0: none."""
    second_view_keys: bool = False
    """True takes the teacher's keys, in the queue too, from another view of the same thing (TCL)."""

    @property
    def fills(self) -> dict[str, str]:
        """The teacher's keys of both fields."""
        others = "second_view_keys=True, " if self.second_view_keys else ""
        return {place: others + how for place, how in super().fills.items()}

    def check(self, where: str) -> None:
        """Refuse keys of two kinds."""
        if self.second_view_keys and (self.student_keys or self.bridge):
            raise UserError(
                f"{where}.second_view_keys is True, which takes the teacher's keys of the second view, and with "
                "student_keys or bridge they are others; write one of them"
            )

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse keys of a second view that the batch does not have, and what no contrastive objective takes."""
        super().check_fit(where, config, facts)
        if self.second_view_keys and not any(config.data.other_view(field) for field in self.pair):
            raise UserError(
                f"{where}.second_view_keys is True, and no field of config.data.fields is another view of {self.pair}; "
                f"write config.data.fields.{self.pair[0]}2={{'of': '{self.pair[0]}'}}, or second_view_keys=False"
            )

    def momentum_key(self, fwd: Forward, field: str) -> Array:
        """Return the teacher's unit embeddings [B,E] of one field, of its other view if the config says so."""
        other = fwd.model.config.data.other_view(field) if self.second_view_keys else ""
        return fwd.teacher.encode(other).unit if other else super().momentum_key(fwd, field)

    def _direction(self, fwd: Forward, batch: Batch, query: str, key: str) -> tuple[Array, Array]:
        """Return losses [B] and hits [B] of one direction.

        The teacher runs only where keys, targets or the queue need it.
        """
        rows, keys, queue = self.records(fwd, batch, query, key)
        if self.alpha:
            rows |= {"teacher": self.momentum_key(fwd, query)}
        scalars = {"temperature": fwd.temperature(), "alpha": ramped(self.alpha, self.alpha_steps, fwd.step)}
        if self.ring:
            return contrast(Softmax(), same, rows, keys, queue, scalars, self.student_keys)
        return dense_softmax(rows, keys, queue, scalars)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average both directions, [B]."""
        one, two = self.pair
        forward, hits = self._direction(fwd, batch, one, two)
        backward, _ = self._direction(fwd, batch, two, one)
        weight = row_weight(batch, self.pair)
        metrics = {"accuracy": mean_over(hits, weight), "temperature": fwd.temperature()} | self.drifts(fwd)
        return Term(0.5 * (forward + backward), weight, metrics, self.enqueued(fwd, batch))

    def drifts(self, fwd: Forward) -> dict[str, Array]:
        """Return the drift of the student's embeddings from the teacher's, and from the keys where these differ."""
        if not (self.queue or self.alpha or not self.student_keys):
            return {}
        views = fwd.model.config.data.other_view
        # Nothing else needs the teacher's pass over the first view of a field whose keys are of another view.
        own = [field for field in self.pair if not (self.second_view_keys and views(field))]
        found = {f"drift_{field}": drift(fwd, field, fwd.teacher.encode(field).unit) for field in own}
        bridged = [field for field in self.pair if self.bridged(fwd, field)]
        return found | {f"key_drift_{field}": drift(fwd, field, self.momentum_key(fwd, field)) for field in bridged}
