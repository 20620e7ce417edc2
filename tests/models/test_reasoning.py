"""The shared transformer against PyTorch's on both sides, and as a path of the two heads with one set of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from tiny import tiny_batch, tiny_config, tiny_model

from xmodal_jax.models.reasoning import SharedEncoder

SIDES, WIDTH, HEADS, HIDDEN, LAYERS = ("image", "text"), 16, 4, 24, 2
TOKENS = np.random.default_rng(0).normal(size=(3, 5, WIDTH)).astype(np.float32)
MASK = np.arange(5)[None, :] < np.array([5, 2, 3])[:, None]
SHARED = {"shared_layers": LAYERS, "shared_heads": HEADS, "shared_hidden": HIDDEN, "shared_dropout": 0.0}


def randomised(params):
    """Every leaf random."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: draw.normal(size=x.shape, scale=0.3).astype(np.float32), params)


@pytest.fixture(scope="module")
def params():
    """Random parameters of the encoder, made by one side only: both sides' are there."""
    encoder = SharedEncoder(SIDES, WIDTH, LAYERS, HEADS, HIDDEN)
    return randomised(encoder.init(jax.random.key(0), "image", TOKENS, None)["params"])


def torch_layer(stack, i):
    """Layer `i` of our stack as PyTorch's, in evaluation mode."""
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True).eval()
    own = jax.tree.map(lambda x: torch.tensor(np.asarray(x[i])), stack)
    attention, mlp = own["attention"], own["mlp"]
    state = {
        "self_attn.in_proj_weight": torch.cat([attention[n]["kernel"].T for n in ("query", "key", "value")]),
        "self_attn.in_proj_bias": torch.cat([attention[n]["bias"] for n in ("query", "key", "value")]),
    }
    parts = (("self_attn.out_proj", attention["out"]), ("linear1", mlp["up"]), ("linear2", mlp["down"]))
    for name, part in parts:
        state |= {f"{name}.weight": part["kernel"].T, f"{name}.bias": part["bias"]}
    for name, part in (("norm1", attention["norm"]), ("norm2", mlp["norm"])):
        state |= {f"{name}.weight": part["scale"], f"{name}.bias": part["bias"]}
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize("side, mask", [("image", None), ("text", MASK)])
def test_it_is_pytorchs_encoder_behind_a_first_token(params, side, mask):
    run = jax.jit(lambda p: SharedEncoder(SIDES, WIDTH, LAYERS, HEADS, HIDDEN).apply({"params": p}, side, TOKENS, mask))
    first = torch.tensor(params[f"{side}_cls"]).expand(3, 1, WIDTH)
    x = torch.cat([first, torch.tensor(TOKENS)], 1)
    hidden = None if mask is None else torch.tensor(np.concatenate([np.zeros((3, 1), bool), ~mask], 1))
    with torch.no_grad():
        for i in range(LAYERS):
            x = torch_layer(params["layers"], i)(x, src_key_padding_mask=hidden)
    np.testing.assert_allclose(run(params), x[:, 0], atol=1e-4)


@pytest.fixture(scope="module")
def made():
    """The tiny model whose two heads share the encoder, its parameters with maps that are not zero, and both passes."""
    pools = {"image": {"pool": "mean+shared"}, "text": {"pool": "mean+shared"}}
    model, batch = tiny_model(tiny_config(**pools, joint=SHARED)), tiny_batch()
    inputs = {side: batch[side] for side in SIDES}
    init = jax.jit(lambda: model.init(jax.random.key(0), inputs, frozenset(), method="init_all"))
    fresh = init()["params"]
    encode = jax.jit(
        lambda p: (
            model.apply({"params": p}, "image", batch["image"], method="encode")[1],
            model.apply({"params": p}, "text", batch["text"], method="encode")[1],
        )
    )
    return model, fresh, encode


def test_both_sides_use_one_set_of_parameters_and_start_at_their_linear_paths(made):
    _, fresh, encode = made
    names = {path for path in flatten_dict(fresh, sep="/") if "shared" in path or "reasoned" in path}
    assert {name for name in names if name.startswith("shared/layers/mlp/up")} == {
        "shared/layers/mlp/up/kernel",
        "shared/layers/mlp/up/bias",
    }
    assert {"shared/image_cls", "shared/text_cls", "image/head/reasoned/kernel", "text/head/reasoned/bias"} <= names
    other = fresh | {"shared": randomised(fresh["shared"])}
    for before, after in zip(encode(fresh), encode(other), strict=True):
        np.testing.assert_array_equal(before, after)  # the maps of the [CLS] start at zero
    mapped = dict(other)
    for side in SIDES:
        head = fresh[side]["head"]
        mapped[side] = fresh[side] | {"head": head | {"reasoned": randomised(head["reasoned"])}}
    changed = mapped | {"shared": jax.tree.map(lambda x: 1.1 * x, other["shared"])}
    for before, after, start in zip(encode(mapped), encode(changed), encode(fresh), strict=True):
        assert not np.allclose(before, after, atol=1e-4) and not np.allclose(before, start, atol=1e-3)


def test_padding_is_not_read(made):
    model, fresh, _ = made
    params, ids = jax.tree.map(jnp.asarray, randomised(fresh)), tiny_batch()["text"].copy()
    ids[:, 6:] = 0
    embed = jax.jit(lambda ids: model.apply({"params": params}, "text", ids, method="encode")[1])
    np.testing.assert_allclose(embed(ids), embed(ids[:, :6]), atol=1e-5)
