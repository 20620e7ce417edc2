"""What an objective is: rows, weights, metrics, and the memory it keeps.

The step reduces `sum(values * weight) / sum(weight)`, so tokens, missing modalities and any split of the batch are
averaged as one batch. The config names objectives in a dict, and that dict is the method.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from xmodal_jax.forward import Forward
from xmodal_jax.types import Array, Batch, Metrics

MATCHED = ("id", "text_key")  # what `same` reads
Schedule = float | tuple  # a number, or ((step, value), ...) joined by straight lines


@jax.tree_util.register_dataclass
@dataclass
class Term:
    """What an objective returns for one batch.

    values [B] un-reduced losses, weight [B] how much each row counts, metrics {name: scalar}, `enqueue` {ring: {field:
    rows [B,...]}} to append to the queues after the update, `write` {table: (index [B], {field: rows [B,...]})}.
    """

    values: Array
    weight: Array
    metrics: Metrics = field(default_factory=dict)
    enqueue: dict[str, dict[str, Array]] = field(default_factory=dict)
    write: dict[str, tuple[Array, dict[str, Array]]] = field(default_factory=dict)

    def mean(self) -> Array:
        """The weighted mean over rows, a float32 scalar."""
        return (self.values * self.weight).sum() / jnp.maximum(self.weight.sum(), 1e-9)


class Objective(Protocol):
    """A frozen dataclass whose fields are the config's fields.

    `parts` are the model's modules it uses beyond the two towers, "temperature" among them where it trains that; `needs`
    are fields of the batch that only some data settings make; `contrasts` says that its loss says nothing about a row
    without a negative; `weight` may be a schedule.
    """

    parts: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]]
    contrasts: ClassVar[bool]
    weight: Schedule

    def memory(self, model: Any) -> dict[str, Any]:
        """Rings and tables it needs in the train state: {name: {field: array with leading axis rows}}."""

    def prepare(self, batch: Batch, key: Array) -> Batch:
        """Derived fields, made before any pass so that student and teacher see the same ones."""

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """The rows of the loss."""


class Plain:
    """Defaults for objectives without memory or derived fields."""

    parts: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()  # fields of the batch that only some data settings make
    contrasts: ClassVar[bool] = False

    def memory(self, model: Any) -> dict[str, Any]:
        """No rings."""
        return {}

    def prepare(self, batch: Batch, key: Array) -> Batch:
        """No derived fields."""
        return {}


def at(schedule: Schedule, step: Array | int) -> Array:
    """The value of a schedule at `step`: a number, or straight lines between ((step, value), ...)."""
    if isinstance(schedule, (int, float)):
        return jnp.float32(schedule)
    steps, values = (jnp.asarray(column, jnp.float32) for column in zip(*schedule))
    return jnp.interp(jnp.asarray(step, jnp.float32), steps, values)


def ramped(value: float, steps: int, step: Array | int) -> Array:
    """`value` at `step`, climbing from 0 in a straight line over the first `steps` steps; 0: from the start."""
    return jnp.float32(value) * (at(((0, 0.0), (steps, 1.0)), step) if steps else jnp.float32(1.0))


def products(left: Array, right: Array) -> Array:
    """Inner products float32 [B,M] of rows [B,K] and [M,K], at full precision.

    Accelerators round the factors of a float32 product (TF32, bfloat16) unless told otherwise: cosines divided by a small
    temperature, and distances, which are differences of large numbers, would be wrong in the third digit.
    """
    left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)


def same(left: Batch, right: Batch) -> Array:
    """Which pairs are the same thing or carry the identical caption: id and text_key [B] against [M] -> bool [B,M]."""
    identical = left["text_key"][:, None] == right["text_key"][None, :]
    return identical | (left["id"][:, None] == right["id"][None, :])
