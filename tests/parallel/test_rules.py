"""Rules on paths: trailing axes, indivisible axes stay whole, one rule for a parameter, its teacher and its slots."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import tiny_config, tiny_params, tiny_recipe

from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.parallel.rules import path_name, pin_rows, place, placements, shardings, whole
from xmodal_jax.settings import MeshConfig
from xmodal_jax.training.step import create_state


@pytest.fixture(scope="module")
def mesh():
    """2 x 2 x 2 devices."""
    return make_mesh(MeshConfig(2, 2, 2))


@pytest.mark.parametrize(
    "name, shape, axes",
    [
        ("params/text/tower/layers/attention/query/kernel", (6, 8, 4), (None, "fsdp", "tensor")),
        ("params/text/tower/layers/attention/out/kernel", (6, 8, 4), (None, "tensor", "fsdp")),
        ("params/text/tower/layers/mlp/down/kernel", (8, 4), ("tensor", "fsdp")),
        ("params/text/tower/layers/mlp/up/bias", (6, 4), (None, "tensor")),
        ("params/text/tower/layers/mlp/norm/scale", (6, 4), ()),
        ("params/vocabulary/transform/kernel", (8, 4), ("tensor", "fsdp")),
        ("params/image/head/linear/kernel", (8, 4), ("tensor", "fsdp")),
        ("params/text/hash/linear/kernel", (8, 4), ("fsdp",)),
        ("params/image/tower/conv/kernel", (3, 3, 4, 8), (None, None, "fsdp")),
        ("params/some/new/kernel", (8, 4), ("fsdp",)),
        ("memory/pairs/image", (16, 4), (("data", "fsdp"), None)),
        ("memory/pairs/id", (16,), ()),
        ("memory/codes/codes", (16, 4), (("data", "fsdp"), None)),
        ("memory/table/votes", (16, 4, 8), (("data", "fsdp"),)),
        ("memory/table/votes", (16, 2, 4, 8), (("data", "fsdp"),)),
        ("memory/table/votes", (6, 4, 8), ()),
        ("memory/pairs/cursor", (), ()),
        ("step", (), ()),
    ],
)
def test_the_first_matching_rule_names_the_trailing_axes(mesh, name, shape, axes):
    spec = tuple(place(name, shape, mesh).spec)
    assert spec == axes + (None,) * (len(spec) - len(axes))


@pytest.mark.parametrize("shape, axes", [((5, 4), (None, "tensor")), ((4, 5), ("fsdp", None)), ((3, 5), (None, None))])
def test_an_axis_that_does_not_divide_stays_whole(mesh, shape, axes):
    assert place("a/query/kernel", shape, mesh).spec == PartitionSpec(*axes)
    assert place("memory/pairs/text", (6, 2), mesh).spec == PartitionSpec(None, None)


def test_a_rule_needs_enough_axes(mesh):
    assert place("a/kernel", (4,), mesh).spec == PartitionSpec()
    rules = (r"x$", ("data", None, None)), (r"x$", (None, "fsdp"))
    assert place("x", (4, 4), mesh, rules).spec == PartitionSpec(None, "fsdp")


def test_path_names_of_dicts_fields_and_tuples():
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path({"a": ({"b": 1}, 2)})]
    assert [path_name(path) for path in paths] == ["a/0/b", "a/1"]


def test_teacher_and_slots_live_where_their_parameter_lives(mesh):
    recipe = tiny_recipe(tiny_config())
    state = jax.eval_shape(lambda: create_state(recipe, tiny_params(recipe.model), 0))
    places = shardings(state, mesh)
    student = {path_name(path): place.spec for path, place in jax.tree_util.tree_leaves_with_path(places.params)}
    split = {name for name, spec in student.items() if any(axis is not None for axis in spec)}
    assert {"text/tower/embed/word", "fusion/layers/cross/key/kernel", "image/neck/layers/mlp/up/kernel"} <= split
    for name, own in places.teacher.items():
        assert own.spec == student[name]
    slots = {path_name(path): place.spec for path, place in jax.tree_util.tree_leaves_with_path(places.opt_state)}
    for name, spec in student.items():
        found = [slot for slot in slots if slot.endswith(f"mu/{name}") or slot.endswith(f"nu/{name}")]
        assert len(found) == 2 and all(slots[slot] == spec for slot in found)


def test_placed_arrays_keep_their_values(mesh):
    tree = {"query": {"kernel": np.arange(32.0, dtype=np.float32).reshape(8, 4)}, "scale": jnp.ones(3)}
    placed = jax.device_put(tree, shardings(tree, mesh))
    assert placed["query"]["kernel"].addressable_shards[0].data.shape == (4, 2)
    np.testing.assert_array_equal(placed["query"]["kernel"], tree["query"]["kernel"])


def test_a_table_of_matrices_is_split_by_its_rows(mesh):
    table = {"memory": {"table": {"votes": jnp.zeros((16, 4, 8)), "cursor": jnp.int32(0)}}}
    placed = jax.device_put(table, shardings(table, mesh))["memory"]["table"]
    assert {shard.data.shape for shard in placed["votes"].addressable_shards} == {(4, 4, 8)}


# --- every config on 2 x 2 x 2 --------------------------------------------------------------------------------------

CONFIGS = [
    "quickstart.py:tiny",
    "quickstart.py:full",
    "quickstart.py:large",
    "flickr8k.py:features",
    "flickr8k.py:finetune",
    "adequate_alignment.py:emoji_views",
]
LARGE = 64 * 1024  # numbers
# Large leaves that may be whole on every device of fsdp, each with its reason.
KEPT = {
    r"position$": "added to every row of every batch; gathering it each step would cost more than its few MB",
    r"(query|key|value|up)/bias$": "a bias of all layers, split over tensor only: it is added between the two products",
}


@pytest.fixture(scope="module")
def run_of():
    """The abstract run of a config on 2 x 2 x 2 devices, made once."""
    from xmodal_jax.assemble import assemble_without_data
    from xmodal_jax.config_file import freeze, load
    from xmodal_jax.training.loop import make_run

    @functools.cache
    def make(config: str):
        sizes = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]
        return make_run(assemble_without_data(freeze(load(f"configs/{config}", sizes))))

    return make


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_large_is_whole_over_fsdp_by_accident(run_of, config):
    run = run_of(config)
    found = placements(run.abstract, run.mesh)

    def split(one):
        return any("fsdp" in (axis if isinstance(axis, tuple) else (axis,)) for axis in one.spec if axis)

    large = [one for one in found if np.prod(one.shape) > LARGE]
    accidents = [one.name for one in large if not split(one) and not any(re.search(kept, one.name) for kept in KEPT)]
    assert accidents == []
    assert sum(split(one) for one in found) > 20


@pytest.mark.parametrize("config", CONFIGS)
def test_teacher_and_slots_have_exactly_the_students_specs(run_of, config):
    run = run_of(config)
    student = {
        one.name.removeprefix("params/"): one.spec for one in placements({"params": run.abstract.params}, run.mesh)
    }
    teacher = {one.name: one.spec for one in placements(run.abstract.teacher, run.mesh)}
    assert teacher and {name: student[name] for name in teacher} == teacher
    slots = {one.name: one.spec for one in placements(run.abstract.opt_state, run.mesh)}
    pairs = [(slot, name) for slot in slots for name in student if slot.endswith((f"/mu/{name}", f"/nu/{name}"))]
    assert len(pairs) == 2 * len(teacher)  # what is trained has a teacher and two slots
    assert all(slots[slot] == student[name] for slot, name in pairs)


def test_the_large_leaves_of_every_module_are_split(run_of):
    found = {
        one.name: one.spec
        for one in placements(
            {"params": run_of("quickstart.py:large").abstract.params}, run_of("quickstart.py:large").mesh
        )
    }
    assert found["params/text/tower/embed/word"] == PartitionSpec("tensor", "fsdp")
    assert found["params/vocabulary/transform/kernel"] == PartitionSpec("tensor", "fsdp")
    encoders = (
        [f"image/{part}" for part in ("tower", "neck", "head")],
        [f"text/{part}" for part in ("tower", "head", "hash")],
    )
    for module in (*encoders[0], *encoders[1], "fusion", "decoder", "match"):
        split = [name for name, spec in found.items() if name.startswith(f"params/{module}/") and "fsdp" in spec]
        assert split, module


def test_what_a_rule_could_not_divide_is_said(mesh):
    one = place("a/query/kernel", (5, 4), mesh)
    assert (one.pattern, one.asked, one.whole) == (r"(query|key|value|up)/kernel$", ("fsdp", "tensor"), ("fsdp",))
    assert place("a/scale", (4,), mesh).pattern == "" and place("step", (), mesh).whole == ()
    assert place("b/depthwise/kernel", (3, 3, 8), mesh).spec == PartitionSpec(None, None, None)


def test_rows_are_pinned_only_where_a_mesh_is_set_and_they_divide(mesh):
    def ask(x):
        return (pin_rows(x), whole(x))

    def text(rows):
        return str(jax.make_jaxpr(ask)(jax.ShapeDtypeStruct((rows, 4), jnp.float32)))

    assert "sharding_constraint" not in text(8)
    flat = make_mesh(MeshConfig(2, 4, 1))
    with jax.sharding.use_abstract_mesh(flat.abstract_mesh):
        assert text(8).count("sharding_constraint") == 2 and text(6).count("sharding_constraint") == 1
        inside = jax.shard_map(pin_rows, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
        assert "sharding_constraint" not in str(jax.make_jaxpr(inside)(jnp.ones((8, 4))))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tensor above 1: left to XLA, see pin_rows
        assert text(8).count("sharding_constraint") == 1
