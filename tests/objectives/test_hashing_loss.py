"""The hashing loss: each term against its formula in PyTorch, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import ROWS, tiny_batch

from xmodal_jax.errors import UserError
from xmodal_jax.objectives.codes import batch_rows
from xmodal_jax.objectives.hashing import Hash, pairwise_likelihood

BITS = 6


@pytest.fixture(scope="module")
def arrays():
    """Embeddings of width BITS: the heads are tanh."""
    draw = np.random.default_rng(8)
    return unit(draw, ROWS, BITS) * 2, unit(draw, ROWS, BITS) * 2


def term(objective, image, text, batch):
    """The objective's term on given embeddings."""
    heads = {"codes": lambda side, x: jnp.tanh(x)}
    return objective(Given(image, text, heads=heads), batch, None)


def reference(objective, image, text, match):
    """The three terms in PyTorch, one by one, per row."""
    image, text = torch.tanh(image), torch.tanh(text)
    rows = torch.zeros(ROWS)
    for left, right in ((image, text), (text, image)):
        theta = objective.scale / BITS * left @ right.T
        losses = torch.nn.functional.binary_cross_entropy_with_logits(theta, match.float(), reduction="none")
        for i in range(ROWS):
            rows[i] += objective.similarity * 0.5 * (losses[i][match[i]].mean() + losses[i][~match[i]].mean())
    code = torch.sign(image + text).detach()
    rows = rows + objective.quantization * 0.5 * ((image - code) ** 2 + (text - code) ** 2).mean(1)
    return rows + objective.balance * ((image.mean(0) ** 2).mean() + (text.mean(0) ** 2).mean())


@pytest.mark.parametrize("weights", [(1.0, 0.1, 0.1), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_value_and_gradient_are_the_formulas(arrays, weights):
    objective = Hash(**dict(zip(("similarity", "quantization", "balance"), weights, strict=True)))
    batch = tiny_batch()

    def run(image, text):
        return term(objective, image, text, batch).mean()

    values = term(objective, *arrays, batch).values
    grads = jax.jit(jax.grad(run, argnums=(0, 1)))(*arrays)
    match = torch.eye(ROWS, dtype=torch.bool)
    match[0, 1] = match[1, 0] = True  # one caption
    inputs = [torch.tensor(x, requires_grad=True) for x in arrays]
    rows = reference(objective, *inputs, match)
    rows.mean().backward()
    np.testing.assert_allclose(values, rows.detach(), rtol=1e-5, atol=1e-7)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-7)


def test_the_scale_of_dcmh_is_half_the_inner_product(rng):
    left, right = np.sign(rng.normal(size=(2, 4, BITS))).astype(np.float32)
    target = np.eye(4, dtype=np.float32)
    theta = left @ right.T / 2  # equation 1 of Jiang and Li 2017
    losses = np.log1p(np.exp(theta)) - target * theta
    expected = np.diag(losses) + (losses * (1 - target)).sum(1) / 3
    scale = Hash(scale=BITS / 2).scale / BITS
    found = pairwise_likelihood(left, right, target, jnp.ones(4), jnp.float32(scale))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_exact_is_the_published_sum_over_the_rows(arrays):
    objective, batch = Hash(quantization=1.0, balance=1.0, exact=True), tiny_batch()

    def run(image, text):
        return term(objective, image, text, batch).mean()

    value, grads = jax.jit(jax.value_and_grad(run, argnums=(0, 1)))(*arrays)
    inputs = [torch.tensor(x, requires_grad=True) for x in arrays]
    image, text = (torch.tanh(x) for x in inputs)
    match = torch.eye(ROWS)
    match[0, 1] = match[1, 0] = 1.0
    theta, code = image @ text.T / 2, torch.sign(image + text).detach()
    total = -(match * theta - torch.log1p(torch.exp(theta))).sum()
    total = total + ((code - image) ** 2).sum() + ((code - text) ** 2).sum()
    total = total + (image.sum(0) ** 2).sum() + (text.sum(0) ** 2).sum()
    (total / ROWS).backward()
    np.testing.assert_allclose(value, total.detach() / ROWS, rtol=1e-5)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)


def test_similarity_is_id_caption_or_shared_label():
    labels = jnp.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]], jnp.float32)
    batch = {"id": jnp.array([1, 2, 3, 1], jnp.int32), "text/key": jnp.arange(4, dtype=jnp.int32), "labels": labels}
    plain = np.eye(4)
    plain[0, 3] = plain[3, 0] = 1

    def similar(by_label):
        return batch_rows(batch, ("image", "text"), by_label).similar

    np.testing.assert_array_equal(similar(False), plain)
    plain[1, 2] = plain[2, 1] = 1
    np.testing.assert_array_equal(similar(True), plain)


def test_agreeing_codes_are_counted(arrays):
    image = np.abs(arrays[0])
    metrics = term(Hash(), image, image * np.array([1, 1, 1, -1, -1, -1], np.float32), tiny_batch()).metrics
    assert metrics["bits_agree"] == 0.5


def test_a_scale_of_zero_is_refused():
    with pytest.raises(UserError, match="hash.scale is 0.0; write a number above 0"):
        Hash(scale=0.0).check("hash")
