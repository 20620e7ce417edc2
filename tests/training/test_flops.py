"""FLOPs counted over the jaxpr: of products, loops, branches and devices, and of the useful work of a step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import LENGTH, ROWS, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.settings import MeshConfig
from xmodal_jax.training.flops import executed_flops, step_flops
from xmodal_jax.training.step import create_state

X, W = jax.ShapeDtypeStruct((8, 16), "float32"), jax.ShapeDtypeStruct((16, 16), "float32")
ONE = 2 * 8 * 16 * 16


def flops(step, *shapes, devices=1):
    """Executed FLOPs of a function."""
    return executed_flops(jax.jit(step).trace(*shapes).jaxpr, devices)


def test_a_product_counts_two_per_multiply_add():
    assert flops(jnp.matmul, X, W) == ONE

    def batched(a, b):
        return jnp.einsum("bij,bjk->bik", a, b)

    shapes = jax.ShapeDtypeStruct((3, 8, 16), "float32"), jax.ShapeDtypeStruct((3, 16, 4), "float32")
    assert flops(batched, *shapes) == 2 * 3 * 8 * 16 * 4


def test_a_loop_counts_every_trip():
    assert flops(lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0], X, W) == 7 * ONE


@pytest.mark.parametrize(("remat", "times"), [(False, 3), (True, 4)])
def test_the_backward_pass_costs_two_and_recomputation_one_more(remat, times):
    def loss(w, x):
        def layer(x):
            return jnp.tanh(x @ w)

        layer = jax.checkpoint(layer) if remat else layer
        return jax.lax.scan(lambda x, _: (layer(x), None), x, None, length=5)[0].sum()

    assert flops(jax.grad(loss, argnums=(0, 1)), W, X) == times * 5 * ONE


def test_of_a_branch_the_dearer_side():
    def step(p, x, w):
        return jax.lax.cond(p, lambda: x @ w, lambda: x @ w @ w)

    assert flops(step, jax.ShapeDtypeStruct((), "bool"), X, W) == 2 * ONE


def test_shard_map_counts_all_devices():
    mesh, rows, whole = make_mesh(MeshConfig(2, 4, 1)), PartitionSpec(("data", "fsdp")), PartitionSpec()
    step = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert flops(step, X, W, devices=8) == ONE


def test_a_convolution_counts_its_taps():
    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = jax.ShapeDtypeStruct((2, 6, 6, 3), "float32"), jax.ShapeDtypeStruct((3, 3, 3, 5), "float32")
    assert flops(convolve, *shapes) == 2 * (2 * 6 * 6 * 5) * (3 * 3 * 3)


def test_against_xla_without_loops():
    def step(x, w):
        return ((x @ w) @ w) @ w

    np.testing.assert_allclose(flops(step, X, W), jax.jit(step).lower(X, W).cost_analysis()["flops"], rtol=1e-6)


# One layer each (XLA counts the body of a loop once), wide enough for the products to outweigh everything else.
WIDE = {
    "image": {
        "kind": "vit",
        "patch": 4,
        "width": 96,
        "layers": 1,
        "heads": 2,
        "hidden": 160,
        "neck_layers": 1,
        "remat": "none",
        "size": 16,
    },
    "text": {
        "length": 24,
        "width": 128,
        "layers": 1,
        "heads": 2,
        "hidden": 192,
        "vocab_size": 300,
        "positions": 24,
        "remat": "none",
    },
    "fusion": {"layers": 1, "heads": 2, "hidden": 224, "remat": "none"},
    "joint": {"embed": 64},
}
IMAGE, RAW, TOKEN_SHAPE, IDS = (4, 16, 16, 3), (4, 17, 96), (4, 17, 128), (4, 24)
WORDS, MASK = (4, 24, 128), (4, 24)
CALLS = {
    ("raw", "image"): [(IMAGE, "uint8")],
    ("joint", "image"): [(RAW, "float32"), (IMAGE, "uint8")],
    ("raw", "text"): [(IDS, "int32")],
    ("fuse", ""): [(TOKEN_SHAPE, "float32"), (WORDS, "float32"), (MASK, "bool")],
    ("decode", ""): [(TOKEN_SHAPE, "float32"), (IDS, "int32")],
    ("token_logits", ""): [((4, 5, 128), "float32")],
    ("bridge_delta", ""): [(TOKEN_SHAPE, "float32"), (TOKEN_SHAPE, "float32")],
}


def wide(**sections):
    """The wide model with fields of its sections changed, and its abstract parameters."""
    config = tiny_config(**WIDE | {name: WIDE[name] | own for name, own in sections.items()})
    model, used = tiny_model(config), parts(tiny_objectives(config.objectives)) | {"bridge"}
    inputs = {"image": jax.ShapeDtypeStruct((1, 16, 16, 3), "uint8"), "text": jax.ShapeDtypeStruct((1, 24), "int32")}
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, used, method="init_all"), inputs)
    return model, params


def counted(model, params, method, name, inputs):
    """FLOPs of one of the model's methods: those of its products, and what XLA counts in the lowered program."""
    own = (name,) if name else ()
    run = jax.jit(lambda params, *inputs: model.apply(params, *own, *inputs, method=method))
    shapes = [jax.ShapeDtypeStruct(*one) for one in inputs]
    return flops(run, params, *shapes), run.lower(params, *shapes).cost_analysis()["flops"]


@pytest.mark.parametrize(("method", "name"), CALLS)
def test_a_calls_flops_are_what_xla_counts(method, name):
    found, xla = counted(*wide(), method, name, CALLS[method, name])
    assert found <= xla  # XLA also counts norms, softmax and activations
    np.testing.assert_allclose(found, xla, rtol=0.12)


def test_an_aggregators_map_of_each_token_and_the_linear_path_are_counted():
    call = "joint", "text", [(WORDS, "float32"), (IDS, "int32")]
    found, xla = counted(*wide(text={"pool": "mean+average", "token_hidden": 48}), *call)
    assert found <= xla
    np.testing.assert_allclose(found, xla, rtol=0.12)
    alone, _ = counted(*wide(text={"pool": "average", "token_hidden": 48}), *call)
    np.testing.assert_allclose(found - alone, 2.0 * WORDS[0] * 128 * 64)


def test_the_shared_transformer_is_counted():
    pools = {side: {"pool": "mean+shared"} for side in ("image", "text")}
    joint = {"shared_layers": 1, "shared_heads": 2, "shared_hidden": 160}
    found, xla = counted(*wide(**pools, joint=joint), "joint", "text", [(WORDS, "float32"), (IDS, "int32")])
    np.testing.assert_allclose(found, xla, rtol=0.12)


@pytest.mark.parametrize("depth, giga", [(50, 4.09), (101, 7.80), (152, 11.51)])
def test_a_resnets_products_are_the_published_ones(depth, giga):
    tower = tiny_config(image={"kind": "resnet", "depth": depth, "width": 2048}, data={"features": ()})
    tower = tower.encoders["image"].module(jnp.float32)
    picture = jax.ShapeDtypeStruct((1, 224, 224, 3), "uint8")
    params = jax.eval_shape(lambda x: tower.init(jax.random.key(0), x), picture)
    found = flops(tower.apply, params, picture)
    np.testing.assert_allclose(found, 2e9 * giga, rtol=0.005)  # torchvision's table counts multiply-adds


def flops_of(section: dict, cache: bool = True, **sections) -> float:
    """FLOPs of one step of the tiny config with these objectives."""
    recipe = dataclasses.replace(tiny_recipe(tiny_config(objectives=section, **sections)), cache=cache)
    state = jax.eval_shape(lambda: create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0))
    return step_flops(recipe, state, tiny_batch())


def test_a_steps_products_are_those_counted_by_hand():
    """CLIP's loss of cached pictures and one layer of BERT: two heads and the layer forward, and back."""
    plain = {"queue": 0, "alpha": 0.0, "student_keys": True}
    found = flops_of({"itc": plain}, text={"layers": 1}, image={"neck_layers": 0})
    features, width, hidden, embed = 6, 16, 24, 8
    layer = ROWS * LENGTH * (4 * width * width + 2 * width * hidden) + 2 * ROWS * LENGTH * LENGTH * width
    text_head, image_head, table = ROWS * width * embed, ROWS * features * embed, ROWS * ROWS * embed
    # Back, a product is two more; what is in the data, the picture's features, wants no gradient.
    hand = 2 * (3 * layer + 3 * text_head + 2 * image_head + 2 * 3 * table)
    np.testing.assert_allclose(found, hand, rtol=0.03)


def test_shared_passes_count_once():
    fields = {"itc": {"queue": 8}, "itm": {}, "mlm": {}, "lm": {}}
    alone = [flops_of({name: own}) for name, own in fields.items()]
    together, apart = flops_of(fields), flops_of(fields, cache=False)
    assert max(alone) < together < 0.85 * sum(alone) and sum(alone) <= apart


def test_more_negatives_cost_more_pairs():
    one, two, three = (flops_of({"itm": {"negatives": n}}) for n in (1, 2, 3))
    assert two > one and np.isclose(three - two, two - one)


def test_the_teachers_soft_targets_cost_one_forward():
    with_teacher, without = flops_of({"mlm": {"alpha": 0.4}}), flops_of({"mlm": {"alpha": 0.0}})
    np.testing.assert_allclose(with_teacher, without * 4 / 3, rtol=0.02)  # three times the forward, and one more


def test_a_frozen_tower_costs_one_forward_not_three():
    trained, frozen = (
        flops_of({"lm": {}, "itc": {"queue": 8}}),
        flops_of({"lm": {}, "itc": {"queue": 8}}, optimizer={"freeze": "^text/tower/"}),
    )
    assert frozen < 0.85 * trained


def test_what_is_computed_again_is_no_useful_work():
    section = {"itc": {"queue": 8}, "lm": {}}
    again = {"text": {"remat": "full"}, "fusion": {"remat": "full"}, "chunk": 4}
    plain = {"text": {"remat": "none"}, "fusion": {"remat": "none"}}
    np.testing.assert_allclose(flops_of(section, **again), flops_of(section, **plain), rtol=1e-9)
