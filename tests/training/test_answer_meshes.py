"""Answers in one step: eight devices equal one."""

import jax
import numpy as np
import optax
import pytest
from tiny import ROWS, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.training.step import create_state


def scored(seed):
    """A batch whose labels have scores; one row has none."""
    labels = np.random.default_rng(seed).choice(np.float32([0, 0, 0.3, 0.9, 1]), (ROWS, 3))
    labels[:, 1], labels[2] = 0.6, 0.0
    return tiny_batch(seed) | {"labels": labels}


@pytest.fixture(scope="module")
def made():
    """The recipe and a state, with the embeddings among the tokens of fusion."""
    recipe = tiny_recipe(tiny_config(objectives={"answer": {}}, fusion={"aggregated": True}))
    params = jax.jit(lambda: tiny_params(recipe.model, 0, parts(recipe.objectives)))()
    return recipe, jax.tree.map(np.array, create_state(recipe, params, 0))


@pytest.fixture(scope="module")
def one(made, machine_of):
    """State and metrics after a step on one device."""
    return jax.device_get(machine_of(*made, 1, 1, 1).run(scored(0)))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=lambda shape: "x".join(map(str, shape)))
def test_eight_devices_equal_one(made, machine_of, one, shape):
    state, metrics = jax.device_get(machine_of(*made, *shape).run(scored(0)))
    assert metrics["loss/answer"] > 0 and metrics["answer/accuracy"] > 0

    def gradient(tree):
        return optax.tree.get(tree.opt_state, "mu")

    for found, expected in ((metrics, one[1]), (gradient(state), gradient(one[0]))):
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6, err_msg=path_name(path))
