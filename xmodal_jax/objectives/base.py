"""The interface of objectives: rows, weights, metrics, and the memory that they keep.

The step reduces `sum(values * weight) / sum(weight)`, so tokens, missing modalities and any split of the batch are
averaged as one batch. The config names objectives in a dict, and that dict is the method.
"""

import dataclasses
import functools
import itertools
import operator
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.fields import batch_fields
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.settings import Config
from xmodal_jax.types import NEVER, Array, Batch, DataFacts, Metrics, Schedule, Steps


@jax.tree_util.register_dataclass
@dataclass
class Term:
    """The result of an objective for one batch.

    Example:
        >>> term = Term(values=jnp.array([1.0, 3.0, 9.0]), weight=jnp.array([1.0, 1.0, 0.0]))
        >>> float(term.mean())
        2.0
    """

    values: Array
    """Losses of the rows [B], not reduced."""
    weight: Array
    """How much each row counts, [B]."""
    metrics: Metrics = field(default_factory=dict)
    """Scalars to report, by name."""
    enqueue: dict[str, dict[str, Array]] = field(default_factory=dict)
    """Rows [B,...] to append to the rings after the update: {ring: {field: rows}}."""
    write: dict[str, tuple[Array, dict[str, Array]]] = field(default_factory=dict)
    """Rows [B,...] to write into tables: {table: (row numbers [B], {field: rows})}."""

    def mean(self) -> Array:
        """Return the weighted mean over rows, a float32 scalar."""
        return (self.values * self.weight).sum() / jnp.maximum(self.weight.sum(), 1e-9)


def positive(default: float) -> Any:
    """Declare a field of an objective whose value `Objective.check` keeps above 0."""
    return field(default=default, metadata={"positive": True})


@dataclass(frozen=True)
class Objective:
    """One loss: a frozen dataclass with the fields of its entry in `config.objectives`. Subclasses define `__call__`.

    Whatever the rest of the package asks an objective stands here with its default; nobody asks for anything else.

    Example:
        >>> @dataclass(frozen=True)
        ... class Apart(Objective):
        ...     margin: float = positive(0.5)
        ...
        ...     def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        ...         one, two = (fwd.encode(field).unit for field in ("image", "text"))
        ...         return Term(jax.nn.relu(self.margin - (one * two).sum(1)), row_weight(batch, ("image", "text")))
        >>> Apart(name="apart").weight, Apart(margin=0.2).margin
        (1.0, 0.2)
        >>> Apart(margin=-1.0).check("config.objectives.apart")
        Traceback (most recent call last):
        xmodal_jax.errors.UserError: config.objectives.apart.margin is -1.0; write a number above 0, such as 0.5
    """

    weight: Schedule = 1.0
    """Factor on the loss in the total: a number, or a schedule ((step, value), ...); 0 leaves the entry out."""
    name: str = ""
    """Its key in `config.objectives`, filled in; the fields that it derives begin with it ("mlm/ids")."""

    trains: ClassVar[bool] = True
    """False if it has no loss and only keeps numbers for others; the log then shows none."""
    contrasts: ClassVar[bool] = False
    """True if its loss says nothing about a row without a negative."""
    by_label: ClassVar[bool] = False
    """True if it reads the batch's `labels`."""
    every: ClassVar[int] = 1
    """n: it takes every n-th row only."""
    group: ClassVar[int | None] = None
    """Rows that it must see together; 0: the whole batch; None: it looks at each row by itself."""
    queue: ClassVar[int] = 0
    """Rows of its ring."""
    table: ClassVar[int] = 0
    """Rows of its table, one for each training record."""
    keys: ClassVar[str] = ""
    """Name of its ring or table."""
    negatives: ClassVar[int] = 0
    """Negatives of each row, drawn inside its group."""
    ring: ClassVar[bool | None] = None
    """True if its logits are made in blocks, False if in one matrix; None: it has no logits over all keys."""
    hardness: ClassVar[float | None] = None
    """Hardness of the negatives that a matching head is trained on; None: it trains none."""
    period: ClassVar[Steps] = 0
    """Steps between two calls of `refresh`; 0: it is never called."""
    second_pass: ClassVar[bool] = False
    """True if `refresh` waits for a pass over the data after the step (`passes_after`, `revisit`)."""

    @property
    def parts(self) -> frozenset[str]:
        """Modules of the model it uses beyond the encoders, with "temperature" if it trains that."""
        return frozenset()

    @property
    def reads(self) -> tuple[str, ...]:
        """Fields of the batch it reads, such as ("image", "text", "text/teacher")."""
        return ()

    @property
    def fills(self) -> dict[str, str]:
        """Its entries in rings, as {"ring/field": description of its rows}; two that differ cannot share a ring."""
        return {}

    @property
    def passed(self) -> str:
        """Name of the memory that knows the step of the last pass."""
        return f"{self.name}_pass"

    @property
    def more_negatives(self) -> frozenset[str]:
        """Rings and tables that give it negatives from outside the batch: by default its own."""
        return frozenset({self.keys}) if self.keys and (self.queue or self.table) else frozenset()

    def check(self, where: str) -> None:
        """Refuse values that are impossible whatever the rest of the config; by default those of `positive` fields."""
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.metadata.get("positive") and not value > 0:
                raise UserError(f"{where}.{one.name} is {value}; write a number above 0, such as {one.default}")

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse values that do not fit the config or the data, of which `facts` may know nothing yet (zeros)."""

    def fitted(self, facts: DataFacts) -> "Objective":
        """Return the objective completed from the data, such as with the ids of special tokens."""
        return self

    def memory(self, model: CrossModal, facts: DataFacts) -> dict[str, Any]:
        """Return the rings and tables it needs in the train state: {name: {field: array with leading axis rows}}."""
        return {}

    def refresh(self, memory: dict[str, Any], step: Array) -> dict[str, Any]:
        """Recompute the memory from itself; called every `period` steps, inside the compiled step."""
        return memory

    def passes_after(self, step: int) -> bool:
        """Return True if after this step all training data are shown to `revisit`, and then `refresh` is called.

        Asked where `second_pass` is True; the memory `passed` then has {"step": int32 [1]}, the step of the last pass.
        """
        return False

    def revisit(self, fwd: Forward, batch: Batch) -> Term:
        """Measure a batch of a pass that trains nothing; only what the term writes into tables counts."""
        raise NotImplementedError

    def report(self, memory: dict[str, Any], data: DataConfig) -> dict[str, Any]:
        """Return numbers about its memory in a train state, for the quick evaluations of a run (default: none)."""
        return {}

    def prepare(self, batch: Batch, key: Array) -> Batch:
        """Derive fields before any pass, so that student and teacher see the same ones."""
        return {}

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Compute the loss of each row."""
        raise NotImplementedError


@dataclass(frozen=True)
class Paired(Objective):
    """An objective over two fields of the batch."""

    pair: tuple[str, str] = ("image", "text")
    """The two fields of the batch that the loss relates."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair."""
        return self.pair

    def empty(self, model: CrossModal, facts: DataFacts, rows: int, widths: dict[str, int]) -> dict[str, Any]:
        """Return its ring or table of `rows` empty places (none for 0): features of `widths`, and `ring_marks`."""
        if not rows:
            return {}
        available = batch_fields(model.config, facts)
        never, lacking = jnp.full((rows,), NEVER, jnp.int32), jnp.zeros((rows,), bool)
        features = {name: jnp.zeros((rows, width), jnp.float32) for name, width in widths.items()}
        own = {f"{field}/key": never for field in self.reads} | {f"{field}/valid": lacking for field in self.reads}
        return {
            self.keys: features | {"id": never} | {name: values for name, values in own.items() if name in available}
        }


def in_steps(objective: Objective, facts: DataFacts) -> Objective:
    """Return the objective with every "2 epochs" of its schedules and step counts converted to steps."""
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
    """Convert "2 epochs" to steps (at least one); return a number unchanged.

    Example:
        >>> steps_of("2 epochs", DataFacts(steps_per_epoch=31.25))
        62
    """
    if not isinstance(value, str):
        return value
    return max(1, round(float(value.split()[0]) * facts.steps_per_epoch))


def counted(steps: Steps) -> int:
    """Return a number of steps; raise ValueError for epochs, which `in_steps` converts before training."""
    if isinstance(steps, str):
        raise ValueError(f"{steps!r} is not a number of steps; call `in_steps` on the objective first")
    return steps


def at(schedule: Schedule, step: Array | int) -> Array:
    """Evaluate a schedule at `step`: a number, or straight lines between ((step, value), ...).

    Example:
        >>> float(at(((0, 0.0), (100, 1.0)), step=25))
        0.25
    """
    if isinstance(schedule, (int, float)):
        return jnp.float32(schedule)
    steps, values = (jnp.asarray(column, jnp.float32) for column in zip(*schedule, strict=True))
    return jnp.interp(jnp.asarray(step, jnp.float32), steps, values)


def ramped(value: float, steps: Steps, step: Array | int) -> Array:
    """Return `value` at `step` of a straight climb from 0 over the first `steps` steps; 0: no climb."""
    return jnp.float32(value) * (at(((0, 0.0), (counted(steps), 1.0)), step) if steps else jnp.float32(1.0))


def add_all(parts: Iterable[Array]) -> Array:
    """Add at least one array; unlike `sum` the result is never a plain number."""
    return functools.reduce(operator.add, parts)


def products(left: Array, right: Array) -> Array:
    """Return inner products float32 [B,M] of rows [B,K] and [M,K], at full precision.

    Accelerators round the factors of a float32 product (TF32, bfloat16) unless told otherwise: cosines divided by a
    small temperature, and distances, which are differences of large numbers, would be wrong in the third digit.
    """
    left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)


def present(batch: Batch, fields: Iterable[str]) -> Array | None:
    """Return a mask bool [B] of rows that have all of `fields`, or None if none of them can be missing."""
    marks = [batch[f"{field}/valid"] for field in fields if f"{field}/valid" in batch]
    return functools.reduce(jnp.logical_and, marks) if marks else None


def row_weight(batch: Batch, fields: Iterable[str]) -> Array:
    """Return float32 [B]: 1 for rows that have all of `fields`, else 0."""
    here = present(batch, fields)
    return jnp.ones(batch["id"].shape, jnp.float32) if here is None else here.astype(jnp.float32)


def marks(batch: Batch, fields: Iterable[str]) -> Batch:
    """Return the entries [B] that decide which rows match: caption keys, and `id`, NEVER if a field is missing."""
    here, names = present(batch, fields), [f"{field}/key" for field in fields]
    ids = batch["id"] if here is None else jnp.where(here, batch["id"], NEVER)
    return {"id": ids} | {name: batch[name] for name in names if name in batch}


def same(left: Batch, right: Batch) -> Array:
    """Return bool [B,M]: True for rows with the same id, or the same caption key of a field that both sides have.

    Rows with something missing (id NEVER) look like one another; the caller leaves them out. Fields whose names differ
    by a number are views of one medium: the caption of "text" in one row may be that of "text2" in another.

    Example:
        >>> left = {"id": jnp.array([7, 8]), "text/key": jnp.array([0, 1])}
        >>> right = {"id": jnp.array([7, 9]), "text/key": jnp.array([5, 1])}
        >>> same(left, right).tolist()
        [[True, False], [False, True]]
    """
    match = left["id"][:, None] == right["id"][None, :]
    for one, other in itertools.product(*(filter(_is_key, rows) for rows in (left, right))):
        if _numberless(one) == _numberless(other):
            match = match | ((left[one][:, None] == right[other][None, :]) & (left[one] != NEVER)[:, None])
    return match


def _is_key(name: str) -> bool:
    """Return True for an entry that has the caption keys of a field."""
    return name.endswith("/key")


def _numberless(name: str) -> str:
    """Return the name of a field's entry without the number at the end of the field: "text2/key" -> "text"."""
    return name.partition("/")[0].rstrip("0123456789")


def ring_marks(batch: Batch, fields: Iterable[str]) -> Batch:
    """Return the entries that a ring keeps of a row beside its keys: id, and each field's caption key and validity."""
    names = [f"{field}/{what}" for field in fields for what in ("key", "valid")]
    return {"id": batch["id"]} | {name: batch[name] for name in names if name in batch}


def mean_over(values: Array, weight: Array) -> Array:
    """Average values [B] over rows by weight [B], a float32 scalar; 0 where nothing weighs."""
    return (values.astype(jnp.float32) * weight).sum() / jnp.maximum(weight.sum(), 1.0)
