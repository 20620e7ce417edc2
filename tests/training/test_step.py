"""The whole five-objective step: equal on every mesh, skipped when not finite, and the order EMA, then enqueue."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import ROWS, tiny_batch, tiny_config, tiny_recipe

from xmodal_jax.objectives.base import Term
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.settings import JointConfig
from xmodal_jax.training.checkpoint import Checkpoints
from xmodal_jax.training.state import advanced, examples_seen
from xmodal_jax.training.step import choose, finite, projected, same_towers, term_metrics

OTHERS = [pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 1, 1), (2, 4, 1))]  # compiled for 30 s each


def compare(left, right, rtol=1e-4, atol=1e-6):
    """Trees leaf by leaf, with the path in the message."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=path_name(path))


@pytest.mark.parametrize("shape", [*OTHERS, (2, 2, 2)], ids=lambda shape: "x".join(map(str, shape)))
def test_eight_devices_equal_one(machine, after_one, shape):
    here = machine(*shape)
    state, metrics = here.run(tiny_batch())
    one, expected = after_one
    compare(metrics, expected, rtol=2e-4, atol=1e-5)
    # The first moments are 0.1 times the clipped gradients: this compares the gradients of every parameter.
    compare(optax.tree.get(state.opt_state, "mu"), optax.tree.get(one.opt_state, "mu"), rtol=2e-4, atol=2e-7)
    compare(state.memory, one.memory)
    # Adam's first step has the size of the learning rate even where the gradient is rounding noise: leave those out.
    real = jax.tree.map(lambda mu: np.abs(mu) > 1e-6, optax.tree.get(one.opt_state, "mu"))
    assert sum(keep.sum() for keep in jax.tree.leaves(real)) > 1000

    def pick(tree):
        return jax.tree.map(lambda x, keep: np.where(keep, x, 0), tree, real)

    compare(pick(state.params), pick(one.params), rtol=1e-3, atol=1e-5)
    for placed, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(here.places), strict=True):
        assert placed.sharding.is_equivalent_to(wanted, placed.ndim)


@pytest.mark.parametrize("after", [(1, 1, 1), OTHERS[0]])
def test_a_run_goes_on_on_another_number_of_devices(machine, after, tmp_path):
    before = machine(2, 2, 2)
    state, _ = before.run(tiny_batch(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    batch = tiny_batch(1)
    _, want = before.step(state, before.put(batch))
    other = machine(*after)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), other.start, other.places
    )
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(abstract)
    assert jax.tree.all(jax.tree.map(lambda leaf, place: leaf.sharding == place, state, other.places))
    _, got = other.step(state, other.put(batch))
    for name in ("loss", *(name for name in want if name.startswith("loss/"))):
        np.testing.assert_allclose(float(got[name]), float(want[name]), rtol=1e-6, err_msg=name)


def test_nothing_of_the_teacher_moves_between_devices(machine):
    here = machine(2, 2, 2)
    state = here.fresh()
    leaves = dict((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state.params))
    assert state.teacher
    for name, leaf in state.teacher.items():
        assert leaf.sharding.is_equivalent_to(leaves[name].sharding, leaf.ndim)
    assert any(not leaf.sharding.is_fully_replicated for leaf in state.teacher.values())


def test_the_step_trains_everything_and_logs_it(after_one, start):
    state, metrics = after_one
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start.params)
    assert all(jax.tree.leaves(moved))
    assert {"loss", "grad_norm", "skipped", "teacher/drift", "itc/accuracy", "itm/rows"} <= set(metrics)
    weights = {"itc": 1.0, "itm": 1.0, "mlm": 0.5, "lm": 0.5, "hash": 0.1}
    total = sum(weight * metrics[f"loss/{name}"] for name, weight in weights.items())
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    assert (int(state.step), examples_seen(state.cursor), int(state.skipped)) == (1, ROWS, 0)


def test_the_queue_gets_the_batch_at_its_cursor(after_one, start):
    ring, before, batch = after_one[0].memory["keys"], start.memory["keys"], tiny_batch()
    np.testing.assert_array_equal(ring["id"][12 : 12 + ROWS], batch["id"])
    np.testing.assert_array_equal(ring["image"][:12], before["image"][:12])
    np.testing.assert_allclose(np.linalg.norm(ring["text"][12 : 12 + ROWS], axis=1), 1, rtol=1e-4)
    assert int(ring["cursor"]) == 12 + ROWS


def test_a_nan_in_one_batch_changes_nothing_but_the_counters(single):
    bad = tiny_batch(1)
    bad["image"][3, 0, 0] = np.nan
    first, _ = jax.tree.map(np.asarray, single.run(tiny_batch()))
    second, metrics = jax.tree.map(np.asarray, single.run(tiny_batch(), bad))
    assert not np.isfinite(metrics["loss"])
    for name in ("params", "teacher", "memory", "opt_state", "key"):
        jax.tree.map(np.testing.assert_array_equal, getattr(first, name), getattr(second, name))
    counters = (int(second.step), examples_seen(second.cursor), int(second.skipped), int(second.skips_in_row))
    assert counters == (2, 2 * ROWS, 1, 1)
    third, _ = single.run(tiny_batch(), bad, bad)
    assert (int(third.skipped), int(third.skips_in_row)) == (2, 2)
    fourth, metrics = single.run(tiny_batch(), bad, bad, tiny_batch(2))
    assert (int(fourth.skipped), int(fourth.skips_in_row)) == (2, 0) and np.isfinite(metrics["loss"])


def test_the_same_batches_give_the_same_bits(single):
    runs = [jax.tree.map(np.asarray, single.run(tiny_batch(), tiny_batch(1))) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *runs)


def test_the_loss_falls_on_one_batch(single, after_one):
    _, metrics = single.run(*[tiny_batch()] * 8)
    assert metrics["loss"] < 0.9 * after_one[1]["loss"]


def test_a_cursor_counts_beyond_32_bits():
    cursor, seen = jnp.zeros(2, jnp.int32), 0
    for examples in (2**30 - 1, 2, 2**30 - 1, 5, 2**30 - 1, 2**30 - 1, 16384):  # past 2^31 and 2^32
        cursor, seen = jax.jit(advanced, static_argnums=1)(cursor, examples), seen + examples
        assert examples_seen(cursor) == seen and cursor.dtype == jnp.int32
    assert seen > 2**32 and examples_seen(jnp.array([2**20, 7], jnp.int32)) == 2**50 + 7


EDGE = np.log(np.float32(0.01))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=lambda shape: "x".join(map(str, shape)))
def test_the_temperature_leaves_its_edge(machine, shape):
    """At and below temperature_min the loss pulls it up, where it would stay if it were clipped as it is read."""
    here = machine(*shape)
    for begun in (EDGE, EDGE - 1.0):
        state = here.fresh()
        begin = jax.device_put(jnp.float32(begun), state.params["log_temperature"].sharding)
        state = dataclasses.replace(state, params=state.params | {"log_temperature": begin})
        found = []
        for _ in range(3):
            state, metrics = here.step(state, here.put(tiny_batch()))
            found.append(float(state.params["log_temperature"]))
            assert float(metrics["nonfinite/log_temperature"]) == 0.0
        assert min(found) >= EDGE - 1e-6, "projected into the interval"
        assert found[2] > found[1] + 1e-3 > EDGE + 1e-3, "and off its edge"


def test_only_the_temperature_is_projected():
    joint, params = JointConfig(), {"image": {"kernel": jnp.full(2, 9.0)}, "log_temperature": jnp.float32(-9.0)}
    found = projected(joint, params)
    np.testing.assert_allclose(np.exp(found["log_temperature"]), joint.temperature_min, rtol=1e-6)
    assert found["image"] is params["image"] and projected(joint, {"image": {}}) == {"image": {}}
    assert np.isnan(projected(joint, {"log_temperature": jnp.float32(np.nan)})["log_temperature"])


def test_finite_and_choose():
    good, bad = {"a": jnp.ones(2), "b": jnp.zeros(())}, {"a": jnp.array([1.0, jnp.inf]), "b": jnp.zeros(())}
    assert finite(good) and not finite(good, bad) and not finite(jnp.float32(jnp.nan))
    assert choose(jnp.bool_(True), good, bad)["a"].tolist() == [1, 1]
    assert choose(jnp.bool_(False), bad, good)["a"].tolist() == [1, 1]


def test_term_metrics_carry_the_objectives_name():
    terms = {"itc": Term(jnp.array([1.0, 3.0]), jnp.ones(2), {"accuracy": jnp.float32(0.5)})}
    assert {name: float(value) for name, value in term_metrics(terms).items()} == {"loss/itc": 2.0, "itc/accuracy": 0.5}


def test_towers_are_shared_with_the_teacher_only_where_they_are_the_same_function():
    kernel = {"kernel": jnp.ones(2)}
    params = {"text": {"tower": kernel}, "image": {"tower": kernel, "head": kernel}, "match": kernel}
    cases = [("", {}, set()), ("^image/tower/", {}, {"image"}), ("^(image|text)/tower/", {"dropout": 0.1}, {"image"})]
    for freeze, text, expected in cases:
        config = tiny_config(optimizer={"freeze": freeze}, text=text)
        assert same_towers(config, params) == expected
    assert tiny_recipe(tiny_config()).cache
