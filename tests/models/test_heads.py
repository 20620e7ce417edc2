"""Heads: token logits against Hugging Face's, pooling against NumPy, unit embeddings, matching and hash codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_layers import dense as dense_of
from torch_layers import norm as norm_of

from xmodal_jax.models.heads import (
    HashHead,
    MatchHead,
    Projection,
    TokenHead,
    l2_normalize,
    pooled_features,
    straight_through_sign,
)
from xmodal_jax.models.pooling import attention_pool, first_token, masked_mean, probe_params

TOKENS = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
MASK = np.arange(6)[None, :] < np.array([6, 2, 1])[:, None]


def randomised(tree):
    """Every leaf random: fresh MLPs start at zero."""
    draw = np.random.default_rng(4)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32), tree)


def test_token_head_is_hugging_faces():
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    torch.manual_seed(0)
    theirs = BertLMPredictionHead(BertConfig(hidden_size=8, vocab_size=11))
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    params = {"transform": dense_of(theirs.transform.dense), "norm": norm_of(theirs.transform.LayerNorm)}
    params |= {"bias": theirs.decoder.bias.detach().numpy()}
    table = theirs.decoder.weight.detach().numpy()

    def head(rows):
        return TokenHead(8, len(rows)).apply({"params": params | {"bias": params["bias"][rows]}}, TOKENS, table[rows])

    expected = theirs(torch.tensor(TOKENS)).detach().numpy()
    np.testing.assert_allclose(head(np.arange(11)), expected, atol=1e-5)
    some = np.array([0, 3, 9])
    np.testing.assert_allclose(head(some), expected[..., some], atol=1e-5)


def test_the_table_of_the_token_head_is_trained_through_it():
    head, table = TokenHead(8, 5), np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    params = head.init(jax.random.key(0), TOKENS, table)["params"]
    grad = jax.grad(lambda table: jnp.square(head.apply({"params": params}, TOKENS, table)).sum())(table)
    assert (np.abs(grad).sum(1) > 0).all()


def test_unit_length_and_a_zero_row(rng):
    x = rng.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(l2_normalize(x), x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-5)
    zero = jnp.zeros((1, 5))
    assert (np.asarray(l2_normalize(zero)) == 0).all()
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(zero)).all()


def test_pools():
    expected = np.stack([row[keep].mean(0) for row, keep in zip(TOKENS, MASK, strict=True)])
    np.testing.assert_allclose(masked_mean(jnp.asarray(TOKENS), jnp.asarray(MASK)), expected, rtol=1e-5)
    np.testing.assert_allclose(masked_mean(jnp.asarray(TOKENS), None), TOKENS.mean(1), rtol=1e-5, atol=1e-6)
    assert (np.asarray(masked_mean(jnp.asarray(TOKENS), jnp.zeros((3, 6), bool))) == 0).all()
    np.testing.assert_array_equal(first_token(jnp.asarray(TOKENS), None), TOKENS[:, 0])


def test_attention_pool_ignores_what_is_masked():
    params = randomised(probe_params(jax.random.key(0), 8))
    changed = np.where(MASK[..., None], TOKENS, 9.0).astype(np.float32)

    def run(tokens):
        return attention_pool(params, jnp.asarray(tokens), jnp.asarray(MASK), 2)

    np.testing.assert_allclose(run(TOKENS), run(changed), atol=1e-5)
    assert not np.allclose(attention_pool(params, jnp.asarray(TOKENS), None, 2), run(TOKENS))


def test_pooled_features_normalise_each_group_for_itself():
    groups = (4, 1, 1)
    parts = [TOKENS[:, :4].mean(1), TOKENS[:, 4], TOKENS[:, 5]]
    parts = [(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) for x in parts]
    np.testing.assert_allclose(
        pooled_features(jnp.asarray(TOKENS), None, "mean", groups), np.concatenate(parts, 1), atol=1e-5
    )
    first = pooled_features(jnp.asarray(TOKENS), jnp.asarray(MASK), "cls", ())
    np.testing.assert_allclose(
        first, (TOKENS[:, 0] - TOKENS[:, 0].mean(-1, keepdims=True)) / TOKENS[:, 0].std(-1, keepdims=True), atol=1e-4
    )


@pytest.mark.parametrize("pool", ["mean", "cls", "mean+attention"])
def test_a_fresh_projection_is_its_linear_path(pool):
    head = Projection(embed=4, pool=pool, hidden=5, heads=2)
    params = head.init(jax.random.key(0), TOKENS, TOKENS, MASK)["params"]
    pooled = pooled_features(jnp.asarray(TOKENS), jnp.asarray(MASK), pool.split("+")[0], ())
    expected = l2_normalize(pooled @ params["linear"]["kernel"])
    embed = head.apply({"params": params}, TOKENS, TOKENS, MASK)
    np.testing.assert_allclose(embed, expected, atol=1e-5)
    full = head.apply({"params": randomised(params)}, TOKENS, TOKENS, MASK)
    np.testing.assert_allclose(np.linalg.norm(full, axis=1), 1, rtol=1e-5)
    assert set(params) == {"linear", "up", "down"} | ({"probe", "attended"} if pool.endswith("attention") else set())


def test_projection_drops_with_a_key_only():
    head = Projection(embed=4, hidden=5, dropout=0.5)
    params = randomised(head.init(jax.random.key(0), TOKENS, TOKENS, MASK)["params"])

    def run(key):
        return np.asarray(head.apply({"params": params}, TOKENS, TOKENS, MASK, key))

    np.testing.assert_array_equal(run(None), run(None))
    assert not np.allclose(run(jax.random.key(0)), run(jax.random.key(1)))


def joined_set(params, kind, rows=TOKENS, mask=MASK):
    """An aggregator's path in PyTorch: normalised tokens, a dense layer plus an MLP, then pooled (not "gpo")."""

    def torch_of(name):
        return (torch.tensor(np.asarray(params[name][x])) for x in ("kernel", "bias"))

    x = torch.nn.functional.layer_norm(torch.tensor(rows), (rows.shape[-1],), eps=1e-6)
    (kernel, bias), (up, up_bias), (down, down_bias) = (torch_of(name) for name in ("project", "up", "down"))
    x = x @ kernel + bias + torch.relu(x @ up + up_bias) @ down + down_bias
    pool = {"max": lambda row: row.max(0).values, "average": lambda row: row.mean(0)}[kind]
    return torch.stack([pool(row[torch.tensor(keep)]) for row, keep in zip(x, mask, strict=True)])


@pytest.mark.parametrize("kind", ["max", "average"])
def test_an_aggregator_alone_is_the_pooled_projection_of_each_token(kind):
    head = Projection(embed=4, pool=kind, hidden=3, token_hidden=5)
    params = head.init(jax.random.key(0), TOKENS, TOKENS, MASK)["params"]
    assert set(params) == {"token"} and set(params["token"]) == {"project", "up", "down"}
    params = randomised(params)
    pooled = joined_set(params["token"], kind)
    expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS, TOKENS, MASK), expected, atol=1e-5)


def test_an_aggregator_beside_a_linear_path_is_their_sum_and_starts_close_to_the_path():
    head, alone = Projection(embed=4, pool="mean+max", token_hidden=5), Projection(embed=4)
    params = head.init(jax.random.key(0), TOKENS, TOKENS, MASK)["params"]
    assert set(params) == {"linear", "token"}
    linear = {"params": {"linear": params["linear"]}}
    start = head.apply({"params": params}, TOKENS, TOKENS, MASK)
    assert ((start * alone.apply(linear, TOKENS, TOKENS, MASK)).sum(1) > 0.9).all()
    params = randomised(params)
    pooled = np.asarray(pooled_features(jnp.asarray(TOKENS), jnp.asarray(MASK), "mean", ()))
    linear = jax.tree.map(np.asarray, params["linear"])
    out = pooled @ linear["kernel"] + linear["bias"] + joined_set(params["token"], "max").numpy()
    expected = out / np.linalg.norm(out, axis=1, keepdims=True)
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS, TOKENS, MASK), expected, atol=1e-5)


def test_gpo_is_trained_through_the_head_and_draws_with_a_key_only():
    head = Projection(embed=4, pool="gpo")
    params = head.init(jax.random.key(0), TOKENS, TOKENS, None)["params"]
    assert set(params) == {"token", "aggregator"}

    @jax.jit
    def run(params, key=None):
        return head.apply({"params": params}, TOKENS, TOKENS, MASK, key)

    grads = jax.grad(lambda p: run(p)[:, 0].sum())(params)
    assert (np.abs(grads["aggregator"]["gpo"]["score"]["kernel"]) > 0).all()
    np.testing.assert_array_equal(run(params), run(params))
    draws = [np.asarray(run(params, jax.random.key(seed))) for seed in range(6)]
    assert any(not np.allclose(draw[0], draws[0][0], atol=1e-6) for draw in draws[1:])
    np.testing.assert_allclose(draws[0][2], draws[1][2], atol=1e-6)  # a set of one token keeps it


def test_token_features_are_what_the_aggregator_pools():
    head = Projection(embed=4, pool="average", token_hidden=5)
    params = randomised(head.init(jax.random.key(0), TOKENS, TOKENS, None)["params"])
    features = head.apply({"params": params}, TOKENS, method="token_features")
    pooled = head.apply({"params": params}, TOKENS, TOKENS, None)
    np.testing.assert_allclose(l2_normalize(features.mean(1)), pooled, atol=1e-5)
    plain = Projection(embed=4)
    assert set(plain.init(jax.random.key(0), TOKENS, method="token_features")["params"]) == {"token"}


def match_head():
    """Parameters of a matching head, and the head on (fused tokens, image and text embeddings, key)."""
    embed = np.asarray(l2_normalize(TOKENS[:, 0]))
    params = randomised(MatchHead().init(jax.random.key(0), TOKENS, MASK, embed, embed)["params"])

    def head(*inputs, key=None):
        return np.asarray(MatchHead(0.5).apply({"params": params}, inputs[0], MASK, *inputs[1:], key))

    return head, embed


def test_match_head_sees_cls_and_the_mean_of_real_tokens():
    run, embed = match_head()
    before = run(TOKENS, embed, embed)
    assert before.shape == (3, 2)
    padded = np.where(MASK[..., None], TOKENS, 5.0).astype(np.float32)
    np.testing.assert_allclose(run(padded, embed, embed), before, atol=1e-5)
    changed = TOKENS.copy()
    changed[0, 3] += 1
    assert not np.allclose(run(changed, embed, embed)[0], before[0])


def test_match_head_reads_where_the_embeddings_agree():
    run, embed = match_head()
    before = run(TOKENS, embed, embed)
    assert not np.allclose(run(TOKENS, embed, embed[::-1])[0], before[0])
    np.testing.assert_allclose(run(TOKENS, embed[::-1], embed), run(TOKENS, embed, embed[::-1]), atol=1e-5)  # a product
    assert not np.allclose(run(TOKENS, embed, embed, key=jax.random.key(0)), before)


def test_hash_codes_are_tanh_between_minus_one_and_one():
    head, embed = HashHead(bits=16, hidden=12), np.asarray(l2_normalize(TOKENS[:, 0]))
    params = randomised(head.init(jax.random.key(0), embed)["params"])
    codes = np.asarray(head.apply({"params": params}, embed))
    hidden = torch.nn.functional.gelu(
        torch.tensor(embed @ np.asarray(params["up"]["kernel"]) + np.asarray(params["up"]["bias"])), approximate="tanh"
    )
    np.testing.assert_allclose(
        codes,
        np.tanh(hidden.numpy() @ np.asarray(params["down"]["kernel"]) + np.asarray(params["down"]["bias"])),
        atol=1e-5,
    )
    assert codes.shape == (3, 16) and np.abs(codes).max() <= 1


BITS = 4
EMBED = np.asarray(l2_normalize(TOKENS[:, 0]))


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("kind", ["tanh", "sign", "select"])
def test_hash_heads_match_torch_in_value_and_gradient(kind, hidden):
    head, weights = HashHead(BITS, hidden, kind), np.random.default_rng(3).normal(size=(3, BITS)).astype(np.float32)
    params = randomised(head.init(jax.random.key(0), EMBED)["params"])

    def run(p):
        return head.apply({"params": p}, EMBED)

    grads = jax.grad(lambda p: (run(p) * weights).sum())(params)
    theirs = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), params)

    def layer(name, x):
        return x @ theirs[name]["kernel"] + theirs[name]["bias"]

    x = torch.tensor(EMBED)
    if hidden:
        x = layer("up", x)
        x = torch.relu(x) if kind == "select" else torch.nn.functional.gelu(x, approximate="tanh")
    x = layer("down" if hidden else "linear", x)
    if kind == "select":
        chance = torch.softmax(x.view(3, BITS, 2), 2)
        codes = chance[:, :, 1] - chance[:, :, 0]
    else:
        codes = torch.tanh(x)
    (codes * torch.tensor(weights)).sum().backward()
    expected = torch.where(codes > 0, 1.0, -1.0) if kind == "sign" else codes
    np.testing.assert_allclose(run(params), expected.detach(), atol=1e-5)
    jax.tree.map(lambda ours, leaf: np.testing.assert_allclose(ours, leaf.grad, atol=1e-4), grads, theirs)


def test_straight_through_codes_are_exactly_what_is_packed():
    x = jnp.array([-0.3, 0.0, 1e-30, 0.7])
    np.testing.assert_array_equal(straight_through_sign(x), [-1, -1, 1, 1])
    np.testing.assert_array_equal(jax.grad(lambda x: (straight_through_sign(x) * 3.0).sum())(x), [3, 3, 3, 3])


def test_the_distance_of_dchmts_double_vectors_is_half_of_ours():
    logits = np.random.default_rng(4).normal(size=(2, BITS, 2)).astype(np.float32)
    chance = np.asarray(jax.nn.softmax(logits, axis=-1))
    double, codes = chance.reshape(2, -1), chance[..., 1] - chance[..., 0]

    def squared(x):
        return np.square(x[0] - x[1]).sum()

    np.testing.assert_allclose(squared(double), squared(codes) / 2, rtol=1e-5)
