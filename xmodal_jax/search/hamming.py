"""Search exactly by Hamming distance over packed codes, on the device.

The k nearest rows lie in the k tiles of up to 128 rows with the smallest minima, so one pass keeps a minimum per tile
and nothing else, and the distances inside k tiles are counted again. Rows are stored so that the pass reads memory in
order and its innermost loop is over 8 neighbouring words: [tile, step, word, lane]. Minima leave as uint16.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.search import codes, topk
from xmodal_jax.search.numpy_engine import merge_topk, refuse_unsearchable

LANES = 8  # words side by side, a vector of 256 bits: chosen by time on an AMD EPYC (benchmarks/hamming_speed.py)
STEPS = 16  # vectors of a tile whose minimum is taken in registers
UNROLLED = 128  # steps x words written out in one loop body: more makes slow programs of long codes
BLOCK_ROWS = 1 << 22  # rows of one program: the minima of 64 queries are 64 MiB
GATHERED = 1 << 24  # words gathered in the second pass by one block of queries: 64 MiB


class Resident(NamedTuple):
    """Codes on the device: `words` uint32 [t,S,W,L], row t*S*L + s*L + l, and the number of real rows."""

    words: jax.Array
    count: int


def steps_of(words: int) -> int:
    """Return the steps of a tile for codes of this many words of 32 bits."""
    return max(2, min(STEPS, UNROLLED // words))


def tiled(gallery: np.ndarray, tiles: int = 0) -> np.ndarray:
    """Arrange packed codes uint8 [n,K/8] as words uint32 [t,S,W,L], zero rows appended.

    `tiles`: how many; default a power of two of rows, then steps of 65,536 rows, so that few shapes are ever compiled.
    """
    words = codes.words(gallery)
    size = steps_of(words.shape[1]) * LANES
    padded = min(1 << max(len(words) - 1, 0).bit_length(), 1 << 16)
    tiles = tiles or -(-(-(-len(words) // padded) * padded) // size)
    words = np.pad(words, ((0, tiles * size - len(words)), (0, 0)))
    return np.ascontiguousarray(words.reshape(tiles, size // LANES, LANES, -1).transpose(0, 1, 3, 2))


def resident(gallery: np.ndarray) -> Resident:
    """Put packed codes uint8 [n,K/8] on the device once, as words in tiles."""
    return Resident(jnp.asarray(tiled(gallery)), len(gallery))


def _step_distances(query: jax.Array, words: jax.Array, step: int) -> jax.Array:
    """Return the distances to one step of each tile: query uint32 [b,W], words [t,S,W,L] -> uint32 [t,b,L]."""
    parts = (query[None, :, word, None] ^ words[:, None, step, word] for word in range(words.shape[2]))
    return functools.reduce(jnp.add, map(jax.lax.population_count, parts))


def tile_minima(query: jax.Array, words: jax.Array) -> jax.Array:
    """Return the smallest distance in each tile: query uint32 [b,W], words [t,S,W,L] -> uint16 [t,b]."""
    best = _step_distances(query, words, 0)
    for step in range(1, words.shape[1]):
        best = jnp.minimum(best, _step_distances(query, words, step))
    # apart from the reduction: fused with it, the loop over the lanes would not become vector instructions
    return jax.lax.optimization_barrier(best.astype(jnp.uint16)).min(axis=2)


def distances(query: jax.Array, words: jax.Array) -> jax.Array:
    """Return all distances: query uint32 [b,W], words [b or 1,t,S,W,L] -> int32 [b,t*S*L]."""
    counts = jax.lax.population_count(words ^ query[:, None, None, :, None])
    return counts.astype(jnp.int32).sum(axis=3).reshape(query.shape[0], -1)


def nearest_in(query: jax.Array, words: jax.Array, count: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Find the `k` nearest of the first `count` rows, traceable.

    Returns nearness (minus the distance) float32 [b,k], best first, and rows int32 [b,k]; equal ones by ascending row;
    -inf where `count` is below k.
    """
    tiles, size = words.shape[0], words.shape[1] * words.shape[3]
    few = tiles <= max(4 * k, 8)
    if few:  # too few tiles to skip any worthwhile share
        chosen = jnp.broadcast_to(jnp.arange(tiles, dtype=jnp.int32), (query.shape[0], tiles))
        near = -distances(query, words[None]).astype(jnp.float32)
    else:
        chosen = _chosen_tiles(query, words, count, k)
        near = -distances(query, words[jnp.minimum(chosen, tiles - 1)]).astype(jnp.float32)
    rows = (chosen[:, :, None] * size + jnp.arange(size, dtype=jnp.int32)[None, None]).reshape(near.shape)
    values, where = topk.tiled_topk(jnp.where(rows < count, near, -jnp.inf), k)
    return values, jnp.take_along_axis(rows, where, axis=1)


def _chosen_tiles(query: jax.Array, words: jax.Array, count: jax.Array, k: int) -> jax.Array:
    """Choose tiles that hold the `k` nearest rows, in row order, int32 [b,k+1].

    The tile with the end of the rows is always among them: padding could have made its minimum. Tiles behind it are
    numbered past the last tile, where no row is real.
    """
    tiles, size = words.shape[0], words.shape[1] * words.shape[3]
    end = count // size
    whole = jnp.arange(tiles, dtype=jnp.int32) < end
    near = jnp.where(whole[None], -tile_minima(query, words).T.astype(jnp.float32), -jnp.inf)
    _, best = topk.tiled_topk(near, k)
    best = jnp.where(best < end, best, tiles)
    last = jnp.broadcast_to(jnp.minimum(end, tiles).astype(jnp.int32), (query.shape[0], 1))
    return jnp.sort(jnp.concatenate([best, last], axis=1), axis=1)


_nearest_jit = functools.partial(jax.jit, static_argnames="k")(nearest_in)


def query_block(queries: int, k: int, shape: tuple[int, ...]) -> int:
    """Return how many queries one program takes: a power of two that bounds minima and gathered words."""
    tiles, steps, words, lanes = shape
    gathered = min(tiles, k + 1) * words * steps * lanes
    most = max(1, min(GATHERED // gathered, (BLOCK_ROWS * 64) // (tiles * steps * lanes)))
    return topk.query_block(queries, 1 << (most.bit_length() - 1))


def in_blocks(
    nearest: Callable[[np.ndarray], Sequence], query: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Call `nearest(words of b queries)` for blocks of packed query uint8 [q,K/8]: distances, rows int32 [q,k]."""
    value, row = topk.in_blocks(nearest, codes.words(query), block)
    return (-value).astype(np.int32), row


def resident_topk(query: np.ndarray, gallery: Resident, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the top k as `hamming_topk`, with a gallery already on the device (from `resident`)."""

    def nearest(words: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return _nearest_jit(words, gallery.words, jnp.int32(gallery.count), k=k)

    return in_blocks(nearest, query, query_block(len(query), k, gallery.words.shape))


def hamming_topk(query: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the top k on the device; arguments, answers and errors as in `numpy_engine.hamming_topk`."""
    refuse_unsearchable(query, gallery.shape, k)
    values, rows = [], []
    for start in range(0, len(gallery), BLOCK_ROWS):
        part = resident(gallery[start : start + BLOCK_ROWS])
        value, row = resident_topk(query, part, min(k, part.count))
        values.append(-value)
        rows.append(row + np.int32(start))
    value, row = merge_topk(values, rows, k)
    return -value, row
