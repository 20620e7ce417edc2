"""Captions in two languages in one step: eight devices equal one, and only starts that a batch has learn."""

import jax
import numpy as np
import optax
import pytest
from tiny import ROWS, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.training.step import create_state


def spoken(language):
    """A batch with these places of languages."""
    return tiny_batch(0) | {"text/language": np.resize(np.int32(language), ROWS)}


@pytest.fixture(scope="module")
def made():
    """The recipe and a state."""
    config = tiny_config(objectives={"lm": {"languages": True}}, data={"languages": ("en", "de", "fr")})
    recipe = tiny_recipe(config)
    params = jax.jit(lambda: tiny_params(recipe.model, 0, parts(recipe.objectives)))()
    assert params["decoder"]["start"].shape == (3, 16)
    return recipe, jax.tree.map(np.array, create_state(recipe, params, 0))


@pytest.fixture(scope="module")
def alone(made, machine_of):
    """The step on one device."""
    return machine_of(*made, 1, 1, 1)


def gradient(state):
    """What Adam keeps of the gradient of the first step."""
    return optax.tree.get(state.opt_state, "mu")


def test_eight_devices_equal_one(made, machine_of, alone):
    one, every = (jax.device_get(own.run(spoken([2, 0, 1]))) for own in (alone, machine_of(*made, 2, 2, 2)))
    for found, expected in ((every[1], one[1]), (gradient(every[0]), gradient(one[0]))):
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6, err_msg=path_name(path))
    assert np.abs(gradient(one[0])["decoder"]["start"]).max(axis=1).min() > 1e-6, "all three languages learn"


@pytest.mark.parametrize("language", [[1], [2, 0]])
def test_a_language_that_a_batch_lacks_does_not_learn(alone, language):
    slopes = np.abs(gradient(jax.device_get(alone.run(spoken(language)))[0])["decoder"]["start"]).max(axis=1)
    assert set(np.flatnonzero(slopes)) == set(language)
