"""A step over hash heads is the same on one device and on eight, data, fsdp and tensor all above 1.

Once over ResNet and TF-IDF with heads of two layers, once over the shared encoder with linear heads and a memory of
codes.
"""

import jax
import numpy as np
import pytest
from given import unit
from tiny import FACTS, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params, tiny_recipe

from xmodal_jax.models.crossmodal import init_params
from xmodal_jax.objectives import parts
from xmodal_jax.training.optimizer import make_optimizer
from xmodal_jax.training.step import Recipe, create_state


@pytest.fixture(scope="module")
def made():
    """The recipe, its state before the first step, and a batch of pictures."""
    config = tiny_config(
        image={"kind": "resnet", "size": 32, "depth": 26, "width": 64},
        text={"kind": "tfidf", "width": 24},
        joint={"hash_kind": "select", "hash_hidden": 8},
        data={"features": ()},
        optimizer={"sgd_after": 1},
        objectives={"itc": {}, "hash": {}},
    )
    batch = tiny_batch() | {"image": np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)}
    model, objectives = tiny_model(config), tiny_objectives(config.objectives)

    one = {name: batch[name][:1] for name in ("image", "text")}

    def fresh():
        params = init_params(model, jax.random.key(0), one, parts(objectives))
        return jax.tree.map(lambda x: x + 0.02, params)  # no branch starts at zero

    recipe = Recipe(config, model, objectives, make_optimizer(config.optimizer, jax.eval_shape(fresh), config.steps))
    start = jax.tree.map(np.array, jax.jit(lambda: create_state(recipe, fresh(), 0))())
    return recipe, start, batch


def same_on_both(machine_of, recipe, start, batch, names):
    """The states after a step on one device and on eight, whose metrics `names` and optimizer states are equal."""
    (one, first), (eight, second) = (machine_of(recipe, start, *mesh).run(batch) for mesh in ((1, 1, 1), (2, 2, 2)))
    for name in (*names, "grad_norm"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4, err_msg=name)
    moments = [jax.tree_util.tree_leaves_with_path(state.opt_state) for state in (one, eight)]
    for (path, a), (_, b) in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    return one, eight


def test_eight_devices_equal_one(made, machine_of):
    same_on_both(machine_of, *made, ("loss/itc", "loss/hash"))


RECORDS, SEEN = FACTS.records, 48


@pytest.fixture(scope="module")
def shared():
    """The recipe of linear heads on the shared encoder, its state with a memory that is partly filled, and a batch."""
    config = tiny_config(
        image={"pool": "mean+shared", "neck_layers": 0},
        text={"pool": "mean+shared", "layers": 1},
        joint={"hash_hidden": 0, "shared_layers": 1, "shared_heads": 2, "shared_hidden": 24, "shared_dropout": 0.0},
        objectives={"hash_contrast": {"table": RECORDS, "negatives": 6}, "hash_triplet": {}},
    )
    recipe = tiny_recipe(config)

    def fresh():
        return jax.tree.map(lambda x: x + 0.02, tiny_params(recipe.model, 0, parts(recipe.objectives)))

    start = jax.tree.map(np.array, jax.jit(lambda: create_state(recipe, fresh(), 0))())
    table = start.memory["codes"]
    table["codes"][:SEEN] = unit(np.random.default_rng(6), SEEN, config.joint.bits)
    for name in ("id", "text/key"):
        table[name][:SEEN] = np.arange(SEEN) + 5000
    batch = tiny_batch()
    batch["index"] = np.array([3, 60, 0, 9, 3, 61, 7, 3], np.int32)  # one record three times
    return recipe, start, batch


def test_a_memory_of_codes_is_the_same_on_eight_devices_as_on_one(shared, machine_of):
    one, eight = same_on_both(machine_of, *shared, ("loss/hash_contrast", "loss/hash_triplet"))
    before, batch = shared[1].memory["codes"], shared[2]
    found = [jax.device_get(state.memory["codes"]) for state in (one, eight)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)
    assert len(eight.memory["codes"]["codes"].sharding.device_set) == 8
    assert eight.memory["codes"]["codes"].addressable_shards[0].data.shape == (RECORDS // 4, 8)
    for table in found:
        written = np.unique(batch["index"])
        others = np.setdiff1d(np.arange(RECORDS), written)
        np.testing.assert_array_equal(table["codes"][others], before["codes"][others])
        assert table["id"][3] == batch["id"][-1] and (table["id"][written] < 5000).all()
        np.testing.assert_allclose(np.linalg.norm(table["codes"][written], axis=1), 1.0, rtol=1e-5)
