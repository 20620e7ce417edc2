"""Native-language transfer against PyTorch's mean squared error: value, gradient, and no gradient to the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import ROWS

from xmodal_jax.objectives.transfer import Transfer

EMBED = 6


@pytest.fixture(scope="module")
def sides():
    draw = np.random.default_rng(3)
    return unit(draw, ROWS, EMBED), unit(draw, ROWS, EMBED)


def ours(target, own, batch):
    """The term, and the gradients of its mean for both sides."""

    def loss(target, own):
        term = Transfer(pair=("image", "text"))(Given(target, own), batch, None)
        return term.mean(), term

    (_, term), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(target, own)
    return term, grads


def test_value_and_gradient_are_pytorchs(sides):
    term, (to_target, to_own) = ours(*sides, {"id": jnp.arange(ROWS)})
    target, own = (torch.tensor(x, requires_grad=True) for x in sides)
    loss = EMBED * torch.nn.functional.mse_loss(own, target.detach())
    loss.backward()
    assert term.values.shape == term.weight.shape == (ROWS,) and not np.asarray(to_target).any()
    np.testing.assert_allclose(term.mean(), loss.item(), rtol=1e-6)
    np.testing.assert_allclose(to_own, own.grad.numpy(), rtol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(target, own).mean().item()
    np.testing.assert_allclose(term.metrics["cosine"], cosine, rtol=1e-5)


def test_a_record_without_the_language_does_not_count(sides):
    valid = np.arange(ROWS) % 3 > 0
    term, (_, to_own) = ours(*sides, {"text/valid": jnp.asarray(valid)})
    wanted = np.square(sides[0] - sides[1]).sum(1)[valid].mean()
    np.testing.assert_allclose(term.mean(), wanted, rtol=1e-6)
    assert not np.asarray(to_own)[~valid].any() and np.asarray(to_own)[valid].any(1).all()
