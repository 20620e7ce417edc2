"""The fusion family's objectives in one step: eight devices equal one, and the queues hold what they should."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from given import unit
from tiny import ROWS, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.objectives.base import same
from xmodal_jax.objectives.contrastive import direction, joined
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.training.step import create_state, run_objectives

FAMILY = {
    "itc": {"queue": 16, "alpha": 0.4, "bridge": True},
    "fused": {"queue": 12, "bridge": True},
    "lm": {"bridge": True, "every": 1},
    "mvjrc": {"queue": 8},
    "ims": {},
    "lmim": {"momentum": False},
    "distill": {"weight": ((0, 1.0), (4, 0.0))},
}


def family_batch(seed=0):
    """A batch with a second view and a frozen teacher's embeddings."""
    draw = np.random.default_rng(seed + 50)
    batch = tiny_batch(seed)
    batch["image2"] = draw.normal(size=batch["image"].shape).astype(np.float16)
    return batch | {name: unit(draw, ROWS, 6) for name in ("image/teacher", "text/teacher")}


@pytest.fixture(scope="module")
def family():
    """The recipe and a state whose bridge is open."""
    pools = {"image": {"pool": "mean+attention", "neck_layers": 0}, "fusion": {"aggregated": True}}
    data = {"fields": {"image2": {"of": "image"}}, "embeddings": "made"}
    recipe = tiny_recipe(tiny_config(**pools, data=data, objectives=FAMILY))
    params = jax.jit(lambda: tiny_params(recipe.model, 0, parts(recipe.objectives)))()
    params["bridge"] |= {name: np.float32(0.5) for name in ("gamma", "gamma_mlp")}
    return recipe, jax.tree.map(np.array, create_state(recipe, params, 0))


@pytest.fixture(scope="module")
def one(family, machine_of):
    """State and metrics after two steps on one device."""
    return jax.device_get(machine_of(*family, 1, 1, 1).run(family_batch(0), family_batch(1)))


@pytest.mark.parametrize(
    "shape", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)], ids=lambda shape: "x".join(map(str, shape))
)
def test_eight_devices_equal_one(family, machine_of, one, shape):
    state, metrics = jax.device_get(machine_of(*family, *shape).run(family_batch(0), family_batch(1)))

    def mean(tree):
        return optax.tree.get(tree.opt_state, "mu")

    pairs = [
        (metrics, one[1], 5e-4, 1e-4),
        (mean(state), mean(one[0]), 2e-3, 2e-6),
        (state.memory, one[0].memory, 1e-3, 1e-4),
    ]
    for found, expected, rtol, atol in pairs:
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=path_name(path))


def test_every_loss_counts_and_every_queue_fills(one):
    state, metrics = one
    assert {name for name in metrics if name.startswith("loss/")} == {f"loss/{name}" for name in FAMILY}
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["skipped"] == 0
    filled = {name: int((ring["id"] >= 0).sum()) for name, ring in state.memory.items()}
    assert filled == {"keys": 16, "fused": 12, "multiview": 8}
    for name in ("itc/drift_image", "itc/key_drift_image"):
        assert 0.0 <= metrics[name] < 2.0


def test_what_leaves_the_bridge_is_itcs_key_its_soft_target_and_what_the_queue_gets(family):
    recipe, state = family
    draw = np.random.default_rng(3)  # the attention pooling, too, starts at zero: keys would not read the tokens at all
    moved = {name: leaf + draw.normal(0, 0.1, leaf.shape).astype(np.float32) for name, leaf in state.teacher.items()}
    state = dataclasses.replace(state, step=np.int32(10), teacher=moved)

    def traced(state, batch):
        terms, fwd = run_objectives(recipe, state.params, state, batch, jax.random.key(0))
        keys = fwd.bridge("image")[0].embed, fwd.teacher.encode("image").embed, fwd.teacher.encode("text").embed
        return terms["itc"], keys, (fwd.encode("image").embed, fwd.encode("text").embed), fwd.temperature()

    batch = family_batch(0)
    term, (key, plain, words), (image, text), temperature = jax.jit(traced)(state, batch)
    assert float(np.abs(key - plain).max()) > 1e-3, "the bridge changes nothing here: the test would say nothing"
    np.testing.assert_array_equal(term.enqueue["keys"]["image"], key)
    np.testing.assert_array_equal(term.enqueue["keys"]["text"], words)

    def expected(image_key):
        """ITC with `image_key` as the picture's key and as its teacher in the soft targets."""

        def matched(rows):
            return {name: rows[name] for name in ("id", "text/key")}

        marks, ring = matched(batch), state.memory["keys"]
        losses = []
        for query, teacher, keys, side in ((image, image_key, words, "text"), (text, words, image_key, "image")):
            queue = {"embed": ring[side]} | matched(ring)
            columns = joined({"embed": keys} | marks, queue)
            valid = columns["id"] >= 0
            losses.append(direction(query, columns["embed"], same(marks, columns), valid, temperature, teacher, 0.4)[0])
        return 0.5 * sum(losses)

    np.testing.assert_allclose(term.values, expected(key), rtol=1e-5)
    assert float(np.abs(term.values - expected(plain)).max()) > 1e-4
