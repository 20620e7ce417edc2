"""ViT against PyTorch pieces, its patch order, its errors and its options (parity with Hugging Face: tests/convert)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import dense
from xmodal_jax.models.vit import ViT, patchify

TINY = dict(patch=4, width=16, layers=2, heads=2, hidden=32, image_size=12)


@pytest.fixture(scope="module")
def image():
    """Three random pictures."""
    return np.random.default_rng(1).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def params(image):
    """Random weights of the tiny tower."""
    return ViT(**TINY).init(jax.random.key(0), image)["params"]


def test_params_have_the_documented_layout(params):
    assert set(params) == {"patch", "cls", "position", "layers", "norm"}
    assert params["patch"]["kernel"].shape == (48, 16)
    assert params["position"].shape == (1, 10, 16)
    assert params["layers"]["attention"]["query"]["kernel"].shape == (2, 16, 16)


def test_patches_are_row_major_and_equal_a_strided_convolution(rng):
    x = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
    p = {"kernel": rng.normal(size=(48, 5)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
    kernel = torch.tensor(p["kernel"]).reshape(4, 4, 3, 5).permute(3, 2, 0, 1)
    expected = F.conv2d(torch.tensor(x).permute(0, 3, 1, 2), kernel, torch.tensor(p["bias"]), stride=4)
    np.testing.assert_allclose(dense(p, patchify(jnp.asarray(x), 4)), expected.flatten(2).mT, atol=1e-5)


def test_a_picture_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="10 x 12 pixels do not divide into patches of 4"):
        patchify(jnp.zeros((1, 10, 12, 3)), 4)


def test_a_picture_of_another_size_is_refused(params):
    with pytest.raises(UserError, match="16 patches, but the tower was built for 9"):
        ViT(**TINY).apply({"params": params}, np.zeros((1, 16, 16, 3), np.uint8))


def test_pixels_are_normalised_per_channel(params):
    model = ViT(**TINY, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    image = np.full((1, 2, 2, 3), 255, np.uint8)
    values = model.apply({"params": params}, image, method="normalise")
    np.testing.assert_allclose(values[0, 0, 0], [0.9 / 0.5, 0.8 / 0.25, 0.7 / 0.125], rtol=1e-6)


def test_every_remat_policy_gives_the_same_value_and_gradient(params, image):
    def gradient(remat):
        return jax.jit(jax.grad(lambda p: jnp.square(ViT(**TINY, remat=remat).apply({"params": p}, image)).sum()))(
            params
        )

    reference = jax.tree.leaves(gradient("none"))
    for remat in ("full", "dots"):
        for ours, theirs in zip(jax.tree.leaves(gradient(remat)), reference, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_dropout_acts_only_with_a_key(params, image):
    model = ViT(**TINY, dropout=0.5)
    plain = model.apply({"params": params}, image)
    np.testing.assert_array_equal(plain, ViT(**TINY).apply({"params": params}, image))
    first, second = (model.apply({"params": params}, image, jax.random.key(i)) for i in (1, 2))
    assert not np.allclose(first, plain)
    assert not np.allclose(first, second)


def test_bfloat16_tokens_stay_near_float32(params, image):
    exact = np.asarray(ViT(**TINY).apply({"params": params}, image))
    half = ViT(**TINY, dtype=jnp.bfloat16).apply({"params": params}, image)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), exact, atol=0.1)
