"""Rules on paths: trailing axes, indivisible axes stay whole, and one rule for a parameter, its teacher and its slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import tiny_config, tiny_params, tiny_recipe

from xmodal_jax.config import MeshConfig
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.parallel.rules import path_name, shardings, spec_for
from xmodal_jax.train.step import create_state


@pytest.fixture(scope="module")
def mesh():
    """2 x 2 x 2 devices."""
    return make_mesh(MeshConfig(2, 2, 2))


@pytest.mark.parametrize("name, shape, axes", [
    ("params/text/layers/attention/query/kernel", (6, 8, 4), (None, "fsdp", "tensor")),
    ("params/text/layers/attention/out/kernel", (6, 8, 4), (None, "tensor", "fsdp")),
    ("params/text/layers/mlp/down/kernel", (8, 4), ("tensor", "fsdp")),
    ("params/text/layers/mlp/up/bias", (6, 4), (None, "tensor")),
    ("params/text/layers/mlp/norm/scale", (6, 4), ()),
    ("params/vocabulary/transform/kernel", (8, 4), ("tensor", "fsdp")),
    ("params/image_head/linear/kernel", (8, 4), ("tensor", "fsdp")),
    ("params/image/conv/kernel", (3, 3, 4, 8), (None, None, "fsdp")),
    ("params/some/new/kernel", (8, 4), ("fsdp",)),
    ("memory/pairs/image", (16, 4), (("data", "fsdp"), None)),
    ("memory/pairs/id", (16,), ()),
    ("memory/pairs/cursor", (), ()),
    ("step", (), ()),
])  # fmt: skip
def test_the_first_matching_rule_names_the_trailing_axes(mesh, name, shape, axes):
    spec = tuple(spec_for(name, shape, mesh))
    assert spec == axes + (None,) * (len(spec) - len(axes))


@pytest.mark.parametrize("shape, axes", [((5, 4), (None, "tensor")), ((4, 5), ("fsdp", None)), ((3, 5), (None, None))])
def test_an_axis_that_does_not_divide_stays_whole(mesh, shape, axes):
    assert spec_for("a/query/kernel", shape, mesh) == PartitionSpec(*axes)
    assert spec_for("memory/pairs/text", (6, 2), mesh) == PartitionSpec(None, None)


def test_a_rule_needs_enough_axes(mesh):
    assert spec_for("a/kernel", (4,), mesh) == PartitionSpec()
    assert spec_for("x", (4, 4), mesh, ((r"x$", ("data", None, None)), (r"x$", (None, "fsdp")))) == PartitionSpec(
        None, "fsdp"
    )


def test_path_names_of_dicts_fields_and_tuples():
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path({"a": ({"b": 1}, 2)})]
    assert [path_name(path) for path in paths] == ["a/0/b", "a/1"]


def test_teacher_and_slots_live_where_their_parameter_lives(mesh):
    recipe = tiny_recipe(tiny_config())
    state = jax.eval_shape(lambda: create_state(recipe, tiny_params(recipe.model), 0))
    places = shardings(state, mesh)
    student = {path_name(path): place.spec for path, place in jax.tree_util.tree_leaves_with_path(places.params)}
    split = {name for name, spec in student.items() if any(axis is not None for axis in spec)}
    assert {"text/embed/word", "fusion/layers/cross/key/kernel", "image_neck/layers/mlp/up/kernel"} <= split
    for name, place in places.teacher.items():
        assert place.spec == student[name]
    slots = {path_name(path): place.spec for path, place in jax.tree_util.tree_leaves_with_path(places.opt_state)}
    for name, spec in student.items():
        found = [slot for slot in slots if slot.endswith(f"mu/{name}") or slot.endswith(f"nu/{name}")]
        assert len(found) == 2 and all(slots[slot] == spec for slot in found)


def test_placed_arrays_keep_their_values(mesh):
    tree = {"query": {"kernel": np.arange(32.0, dtype=np.float32).reshape(8, 4)}, "scale": jnp.ones(3)}
    placed = jax.device_put(tree, shardings(tree, mesh))
    assert placed["query"]["kernel"].addressable_shards[0].data.shape == (4, 2)
    np.testing.assert_array_equal(placed["query"]["kernel"], tree["query"]["kernel"])
