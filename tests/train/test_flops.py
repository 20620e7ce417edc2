"""The FLOP model against what XLA counts in the lowered programs, and what sharing, freezing and objectives change."""

import jax
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.train.flops import forward_flops, step_flops
from xmodal_jax.train.step import Recipe, create_state

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
    },
    "text": {"width": 128, "layers": 1, "heads": 2, "hidden": 192, "vocab_size": 300, "positions": 24, "remat": "none"},
    "fusion": {"layers": 1, "heads": 2, "hidden": 224, "remat": "none"},
    "joint": {"embed": 64},
    "data": {"image_size": 16, "length": 24},
}
IMAGE, RAW, TOKENS, IDS = (4, 16, 16, 3), (4, 17, 96), (4, 17, 128), (4, 24)
WORDS, MASK = (4, 24, 128), (4, 24)
CALLS = {
    "image_tower": [(IMAGE, "uint8")],
    "image_joint": [(RAW, "float32")],
    "text_tower": [(IDS, "int32")],
    "fuse": [(TOKENS, "float32"), (WORDS, "float32"), (MASK, "bool")],
    "decode": [(TOKENS, "float32"), (IDS, "int32")],
    "token_logits": [((4, 5, 128), "float32")],
    "bridge_delta": [(TOKENS, "float32"), (TOKENS, "float32")],
}


@pytest.fixture(scope="module")
def wide():
    """The recipe of the wide model and its abstract parameters."""
    config = tiny_config(**WIDE)
    model, objectives = tiny_model(config), tiny_objectives(config.objectives)
    recipe = Recipe(config, model, objectives, None)
    image, ids = jax.ShapeDtypeStruct((1, 16, 16, 3), "uint8"), jax.ShapeDtypeStruct((1, 24), "int32")
    params = jax.eval_shape(
        lambda image, ids: model.init(
            jax.random.key(0), image, ids, parts(recipe.objectives) | {"bridge"}, method="touch"
        ),
        image,
        ids,
    )
    return recipe, params


@pytest.mark.parametrize("method", CALLS)
def test_a_calls_flops_are_what_xla_counts(wide, method):
    recipe, params = wide
    inputs = [jax.ShapeDtypeStruct(*call) for call in CALLS[method]]
    run = lambda params, *inputs: recipe.model.apply(params, *inputs, method=method)
    counted = jax.jit(run).lower(params, *inputs).cost_analysis()["flops"]
    model = forward_flops(recipe, method, tuple(shape for shape, _ in CALLS[method]))
    assert model <= counted  # XLA also counts norms, softmax and activations
    np.testing.assert_allclose(model, counted, rtol=0.12)


def flops_of(section: dict, **sections) -> float:
    """FLOPs of one step of the tiny config with these objectives."""
    config = tiny_config(objectives=section, **sections)
    recipe = tiny_recipe(config)
    state = jax.eval_shape(lambda: create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0))
    return step_flops(recipe, state, tiny_batch())


def test_shared_passes_count_once():
    alone = {name: flops_of({name: {}}) for name in ("itc", "itm", "mlm", "lm")}
    together = flops_of({name: {} for name in alone})
    assert max(alone.values()) < together < 0.8 * sum(alone.values())


def test_an_aggregators_map_of_each_token_is_counted_as_xla_counts_it():
    config = tiny_config(**WIDE | {"text": WIDE["text"] | {"pool": "mean+average", "token_hidden": 48}})
    recipe = Recipe(config, tiny_model(config), None, None)
    inputs = [jax.ShapeDtypeStruct(WORDS, "float32"), jax.ShapeDtypeStruct(IDS, "int32")]
    params = jax.eval_shape(lambda *x: recipe.model.init(jax.random.key(0), *x, method="text_joint"), *inputs)
    run = lambda params, *inputs: recipe.model.apply(params, *inputs, method="text_joint")
    counted = jax.jit(run).lower(params, *inputs).cost_analysis()["flops"]
    model = forward_flops(recipe, "text_joint", (WORDS, IDS))
    assert model <= counted
    np.testing.assert_allclose(model, counted, rtol=0.12)
    alone = tiny_config(**WIDE | {"text": WIDE["text"] | {"pool": "average", "token_hidden": 48}})
    linear = 2.0 * WORDS[0] * 128 * 64
    found = forward_flops(Recipe(alone, tiny_model(alone), None, None), "text_joint", (WORDS, IDS))
    np.testing.assert_allclose(found, model - linear)


def test_more_negatives_cost_more_pairs():
    one, two, three = (flops_of({"itm": {"negatives": n}}) for n in (1, 2, 3))
    assert two > one and np.isclose(three - two, two - one)


def test_the_teachers_soft_targets_cost_one_forward():
    with_teacher, without = flops_of({"mlm": {"alpha": 0.4}}), flops_of({"mlm": {"alpha": 0.0}})
    np.testing.assert_allclose(with_teacher, without * 4 / 3, rtol=1e-6)  # three times the forward, and one more


def test_a_frozen_tower_costs_one_forward_not_three():
    trained, frozen = (
        flops_of({"lm": {}, "itc": {"queue": 8}}),
        flops_of({"lm": {}, "itc": {"queue": 8}}, optimizer={"freeze": "^text/"}),
    )
    assert frozen < 0.85 * trained


@pytest.mark.parametrize("depth, giga", [(50, 4.09), (101, 7.80), (152, 11.51)])
def test_a_resnets_products_are_the_published_ones(depth, giga):
    config = tiny_config(image={"kind": "resnet", "depth": depth, "width": 2048}, data={"features": ()})
    found = forward_flops(Recipe(config, None, None, None), "image_tower", ((3, 224, 224, 3),))
    np.testing.assert_allclose(found, 3 * 2e9 * giga, rtol=0.005)  # torchvision's table counts multiply-adds


def test_the_shared_transformer_is_counted_as_xla_counts_it():
    pools = {side: WIDE[side] | {"pool": "mean+shared"} for side in ("image", "text")}
    joint = WIDE["joint"] | {"shared_layers": 1, "shared_heads": 2, "shared_hidden": 160}
    config = tiny_config(**WIDE | pools | {"joint": joint})
    recipe = Recipe(config, tiny_model(config), None, None)
    inputs = [jax.ShapeDtypeStruct(WORDS, "float32"), jax.ShapeDtypeStruct(IDS, "int32")]
    params = jax.eval_shape(lambda *x: recipe.model.init(jax.random.key(0), *x, method="text_joint"), *inputs)
    run = lambda params, *inputs: recipe.model.apply(params, *inputs, method="text_joint")
    counted = jax.jit(run).lower(params, *inputs).cost_analysis()["flops"]
    np.testing.assert_allclose(forward_flops(recipe, "text_joint", (WORDS, IDS)), counted, rtol=0.12)
