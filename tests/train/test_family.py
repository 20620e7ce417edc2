"""The fusion family's objectives in one step: the same on eight devices as on one, and the queues hold what they should."""

import jax
import numpy as np
import optax
import pytest
from given import unit
from tiny import ROWS, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.train.step import create_state

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
    return batch | {name: unit(draw, ROWS, 6) for name in ("distill_image", "distill_text")}


@pytest.fixture(scope="module")
def family():
    """The recipe and a state whose bridge is open."""
    pools = {"image": {"pool": "mean+attention", "neck_layers": 0}, "fusion": {"aggregated": True}}
    recipe = tiny_recipe(tiny_config(**pools, objectives=FAMILY))
    params = jax.jit(lambda: tiny_params(recipe.model, 0, parts(recipe.objectives)))()
    params["bridge"] |= {name: np.float32(0.5) for name in ("gamma", "gamma_mlp")}
    return recipe, jax.tree.map(np.array, create_state(recipe, params, 0))


@pytest.fixture(scope="module")
def one(family, machine_of):
    """State and metrics after two steps on one device."""
    return jax.device_get(machine_of(*family, 1, 1, 1).run(family_batch(0), family_batch(1)))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=lambda shape: "x".join(map(str, shape)))
def test_eight_devices_equal_one(family, machine_of, one, shape):
    state, metrics = jax.device_get(machine_of(*family, *shape).run(family_batch(0), family_batch(1)))
    mean = lambda tree: optax.tree.get(tree.opt_state, "mu")
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
    assert filled == {"pairs": 16, "fused": 12, "multiview": 8}
    for name in ("itc/drift_image", "itc/key_drift_image"):
        assert 0.0 <= metrics[name] < 2.0
