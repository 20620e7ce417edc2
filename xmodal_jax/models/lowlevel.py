"""Low-level features that drawings need and a classifier's last layer forgets: colour, layout, edges, as one token.

A network trained on photographs throws colour and coarse layout away before its last layer, and drawings are told apart
by them. All parts are fixed functions of the pixels.
"""

import jax
import jax.numpy as jnp

from xmodal_jax.types import Array

SIDE = 64  # pixels of a side of the small picture that all parts are computed on
CELLS = 8  # cells of a side of the thumbnail and of the edge histograms
BINS = 8  # edge orientations in half a turn
LEVELS = 4  # levels of each colour channel in the histogram


def small(image: Array) -> Array:
    """Resize uint8 image [B,H,W,3] to float32 [B,64,64,3] in [0, 1], antialiased."""
    x = image.astype(jnp.float32) / 255.0
    return jax.image.resize(x, (x.shape[0], SIDE, SIDE, 3), "linear", antialias=True)


def cell_means(x: Array) -> Array:
    """Average x [B,64,64,D] over 8 x 8 cells -> [B,8,8,D]."""
    cell = SIDE // CELLS
    return x.reshape(x.shape[0], CELLS, cell, CELLS, cell, x.shape[-1]).mean((2, 4))


def color_histogram(pixels: Array) -> Array:
    """Return square roots of the shares of 4 x 4 x 4 colours [B,64] in pixels [B,64,64,3], which are in [0, 1]."""
    level = jnp.clip((pixels * LEVELS).astype(jnp.int32), 0, LEVELS - 1)
    color = (level * jnp.array([LEVELS * LEVELS, LEVELS, 1])[None, None, None]).sum(-1).reshape(pixels.shape[0], -1)
    count = jax.vmap(lambda row: jnp.zeros(LEVELS**3).at[row].add(1.0))(color)
    return jnp.sqrt(count / color.shape[1])


def edge_histogram(pixels: Array) -> Array:
    """Return histograms of oriented gradients (Dalal and Triggs 2005) of pixels [B,64,64,3] -> [B,8*8*8].

    There are 8 x 8 cells with 8 orientations. Magnitudes are shared between the two nearest orientations; square roots,
    no block normalisation.
    """
    gray = pixels @ jnp.array([0.299, 0.587, 0.114])
    across = jnp.pad(gray[:, :, 2:] - gray[:, :, :-2], ((0, 0), (0, 0), (1, 1)))
    down = jnp.pad(gray[:, 2:] - gray[:, :-2], ((0, 0), (1, 1), (0, 0)))
    magnitude = jnp.sqrt(across**2 + down**2)
    turn = jnp.mod(jnp.arctan2(down, across) / jnp.pi, 1.0) * BINS
    distance = jnp.abs(turn[..., None] - jnp.arange(BINS, dtype=turn.dtype)[None, None, None])
    share = jnp.maximum(0.0, 1.0 - jnp.minimum(distance, BINS - distance))
    return jnp.sqrt(cell_means(magnitude[..., None] * share)).reshape(pixels.shape[0], -1)


def standardized(x: Array) -> Array:
    """Scale the rows of x [B,D] to mean 0 and variance 1 (a constant row becomes zeros)."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)


def summary(image: Array, stages: list[Array], width: int) -> Array:
    """Summarise uint8 image [B,H,W,3] and pooled features of inner stages [B,C] each as one token [B,1,width].

    Thumbnail, colours, edges and stages are standardised one by one, joined and padded with zeros to `width`.
    """
    pixels = small(image)
    thumbnail = cell_means(pixels).reshape(pixels.shape[0], -1)
    parts = [
        thumbnail,
        color_histogram(pixels),
        edge_histogram(pixels),
        *(stage.astype(jnp.float32) for stage in stages),
    ]
    joined = jnp.concatenate([standardized(part) for part in parts], axis=-1)
    return jnp.pad(joined, ((0, 0), (0, width - joined.shape[1])))[:, None]
