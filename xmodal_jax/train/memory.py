"""Rings (queues) and tables that objectives keep in the train state.

A ring is a dict of arrays with one leading axis of Q rows and a `cursor`; the fields of one row belong together.
"""

from typing import Any

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.objectives.base import Objective, Term
from xmodal_jax.types import Array

Ring = dict[str, Array]


def start(objectives: dict[str, Objective], model: Any) -> dict[str, Ring]:
    """The memory of all objectives; a ring of the same name is shared, and one of two shapes is a UserError."""
    memory: dict[str, Ring] = {}
    owner: dict[str, str] = {}
    for key, objective in objectives.items():
        for name, fields in objective.memory(model).items():
            ring = dict(fields) | {"cursor": jnp.zeros((), jnp.int32)}
            first = owner.setdefault(name, key)
            refuse_unless(
                jax.tree.map(jnp.shape, memory.get(name, ring)) == jax.tree.map(jnp.shape, ring),
                f"config.objectives.{first} and config.objectives.{key} ask for a ring '{name}' of different shapes; "
                "write the same sizes (such as queue) in both",
            )
            memory.setdefault(name, ring)
    return memory


def put(array: Array, place: Array, rows: Array, good: Array | bool) -> Array:
    """The array with `rows` at `place` where `good`; else the places lie outside, where writing does nothing.

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
    """index [B], with `length` (outside) where a later row has the same one: XLA leaves open which of two writes stays."""
    order = jnp.arange(len(index))
    again = (index[:, None] == index[None, :]) & (order[:, None] < order[None, :])
    return jnp.where(again.any(1), length, index)


def overwrite(table: Ring, index: Array, rows: Ring, good: Array | bool = True) -> Ring:
    """The table with `rows` at `index`; of a record that is in the batch twice the last row stays."""
    place = last_of_each(index, len(table[next(iter(rows))]))
    return table | {name: put(table[name], place, rows[name], good) for name in rows}


def remember(memory: dict[str, Ring], terms: dict[str, Term], good: Array | bool = True) -> dict[str, Ring]:
    """The memory after a step: what the losses saw goes into the rings and tables, in the order of the objectives.

    `good`, a boolean scalar, says whether the step counts; where it does not, nothing changes.
    """
    memory = dict(memory)
    for term in terms.values():
        for name, rows in term.enqueue.items():
            memory[name] = enqueue(memory[name], rows, good)
        for name, (index, rows) in term.write.items():
            memory[name] = overwrite(memory[name], index, rows, good)
    return memory
