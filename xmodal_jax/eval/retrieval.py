"""Compute recall@k of retrieval, exactly and in blocks of queries, with one tie rule.

The tie rule, everywhere in this package: a measure is its expectation when items with equal scores are put in random
order. With a items scoring more than the best relevant one, t items at its score and r of those relevant, a query's R@k
is 1 - C(t-r, j) / C(t, j) with j = clip(k - a, 0, t), and its rank (the table gives the median) is a + (t + 1) / (r +
1). Sorting instead lets the order of the files decide, which matters when hash codes tie at every distance. Asking
whether the expected rank is within k would be wrong too: R@1 would then count a query as if it lost every tie.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xmodal_jax.data.evaluation import EvalSplit
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import local_mesh, replicated, split_rows
from xmodal_jax.search import dense

TIE_RULE = "R@k is the expectation of a hit over random orders of tied items"
NEGLIGIBLE = 1e-18  # a probability so small that 1 minus it is 1
BLOCK_SCORES = 1 << 25  # scores of one block of queries: 128 MiB of float32, whatever the number of queries


class Places(NamedTuple):
    """Standing of the best relevant item of each query: int64 [n] each, counted over the whole gallery.

    above: items that score more; tied: items at its score, itself included; relevant: the relevant ones of those.
    """

    above: np.ndarray
    tied: np.ndarray
    relevant: np.ndarray

    def ranks(self) -> np.ndarray:
        """Return the expected rank of the first relevant item, float64 [n], 1 = first."""
        return self.above + (self.tied + 1) / (self.relevant + 1)

    def hits(self, k: int) -> np.ndarray:
        """Return the probability that a relevant item is among the first `k`, float64 [n]: 1 - C(t-r, j) / C(t, j).

        C(t-r, j) / C(t, j) = C(t-j, r) / C(t, r) is a product of min(j, r) factors below 1, which cannot overflow at
        any size.
        """
        above, tied, relevant = (np.asarray(count, np.float64) for count in self)
        places = np.clip(k - above, 0, tied)
        more, fewer = np.maximum(places, relevant), np.minimum(places, relevant)
        missed, factor = np.where(more + fewer > tied, 0.0, 1.0), 0
        while (active := (factor < fewer) & (missed > NEGLIGIBLE)).any():
            left = tied[active] - factor
            missed[active] *= (left - more[active]) / left
            factor += 1
        return 1.0 - missed

    def won(self) -> "Places":
        """Return the places with every tie won."""
        return Places(self.above, *(np.ones_like(self.above) for _ in range(2)))

    def lost(self) -> "Places":
        """Return the places with every tie lost to the items that are not relevant."""
        return Places(self.above + self.tied - self.relevant, *(np.ones_like(self.above) for _ in range(2)))


def query_blocks(arrays: Sequence[np.ndarray], size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Cut arrays [n,...] into blocks of `size` rows, the last one padded with copies of its last row.

    Yields the number of real rows and the blocks.
    """
    count = len(arrays[0])
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield min(size, count - start), [array[rows] for array in arrays]


def block_size(queries: int, gallery: int, chunk: int | None, multiple: int = 1) -> int:
    """Return the queries per block, at most all, rounded up to a multiple.

    It is `chunk`, or as many as keep a block's scores under `BLOCK_SCORES`.
    """
    wanted = min(queries, chunk or max(1, BLOCK_SCORES // gallery))
    return -(-wanted // multiple) * multiple


def _refuse_bad_recall(query: np.ndarray, gallery: np.ndarray, positives: np.ndarray) -> None:
    """Refuse empty or mismatched sides, values that are not finite, and positives outside the gallery or missing."""
    if len(query) == 0 or len(gallery) == 0:
        raise UserError("There is nothing to evaluate: the query or gallery side is empty.")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"The query is {query.shape[1]} wide and the gallery {gallery.shape[1]}; embed both with the same model."
        )
    if len(positives) != len(query):
        raise UserError(
            f"There are {len(query)} queries and {len(positives)} rows of positives; "
            "write one row of positives per query."
        )
    for side, rows in (("query", query), ("gallery", gallery)):
        # NaN compares false with everything, so a diverged model would score a perfect recall
        if not np.isfinite(rows).all():
            raise UserError(f"The {side} embeddings are not finite: the model has diverged.")
    if positives.max() >= len(gallery) or not positives.min() >= -1:
        raise UserError(
            f"A positive is outside the gallery of {len(gallery)} rows; "
            f"write 0 to {len(gallery) - 1}, or -1 as padding."
        )
    empty = np.flatnonzero((positives < 0).all(axis=1))
    if len(empty):
        raise UserError(f"{len(empty)} queries have no positive, the first is query {empty[0]}; leave them out.")


def _unique_positives(positives: np.ndarray) -> np.ndarray:
    """Replace repetitions in positives [n,P] by -1, so that no relevant item is counted twice."""
    ordered = np.sort(positives, axis=1)
    repeated = np.zeros(ordered.shape, bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(repeated, -1, ordered).astype(np.int32)


@functools.partial(jax.jit, static_argnames="mesh")
def places_block(query: jax.Array, gallery: jax.Array, positives: jax.Array, mesh: Mesh) -> jax.Array:
    """Count above, tied and relevant, int32 [3,b], for query [b,E], gallery [m,E] and positives int32 [b,P].

    The positives' scores are read out of the same block of scores that is counted: computed apart, they would differ in
    the last bit and ties would be lost.
    """
    scores = dense.inner_product(query, gallery)
    found = jnp.take_along_axis(scores, jnp.maximum(positives, 0), axis=1)
    found = jnp.where(positives >= 0, found, -jnp.inf)
    best = found.max(axis=1, keepdims=True)
    counts = [(scores > best), (scores == best), (found == best)]
    places = jnp.stack([count.sum(axis=1, dtype=jnp.int32) for count in counts])
    return jax.lax.with_sharding_constraint(places, replicated(mesh))


def places(
    query: np.ndarray, gallery: np.ndarray, positives: np.ndarray, chunk: int | None = None, mesh: Mesh | None = None
) -> Places:
    """Find where each query's best relevant item stands, exactly, without the n x m matrix.

    Args:
      query: [n,E] embeddings (normalised, or ±1 hash values), ranked by inner product.
      gallery: [m,E].
      positives: int [n,P] rows of the gallery that are right, -1 padded.
      chunk: queries per block; by default as many as keep a block of scores within 128 MiB.
      mesh: split each block of queries over data x fsdp of it, by default over all devices of this process; the gallery
        is on each.

    Raises:
      UserError: different widths, an empty side, a query without a positive, non-finite embeddings.
    """
    query, gallery, positives = np.asarray(query, np.float32), np.asarray(gallery, np.float32), np.asarray(positives)
    _refuse_bad_recall(query, gallery, positives)
    mesh, parts = mesh or local_mesh(), []
    gallery = jax.device_put(gallery, replicated(mesh))
    size = block_size(len(query), len(gallery), chunk, mesh.size)
    for count, block in query_blocks([query, _unique_positives(positives)], size):
        asked, right = (split_rows(mesh, part) for part in block)
        parts.append(np.asarray(places_block(asked, gallery, right, mesh), np.int64)[:, :count])
    return Places(*np.concatenate(parts, axis=1))


def recall_of_places(found: Places, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Compute {"R@k": percent, expected over ties, ..., "median_rank": the median of the expected ranks}."""
    table = {f"R@{k}": 100.0 * float(np.mean(found.hits(k))) for k in ks}
    return {**table, "median_rank": float(np.median(found.ranks()))}


def refuse_large_k(ks: Sequence[int], gallery: int) -> None:
    """Refuse a k that is not between 1 and the number of items in the gallery."""
    if not all(1 <= k <= gallery for k in ks):
        raise UserError(
            f"R@k with k = {', '.join(map(str, ks))} does not fit a gallery of {gallery}; "
            f"write k between 1 and {gallery}."
        )


def recall(
    query: np.ndarray,
    gallery: np.ndarray,
    positives: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Compute recall@k in percent and the median rank; a query counts once if any of its positives is in the top k.

    Arguments as in `places`; a hit is expected over ties (see the module's head).

    Raises:
      UserError: as in `places`, and a k larger than the gallery.

    Examples:
      >>> texts = np.eye(4)
      >>> recall(texts[[0, 1, 2, 2]], texts, np.array([[0], [1], [2], [3]]), ks=(1,))
      {'R@1': 75.0, 'median_rank': 1.0}
    """
    refuse_large_k(ks, len(gallery))
    return recall_of_places(places(query, gallery, positives, chunk, mesh), ks)


def summary(i2t: dict[str, float], t2i: dict[str, float]) -> dict[str, object]:
    """Join both directions with totals: {"i2t", "t2i", "mR": mean of all R@k, "rSum": sum, "ties": the tie rule}."""
    values = [value for side in (i2t, t2i) for name, value in side.items() if name.startswith("R@")]
    return {"i2t": i2t, "t2i": t2i, "mR": sum(values) / len(values), "rSum": sum(values), "ties": TIE_RULE}


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Join rows of different length into one int32 matrix [n, longest], padded with -1."""
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def positives_from_owners(
    caption_owner: np.ndarray, text_keys: np.ndarray, images: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positives if any matching caption is right, in both directions.

    An image owns a text when one of its captions is that text.

    Args:
      caption_owner: int [M], the image (0 .. images-1) of each caption.
      text_keys: int [M], equal for identical captions.
      images: number of images; by default the largest owner + 1.

    Returns:
      Image to text int32 [images,P] and text to image int32 [M,P'], both -1 padded, for `recall`.
    """
    count = int(images or np.max(caption_owner) + 1)
    image, text = (np.arange(count), np.arange(count)), (np.asarray(caption_owner), np.asarray(text_keys))
    return right_of(image, text, count), right_of(text, image, count)


def positives(split: EvalSplit) -> tuple[np.ndarray, np.ndarray]:
    """Return the positives of both sides of a split: `right_of` from left to right and from right to left."""
    left, right = ((side.owner, split.matches(side)) for side in (split.left, split.right))
    return right_of(left, right, len(split.keys)), right_of(right, left, len(split.keys))


def right_of(asks: tuple[np.ndarray, np.ndarray], gives: tuple[np.ndarray, np.ndarray], records: int) -> np.ndarray:
    """Return the positives of each input of one side: int32 [m,P], places on the other side, -1 padded, for `recall`.

    A side is (owner, key), int [m] each: the record of each input, and a number that is equal for identical inputs.
    An input's positives are the other side's inputs of any record that owns an identical input, and inputs identical
    to those.
    """
    keys, key = np.unique(asks[1], return_inverse=True)
    owners_of = [np.unique(own) for own in _groups(key, asks[0], len(keys))]
    others, other = np.unique(gives[1], return_inverse=True)
    same = _groups(other, np.arange(len(other)), len(others))
    kinds_of = [np.unique(own) for own in _groups(gives[0], other, records)]
    found = [np.unique(np.concatenate([kinds_of[owner] for owner in own])) for own in owners_of]
    nothing = [np.zeros(0, np.int64)]
    return _padded([np.concatenate([same[kind] for kind in own] or nothing) for own in found])[key]


def _groups(group: np.ndarray, values: np.ndarray, count: int) -> list[np.ndarray]:
    """Split values into the groups 0 .. count-1, in order."""
    order = np.argsort(group, kind="stable")
    return np.split(values[order], np.searchsorted(group[order], np.arange(1, count)))


def topk(query: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` best gallery rows of each query by inner product, exactly: scores and rows, [n,k] each.

    Works in blocks of queries, each split over all devices of this process.
    """
    return dense.dense_topk(query, gallery, k, cosine=False, mesh=local_mesh())
