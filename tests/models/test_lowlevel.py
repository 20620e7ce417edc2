"""Colour, layout and edges of pictures whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from xmodal_jax.models.lowlevel import BINS, cell_means, color_histogram, edge_histogram, small, standardized, summary


def plain(color, size=64):
    """One picture of one colour."""
    return np.broadcast_to(np.array(color, np.uint8), (1, size, size, 3)).copy()


def test_small_is_antialiased_as_in_pillow(rng):
    image = rng.integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image[0]).resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_allclose(small(jnp.asarray(image))[0], expected, atol=0.01)


def test_cell_means_are_means_of_8_by_8_blocks(rng):
    x = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    means = np.asarray(cell_means(jnp.asarray(x)))
    np.testing.assert_allclose(means[1, 2, 5], x[1, 16:24, 40:48].mean((0, 1)), atol=1e-6)


def test_the_color_histogram_counts_the_64_colours():
    half = plain((255, 0, 0))
    half[:, :, :16] = (0, 0, 255)
    share = np.square(np.asarray(color_histogram(small(jnp.asarray(half)))))[0]
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose([share[3 * 16], share[3]], [0.75, 0.25], atol=0.01)


def test_white_falls_into_the_last_bin():
    assert color_histogram(small(jnp.asarray(plain((255, 255, 255)))))[0, 63] == 1.0


@pytest.mark.parametrize("axis, orientation", [(2, 0), (1, BINS // 2)])
def test_edges_have_an_orientation_and_a_place(axis, orientation):
    image = plain((0, 0, 0))
    index = [slice(None)] * 4
    index[axis] = slice(32, None)
    image[tuple(index)] = 255
    histogram = np.asarray(edge_histogram(small(jnp.asarray(image)))).reshape(8, 8, BINS)
    cells = histogram.sum(2) if axis == 2 else histogram.sum(2).T
    assert (cells[:, 3:5] > 0.1).all() and np.abs(np.delete(cells, (3, 4), axis=1)).max() < 1e-5
    strong = histogram[histogram.sum(2) > 0.1]
    assert (strong.argmax(1) == orientation).all() and np.abs(np.delete(strong, orientation, axis=1)).max() < 1e-5


def test_a_diagonal_edge_is_shared_between_no_more_than_two_orientations():
    row = np.arange(64)
    image = np.where((row[:, None] > row[None, :])[..., None], 255, 0).astype(np.uint8).repeat(3, 2)[None]
    inner = np.asarray(edge_histogram(small(jnp.asarray(image)))).reshape(8, 8, BINS)[3, 3]
    assert (inner > 1e-3).sum() <= 2 and inner.argmax() in (2, 6)


def test_standardized_rows(rng):
    x = rng.normal(size=(3, 50)).astype(np.float32) * 4 + 2
    np.testing.assert_allclose(
        standardized(jnp.asarray(x)), (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), atol=1e-4
    )
    assert (np.asarray(standardized(jnp.ones((1, 5)))) == 0).all()


def test_the_summary_joins_all_parts_and_pads(rng):
    image, stages = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8), [rng.normal(size=(2, 10)).astype(np.float32)]
    token = np.asarray(jax.jit(lambda x, s: summary(x, s, 900))(image, stages))
    used = 8 * 8 * 3 + 64 + 8 * 8 * BINS + 10
    assert token.shape == (2, 1, 900) and (token[:, 0, used:] == 0).all()
    np.testing.assert_allclose(token[:, 0, used - 10 : used], standardized(jnp.asarray(stages[0])), atol=1e-5)
    assert np.abs(token[:, 0, :used]).sum(1).min() > 0
