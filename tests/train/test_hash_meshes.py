"""A step over ResNet, TF-IDF and hash heads is the same on one device and on eight, data, fsdp and tensor all above 1."""

import jax
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config, tiny_model, tiny_objectives

from xmodal_jax.models.crossmodal import init_params
from xmodal_jax.objectives import parts
from xmodal_jax.train.optimizer import make_optimizer
from xmodal_jax.train.step import Recipe, create_state


@pytest.fixture(scope="module")
def made():
    """The recipe, its state before the first step, and a batch of pictures."""
    config = tiny_config(
        image={"kind": "resnet", "depth": 26, "width": 64},
        text={"kind": "tfidf", "hidden": 24},
        joint={"hash_kind": "select", "hash_hidden": 8},
        data={"features": (), "image_size": 32},
        optimizer={"sgd_after": 1},
        objectives={"itc": {}, "hash": {}},
    )
    batch = tiny_batch() | {"image": np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)}
    model, objectives = tiny_model(config), tiny_objectives(config.objectives)

    def fresh():
        params = init_params(model, jax.random.key(0), batch["image"][:1], batch["text"][:1], parts(objectives))
        return jax.tree.map(lambda x: x + 0.02, params)  # no branch starts at zero

    recipe = Recipe(config, model, objectives, make_optimizer(config.optimizer, jax.eval_shape(fresh), config.steps))
    start = jax.tree.map(np.array, jax.jit(lambda: create_state(recipe, fresh(), 0))())
    return recipe, start, batch


def test_eight_devices_equal_one(made, machine_of):
    recipe, start, batch = made
    (one, first), (eight, second) = (machine_of(recipe, start, *mesh).run(batch) for mesh in ((1, 1, 1), (2, 2, 2)))
    for name in ("loss/itc", "loss/hash", "grad_norm"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4, err_msg=name)
    moments = [jax.tree_util.tree_leaves_with_path(state.opt_state) for state in (one, eight)]
    for (path, a), (_, b) in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5, err_msg=jax.tree_util.keystr(path))
