"""Evaluate hash codes: MAP with shared labels, its value for random codes, and recall by Hamming distance.

Hamming distances take K + 1 values, so most ranks are ties. Average precision here is its exact expectation over random
orders of equal scores (McSherry and Najork, 2008), the same rule as that of `retrieval`. "MAP@ALL" ranks the whole
gallery; "mAP@k" cuts the ranked list at k and divides by min(k, relevant items), which is the textbook definition (some
hashing code cuts the number of relevant items instead, and its numbers are higher).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.eval import retrieval
from xmodal_jax.parallel.mesh import local_mesh, replicated, split_rows, to_host
from xmodal_jax.search import codes, dense


def _runs(ordered: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the first column of each entry's run of equal values in [b,m], and the run's end: int32 [b,m] twice."""
    rows, count = ordered.shape
    column = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], ordered.shape)
    edge = jnp.ones((rows, 1), bool)
    new = jnp.concatenate([edge, ordered[:, 1:] != ordered[:, :-1]], axis=1)
    last = jnp.concatenate([new[:, 1:], edge], axis=1)
    start = jax.lax.cummax(jnp.where(new, column, 0), axis=1)
    end = jax.lax.cummin(jnp.where(last, column + 1, count), axis=1, reverse=True)
    return start, end


@jax.jit
def expected_average_precision(scores: jax.Array, relevant: jax.Array, k: int) -> jax.Array:
    """Compute average precision of the first `k` places, expected over random orders of equal scores.

    A place in a run of n equal scores with r relevant items, j places into it, after N items of which R are relevant,
    is relevant with probability r/n and then has a precision of (R + 1 + j (r-1)/(n-1)) / (N + j + 1).

    Args:
      scores: float32 [b,m], more is better.
      relevant: bool [b,m].
      k: at most m (m is MAP@ALL).

    Returns:
      float32 [b]; NaN where nothing is relevant.
    """
    negative, right = jax.lax.sort((-scores, relevant.astype(jnp.int32)), dimension=1, num_keys=1)
    start, end = _runs(negative)
    before = jnp.pad(jnp.cumsum(right, axis=1), ((0, 0), (1, 0)))
    above = jnp.take_along_axis(before, start, axis=1)
    inside = (jnp.take_along_axis(before, end, axis=1) - above).astype(jnp.float32)
    size = (end - start).astype(jnp.float32)
    column = jnp.arange(scores.shape[1], dtype=jnp.int32)[None]
    step = (column - start).astype(jnp.float32)
    hits = above.astype(jnp.float32) + 1.0 + step * (inside - 1.0) / jnp.maximum(size - 1.0, 1.0)
    terms = inside / size * hits / (column + 1).astype(jnp.float32)
    possible = jnp.minimum(before[:, -1], k).astype(jnp.float32)
    return jnp.where(column < k, terms, 0.0).sum(axis=1) / jnp.where(possible > 0, possible, jnp.nan)


@jax.jit  # apart from the sort, which is then compiled once for all lengths of codes and all k
def _scores_block(
    query: jax.Array, gallery: jax.Array, labels: jax.Array, gallery_labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute scores [b,m] and relevance bool [b,m] of a block of queries."""
    return dense.inner_product(query, gallery), dense.inner_product(labels, gallery_labels) > 0


def mean_average_precision(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    k: int | None = None,
    chunk: int | None = None,
) -> float:
    """Compute MAP@ALL (or textbook mAP@k) between 0 and 1; an item is relevant if it shares at least one label.

    Args:
      query: [n,K] hash values ±1 (ranked by Hamming distance) or [n,E] embeddings (ranked by inner product).
      gallery: [m,K] or [m,E].
      query_labels: [n,C] multi-hot.
      gallery_labels: [m,C].
      k: cut of the ranked list; None is the whole gallery.
      chunk: queries per block; by default bounded by memory. A block is split over all devices of this process.

    Returns:
      The mean over the queries for which the gallery holds something relevant.

    Raises:
      UserError: k outside the gallery, rows that do not match, or no query with anything relevant.
    """
    arrays = [np.asarray(array, np.float32) for array in (query, query_labels, gallery, gallery_labels)]
    _refuse_bad_labels(*arrays)
    count = len(arrays[2])
    k = count if k is None else k
    retrieval.refuse_large_k([k], count)
    mesh, values = local_mesh(), []
    rows, labels = jax.device_put(arrays[2:], replicated(mesh))
    # about eight arrays of the block's size live at once
    size = retrieval.block_size(len(query), 8 * count, chunk, mesh.size)
    for real, block in retrieval.query_blocks(arrays[:2], size):
        asked, wanted = (split_rows(mesh, part) for part in block)
        values.append(to_host(expected_average_precision(*_scores_block(asked, rows, wanted, labels), k), real))
    values = np.concatenate(values).astype(np.float64)
    if np.isnan(values).all():
        raise UserError("No query shares a label with the gallery, so MAP means nothing; check the labels.")
    return float(np.nanmean(values))


def _refuse_bad_labels(query: np.ndarray, labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray) -> None:
    """Refuse an empty side, rows without labels, and values that are not finite."""
    if len(query) == 0 or len(gallery) == 0:
        raise UserError("There is nothing to evaluate: the query or gallery side is empty.")
    for side, rows, multi_hot in (("query", query, labels), ("gallery", gallery, gallery_labels)):
        if len(rows) != len(multi_hot):
            raise UserError(
                f"The {side} side has {len(rows)} rows and {len(multi_hot)} rows of labels; write one for each row."
            )
        if not np.isfinite(rows).all():
            raise UserError(f"The {side} rows are not finite: the model has diverged.")
    if query.shape[1] != gallery.shape[1] or labels.shape[1] != gallery_labels.shape[1]:
        raise UserError(
            f"Query rows and labels are {query.shape[1]} and {labels.shape[1]} wide, those of the gallery "
            f"{gallery.shape[1]} and {gallery_labels.shape[1]}; make both with the same model and label names."
        )


def random_code_value(
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    bits: int,
    k: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> float:
    """Compute `mean_average_precision` of random codes of this length, the floor of any MAP: mean over seeded draws.

    Raises:
      UserError: `bits` is not a multiple of 8, or as `mean_average_precision`.
    """
    codes.refuse_bad_bits(bits)

    def draw(seed: int) -> float:
        rng = np.random.default_rng(seed)
        query, gallery = (2 * rng.integers(0, 2, (len(own), bits)) - 1 for own in (query_labels, gallery_labels))
        return mean_average_precision(query, gallery, query_labels, gallery_labels, k)

    return float(np.mean([draw(seed) for seed in seeds]))


def hamming_recall(
    query: np.ndarray,
    gallery: np.ndarray,
    positives: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int | None = None,
) -> dict[str, float]:
    """Compute `retrieval.recall` by Hamming distance over hash values of any real type, [n,K] and [m,K].

    Signs are taken here. The inner product of ±1 codes is K minus twice the distance, an exact integer in float32, so
    ties are exact.
    """
    retrieval.refuse_large_k(ks, len(gallery))
    return retrieval.recall_of_places(hamming_places(query, gallery, positives, chunk), ks)


def hamming_places(
    query: np.ndarray, gallery: np.ndarray, positives: np.ndarray, chunk: int | None = None
) -> retrieval.Places:
    """Compute `retrieval.places` by Hamming distance, with arguments as in `hamming_recall`."""
    query, gallery = (codes.unpack(codes.pack(side)) for side in (query, gallery))
    return retrieval.places(query, gallery, positives, chunk)


class Labelled(NamedTuple):
    """Codes of pictures [n,K] and captions [m,K], signs or values before them, and multi-hot labels [n,C], [m,C]."""

    image: np.ndarray
    text: np.ndarray
    image_labels: np.ndarray
    text_labels: np.ndarray

    def first(self, bits: int) -> "Labelled":
        """Keep the first `bits` bits of the codes."""
        return self._replace(image=self.image[:, :bits], text=self.text[:, :bits])

    def signs(self) -> "Labelled":
        """Replace the codes by -1 and 1."""
        image, text = (codes.unpack(codes.pack(side)) for side in (self.image, self.text))
        return self._replace(image=image, text=text)

    def ways(self, gallery: "Labelled") -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Return queries, rows of the gallery and the labels of both, for each direction."""
        return {
            "i2t": (self.image, gallery.text, self.image_labels, gallery.text_labels),
            "t2i": (self.text, gallery.image, self.text_labels, gallery.image_labels),
        }


def label_table(asked: Labelled, gallery: Labelled, k: int = 50) -> dict[str, dict[str, float]]:
    """Compute MAP@ALL and mAP@k of the codes in both directions, each with the value of random codes beside it.

    Args:
      asked: the queries.
      gallery: the items that they rank: the same, or a retrieval database of other records.
      k: cut of mAP@k; at most the smaller side of the gallery.

    Returns:
      {"i2t" and "t2i": {"MAP@ALL", "MAP@ALL random", "mAP@k", "mAP@k random"}}, values between 0 and 1.
    """
    return {name: _label_row(*side, k) for name, side in asked.signs().ways(gallery.signs()).items()}


def _label_row(
    query: np.ndarray, gallery: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray, k: int
) -> dict[str, float]:
    """Compute the row of one direction of `label_table`."""
    row = {}
    for name, cut in (("MAP@ALL", None), (f"mAP@{k}", k)):
        row[name] = mean_average_precision(query, gallery, query_labels, gallery_labels, cut)
        row[f"{name} random"] = random_code_value(query_labels, gallery_labels, query.shape[1], cut)
    return row
