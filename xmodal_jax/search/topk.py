"""Find the top k of many rows exactly: the best tiles first, then the best rows inside them.

`jax.lax.top_k` over a million scores sorts far more than it has to. The k best rows lie in the k tiles with the best
maxima, so one maximum per tile, a top-k over the tiles and a top-k inside k tiles give the same answer for a
fraction of the work. Scores are float32 throughout (on CPU top_k of int32 is tens of times slower).

Ties: the lower row first, as a stable sort would have it. That holds through both stages: every tile whose maximum is
above the k-th score is taken, then tiles that tie with it in row order, and the taken tiles are put back in row order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from xmodal_jax.parallel.mesh import BATCH, mesh_of, replicated, split_rows

TILE = 128
BLOCK_SCORES = 1 << 24  # scores held at once by one block of queries: 64 MiB of float32, enough for full matmuls


def tiled_topk(scores: jax.Array, k: int, tile: int = TILE) -> tuple[jax.Array, jax.Array]:
    """Find the `k` largest of each row, exactly.

    Args:
      scores: float32 [b,n].
      k: static, at most n.
      tile: static, rows per tile.

    Returns:
      Values float32 [b,k] in descending order and their columns int32 [b,k]; equal values by ascending column.
    """
    rows, count = scores.shape
    if count <= 4 * k * tile or count <= 8 * tile:  # too few tiles to skip any worthwhile share
        return jax.lax.top_k(scores, k)
    tiles = -(-count // tile)
    padded = jnp.pad(scores, ((0, 0), (0, tiles * tile - count)), constant_values=-jnp.inf)
    padded = padded.reshape(rows, tiles, tile)
    _, best = jax.lax.top_k(padded.max(axis=2), k)
    best = jnp.sort(best, axis=1)  # back in row order, so that ties inside resolve to the lower row
    inside = jnp.take_along_axis(padded, best[:, :, None], axis=1).reshape(rows, k * tile)
    values, where = jax.lax.top_k(inside, k)
    column = jnp.take_along_axis(best, where // tile, axis=1) * tile + where % tile
    return values, column


class Resident(NamedTuple):
    """A gallery on the device: `rows` [n,X] (zero rows appended) and the number of real rows."""

    rows: jax.Array
    count: int


def resident(gallery: np.ndarray, mesh: Mesh | None = None) -> Resident:
    """Put a gallery [n,X] on the device once, or on each of a mesh, padded so that few shapes are ever compiled."""
    count = len(gallery)
    step = min(1 << max(count - 1, 0).bit_length(), 1 << 16)  # a power of two, then steps of 65,536 rows
    rows = np.pad(gallery, ((0, -count % step), (0, 0)))
    return Resident(jnp.asarray(rows) if mesh is None else jax.device_put(rows, replicated(mesh)), count)


@functools.partial(jax.jit, static_argnames=("score", "k", "mesh"))
def topk_block(
    score: Callable[[jax.Array, jax.Array], jax.Array],
    query: jax.Array,
    rows: jax.Array,
    count: jax.Array,
    k: int,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Find the top k of one block of queries over a mesh: `score(query, rows)` -> float32 [b,n], padding never wins.

    Each device sorts the scores of its own queries: left to itself, XLA (jax 0.10.2) gathers all scores for `top_k`.
    """

    def local(query: jax.Array, rows: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        real = jnp.arange(rows.shape[0], dtype=jnp.int32)[None] < count
        return tiled_topk(jnp.where(real, score(query, rows), -jnp.inf), k)

    everywhere = PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(BATCH, everywhere, everywhere), out_specs=BATCH)(
        query, rows, count
    )


def blocked_topk(
    score: Callable, query: np.ndarray, gallery: Resident, k: int, block_scores: int = BLOCK_SCORES
) -> tuple[np.ndarray, np.ndarray]:
    """Find the top k of any number of queries, in blocks that are split over the devices which have the gallery.

    Args:
      score: module-level function (it is a static argument) of query [b,X] and rows [n,X] -> float32 [b,n].
      query: [q,X].
      gallery: from `resident`.
      k: at most `gallery.count`.
      block_scores: scores held at once; bounds the memory whatever the number of queries.

    Returns:
      Values float32 [q,k], rows int32 [q,k], best first, ties by ascending row.
    """
    mesh, block = mesh_of(gallery.rows), query_block(len(query), block_scores // gallery.rows.shape[0])

    def nearest(part: np.ndarray) -> list[np.ndarray]:
        found = topk_block(score, split_rows(mesh, part), gallery.rows, jnp.int32(gallery.count), k, mesh)
        return [np.asarray(x)[:block] for x in found]

    return in_blocks(nearest, query, block)


def query_block(queries: int, most: int) -> int:
    """Return how many queries one program takes: `most`, or less: a power of two, so that few shapes are compiled."""
    return max(1, min(1 << max(queries - 1, 0).bit_length(), most))


def in_blocks(
    nearest: Callable[[np.ndarray], Sequence], query: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Call `nearest([block,X])` for each block of query [q,X], filled with zeros; join both of its results, [q,k]."""
    parts = [query[start : start + block] for start in range(0, max(len(query), 1), block)]
    found = [nearest(np.pad(part, ((0, block - len(part)), (0, 0)))) for part in parts]
    value, row = (np.concatenate([np.asarray(part[i]) for part in found])[: len(query)] for i in (0, 1))
    return value, row
