"""Local features of a picture: adaptive average pooling as PyTorch's, and which tokens are grids."""

import numpy as np
import pytest
import torch

from xmodal_jax.models.efficientnet import EfficientNetConfig
from xmodal_jax.models.features import FeaturesConfig
from xmodal_jax.models.grid import grid_map, group_parts, local_map
from xmodal_jax.models.resnet import ResNetConfig
from xmodal_jax.models.vit import ViTConfig


@pytest.mark.parametrize("side", [3, 4, 6, 7, 14])
def test_a_grid_is_pooled_as_by_torch(side):
    grid = np.random.default_rng(side).normal(size=(side, side)).astype(np.float32)
    cells = min(side, 4)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(grid)[None], cells).numpy().ravel()
    np.testing.assert_allclose(grid_map(side) @ grid.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "own, tokens, parts",
    [
        (ViTConfig(), 17, [("summary", 1), ("grid", 16)]),
        (ResNetConfig(), 16, [("grid", 16)]),
        (EfficientNetConfig(groups=(25, 1)), 26, [("grid", 25), ("summary", 1)]),
        (FeaturesConfig(groups=(16, 1, 36, 1)), 54, [("grid", 16), ("summary", 1), ("grid", 36), ("summary", 1)]),
        (FeaturesConfig(groups=(36,)), 36, [("set", 36)]),  # regions have no places
        (FeaturesConfig(), 5, [("set", 5)]),
    ],
)
def test_what_the_tokens_of_a_picture_are(own, tokens, parts):
    np.testing.assert_array_equal(own.local_map(tokens), local_map(parts))
    if own.groups:
        assert group_parts(own.groups, tokens) == parts


def test_two_caches_give_sixteen_cells_each_and_no_summary():
    places = FeaturesConfig(groups=(16, 1, 36, 1)).local_map(54)
    assert places.shape == (32, 54)
    np.testing.assert_array_equal(places[:16, :16], np.eye(16))
    np.testing.assert_array_equal(places[16:, 17:53], grid_map(6))
    assert (places[:, [16, 53]] == 0).all() and (places[:16, 16:] == 0).all() and (places[16:, :17] == 0).all()
    np.testing.assert_allclose(places.sum(1), 1, rtol=1e-6)


def test_a_vits_summary_comes_first():
    places = ViTConfig().local_map(50)
    assert places.shape == (16, 50) and (places[:, 0] == 0).all()
    np.testing.assert_array_equal(places[:, 1:], grid_map(7))
