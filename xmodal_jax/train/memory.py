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


def enqueue(ring: Ring, rows: Ring) -> Ring:
    """Append rows at the cursor, modulo the length; of a batch longer than the ring the newest rows stay."""
    names = [name for name in ring if name != "cursor"]
    length, count = ring[names[0]].shape[0], rows[names[0]].shape[0]
    kept = min(length, count)
    place = (ring["cursor"] + jnp.arange(count - kept, count)) % length
    new = {name: ring[name].at[place].set(rows[name][count - kept :].astype(ring[name].dtype)) for name in names}
    return new | {"cursor": (ring["cursor"] + count) % length}


def remember(memory: dict[str, Ring], terms: dict[str, Term]) -> dict[str, Ring]:
    """The memory after a step: what the losses saw goes into the rings and tables, in the order of the objectives."""
    memory = dict(memory)
    for term in terms.values():
        for name, rows in term.enqueue.items():
            memory[name] = enqueue(memory[name], rows)
        for name, (index, rows) in term.write.items():
            memory[name] = memory[name] | {field: memory[name][field].at[index].set(rows[field]) for field in rows}
    return memory
