"""Passes: each at most once, memoised by name only, same randomness in any company, and refused inside transforms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import FIVE, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params, tiny_recipe

from xmodal_jax.forward import Encoded, Forward, named_key, reuse_student_passes, stop, teacher_forward
from xmodal_jax.objectives import parts
from xmodal_jax.training.step import create_state, run_objectives, total_loss


class Fusing:
    """A model whose passes are the running numbers of their calls."""

    def __init__(self):
        self.calls, self.config = [], tiny_config()

    def apply(self, variables, *inputs, method, **options):
        """One call of `method`."""
        self.calls.append(" ".join([method, *(x for x in inputs if isinstance(x, str))]))
        tokens = jnp.full((3, 2, 4), float(len(self.calls)))
        return (tokens, tokens[:, 0]) if method == "joint" else tokens


class Scaling:
    """A model with one parameter: the image times its scale."""

    config = tiny_config()

    def apply(self, variables, encoder, x, *rest, method):
        """The scaled image as tokens and embedding."""
        return (x, x[:, 0]) if method == "joint" else variables["params"]["scale"] * x[:, None]


def fusing(cache=True):
    """A Forward over the numbering model."""
    batch = {"image": jnp.ones((3, 4)), "text": jnp.array([[2, 3]] * 3), "image2": jnp.zeros((3, 4))}
    return Forward(Fusing(), {}, batch, jax.random.key(0), cache=cache)


def test_a_pass_runs_once_however_often_it_is_asked():
    forward = fusing()
    for _ in range(3):
        forward.fuse(forward.encode("image"), forward.encode("text"))
        forward.decode(forward.encode("image"), "text")
    assert forward.model.calls == ["raw image", "joint image", "raw text", "joint text", "fuse", "decode"]
    assert forward.passes == [
        "image:image",
        "tower:image:image",
        "text:text",
        "tower:text:text",
        "fuse:image:image:text:text",
        "decode:image:image:text",
    ]


def test_another_field_is_another_pass():
    forward = fusing()
    assert (np.asarray(forward.encode("image2", "image").tokens) != np.asarray(forward.encode("image").tokens)).all()
    assert forward.passes == ["image:image2", "tower:image:image2", "image:image", "tower:image:image"]


def test_another_encoder_of_a_field_is_another_pass():
    forward = fusing()
    own, other = forward.raw("text"), forward.raw("text", "image")
    assert (np.asarray(own) != np.asarray(other)).all()
    assert forward.passes == ["tower:text:text", "tower:image:text"]


def test_rows_of_a_pass_are_never_cached():
    forward, rows = fusing(), jnp.array([2, 0, 1])
    picked = forward.encode("text").rows(rows)
    assert picked.name is None
    first, second = forward.fuse(forward.encode("image"), picked), forward.fuse(forward.encode("image"), picked)
    assert (np.asarray(first.tokens) != np.asarray(second.tokens)).all()
    third = forward.fuse(forward.encode("image"), forward.encode("text"), rows)
    assert (
        np.asarray(third.tokens) != np.asarray(forward.fuse(forward.encode("image"), forward.encode("text")).tokens)
    ).all()
    shown = [forward.decode(forward.encode("image").rows(rows), "text") for _ in range(2)]
    assert (np.asarray(shown[0]) != np.asarray(shown[1])).all()


def test_without_the_cache_every_asking_runs():
    forward = fusing(cache=False)
    forward.encode("image"), forward.encode("image")
    assert forward.model.calls == ["raw image", "joint image"] * 2


def test_rows_gather_every_field():
    words, there = jnp.arange(6).reshape(3, 2), jnp.array([True, True, False])
    whole = Encoded(jnp.arange(12.0).reshape(3, 2, 2), jnp.eye(3), jnp.ones((3, 2), bool), words, there, "x")
    part = whole.rows(jnp.array([2, 2]))
    np.testing.assert_array_equal(part.tokens, np.asarray(whole.tokens)[[2, 2]])
    np.testing.assert_array_equal(part.embed, np.eye(3)[[2, 2]])
    np.testing.assert_array_equal(part.ids, [[4, 5], [4, 5]])
    assert part.valid.tolist() == [False, False] and part.name is None
    assert Encoded(whole.tokens).rows(jnp.array([0])).embed is None


ASK = {
    "grad": lambda ask: jax.grad(lambda x: x * ask())(1.0),
    "scan": lambda ask: jax.lax.scan(lambda c, _: (c + ask(), None), 0.0, jnp.arange(2)),
    "cond": lambda ask: jax.lax.cond(jnp.bool_(True), lambda: ask(), lambda: 0.0),
    "checkpoint": lambda ask: jax.grad(jax.checkpoint(lambda x: x * ask()))(1.0),
    "jit": lambda ask: jax.jit(ask)(),
}


@pytest.mark.parametrize("place", ASK)
def test_a_pass_asked_inside_a_transform_is_refused_by_name(place):
    forward = fusing()
    with pytest.raises(
        RuntimeError, match="the pass 'image:image' was asked for inside cond, scan, checkpoint or grad"
    ):
        ASK[place](lambda: forward.encode("image").embed.sum())
    forward.encode("image")
    with pytest.raises(RuntimeError, match="image:image"):  # not even when it is there already
        ASK[place](lambda: forward.encode("image").embed.sum())


def test_a_name_is_a_key():
    key = jax.random.key(0)
    same, other = named_key(key, "a"), named_key(key, "b")
    assert (jax.random.key_data(same) == jax.random.key_data(named_key(key, "a"))).all()
    assert (jax.random.key_data(same) != jax.random.key_data(other)).any()


def test_stop_lets_no_gradient_through():
    gradient = jax.grad(lambda x: stop({"a": x * 2})["a"] + x)(3.0)
    assert gradient == 1.0


@pytest.fixture(scope="module")
def tiny():
    """Recipe with all five objectives and dropout, its state and batch."""
    config = tiny_config(fusion={"dropout": 0.3}, text={"dropout": 0.3})
    recipe = tiny_recipe(config)
    params = jax.jit(lambda: tiny_params(recipe.model, 0, parts(recipe.objectives)))()
    return recipe, create_state(recipe, params, 0), jax.tree.map(jnp.asarray, tiny_batch())


def traced_passes(recipe, state, batch):
    """The passes that a step traces; nothing is compiled."""
    passes = []

    def run(params):
        terms, student = run_objectives(recipe, params, state, batch, jax.random.key(0))
        passes.extend(student.passes + [f"teacher:{name}" for name in student.teacher.passes])
        return terms

    jax.eval_shape(run, state.params)
    return passes


def test_five_objectives_trace_each_pass_once(tiny):
    passes = traced_passes(*tiny)
    assert len(passes) == len(set(passes))
    assert set(passes) == {
        "tower:image:image",
        "tower:text:text",
        "tower:text:mlm/ids",
        "image:image",
        "text:text",
        "text:mlm/ids",
        "fuse:image:image:text:mlm/ids",
        "decode:image:image:lm/ids",
        "codes:image",
        "codes:text",
        "teacher:image:image",
        "teacher:text:text",
        "teacher:text:mlm/ids",
        "teacher:tower:text:text",
        "teacher:tower:text:mlm/ids",
        "teacher:fuse:image:image:text:mlm/ids",
    }


def test_what_nobody_asks_for_is_not_traced(tiny):
    recipe, state, batch = tiny

    def only(section):
        return traced_passes(type(recipe)(recipe.config, recipe.model, tiny_objectives(section), None), state, batch)

    assert only({"lm": {}}) == ["image:image", "tower:image:image", "decode:image:image:lm/ids"]
    towers = ["tower:image:image", "tower:text:text"]
    expected = ["codes:image", "image:image", towers[0], "codes:text", "text:text", towers[1]]
    assert only({"hash": {}}) == expected
    assert only({"hash": {}, "hash_triplet": {}, "hash_quality": {}}) == expected  # the heads run once
    assert not any(name.startswith("teacher:fuse") for name in only({"mlm": {"alpha": 0.0}}))


def test_bfloat16_needs_no_promotion(tiny):
    recipe, state, batch = tiny
    half = tiny_recipe(tiny_config(dtype="bfloat16"))
    loss = jax.eval_shape(lambda p: total_loss(half, p, state, batch, jax.random.key(0))[0], state.params)
    assert loss.dtype == jnp.float32


def test_company_and_order_change_nobodys_loss_or_gradient(tiny):
    recipe, state, batch = tiny

    def run(section):
        here = type(recipe)(recipe.config, recipe.model, tiny_objectives(section), recipe.optimizer)

        def loss(params):
            terms, _ = run_objectives(here, params, state, batch, jax.random.key(0))
            return terms["itm"].mean(), terms["itm"].values

        (_, values), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
        return values, grads["text"]

    alone = run({"itm": FIVE["itm"]})
    company = run({"mlm": {"alpha": 0.0}, "hash": {}, "itm": FIVE["itm"]})
    for first, second in zip(jax.tree.leaves(alone), jax.tree.leaves(company), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)


def test_the_teacher_has_no_gradient_no_dropout_and_the_compute_dtype():
    model = tiny_model(tiny_config(text={"dropout": 0.5}))
    params = jax.eval_shape(lambda: tiny_params(model))
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    half = teacher_forward(model, jax.tree.map(lambda x: jnp.zeros(x.shape), params), batch, "bfloat16")
    assert half.key is None
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}

    def view(scale):
        return teacher_forward(Scaling(), {"scale": scale}, {"image": jnp.ones((3, 2))}).encode("image").embed.sum()

    assert view(jnp.float32(2)) == 12.0 and jax.grad(view)(jnp.float32(2)) == 0.0


def test_a_teacher_with_a_frozen_tower_takes_the_students_pass():
    student = fusing()
    student.teacher = fusing()
    reuse_student_passes(student, frozenset({"image"}))
    student.encode("image"), student.encode("text"), student.teacher.encode("image"), student.teacher.encode("text")
    assert student.passes.count("tower:image:image") == 1
    assert student.teacher.passes == ["image:image", "text:text", "tower:text:text"]
    reuse_student_passes(fusing(), frozenset({"image"}))  # no teacher: nothing to share


BRIDGED = {
    "itc": {"queue": 0, "bridge": True},
    "fused": {"queue": 0, "bridge": True},
    "lm": {"bridge": True},
}


def bridged(**sections):
    """A recipe whose keys cross the bridge, its state with an open gate and a teacher that lags, and a batch."""
    config = tiny_config(image={"pool": "mean+attention", "neck_layers": 0}, objectives=BRIDGED, **sections)
    recipe = tiny_recipe(config)
    params = jax.jit(lambda: tiny_params(recipe.model, 0, parts(recipe.objectives)))()

    def wave(x, step):
        return 0.05 * jnp.cos(step * jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    lagging, ahead = (jax.tree.map(lambda x, step=step: x + wave(x, step), params) for step in (1.0, 1.1))
    state = create_state(recipe, lagging, 0)
    return recipe, dataclasses.replace(state, params=ahead), jax.tree.map(jnp.asarray, tiny_batch())


def test_the_bridge_runs_once_and_its_keys_are_constants():
    recipe, state, batch = bridged()
    passes = traced_passes(recipe, state, batch)
    assert passes.count("bridge:image") == 1 and "decode:read:image:lm/ids" in passes
    assert "teacher:fuse:bridge:image:text:text" in passes

    def loss(params, name):
        return run_objectives(recipe, params, state, batch, jax.random.key(0))[0][name].mean()

    grads = {name: jax.jit(jax.grad(loss), static_argnums=1)(state.params, name) for name in BRIDGED}

    def size(tree):
        return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    assert size(grads["itc"]["bridge"]) == size(grads["fused"]["bridge"]) == 0.0
    assert size(grads["lm"]["bridge"]) > 0.0 and size(grads["lm"]["image"]["neck"]) > 0.0


def test_bridged_keys_are_the_teachers_where_the_gate_is_shut():
    recipe, state, batch = bridged()

    def gates(value):
        return state.params | {
            "bridge": state.params["bridge"] | {name: jnp.full((), value) for name in ("gamma", "gamma_mlp")}
        }

    @jax.jit
    def keys(params, key):
        _, student = run_objectives(recipe, params, state, batch, key)
        found, read = student.bridge("image")
        return (
            found.embed,
            student.teacher.encode("image").embed,
            found.tokens,
            read.tokens,
            student.encode("image").tokens,
        )

    embed, plain, _, read, own = keys(gates(0.0), jax.random.key(0))
    np.testing.assert_allclose(embed, plain, atol=1e-6)
    np.testing.assert_array_equal(read, own)
    opened, plain, *_ = keys(gates(20.0), jax.random.key(0))
    assert float(jnp.abs(opened - plain).max()) > 1e-3


def test_chunks_change_no_bridged_loss_or_gradient():
    losses = []
    for chunk in (0, 4):
        recipe, state, batch = bridged(chunk=chunk)

        def loss(params, recipe=recipe, state=state, batch=batch):
            return total_loss(recipe, params, state, batch, jax.random.key(0))[0]

        losses.append(jax.jit(jax.value_and_grad(loss))(state.params))
    for first, second in zip(*map(jax.tree.leaves, losses), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
