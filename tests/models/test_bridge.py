"""The residual attention: nothing at the start, PyTorch's attention afterwards, masks, and the gate's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xmodal_jax.models.bridge import KINDS, Bridge

ROWS, TOKENS, WIDTH, HEADS = 3, 4, 8, 2


@pytest.fixture(scope="module")
def tokens():
    """Student and teacher tokens, and a mask with padding."""
    draw = np.random.default_rng(0)
    mask = np.arange(TOKENS)[None, :] < np.array([4, 2, 3])[:, None]
    return *(draw.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32) for _ in range(2)), mask


def started(kind, tokens):
    """A bridge and its fresh parameters."""
    bridge = Bridge(kind, WIDTH, HEADS, 12)
    return bridge, bridge.init(jax.random.key(0), *tokens)["params"]


def moved(params):
    """Every parameter away from its start."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.4 * draw.normal(size=x.shape), jnp.float32), params)


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_as_plain_momentum_contrast(kind, tokens):
    bridge, params = started(kind, tokens)
    assert (np.asarray(bridge.apply({"params": params}, *tokens)) == 0.0).all()
    grads = jax.grad(lambda p: bridge.apply({"params": p}, *tokens).sum())(params)
    assert float(jnp.abs(grads["gamma"])) > 0.0  # and the gate can open


def linear(x, params):
    return x @ torch.tensor(np.asarray(params["kernel"])) + torch.tensor(np.asarray(params["bias"]))


def torch_mlp(x, params):
    norm = torch.nn.functional.layer_norm(
        x, (WIDTH,), *(torch.tensor(np.asarray(params["norm"][name])) for name in ("scale", "bias")), eps=1e-12
    )
    return linear(torch.nn.functional.gelu(linear(norm, params["up"]), approximate="tanh"), params["down"])


def torch_cross(student, teacher, mask, params):
    """The formula of the docstring with PyTorch's multi-head attention."""
    own = params["attention"]
    attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def array(name, part):
        return torch.tensor(np.asarray(own[name][part]).T.copy())

    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([array(name, "kernel") for name in ("query", "key", "value")]))
        attention.in_proj_bias.copy_(torch.cat([array(name, "bias") for name in ("query", "key", "value")]))
        attention.out_proj.weight.copy_(array("out", "kernel"))
        attention.out_proj.bias.copy_(array("out", "bias"))
    scale, bias = (torch.tensor(np.asarray(own["norm"][name])) for name in ("scale", "bias"))

    def norm(x):
        return torch.nn.functional.layer_norm(x, (WIDTH,), scale, bias, eps=1e-12)

    both = torch.cat([norm(student), norm(teacher)], dim=1)
    hidden = torch.tensor(~np.concatenate([mask, mask], axis=1))
    read, _ = attention(norm(teacher), both, both, key_padding_mask=hidden)
    read = float(params["gamma"]) * read
    return read + float(params["gamma_mlp"]) * torch_mlp(teacher + read, params)


def torch_gate(student, teacher, mask, params):
    """The mask branch on the teacher's trunk."""
    return float(params["gamma"]) * torch.sigmoid(torch_mlp(teacher, params)) * teacher


@pytest.mark.parametrize(("kind", "reference"), [("cross", torch_cross), ("gate", torch_gate)])
def test_value_and_gradient_are_pytorchs(kind, reference, tokens):
    bridge, params = started(kind, tokens)
    params = moved(params)
    inputs = [torch.tensor(x, requires_grad=True) for x in tokens[:2]]
    expected = reference(*inputs, tokens[2], params)
    weight = np.random.default_rng(2).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()

    def run(student, teacher):
        return bridge.apply({"params": params}, student, teacher, tokens[2])

    np.testing.assert_allclose(run(*tokens[:2]), expected.detach(), atol=1e-5)
    found = jax.grad(lambda pair: (run(*pair) * weight).sum())(tokens[:2])
    for ours, theirs in zip(found, inputs, strict=True):
        other = np.zeros_like(ours) if theirs.grad is None else theirs.grad
        np.testing.assert_allclose(ours, other, atol=1e-5)


def test_padding_is_not_read(tokens):
    bridge, params = started("cross", tokens)
    student, teacher, mask = tokens
    other = np.where(mask[:, :, None], student, 99.0).astype(np.float32)

    def run(x):
        return np.asarray(bridge.apply({"params": moved(params)}, x, teacher, mask))[mask]

    np.testing.assert_allclose(run(other), run(student), atol=1e-5)
