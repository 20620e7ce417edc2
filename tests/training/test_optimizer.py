"""AdamW against PyTorch, groups, decay, clipping, freezing without slots, and regexes that match nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from xmodal_jax.errors import UserError
from xmodal_jax.settings import OptimizerConfig
from xmodal_jax.training.optimizer import factor_for, learning_rate, make_optimizer, refuse_mixed_momentum, split_frozen

PLAIN = dict(lr=0.1, warmup=0, end_lr=1.0, clip=0.0, weight_decay=0.0)


@pytest.fixture
def params():
    """Two modules with a kernel and a bias each."""
    draw = np.random.default_rng(0)

    def make(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    return {side: {"kernel": make(2, 3), "bias": make(3)} for side in ("image", "text")}


def slopes(params, number: int):
    """Gradients of step `number`."""
    draw = np.random.default_rng(100 + number)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32), params)


def run(config: OptimizerConfig, params, steps: int = 3, scale: float = 1.0):
    """Parameters and optimizer state after some steps."""
    optimizer = make_optimizer(config, params, steps)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for number in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            params, state = step(params, state, jax.tree.map(lambda g: g * scale, slopes(params, number)))
    return params, state


def test_it_is_pytorchs_adamw_with_decay_on_kernels_only(params):
    config = OptimizerConfig(**PLAIN | {"weight_decay": 0.3})
    ours, _ = run(config, params)
    leaves = {(s, n): torch.tensor(np.array(params[s][n]), requires_grad=True) for s in params for n in params[s]}
    kernels = [leaf for (_, name), leaf in leaves.items() if name == "kernel"]
    biases = [leaf for (_, name), leaf in leaves.items() if name == "bias"]
    theirs = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}], lr=0.1, betas=(0.9, 0.98)
    )
    for number in range(3):
        grads = slopes(params, number)
        for (side, name), leaf in leaves.items():
            leaf.grad = torch.tensor(np.array(grads[side][name]))
        theirs.step()
    for (side, name), leaf in leaves.items():
        np.testing.assert_allclose(ours[side][name], leaf.detach(), rtol=1e-4, atol=1e-6)


def test_it_is_pytorchs_adam_and_then_its_sgd(params):
    config = OptimizerConfig(**PLAIN | {"lr": 0.1}, sgd_after=3, sgd_lr=0.02, groups=(("^text/", 0.5),))
    ours, state = run(config, params, 7)
    leaves = {(s, n): torch.tensor(np.array(params[s][n]), requires_grad=True) for s in params for n in params[s]}

    def rows(rate):
        return [{"params": [leaf], "lr": rate * (0.5 if side == "text" else 1.0)} for (side, _), leaf in leaves.items()]

    adam, sgd = torch.optim.Adam(rows(0.1), betas=(0.9, 0.98)), torch.optim.SGD(rows(0.02), momentum=0.9)
    for number in range(7):
        grads = slopes(params, number)
        for (side, name), leaf in leaves.items():
            leaf.grad = torch.tensor(np.array(grads[side][name]))
        (adam if number < 3 else sgd).step()
    for (side, name), leaf in leaves.items():
        np.testing.assert_allclose(ours[side][name], leaf.detach(), rtol=1e-4, atol=1e-5)
    _, plain = run(OptimizerConfig(**PLAIN, groups=config.groups), params, 1)
    assert jax.tree.structure(state) == jax.tree.structure(plain)  # a run may be given SGD when it goes on
    before, _ = run(dataclasses.replace(config, sgd_after=7), params, 7)
    assert not np.allclose(before["image"]["kernel"], ours["image"]["kernel"], atol=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "updates", "instead"),
    [
        (0, 5, 8, "write 8 or more, or 0"),
        (20, 5, 8, "write 8 or more, or 0"),
        (8, 5, 8, "write 8 or more, or 0"),  # the ninth would have been the first of SGD
        (5, 0, 8, "write 5$"),
        (5, 9, 8, "write 5$"),
    ],
)
def test_a_switch_that_would_mix_the_momentum_of_both_is_refused(before, after, updates, instead):
    sentence = f"config.optimizer.sgd_after is {after}, but the {updates} updates of 'run' .*; {instead}"
    with pytest.raises(UserError, match=sentence):
        refuse_mixed_momentum(before, after, updates, "run")


@pytest.mark.parametrize(
    ("before", "after", "updates"), [(0, 8, 8), (0, 9, 8), (9, 0, 8), (8, 0, 8), (5, 7, 8), (5, 5, 8), (0, 5, 0)]
)
def test_other_switches_may_be_written_for_a_run_that_goes_on(before, after, updates):
    refuse_mixed_momentum(before, after, updates, "run")


def test_what_the_refusal_forbids_would_be_another_optimizer(params):
    """SGD from Adam's first moment steps elsewhere than SGD from rest, which is what a switch promises."""
    grads, moves = slopes(params, 3), []
    _, state = run(OptimizerConfig(**PLAIN), params, 3)
    for after in (3, 2):
        optimizer = make_optimizer(OptimizerConfig(**PLAIN, sgd_after=after), params, 9)
        with jax.numpy_dtype_promotion("standard"):
            moves.append(optimizer.update(grads, state, params)[0]["image"]["kernel"])
    np.testing.assert_allclose(moves[0], -0.01 * grads["image"]["kernel"], rtol=1e-5)
    assert not np.allclose(moves[0], moves[1], rtol=1e-2)


def test_groups_scale_the_step_and_the_first_match_counts(params):
    plain, _ = run(OptimizerConfig(**PLAIN), params)
    groups = (("^text/bias", 0.0), ("^text/", 0.25))
    grouped, _ = run(OptimizerConfig(**PLAIN, groups=groups), params)

    def moved(after, side, name):
        return np.asarray(after[side][name] - params[side][name])

    np.testing.assert_allclose(moved(grouped, "text", "kernel"), 0.25 * moved(plain, "text", "kernel"), rtol=1e-3)
    np.testing.assert_allclose(moved(grouped, "image", "kernel"), moved(plain, "image", "kernel"), rtol=1e-3)
    np.testing.assert_array_equal(grouped["text"]["bias"], params["text"]["bias"])
    assert factor_for("image/x", groups) == 1.0 and factor_for("text/bias", groups) == 0.0


def test_frozen_parameters_are_bit_equal_and_have_no_slots(params):
    config = OptimizerConfig(**PLAIN | {"clip": 1.0, "weight_decay": 0.5}, freeze="^image/")
    after, state = run(config, params)
    jax.tree.map(np.testing.assert_array_equal, after["image"], params["image"])
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert any("text" in name for name in names) and not any("image" in name for name in names)


def test_gradients_are_clipped_by_their_global_norm(params):
    config = OptimizerConfig(**PLAIN | {"clip": 1.0})
    _, small = run(config, params, 1, scale=10.0)
    _, large = run(config, params, 1, scale=1e4)
    mus = [optax.tree.get(state, "mu") for state in (small, large)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *mus)
    np.testing.assert_allclose(optax.tree.norm(mus[0]), 0.1, rtol=1e-5)  # (1 - b1) * 1


def test_frozen_gradients_do_not_enter_the_clip_norm(params):
    optimizer = make_optimizer(OptimizerConfig(**PLAIN | {"clip": 1.0}, freeze="^image/"), params, 3)
    grads = slopes(params, 0)
    for factor in (1.0, 1e6):
        huge = grads | {"image": jax.tree.map(lambda g, factor=factor: g * factor, grads["image"])}
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimizer.update(huge, optimizer.init(params), params)
        np.testing.assert_allclose(optax.tree.norm(optax.tree.get(state, "mu")), 0.1, rtol=1e-5)


def rates_by_hand(lr: float, warmup: int, end_lr: float, steps: int) -> np.ndarray:
    """The rate of each of `steps` updates [steps], in NumPy."""
    count = np.arange(1, steps + 1)
    along = (count - max(1, warmup)) / max(1, steps - max(1, warmup))
    cosine = end_lr + (1 - end_lr) * (1 + np.cos(np.pi * along)) / 2
    return lr * np.where(count <= warmup, count / max(1, warmup), cosine)


@pytest.mark.parametrize("warmup, steps", [(10, 110), (0, 12), (1, 12), (99, 100), (3, 4), (0, 2), (0, 1), (1, 1)])
def test_the_rate_of_every_update(warmup, steps):
    schedule = learning_rate(OptimizerConfig(lr=2.0, warmup=warmup, end_lr=0.1), steps)
    rates = [float(schedule(update)) for update in range(steps)]
    np.testing.assert_allclose(rates, rates_by_hand(2.0, warmup, 0.1, steps), rtol=2e-6)
    assert rates[0] > 0 and (steps == 1 or np.float32(rates[-1]) == np.float32(0.2))
    np.testing.assert_allclose(schedule(500), 0.2, rtol=1e-6)


def test_a_run_shorter_than_its_warm_up_is_the_beginning_of_a_longer_one():
    config = OptimizerConfig(lr=1.0, warmup=100)
    for steps in (1, 2, 100):
        short, long = learning_rate(config, steps), learning_rate(config, 1000)
        np.testing.assert_allclose([short(i) for i in range(steps)], [(i + 1) / 100 for i in range(steps)], rtol=1e-6)
        assert [float(short(i)) for i in range(steps)] == [float(long(i)) for i in range(steps)]


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_level_rate_is_one_program_whatever_the_number_of_steps(warmup):
    config = OptimizerConfig(lr=2.0, warmup=warmup, end_lr=1.0)
    short, long = learning_rate(config, 5), learning_rate(config, 1000)
    assert str(jax.make_jaxpr(short)(np.int32(0))) == str(jax.make_jaxpr(long)(np.int32(0)))
    np.testing.assert_allclose([long(i) for i in range(8)], rates_by_hand(2.0, warmup, 1.0, 8), rtol=1e-6)


def test_a_run_of_one_step_trains(params):
    after, _ = run(OptimizerConfig(lr=0.1, warmup=50, weight_decay=0.0, clip=0.0), params, 1)
    moved = np.abs(np.asarray(after["image"]["kernel"] - params["image"]["kernel"]))
    np.testing.assert_allclose(moved, 0.1 / 50, rtol=1e-3)  # Adam's first step has the size of its rate


def test_split_frozen_stops_gradients(params):
    def loss(p):
        return sum(leaf.sum() for leaf in jax.tree.leaves(split_frozen(p, "^image/")))

    grads = jax.grad(loss)(params)
    assert (np.asarray(grads["image"]["kernel"]) == 0).all() and (np.asarray(grads["text"]["kernel"]) == 1).all()
    assert split_frozen(params, "") is params


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"freeze": "^imagee/"}, "config.optimizer.freeze '\\^imagee/' matches no parameter; paths look like 'image/"),
        ({"decay": "weight$"}, "config.optimizer.decay 'weight\\$' matches no parameter"),
        ({"groups": (("^vision", 0.1),)}, "config.optimizer.groups '\\^vision' matches no parameter"),
        ({"freeze": "(["}, "config.optimizer.freeze '\\(\\[' is not a regex"),
        ({"freeze": "."}, "freezes everything; leave a module to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(params, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        make_optimizer(OptimizerConfig(**fields), params, 10)
