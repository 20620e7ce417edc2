"""Search exactly on the host with NumPy alone: the checks of every backend, the merge of lists, both kinds of top-k.

Nothing here imports jax, so an index can be asked where jax is not installed.
"""

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search import codes

BLOCK_BYTES = 1 << 19  # of codes at once: they and their counts stay in a core's cache
BLOCK_SCORES = 1 << 24  # of queries x rows at once: 64 MiB of float32
SHORT, LONG = 1e-15, 1e15  # rows outside have squares that float32 rounds to nothing or to infinity


def refuse_unsearchable(query: np.ndarray, gallery_shape: tuple[int, ...], k: int) -> None:
    """Raise `UserError` unless `query` [q,X] can ask a gallery of shape (n,X) for its best `k` rows."""
    count, width = gallery_shape
    if count <= 0:
        raise UserError("The gallery is empty: there is nothing to search; index at least one record.")
    if query.ndim != 2:
        raise UserError(f"A query has {query.ndim} axes; write one row per query, [q, {width}].")
    if query.shape[1] != width:
        raise UserError(f"The query is {query.shape[1]} wide and the gallery {width}; encode both with the same model.")
    if not 1 <= k <= count:
        raise UserError(f"k = {k} does not fit a gallery of {count} rows; write k between 1 and {count}.")


def refuse_not_finite(rows: np.ndarray, first: int = 0) -> None:
    """Raise `UserError` unless all of rows [n,E] are finite. first: the number of the first row, for the sentence."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"Embedding {first + bad[0]} is not finite ({len(bad)} of {len(rows)} rows); the model that made it has "
            "diverged: take an earlier checkpoint."
        )


def refuse_spoiled(values: np.ndarray, name: str) -> None:
    """Raise `UserError` for scores that no rows of length 1 have: embeddings on disk that were changed."""
    if not (np.abs(values) < LONG).all():
        raise UserError(
            f"Embeddings of {name} are not finite or not of length 1; search with 'verify', or index again."
        )


def unit_rows(embeddings: np.ndarray, first: int = 0) -> np.ndarray:
    """Divide rows [n,E] by their length, float32; a row of zeros stays zero, so its cosine to anything is 0.

    Rows may have any length that float32 or float64 holds: those whose squares leave float32 are divided by their
    largest value first. `first` is the number of the first row, for the sentence.

    Raises:
      UserError: a row is not finite.
    """
    rows, tiny = np.asarray(embeddings), np.finfo(np.float32).tiny
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        small = rows.astype(np.float32, copy=False)
        length = np.linalg.norm(small, axis=1, keepdims=True)
        unit = small / np.maximum(length, tiny)
    if not np.isfinite(length).all():
        refuse_not_finite(rows, first)
    odd = np.flatnonzero((length[:, 0] < SHORT) | (length[:, 0] > LONG))
    if len(odd):
        largest = np.abs(rows[odd]).max(axis=1, keepdims=True)
        scaled = (rows[odd] / np.where(largest > 0, largest, 1)).astype(np.float32)
        unit[odd] = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), tiny)
    return unit


def merge_topk(values: list[np.ndarray], rows: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge the top-k lists of consecutive blocks of one gallery, each [q,k_i], into [q,k]; ties by ascending row."""
    value, row = np.concatenate(values, axis=1), np.concatenate(rows, axis=1)
    order = np.argsort(-value, axis=1, kind="stable")[:, :k]  # earlier blocks hold lower rows
    return np.take_along_axis(value, order, axis=1), np.take_along_axis(row, order, axis=1)


def hamming_topk(query: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest codes of each query, one query at a time with `np.bitwise_count`.

    Args:
      query: uint8 [q,K/8] from `codes.pack`.
      gallery: uint8 [n,K/8]; a memory map is read a block at a time.
      k: at most n.

    Returns:
      Distances int32 [q,k] (bits, ascending) and rows int32 [q,k]; equal distances by ascending row.

    Raises:
      UserError: an empty gallery, codes of different length, or k outside 1..n.
    """
    refuse_unsearchable(query, gallery.shape, k)
    found = [_NearestSoFar(k) for _ in query]
    asked, step = codes.words(query, 8), max(1, BLOCK_BYTES // gallery.shape[1])
    for start in range(0, len(gallery), step):
        rows = codes.words(gallery[start : start + step], 8)
        for one, best in zip(asked, found, strict=True):
            best.take(_distances(one, rows), start)

    def shaped(parts: list[np.ndarray]) -> np.ndarray:
        return np.asarray(parts, np.int32).reshape(len(query), k)

    return shaped([best.distances for best in found]), shaped([best.rows for best in found])


def _distances(one: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Count the bits that differ: one code [W], rows [n,W] of words -> uint16 [n] (uint8 for one word)."""
    # repeated rather than broadcast, so that NumPy's inner loop is over all words and not over the few of a row
    counts = np.bitwise_count(rows.reshape(-1) ^ np.tile(one, len(rows))).reshape(rows.shape)
    if rows.shape[1] == 1:
        return counts[:, 0]
    distance = counts[:, 0].astype(np.uint16)
    for word in range(1, rows.shape[1]):
        distance += counts[:, word]
    return distance


class _NearestSoFar:
    """The `k` nearest of one query over the blocks seen so far, in order; a later row must be nearer."""

    def __init__(self, k: int):
        self.k = k
        self.distances, self.rows = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def take(self, distance: np.ndarray, start: int) -> None:
        """Merge the distances [n] of the rows from `start` on."""
        if len(self.rows) >= self.k:  # a row as far as the k-th loses to it: it is later
            near = np.flatnonzero(distance < self.distances[-1])
        elif len(distance) > self.k:
            near = np.flatnonzero(distance <= np.partition(distance, self.k - 1)[self.k - 1])
        else:
            near = np.arange(len(distance))
        if len(near):
            distances = np.concatenate([self.distances, distance[near]])
            order = np.argsort(distances, kind="stable")[: self.k]
            self.distances, self.rows = distances[order], np.concatenate([self.rows, near + start])[order]


def dense_topk(query: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` largest inner products of each query [q,E] with rows [n,E]: float32 [q,k] and int32 [q,k].

    Ties come by row, and equal rows have equal scores: the last bits of a matrix product depend on where a row stands
    in it, so the rows that come near the k-th place are multiplied again, each by itself.

    Raises UserError as `hamming_topk`.
    """
    refuse_unsearchable(query, gallery.shape, k)
    query, gallery = np.asarray(query, np.float32), np.asarray(gallery, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        longest = np.sqrt(np.einsum("ne,ne->n", gallery, gallery).max())
    refuse_spoiled(longest, "the gallery")
    # both products are within E / 2 units of float32's last place of the true one, times the lengths; both sides move
    margin = 4 * gallery.shape[1] * 2.0**-24 * longest * np.linalg.norm(query, axis=1)
    values, rows = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int32)
    size = max(1, BLOCK_SCORES // len(gallery))
    for start in range(0, len(query), size):
        for i, scores in enumerate(query[start : start + size] @ gallery.T, start):
            least = np.partition(scores, -k)[-k] if k < len(scores) else scores.min()
            near = np.flatnonzero(scores >= least - margin[i])
            exact = _products(query[i], gallery, near)
            best = np.argsort(-exact, kind="stable")[:k]
            values[i], rows[i] = exact[best], near[best]
    return values, rows


def _products(one: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Multiply one [E] with some rows [m] of [n,E], each summed in the same order: float32 [m]."""
    step = max(1, BLOCK_SCORES // gallery.shape[1])
    parts = [(gallery[rows[at : at + step]] * one).sum(axis=1) for at in range(0, len(rows), step)]
    return np.concatenate(parts)
