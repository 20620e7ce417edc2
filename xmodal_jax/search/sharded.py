"""Search exactly with the rows of an index split over the devices of a mesh's "data" axis."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xmodal_jax.errors import UserError
from xmodal_jax.search import dense, hamming, topk
from xmodal_jax.search.index import CopiedIndex, Index

AXIS = "data"
MOST_ROWS = 2**31 - 1  # rows are int32 on the device
DENSE_SCORES = 1 << 24  # of one device at once


class ShardedIndex(CopiedIndex):
    """The rows of an `Index` on the devices of `mesh`, consecutive rows on each, placed at the first search.

    The answers are those of the index itself, ties by row. Search is one program per block of queries: each device
    finds its own best k, and the lists, k values per device and query, are gathered and merged. On the command line
    this is `xmodal search --backend sharded`.
    """

    def __init__(self, index: Index, mesh: Mesh):
        if AXIS not in mesh.shape:
            raise UserError(f'The mesh has axes {mesh.axis_names} and no "{AXIS}"; name one "{AXIS}".')
        if index.count > MOST_ROWS:
            raise UserError(f"{index.name} has over {MOST_ROWS} rows; search it in several parts.")
        super().__init__(index)
        self.mesh = mesh
        self._placed: dict[str, tuple[jax.Array, int]] = {}

    def _find(self, asked: np.ndarray, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        rows, share = self._rows(kind)
        shards = self.mesh.shape[AXIS]
        own = {"codes": hamming.nearest_in, "dense": _dense_in}[kind]

        def run(query: np.ndarray) -> tuple[jax.Array, jax.Array]:
            return _search(own, self.mesh, min(k, share), k, share, query, rows, jnp.int32(self.count))

        if kind == "codes":
            block = hamming.query_block(len(asked), k, (rows.shape[0] // shards, *rows.shape[1:]))
            value, row = hamming.in_blocks(run, asked, block)
        else:
            value, row = topk.in_blocks(run, asked, topk.query_block(len(asked), DENSE_SCORES // share))
        return value, row.astype(np.int64)

    def _rows(self, kind: str) -> tuple[jax.Array, int]:
        """Return the rows on the devices, and how many each has (padding counted)."""
        if kind not in self._placed:
            shards = self.mesh.shape[AXIS]
            if kind == "codes":
                words = -(-self.bits // 32)
                steps = hamming.steps_of(words)
                tiles = -(-self.count // (steps * hamming.LANES * shards))
                share, shape = tiles * steps * hamming.LANES, (tiles * shards, steps, words, hamming.LANES)

                def part(start: int) -> np.ndarray:
                    return hamming.tiled(self._some(start * share, share, kind), tiles)
            else:
                share = -(-self.count // shards)
                shape = (share * shards, self.width)

                def part(start: int) -> np.ndarray:
                    return _padded(self._some(start * share, share, kind), share)

            length = shape[0] // shards  # of the first axis, a device's
            place = NamedSharding(self.mesh, PartitionSpec(AXIS))

            def own(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None  # given for every device
                return part((index[0].start or 0) // length)  # one device's rows in memory at a time

            self._placed[kind] = jax.make_array_from_callback(shape, place, own), share
        return self._placed[kind]

    def _some(self, start: int, count: int, kind: str) -> np.ndarray:
        """Read at most `count` rows of the index from `start` on."""
        return self.index.vectors_of(np.arange(min(start, self.count), min(start + count, self.count)), kind)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Append rows of zeros, up to `count`."""
    return np.pad(rows, ((0, count - len(rows)), (0, 0)))


def _dense_in(query: jax.Array, rows: jax.Array, count: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Find the best rows as `hamming.nearest_in` does, by inner product."""
    real = jnp.arange(rows.shape[0], dtype=jnp.int32)[None] < count
    return topk.tiled_topk(jnp.where(real, dense.inner_product(query, rows), -jnp.inf), k)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _search(
    own: Callable[..., tuple[jax.Array, jax.Array]],
    mesh: Mesh,
    own_k: int,
    k: int,
    share: int,
    query: jax.Array,
    rows: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Run `own(query, a device's rows, how many are real, own_k)` on every device; merge the best `k`, [b,k] each."""

    def on_device(query: jax.Array, rows: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = jax.lax.axis_index(AXIS).astype(jnp.int32) * share
        value, row = own(query, rows, jnp.clip(count - start, 0, share), own_k)
        # by device, then as each found them: a stable sort of that is by value, then by row
        value, row = (jax.lax.all_gather(x, AXIS, axis=1, tiled=True) for x in (value, row + start))
        order = jnp.argsort(-value, axis=1, stable=True)[:, :k]
        return jnp.take_along_axis(value, order, axis=1), jnp.take_along_axis(row, order, axis=1)

    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        on_device, mesh=mesh, in_specs=(whole, split, whole), out_specs=(whole, whole), check_vma=False
    )
    return mapped(query, rows, count)
