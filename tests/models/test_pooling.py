"""GPO against PyTorch's GRU and sort: value and gradient; one row of weights a set size; dropout while training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xmodal_jax.models.pooling import (
    GPO,
    POOL_CHOICES,
    descending_ranks,
    dropped_tokens,
    masked_max,
    parse_pool,
    position_encoding,
)

WIDTH, HIDDEN = 5, 32
SIZES = np.array([7, 3, 1, 6])
TOKENS = np.random.default_rng(0).normal(size=(4, 7, WIDTH)).astype(np.float32)
MASK = np.arange(7)[None, :] < SIZES[:, None]
GATES = "rzn"


@pytest.fixture(scope="module")
def theirs():
    """A random bidirectional torch GRU and its score layer; flax's cell has one bias for the r and z gates."""
    torch.manual_seed(0)
    gru = torch.nn.GRU(HIDDEN, HIDDEN, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name in ("bias_hh_l0", "bias_hh_l0_reverse"):
            getattr(gru, name)[: 2 * HIDDEN] = 0
    return gru, torch.nn.Linear(HIDDEN, 1, bias=False)


def ours(gru, score, pick):
    """Our parameters, or with `pick` = gradient theirs in our layout."""

    def cell(suffix):
        def take(name):
            return pick(getattr(gru, f"{name}_l0{suffix}")).numpy().reshape(3, HIDDEN, -1)

        blocks = {name: take(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        found = {
            f"i{g}": {"kernel": blocks["weight_ih"][i].T, "bias": blocks["bias_ih"][i][:, 0]}
            for i, g in enumerate(GATES)
        }
        found |= {f"h{g}": {"kernel": blocks["weight_hh"][i].T} for i, g in enumerate(GATES)}
        found["hn"]["bias"] = blocks["bias_hh"][2][:, 0]
        return found

    return {"forward": cell(""), "backward": cell("_reverse"), "score": {"kernel": pick(score.weight).numpy().T}}


def encoded_positions(count):
    """PyTorch's sines and cosines of 0 ... count - 1, as VSE-infinity's published code has them."""
    rates = torch.exp(torch.arange(0, HIDDEN, 2).float() * -(np.log(10000.0) / HIDDEN))
    encoded = torch.zeros(count, HIDDEN)
    encoded[:, 0::2] = torch.sin(torch.arange(count)[:, None].float() * rates)
    encoded[:, 1::2] = torch.cos(torch.arange(count)[:, None].float() * rates)
    return encoded


def reference(gru, score, tokens):
    """VSE-infinity's operator, one set after the other."""
    pooled = []
    for row, size in zip(tokens, SIZES, strict=True):
        states = gru(encoded_positions(size)[None])[0][0]
        states = (states[:, :HIDDEN] + states[:, HIDDEN:]) / 2
        theta = torch.softmax(score(states)[:, 0] / 0.1, dim=0)
        pooled.append((theta[:, None] * row[:size].sort(dim=0, descending=True).values).sum(0))
    return torch.stack(pooled)


def test_value_and_gradient_are_those_of_a_torch_gru_and_sort(theirs):
    gru, score = theirs
    tokens, cotangent = torch.tensor(TOKENS, requires_grad=True), torch.randn(4, WIDTH)
    expected = reference(gru, score, tokens)
    (expected * cotangent).sum().backward()
    params = ours(gru, score, lambda x: x.detach())
    garbage = np.where(MASK[..., None], TOKENS, 50.0).astype(np.float32)

    def loss(params, tokens):
        pooled = GPO().apply({"params": params}, tokens, jnp.asarray(MASK))
        return (pooled * cotangent.numpy()).sum(), pooled

    (_, pooled), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, garbage)
    np.testing.assert_allclose(pooled, expected.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(grads[1], tokens.grad.numpy(), atol=2e-5)
    wanted = ours(gru, score, lambda x: x.grad)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), grads[0], wanted)
    for part in (gru, score):
        part.zero_grad()


def test_without_a_mask_there_is_one_row_of_weights(theirs):
    params = {"params": ours(*theirs, lambda x: x.detach())}
    run = jax.jit(lambda tokens, mask: GPO().apply(params, tokens, mask))
    np.testing.assert_allclose(run(TOKENS, None), run(TOKENS, np.ones((4, 7), bool)), atol=1e-5)
    table = GPO().apply(params, (2, 7), method="weights")
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-5)
    assert table.shape == (2, 7) and (np.asarray(table[0, 2:]) == 0).all() and (np.asarray(table[0, :2]) > 0).all()


def test_a_set_of_nothing_pools_to_zero(theirs):
    params = {"params": ours(*theirs, lambda x: x.detach())}
    none = np.zeros((4, 7), bool)
    assert (np.asarray(GPO().apply(params, TOKENS, none)) == 0).all()
    assert (np.asarray(masked_max(jnp.asarray(TOKENS), jnp.asarray(none))) == 0).all()


def test_ranks_are_places_in_descending_order_and_ties_keep_theirs():
    x = np.round(np.random.default_rng(2).normal(size=(2, 130, 3)), 1).astype(np.float32)  # above 127 tokens, many ties
    for rows in (x, x[:, :6]):
        order = np.argsort(-rows, axis=1, kind="stable")
        np.testing.assert_array_equal(descending_ranks(jnp.asarray(rows)), np.argsort(order, axis=1))


def test_position_encoding_is_that_of_the_transformer():
    found = position_encoding(3, 4)
    expected = [[np.sin(k), np.cos(k), np.sin(k / 100), np.cos(k / 100)] for k in (0, 1, 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_masked_max_is_numpys():
    expected = np.stack([row[:size].max(0) for row, size in zip(TOKENS, SIZES, strict=True)])
    np.testing.assert_array_equal(masked_max(jnp.asarray(TOKENS), jnp.asarray(MASK)), expected)


def test_size_augmentation_leaves_out_a_tenth_and_never_everything():
    mask = np.ones((4000, 20), bool)
    mask[:, 12:] = False
    mask[:2000, 1:] = False
    kept = np.asarray(dropped_tokens(jax.random.key(0), jnp.asarray(mask)))
    assert not (kept & ~mask).any() and kept.any(1).all() and (kept[:2000, 0]).all()
    dropped = 1 - kept[2000:, :12].mean(1)
    # P(u > 0.2) * 0.2 * E[u | u > 0.2] = 0.8 * 0.2 * 0.6, and most rows that keep all tokens did not draw at all
    assert abs(dropped.mean() - 0.096) < 0.01
    assert 0.2 < (dropped == 0).mean() < 0.6


@pytest.mark.parametrize(
    "pool, parts",
    [
        ("mean", ("mean", "")),
        ("cls", ("cls", "")),
        ("mean+attention", ("mean", "attention")),
        ("gpo", ("", "gpo")),
        ("cls+gpo", ("cls", "gpo")),
        ("cls+shared", ("cls", "shared")),
        ("max", ("", "max")),
        ("average", ("", "average")),
    ],
)
def test_pool_strings(pool, parts):
    assert pool in POOL_CHOICES and parse_pool(pool) == parts
