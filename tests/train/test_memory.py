"""Rings against a Python list (hypothesis), shared rings, tables, and the order in which terms are remembered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_model

from xmodal_jax.errors import UserError
from xmodal_jax.objectives.base import Plain, Term
from xmodal_jax.objectives.contrastive import ITC, RING
from xmodal_jax.train.memory import enqueue, remember, start


def ring_of(length: int) -> dict:
    """An empty ring of two fields: id -1."""
    return {"id": jnp.full(length, -1, jnp.int32), "x": jnp.zeros((length, 2)), "cursor": jnp.zeros((), jnp.int32)}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_ring_holds_the_newest_rows_in_place(length, batches):
    ring, written, slots, cursor = ring_of(length), 0, [-1] * length, 0
    for count in batches:
        ids = np.arange(written, written + count, dtype=np.int32)
        ring = enqueue(ring, {"id": jnp.asarray(ids), "x": jnp.asarray(np.stack([ids, -ids], 1), jnp.float32)})
        for number in ids.tolist():
            slots[cursor], cursor = number, (cursor + 1) % length
        written += count
    assert np.asarray(ring["id"]).tolist() == slots
    assert int(ring["cursor"]) == cursor
    kept = np.asarray(ring["id"]) >= 0
    np.testing.assert_array_equal(np.asarray(ring["x"])[kept, 0], np.asarray(ring["id"])[kept])  # rows stay together
    np.testing.assert_array_equal(np.asarray(ring["x"])[kept, 1], -np.asarray(ring["id"])[kept])
    assert sorted(np.asarray(ring["id"])[kept]) == list(range(max(0, written - length), written))


def test_rows_are_cast_to_the_rings_dtype():
    ring = enqueue(ring_of(3), {"id": jnp.array([7], jnp.int32), "x": jnp.ones((1, 2), jnp.bfloat16)})
    assert ring["x"].dtype == jnp.float32


def test_memory_starts_with_a_cursor_and_is_shared_by_name():
    model = tiny_model(tiny_config())
    memory = start({"a": ITC(queue=4), "b": ITC(queue=4), "c": ITC(queue=0)}, model)
    assert list(memory) == [RING] and int(memory[RING]["cursor"]) == 0
    assert start({"c": ITC(queue=0)}, model) == {}
    with pytest.raises(
        UserError, match="objectives.a and config.objectives.b ask for a ring 'pairs' of different shapes"
    ):
        start({"a": ITC(queue=4), "b": ITC(queue=5)}, model)


def test_a_table_is_written_at_its_rows():
    class Posterior(Plain):
        """Keeps one number a training row."""

        def memory(self, model):
            """A table of six rows."""
            return {"posterior": {"p": jnp.zeros(6)}}

    memory = start({"x": Posterior()}, None)
    term = Term(jnp.zeros(2), jnp.ones(2), write={"posterior": (jnp.array([4, 1]), {"p": jnp.array([0.4, 0.1])})})
    after = remember(memory, {"x": term})
    np.testing.assert_allclose(after["posterior"]["p"], [0, 0.1, 0, 0, 0.4, 0])
    assert (np.asarray(memory["posterior"]["p"]) == 0).all()


def test_terms_are_remembered_in_order_under_jit():
    rows = lambda number: {"id": jnp.full(2, number, jnp.int32), "x": jnp.full((2, 2), float(number))}
    terms = {name: Term(jnp.zeros(2), jnp.ones(2), enqueue={RING: rows(i)}) for i, name in enumerate("ab", 1)}
    ring = jax.jit(remember)({RING: ring_of(3)}, terms)[RING]
    assert np.asarray(ring["id"]).tolist() == [2, 1, 2] and int(ring["cursor"]) == 1
