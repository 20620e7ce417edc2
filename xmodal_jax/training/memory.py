"""Rings (queues) and tables that objectives keep in the train state.

A ring is a dict of arrays with one leading axis of Q rows and a `cursor`; the fields of one row belong together.
"""

from typing import Any

import jax
import jax.numpy as jnp

from xmodal_jax.errors import UserError
from xmodal_jax.objectives.base import Objective, Term, steps_of
from xmodal_jax.types import Array, DataFacts

Ring = dict[str, Array]

NO_FACTS = DataFacts()


def start(objectives: dict[str, Objective], model: Any, facts: DataFacts = NO_FACTS) -> dict[str, Ring]:
    """Return the memory of all objectives. Those that name one ring share it, with the fields of all.

    Raises UserError for two lengths of one ring.
    """
    memory: dict[str, Ring] = {}
    owner: dict[str, str] = {}
    for key, objective in objectives.items():
        for name, fields in objective.memory(model, facts).items():
            first = owner.setdefault(name, key)
            own: dict[str, Any] = memory.setdefault(name, {"cursor": jnp.zeros((), jnp.int32)})
            for field, rows in fields.items():
                if (
                    rows.shape[:1] != next((x.shape[:1] for x in own.values() if x.ndim), rows.shape[:1])
                    or own.get(field, rows).shape != rows.shape
                ):
                    raise UserError(
                        f"config.objectives.{first} and config.objectives.{key} ask for a ring '{name}' of different "
                        f"shapes; write the same queue in both, or config.objectives.{key}.keys='{key}' for a ring of "
                        "its own"
                    )
                own.setdefault(field, rows)
    return memory


def put(array: Array, place: Array, rows: Array, good: Array | bool) -> Array:
    """Return the array with `rows` at `place` where `good`; else the places lie outside, where writing does nothing.

    A choice between the array before and after would read and write all of it, and keep both.
    """
    return array.at[jnp.where(good, place, len(array))].set(rows.astype(array.dtype), mode="drop")


def enqueue(ring: Ring, rows: Ring, good: Array | bool = True) -> Ring:
    """Append rows at the cursor, modulo the length; of a batch longer than the ring the newest rows stay."""
    names = [name for name in ring if name != "cursor"]
    length, count = ring[names[0]].shape[0], rows[names[0]].shape[0]
    kept = min(length, count)
    place = (ring["cursor"] + jnp.arange(count - kept, count)) % length
    new = {name: put(ring[name], place, rows[name][count - kept :], good) for name in names}
    return new | {"cursor": jnp.where(good, (ring["cursor"] + count) % length, ring["cursor"])}


def last_of_each(index: Array, length: int) -> Array:
    """Return index [B], with `length` (outside) where a later row has
    the same one: XLA leaves open which of two writes stays.
    """
    order = jnp.arange(len(index))
    again = (index[:, None] == index[None, :]) & (order[:, None] < order[None, :])
    return jnp.where(again.any(1), length, index)


def overwrite(table: Ring, index: Array, rows: Ring, good: Array | bool = True) -> Ring:
    """Return the table with `rows` at `index`; of a record that is in the batch twice the last row stays."""
    place = last_of_each(index, len(table[next(iter(rows))]))
    return table | {name: put(table[name], place, rows[name], good) for name in rows}


def update_memory(memory: dict[str, Ring], terms: dict[str, Term], good: Array | bool = True) -> dict[str, Ring]:
    """Return the memory after a step: what the losses saw goes into
    the rings, once each, and tables, in the order of the objectives.

    `good`, a boolean scalar, says whether the step counts; where it does not, nothing changes.
    """
    memory, queued = dict(memory), {}
    for term in terms.values():
        for name, rows in term.enqueue.items():
            queued[name] = queued.get(name, {}) | rows
        for name, (index, rows) in term.write.items():
            memory[name] = overwrite(memory[name], index, rows, good)
    return memory | {name: enqueue(memory[name], rows, good) for name, rows in queued.items()}


def refresh(
    objectives: dict[str, Objective],
    memory: dict[str, Ring],
    step: Array,
    good: Array | bool = True,
    facts: DataFacts = NO_FACTS,
) -> dict[str, Ring]:
    """Return the memory after each objective whose period ends with
    `step` (the steps done) has made it anew, in their order.

    After a step that is not `good` it stays as it is, and where a second pass comes first (`second_pass.py`). A period
    in epochs, which a class may say without a field, is that of the data set of `facts`.
    """
    for item in objectives.values():
        if item.period and not item.second_pass:
            due = (step % steps_of(item.period, facts) == 0) & good
            memory = jax.lax.cond(due, lambda own, item=item: item.refresh(own, step), lambda own: own, memory)
    return memory
