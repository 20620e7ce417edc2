"""Fusion against Hugging Face's BERT layers with cross-attention: value and gradient; and pairs picked by rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_layers import bert, run_layers, stack_of

from xmodal_jax.models.fusion import Fusion, causal_mask

PAIRS, LENGTH, PATCHES, WIDTH = 3, 6, 5, 16
FUSION = Fusion(width=WIDTH, layers=2, heads=4, hidden=24, memory_width=WIDTH)


@pytest.fixture(scope="module")
def case():
    """A BERT with cross-attention, its weights as ours, and random inputs of several lengths."""
    model = bert(cross=True, layers=2, width=WIDTH, heads=4, hidden=24)
    draw = np.random.default_rng(0)
    image, text = (draw.normal(size=(PAIRS, n, WIDTH)).astype(np.float32) for n in (PATCHES, LENGTH))
    mask = np.arange(LENGTH)[None, :] < np.array([6, 3, 1])[:, None]
    return model, {"layers": stack_of(model.encoder.layer)}, image, text, mask


@pytest.fixture(scope="module")
def fuse(case):
    """The compiled fusion on the case's weights."""
    return jax.jit(lambda image, text, mask, rows: FUSION.apply({"params": case[1]}, image, text, mask, rows))


def test_params_have_the_layout_of_the_table(case):
    _, params, image, text, mask = case
    made = jax.eval_shape(lambda: FUSION.init(jax.random.key(0), image, text, mask))["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)


def test_value_and_gradient_are_hugging_faces(case):
    model, params, image, text, mask = case
    inputs = [torch.tensor(x, requires_grad=True) for x in (image, text)]
    expected = run_layers(model.encoder.layer, inputs[1], mask[:, None, None, :], inputs[0])
    keep = torch.tensor(mask)[..., None]
    (expected * keep).square().sum().backward()

    def loss(params, image, text):
        fused = FUSION.apply({"params": params}, image, text, mask)
        return jnp.square(jnp.where(mask[..., None], fused, 0.0)).sum(), fused

    (_, fused), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, image, text)
    np.testing.assert_allclose(np.asarray(fused)[mask], expected.detach().numpy()[mask], atol=2e-5)
    for mine, theirs in zip(grads[1:], inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-3, atol=1e-3)
    for layer, theirs in enumerate(model.encoder.layer):
        ours = grads[0]["layers"]
        for mine, weight in (
            (ours["cross"]["key"]["kernel"], theirs.crossattention.self.key.weight),
            (ours["attention"]["query"]["kernel"], theirs.attention.self.query.weight),
            (ours["mlp"]["down"]["kernel"], theirs.output.dense.weight),
        ):
            np.testing.assert_allclose(mine[layer], weight.grad.numpy().T, rtol=1e-3, atol=1e-3)


def test_rows_pick_the_image_that_each_text_reads(case, fuse):
    _, _, image, text, mask = case
    rows = np.array([2, 0, 0], np.int32)
    np.testing.assert_allclose(fuse(image, text, mask, rows), fuse(image[rows], text, mask, None), atol=1e-5)


def test_padding_changes_no_real_token(case, fuse):
    _, _, image, text, mask = case
    changed = np.where(mask[..., None], text, 7.0).astype(np.float32)
    np.testing.assert_allclose(
        np.asarray(fuse(image, text, mask, None))[mask], np.asarray(fuse(image, changed, mask, None))[mask], atol=1e-5
    )


@pytest.mark.parametrize("rows", [None, np.array([2, 0, 0], np.int32)], ids=["own", "picked"])
def test_masked_tokens_of_the_memory_are_not_read(case, rows):
    _, params, image, text, mask = case
    seen = np.arange(PATCHES)[None, :] < np.array([5, 3, 1])[:, None]
    changed = np.where(seen[..., None], image, 7.0).astype(np.float32)
    run = jax.jit(lambda image, **how: FUSION.apply({"params": params}, image, text, mask, rows, **how))
    found = run(image, memory_mask=seen)
    np.testing.assert_allclose(run(changed, memory_mask=seen), found, atol=1e-5)
    for row, own in enumerate(range(PAIRS) if rows is None else rows):  # as if they were not there at all
        alone = FUSION.apply(
            {"params": params}, image[own : own + 1, seen[own]], text[row : row + 1], mask[row : row + 1]
        )
        np.testing.assert_allclose(found[row][mask[row]], alone[0][mask[row]], atol=1e-5)
    assert float(np.abs(run(image) - found).max()) > 1e-2


def test_causal_mask_is_lower_triangular_and_real():
    mask = np.asarray(causal_mask(jnp.array([[True, True, False]])))
    assert mask.shape == (1, 1, 3, 3)
    np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize("layers", [1, 2])
def test_cached_sides_give_the_same_fusion(layers):
    draw = np.random.default_rng(5)
    fusion = Fusion(width=WIDTH, layers=layers, heads=4, hidden=24, memory_width=WIDTH)
    image, text = (draw.normal(size=(PAIRS, n, WIDTH)).astype(np.float32) for n in (PATCHES, LENGTH))
    mask = np.arange(LENGTH)[None, :] < np.array([4, 3, 1])[:, None]
    params = fusion.init(jax.random.key(0), image, text, mask)

    def run(*inputs, **how):
        return fusion.apply(params, *inputs, **how)

    expected = run(image[::-1], text, mask)
    read = jax.tree.map(lambda x: x[:, ::-1], run(image, method="cache_memory"))
    begun = run(text, mask, method="cache_query")
    np.testing.assert_allclose(run(read, begun, mask, method="fuse_cached"), expected, atol=1e-5)
    seen = np.arange(PATCHES)[None, :] < np.array([2, 5, 3])[:, None]
    masked = run(read, begun, mask, memory_mask=seen, method="fuse_cached")
    np.testing.assert_allclose(masked, run(image[::-1], text, mask, memory_mask=seen), atol=1e-5)
    assert float(np.abs(masked - expected).max()) > 1e-3
    short = slice(0, 4)  # padding that no text of the block needs may be left out
    cut = run(read, begun[:, short], mask[:, short], method="fuse_cached")
    np.testing.assert_allclose(
        np.where(mask[:, short, None], cut, 0), np.where(mask[:, short, None], expected[:, short], 0), atol=1e-5
    )
