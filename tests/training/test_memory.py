"""Rings against a Python list (hypothesis), shared rings, tables, and the order in which terms are remembered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_model

from xmodal_jax.errors import UserError
from xmodal_jax.objectives.base import Objective, Term
from xmodal_jax.objectives.contrastive import ITC, KEYS
from xmodal_jax.training.memory import enqueue, start, update_memory
from xmodal_jax.types import DataFacts


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
    model = tiny_model(tiny_config(data={"fields": {"image2": {"of": "image"}}}))
    memory = start({"a": ITC(queue=4), "b": ITC(queue=4), "c": ITC(queue=0)}, model)
    assert list(memory) == [KEYS] and int(memory[KEYS]["cursor"]) == 0
    assert start({"c": ITC(queue=0)}, model) == {}
    both = start({"a": ITC(queue=4), "b": ITC(pair=("image2", "text"), queue=4)}, model)
    assert set(both[KEYS]) == {"image", "image2", "text", "id", "text/key", "cursor"}, "the fields of both"
    apart = start({"a": ITC(queue=4), "b": ITC(queue=5, keys="b")}, model)
    assert {name: len(ring["id"]) for name, ring in apart.items()} == {KEYS: 4, "b": 5}
    sentence = "objectives.a and config.objectives.b ask for a ring 'keys' .* the same queue in both, or .*b.keys='b'"
    with pytest.raises(UserError, match=sentence):
        start({"a": ITC(queue=4), "b": ITC(queue=5)}, model)


def test_a_table_is_written_at_its_rows():
    class Posterior(Objective):
        """Keeps one number a training row."""

        def memory(self, model, facts):
            """A table of a row for each record."""
            return {"posterior": {"p": jnp.zeros(facts.records)}}

    memory = start({"x": Posterior()}, None, DataFacts(records=6))
    term = Term(jnp.zeros(2), jnp.ones(2), write={"posterior": (jnp.array([4, 1]), {"p": jnp.array([0.4, 0.1])})})
    after = update_memory(memory, {"x": term})
    np.testing.assert_allclose(after["posterior"]["p"], [0, 0.1, 0, 0, 0.4, 0])
    assert (np.asarray(memory["posterior"]["p"]) == 0).all()


def written(index, numbers) -> dict:
    """A term that writes `numbers` at the rows `index` of the table `t`, and three rows into the ring."""
    rows = {"id": jnp.arange(3, dtype=jnp.int32), "x": jnp.ones((3, 2))}
    write = {"t": (jnp.asarray(index), {"p": jnp.asarray(numbers, jnp.float32)})}
    return {"x": Term(jnp.zeros(3), jnp.ones(3), enqueue={KEYS: rows}, write=write)}


def test_of_a_record_twice_in_a_batch_the_last_row_stays():
    draw = np.random.default_rng(1)
    for _ in range(20):
        index, numbers = draw.integers(0, 5, 9), draw.normal(size=9).astype(np.float32)
        table = np.zeros(5, np.float32)
        for place, number in zip(index, numbers, strict=True):
            table[place] = number
        memory = {"t": {"p": jnp.zeros(5)}, KEYS: ring_of(4)}
        np.testing.assert_array_equal(update_memory(memory, written(index, numbers))["t"]["p"], table)


def test_a_step_that_is_skipped_changes_no_memory():
    memory = {"t": {"p": jnp.arange(4.0), "cursor": jnp.int32(0)}, KEYS: ring_of(4)}
    terms = written([3, 0, 3], [np.nan, 1.0, 2.0])
    jax.tree.map(np.testing.assert_array_equal, update_memory(memory, terms, jnp.bool_(False)), memory)
    good = update_memory(memory, terms, jnp.bool_(True))
    jax.tree.map(np.testing.assert_array_equal, good, update_memory(memory, terms))
    assert np.asarray(good["t"]["p"]).tolist() == [1, 1, 2, 2] and int(good[KEYS]["cursor"]) == 3


def test_a_step_touches_the_rows_it_writes_and_no_others():
    """The table of a donated state is written in place: no copy of it, whatever the number of records."""
    records, bits = 100_000, 8
    table = {"t": {"p": jnp.zeros((records, bits))}, KEYS: ring_of(4)}
    step = jax.jit(lambda memory, terms, good: update_memory(memory, terms, good), donate_argnums=0)
    compiled = step.lower(table, written([1, 5, 1], np.ones((3, bits))), jnp.bool_(True)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * records * bits * 4


def test_terms_are_remembered_in_order_and_a_ring_once_under_jit():
    def rows(number, *names):
        return {name: jnp.full(2, number, jnp.int32) for name in ("id", *names)}

    ring = {name: jnp.full(3, -1, jnp.int32) for name in ("id", "x", "y")} | {"cursor": jnp.int32(2)}

    def table(number):
        return {"t": (jnp.array([1]), {"p": jnp.full(1, number)})}

    two = {"a": rows(1, "x"), "b": rows(1, "y")}  # the same rows of a batch, and of each objective its own keys
    terms = {
        name: Term(jnp.zeros(2), jnp.ones(2), enqueue={KEYS: own}, write=table(number))
        for number, (name, own) in enumerate(two.items(), 1)
    }
    after = jax.jit(update_memory)({KEYS: ring, "t": {"p": jnp.zeros(2)}}, terms)
    for name in ("id", "x", "y"):
        assert np.asarray(after[KEYS][name]).tolist() == [1, -1, 1]
    assert int(after[KEYS]["cursor"]) == 1 and np.asarray(after["t"]["p"]).tolist() == [0, 2]
