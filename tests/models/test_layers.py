"""Layers against PyTorch's, dropout's scale, and scanning against a loop under every remat policy."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xmodal_jax.models.layers import (
    BlockStyle,
    attend,
    attention_params,
    block,
    block_params,
    dense,
    dense_params,
    dropout,
    feed_forward,
    layer_count,
    layer_norm,
    project_heads,
    scan_blocks,
    self_attention,
    spread,
    stack_params,
)

WIDTH, HEADS = 12, 3


def noisy(tree, seed=0):
    """Random numbers in every leaf, so that a forgotten bias or norm shows."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape) * 0.4, jnp.float32), tree)


@pytest.fixture(scope="module")
def stack():
    """Three blocks with cross-attention over width 8."""
    return noisy(stack_params(jax.random.key(0), 3, lambda key: block_params(key, WIDTH, 20, 8)))


@pytest.fixture(scope="module")
def x():
    """Tokens [2,5,12]."""
    return np.random.default_rng(1).normal(size=(2, 5, WIDTH)).astype(np.float32)


def test_spread_takes_rank_and_dtype():
    y = spread(jnp.ones(3), jnp.zeros((2, 4, 3), jnp.bfloat16))
    assert y.shape == (1, 1, 3) and y.dtype == jnp.bfloat16


def test_dense_is_linear(x):
    params = noisy(dense_params(jax.random.key(0), WIDTH, 7))
    expected = F.linear(
        torch.tensor(x), torch.tensor(np.array(params["kernel"])).T, torch.tensor(np.array(params["bias"]))
    )
    np.testing.assert_allclose(dense(params, x), expected, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_layer_norm_is_pytorchs(x, eps):
    params = noisy({"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)})
    scale, bias = (torch.tensor(np.array(params[name])) for name in ("scale", "bias"))
    np.testing.assert_allclose(
        layer_norm(params, x, eps), F.layer_norm(torch.tensor(x), (WIDTH,), scale, bias, eps), atol=1e-5
    )


def test_layer_norm_of_bfloat16_computes_in_float32():
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    x = jnp.array([[1000.0, 1001.0, 1002.0, 1003.0]])
    y = layer_norm(params, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float32), layer_norm(params, x.astype(jnp.bfloat16).astype(jnp.float32)), atol=0.02
    )


def test_dropout_keeps_the_mean_and_is_off_without_key_or_rate():
    x = jnp.ones((200, 200))
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert abs((y == 0).mean() - 0.25) < 0.01 and abs(y.mean() - 1) < 0.02
    np.testing.assert_allclose(y[y != 0], 4 / 3, rtol=1e-6)
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_rates_are_rounded_to_bytes_and_the_scale_with_them():
    x = jnp.ones((3, 5000, 7))  # a width that is no multiple of the four bytes of a word
    y = np.asarray(dropout(x, 0.3, jax.random.key(1)))
    np.testing.assert_allclose(y[y != 0], 256 / (256 - 77), rtol=1e-6)
    assert abs((y == 0).mean((0, 1)) - 77 / 256).max() < 0.015  # every column alike
    neighbours = (y[..., 0] == 0) & (y[..., 1] == 0)  # bytes of one word are independent
    assert abs(neighbours.mean() - (77 / 256) ** 2) < 0.012


@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_is_pytorchs_multi_head(x, masked):
    params = noisy(attention_params(jax.random.key(0), WIDTH))
    mask = np.ones((2, 1, 5, 5), bool)
    if masked:
        mask[0, :, :, 3:], mask[1] = False, np.tril(mask[1])
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    with torch.no_grad():
        kernels = [np.array(params[name]["kernel"]).T for name in ("query", "key", "value")]
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate(kernels)))
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate([params[n]["bias"] for n in ("query", "key", "value")])))
        theirs.out_proj.weight.copy_(torch.tensor(np.array(params["out"]["kernel"]).T))
        theirs.out_proj.bias.copy_(torch.tensor(np.array(params["out"]["bias"])))
        hide = torch.tensor(~np.repeat(mask, HEADS, 1).reshape(-1, 5, 5))
        expected, _ = theirs(*[torch.tensor(x)] * 3, attn_mask=hide)
    np.testing.assert_allclose(self_attention(params, x, jnp.asarray(mask), HEADS), expected, atol=1e-5)


def test_a_row_that_may_look_at_nothing_stays_finite(x):
    params = attention_params(jax.random.key(0), WIDTH)
    assert np.isfinite(self_attention(params, x, jnp.zeros((2, 1, 1, 5), bool), HEADS)).all()


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("gelu", F.gelu),
        ("gelu_tanh", lambda y: F.gelu(y, approximate="tanh")),
        ("relu", F.relu),
    ],
)
def test_feed_forward_activations(x, name, theirs):
    params = noisy(
        {"up": dense_params(jax.random.key(0), WIDTH, 20), "down": dense_params(jax.random.key(1), 20, WIDTH)}
    )
    hidden = theirs(torch.tensor(np.array(dense(params["up"], x))))
    np.testing.assert_allclose(feed_forward(params, x, name), dense(params["down"], hidden.numpy()), atol=1e-5)


def test_pre_norm_and_post_norm(stack, x):
    params = {name: part for name, part in jax.tree.map(lambda leaf: leaf[0], stack).items() if name != "cross"}
    attention, mlp = params["attention"], params["mlp"]
    post = layer_norm(attention["norm"], x + self_attention(attention, x, None, HEADS))
    post = layer_norm(mlp["norm"], post + feed_forward(mlp, post, "gelu"))
    np.testing.assert_allclose(block(BlockStyle(HEADS), params, x, None), post, atol=1e-5)
    pre = x + self_attention(attention, layer_norm(attention["norm"], x, 1e-6), None, HEADS)
    pre = pre + feed_forward(mlp, layer_norm(mlp["norm"], pre, 1e-6), "gelu")
    np.testing.assert_allclose(block(BlockStyle(HEADS, pre_norm=True, eps=1e-6), params, x, None), pre, atol=1e-5)


def read(image):
    """Keys and values of one layer over image tokens."""
    return lambda cross: (project_heads(cross["key"], image, HEADS), project_heads(cross["value"], image, HEADS), None)


def test_scanning_is_a_loop_under_every_remat_policy(stack, x):
    image = np.random.default_rng(2).normal(size=(2, 4, 8)).astype(np.float32)

    def loop(stack):
        y = x
        for number in range(layer_count(stack)):
            params = jax.tree.map(operator.itemgetter(number), stack)
            y = block(BlockStyle(HEADS), params, y, None, read(image)(params["cross"]))
        return jnp.square(y).sum()

    expected = jax.jit(jax.value_and_grad(loop))(stack)
    for remat in ("none", "full", "dots", "offload"):

        def scan(stack, remat=remat):
            return jnp.square(scan_blocks(BlockStyle(HEADS, remat=remat), stack, x, None, read(image))).sum()

        got = jax.jit(jax.value_and_grad(scan))(stack)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, expected)


def test_without_memory_cross_attention_is_skipped(stack, x):
    plain = {name: part for name, part in stack.items() if name != "cross"}
    style = BlockStyle(HEADS)
    np.testing.assert_allclose(scan_blocks(style, stack, x, None), scan_blocks(style, plain, x, None), atol=1e-6)


def test_each_layer_drops_something_else(stack, x):
    style = BlockStyle(HEADS, dropout=0.5)
    run = jax.jit(lambda key: scan_blocks(style, stack, x, None, key=key))
    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    one_layer = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), stack)
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.tree.map(lambda leaf: leaf[0], stack)
    y = block(style, params, block(style, params, x, None, key=keys[0]), None, key=keys[1])
    np.testing.assert_allclose(scan_blocks(style, one_layer, x, None, key=jax.random.key(0)), y, atol=1e-5)


def test_cross_attention_reads_another_width(stack, x):
    cross = jax.tree.map(lambda leaf: leaf[0], stack)["cross"]
    image = np.random.default_rng(3).normal(size=(2, 4, 8)).astype(np.float32)
    keys, values, _ = read(image)(cross)
    assert keys.shape == (2, 4, HEADS, WIDTH // HEADS)
    out = attend(cross, jnp.asarray(x), keys, values, None, HEADS)
    order = np.array([3, 1, 0, 2])
    np.testing.assert_allclose(
        attend(cross, jnp.asarray(x), keys[:, order], values[:, order], None, HEADS), out, atol=1e-5
    )
