"""What an objective is: rows, weights, metrics, and the memory it keeps.

The step reduces `sum(values * weight) / sum(weight)`, so tokens, missing modalities and any split of the batch are
averaged as one batch. The config names objectives in a dict, and that dict is the method.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.data.fields import batch_fields
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.types import NEVER, Array, Batch, DataFacts, Metrics, Schedule, Steps


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


def positive(default: float) -> Any:
    """A field of an objective whose value `Objective.check` holds above 0."""
    return field(default=default, metadata={"positive": True})


@dataclass(frozen=True)
class Objective:
    """One loss: a frozen dataclass whose fields are those of its entry in `config.objectives`. Subclasses write `__call__`.

    What the rest of the package asks an objective stands here, with its default; nobody asks for anything else.
    """

    weight: Schedule = 1.0
    name: str = ""
    """Its key in `config.objectives`, filled in; the fields that it derives begin with it ("mlm/ids")."""

    contrasts: ClassVar[bool] = False  # its loss says nothing about a row without a negative
    by_label: ClassVar[bool] = False  # it reads the batch's `labels`
    every: ClassVar[int] = 1  # it takes every n-th row only
    group: ClassVar[int | None] = (
        None  # rows it must see together, 0: all of the batch; None: it looks at each by itself
    )
    queue: ClassVar[int] = 0  # rows of its ring
    table: ClassVar[int] = 0  # rows of its table, one for each training record
    keys: ClassVar[str] = ""  # name of its ring or table
    negatives: ClassVar[int] = 0  # of each row, drawn inside its group
    ring: ClassVar[bool | None] = None  # whether its logits are made in blocks; None: it has none of all keys
    hardness: ClassVar[float | None] = None  # of the negatives that a matching head is trained on
    period: ClassVar[Steps] = 0  # steps between two calls of `refresh`; 0: none

    @property
    def parts(self) -> frozenset[str]:
        """The model's modules it uses beyond the encoders, "temperature" among them where it trains that."""
        return frozenset()

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the batch it reads, such as ("image", "text", "text/teacher")."""
        return ()

    @property
    def fills(self) -> dict[str, str]:
        """What it puts into rings: {"ring/field": which passes make the rows}. Two that differ cannot share a ring."""
        return {}

    @property
    def more_negatives(self) -> frozenset[str]:
        """Rings and tables that give it negatives from outside the batch: by default its own."""
        return frozenset({self.keys}) if self.keys and (self.queue or self.table) else frozenset()

    def check(self, where: str) -> None:
        """Refuse values that are impossible whatever the rest of the config is; by default of `positive` fields."""
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.metadata.get("positive") and not value > 0:
                raise UserError(f"{where}.{one.name} is {value}; write a number above 0, such as {one.default}")

    def check_fit(self, where: str, config: Any, facts: DataFacts) -> None:
        """Refuse values that do not fit the config or the data, of which `facts` may know nothing yet (zeros)."""

    def fitted(self, facts: DataFacts) -> "Objective":
        """The objective with what only the data tell filled in, such as the ids of special tokens."""
        return self

    def memory(self, model: Any, facts: DataFacts) -> dict[str, Any]:
        """Rings and tables it needs in the train state: {name: {field: array with leading axis rows}}."""
        return {}

    def refresh(self, memory: dict[str, Any], step: Array) -> dict[str, Any]:
        """The memory anew from itself, every `period` steps, inside the compiled step."""
        return memory

    def prepare(self, batch: Batch, key: Array) -> Batch:
        """Derived fields, made before any pass so that student and teacher see the same ones."""
        return {}

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """The rows of the loss."""
        raise NotImplementedError


@dataclass(frozen=True)
class Paired(Objective):
    """An objective over two fields of the batch."""

    pair: tuple[str, str] = ("image", "text")

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair."""
        return self.pair

    def empty(self, model: Any, facts: DataFacts, rows: int, widths: dict[str, int]) -> dict[str, Any]:
        """Its ring or table of `rows` empty places (0: none): features of these `widths`, and `ring_marks`."""
        if not rows:
            return {}
        there = batch_fields(model.config, facts)
        never, lacking = jnp.full((rows,), NEVER, jnp.int32), jnp.zeros((rows,), bool)
        features = {name: jnp.zeros((rows, width), jnp.float32) for name, width in widths.items()}
        own = {f"{field}/key": never for field in self.reads} | {f"{field}/valid": lacking for field in self.reads}
        return {self.keys: features | {"id": never} | {name: values for name, values in own.items() if name in there}}


def in_steps(objective: Objective, facts: DataFacts) -> Objective:
    """The objective with every "2 epochs" of its schedules and numbers of steps as steps."""
    kinds = typing.get_type_hints(type(objective))
    found = {}
    for one in dataclasses.fields(objective):
        value = getattr(objective, one.name)
        if kinds[one.name] == Steps:
            found[one.name] = steps_of(value, facts)
        elif kinds[one.name] == Schedule and isinstance(value, tuple):
            found[one.name] = tuple((steps_of(step, facts), x) for step, x in value)
    return dataclasses.replace(objective, **found)


def steps_of(value: float | str, facts: DataFacts) -> float:
    """A number of steps, or "2 epochs" in steps (at least one), where an epoch is `facts.steps_per_epoch` long."""
    if not isinstance(value, str):
        return value
    return max(1, round(float(value.split()[0]) * facts.steps_per_epoch))


def at(schedule: Schedule, step: Array | int) -> Array:
    """The value of a schedule at `step`: a number, or straight lines between ((step, value), ...)."""
    if isinstance(schedule, (int, float)):
        return jnp.float32(schedule)
    steps, values = (jnp.asarray(column, jnp.float32) for column in zip(*schedule, strict=True))
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


def present(batch: Batch, fields: Iterable[str]) -> Array | None:
    """Which rows have all of `fields`, bool [B]; None where none of them can be missing."""
    marks = [batch[f"{field}/valid"] for field in fields if f"{field}/valid" in batch]
    return functools.reduce(jnp.logical_and, marks) if marks else None


def row_weight(batch: Batch, fields: Iterable[str]) -> Array:
    """float32 [B]: 1 for rows that have all of `fields`, else 0."""
    here = present(batch, fields)
    return jnp.ones(batch["id"].shape, jnp.float32) if here is None else here.astype(jnp.float32)


def marks(batch: Batch, fields: Iterable[str]) -> Batch:
    """What tells which rows match, [B] each: `id`, NEVER where one of `fields` is missing, and the fields' caption keys."""
    here, names = present(batch, fields), [f"{field}/key" for field in fields]
    ids = batch["id"] if here is None else jnp.where(here, batch["id"], NEVER)
    return {"id": ids} | {name: batch[name] for name in names if name in batch}


def same(left: Batch, right: Batch) -> Array:
    """Which rows are the same thing or carry the identical caption, by the `marks` [B] against [M] that both have -> bool [B,M].

    Rows with something missing (id NEVER) look like one another; whoever asks leaves them out.
    """
    match = left["id"][:, None] == right["id"][None, :]
    for name in left:
        if name.endswith("/key") and name in right:
            match = match | ((left[name][:, None] == right[name][None, :]) & (left[name] != NEVER)[:, None])
    return match


def ring_marks(batch: Batch, fields: Iterable[str]) -> Batch:
    """What a ring keeps of a row beside its keys: its id, and each field's caption key and validity, where there."""
    names = [f"{field}/{what}" for field in fields for what in ("key", "valid")]
    return {"id": batch["id"]} | {name: batch[name] for name in names if name in batch}


def mean_over(values: Array, weight: Array) -> Array:
    """The mean of values [B] over rows by weight [B], a float32 scalar; 0 where nothing weighs."""
    return (values.astype(jnp.float32) * weight).sum() / jnp.maximum(weight.sum(), 1.0)
