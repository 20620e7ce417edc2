"""The EMA by hand, warm-up, what the teacher leaves out, and that it starts as a copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_batch

from xmodal_jax.settings import TeacherConfig
from xmodal_jax.training.teacher import drift, momentum_at, start, update, view

PARAMS = {
    "text": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)},
    "image": {"kernel": np.full((2, 2), 3.0, np.float32)},
    "match": {"kernel": np.full(2, 5.0, np.float32)},
}


@pytest.fixture
def params():
    """A small tree on the device."""
    return jax.tree.map(jnp.asarray, PARAMS)


def test_it_is_a_copy_not_an_alias(params):
    teacher = start(params, "")
    for path, leaf in teacher.items():
        side, name = path.split("/")
        assert leaf.unsafe_buffer_pointer() != params[side][name].unsafe_buffer_pointer()
        np.testing.assert_array_equal(leaf, PARAMS[side][name])
    params["text"]["kernel"].delete()
    assert np.asarray(teacher["text/kernel"]).sum() == 15


def test_it_is_float32_whatever_the_student_is(params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert {leaf.dtype for leaf in start(half, "").values()} == {jnp.dtype("float32")}


def test_excluded_and_frozen_leaves_are_absent_and_read_from_the_student(params):
    teacher = start(params, "^match", "^image/|bias$")
    assert list(teacher) == ["text/kernel"]
    moved = jax.tree.map(lambda x: x + 1.0, params)
    seen = view(moved, teacher)
    np.testing.assert_array_equal(seen["text"]["kernel"], PARAMS["text"]["kernel"])
    np.testing.assert_array_equal(seen["match"]["kernel"], [6, 6])
    np.testing.assert_array_equal(seen["image"]["kernel"], np.full((2, 2), 4.0))
    assert jax.tree.structure(seen) == jax.tree.structure(params)


def test_three_updates_by_hand(params):
    teacher, expected, student = start(params, ""), PARAMS["text"]["kernel"].astype(np.float64), params
    for number in range(1, 4):
        student = jax.tree.map(lambda x, number=number: x * 2.0 + number, student)
        teacher = update(teacher, student, jnp.float32(0.9))
        expected = 0.9 * expected + 0.1 * np.asarray(student["text"]["kernel"], np.float64)
    np.testing.assert_allclose(teacher["text/kernel"], expected, rtol=1e-6)


def test_what_the_student_does_not_move_stays_bit_for_bit(params):
    """0.9 x + 0.1 x is not x in float32 for every x."""
    x = jax.random.normal(jax.random.key(0), (1000,))
    assert (np.asarray(0.9 * x + (1.0 - 0.9) * x) != np.asarray(x)).any()
    moved = update({"a": x, "b": x}, {"a": x, "b": x + 1.0}, jnp.float32(0.9))
    assert np.array_equal(moved["a"], x)
    np.testing.assert_allclose(moved["b"], x + 0.1, rtol=1e-5, atol=1e-6)


def test_a_small_step_at_high_momentum_still_moves(params):
    teacher = start(params, "")
    moved = update(teacher, jax.tree.map(lambda x: x + 0.01, params), jnp.float32(0.999))
    assert (np.asarray(moved["match/kernel"]) > 5.0).all()


@pytest.mark.parametrize("step, warm", [(0, 0.1), (8, 0.5), (17, 18 / 27), (100000, 0.995)])
def test_momentum_warms_up(step, warm):
    assert np.isclose(momentum_at(TeacherConfig(momentum=0.995, warmup=True), jnp.int32(step)), warm, rtol=1e-6)
    assert momentum_at(TeacherConfig(momentum=0.995), jnp.int32(step)) == np.float32(0.995)


@pytest.mark.parametrize("momentum, first", [(0.98, 440), (0.995, 1790), (0.999, 8990)])
def test_the_ramp_hides_a_momentum_for_as_long_as_the_config_says(momentum, first):
    ramped = TeacherConfig(momentum=momentum, warmup=True)
    assert momentum_at(ramped, jnp.int32(first - 10)) < np.float32(momentum)
    assert np.isclose(momentum_at(ramped, jnp.int32(first)), momentum, rtol=1e-6)


def test_drift_is_one_minus_the_cosine(params):
    teacher = start(params, "^match")
    assert abs(float(drift(teacher, params))) < 1e-6
    other = jax.tree.map(lambda x: x * x - 2.0, params)

    def flat(tree):
        return np.concatenate(
            [np.ravel(tree["text"]["kernel"]), np.ravel(tree["text"]["bias"]), np.ravel(tree["image"]["kernel"])]
        )

    a, b = flat(PARAMS), flat(jax.tree.map(np.asarray, other))
    np.testing.assert_allclose(drift(teacher, other), 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-5)


def test_the_step_moves_the_teacher_by_the_same_rule(after_one, start):
    state = after_one[0]
    momentum = 0.995
    assert {path.split("/")[0] for path in state.teacher} == set(state.params)  # what is evaluated is all EMA
    for path, leaf in state.teacher.items():
        student = state.params
        for part in path.split("/"):
            student = student[part]
        np.testing.assert_allclose(
            leaf, momentum * start.teacher[path] + (1 - momentum) * student, rtol=1e-5, atol=1e-7
        )
    assert tiny_batch()["id"][0] == state.memory["keys"]["id"][12]  # after the EMA: the keys the loss saw
