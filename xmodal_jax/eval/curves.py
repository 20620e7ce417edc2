"""Compute precision@N and precision-recall curves of a search by Hamming distance, exact whatever the ties.

Everything is counted from two histograms of each query: gallery items and relevant ones at each distance 0..K. A
curve's points are the sets within a radius r, which no tie can change. precision@N is the expectation over random
orders of equal distances: a distance with n items, r of them relevant, that is cut after j of n counts j r / n.

All means are over the queries that have anything relevant in the gallery, as for MAP.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.eval import retrieval
from xmodal_jax.search import codes

BLOCK = 1 << 22  # distances, or places of histograms, of one block of queries
POINTS = 33  # the most radii of a curve
Relevant = Callable[[slice], np.ndarray]  # rows of queries -> bool [b,m]


class Counts(NamedTuple):
    """Gallery items at each Hamming distance of each query, int32 [n,K+1], and the relevant ones of them."""

    items: np.ndarray
    right: np.ndarray

    def kept(self) -> Iterator["Counts"]:
        """Yield blocks of the queries that have anything relevant. Raises UserError if none has."""
        kept = np.flatnonzero(self.right.any(axis=1))
        if len(kept) == 0:
            raise UserError("No query has anything relevant in the gallery, so its tables mean nothing.")
        size = max(1, BLOCK // self.items.shape[1])
        for start in range(0, len(kept), size):
            rows = kept[start : start + size]
            yield Counts(self.items[rows], self.right[rows])


def by_positives(positives: np.ndarray, gallery: int) -> Relevant:
    """Define relevance by rows of the gallery, int [n,P] padded with -1."""

    def rows(block: slice) -> np.ndarray:
        own = positives[block]
        table = np.zeros((len(own), gallery + 1), bool)
        np.put_along_axis(table, np.where(own < 0, gallery, own), True, axis=1)
        return table[:, :gallery]

    return rows


def by_labels(query: np.ndarray, gallery: np.ndarray) -> Relevant:
    """Define relevance by multi-hot labels [n,C] and [m,C]: a label in common."""
    return lambda block: query[block] @ gallery.T > 0


def counts(query: np.ndarray, gallery: np.ndarray, relevant: Relevant, chunk: int | None = None) -> Counts:
    """Count the histograms of hash values query [n,K] and gallery [m,K] of any real type; signs are taken here.

    Raises:
      UserError: an empty side, different lengths, K not a multiple of 8, values that are not numbers.
    """
    if len(query) == 0 or len(gallery) == 0:
        raise UserError("There is nothing to evaluate: a side has no codes.")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"The query codes have {query.shape[1]} bits and the gallery's {gallery.shape[1]}; "
            "make both with one model."
        )
    asked, rows = (codes.unpack(codes.pack(side)).astype(np.float32) for side in (query, gallery))
    bits, size, found = asked.shape[1], chunk or max(1, BLOCK // len(rows)), []
    for start in range(0, len(asked), size):
        block = slice(start, start + size)
        distance = ((bits - asked[block] @ rows.T) / 2).astype(np.int64)  # exact: whole numbers in float32
        place = (distance + np.arange(len(distance))[:, None] * (bits + 1)).ravel()
        shape, right = (len(distance), bits + 1), relevant(block).ravel()

        def histogram(x: np.ndarray, shape: tuple[int, int] = shape) -> np.ndarray:
            return np.bincount(x, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int32)

        found.append([histogram(place), histogram(place[right])])
    return Counts(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def precision_at(found: Counts, ns: Sequence[int]) -> dict[str, float]:
    """Compute {"P@N": mean over queries of the share of relevant items among the first N, expected over ties}.

    Raises UserError for an N outside the gallery.
    """
    gallery = int(found.items[0].sum())
    if not all(1 <= n <= gallery for n in ns):
        raise UserError(
            f"P@N with N = {', '.join(map(str, ns))} does not fit a gallery of {gallery}; "
            f"write N between 1 and {gallery}."
        )
    sums, queries = np.zeros(len(ns)), 0
    for part in found.kept():
        before = np.cumsum(part.items, axis=1) - part.items
        share = part.right / np.maximum(part.items, 1)
        sums += [(np.clip(n - before, 0, part.items) * share).sum() for n in ns]
        queries += len(part.items)
    return {f"P@{n}": float(total / (n * queries)) for n, total in zip(ns, sums, strict=True)}


def chance_precision(found: Counts) -> float:
    """Average the share of relevant items over queries: P@N of a random order for any N."""
    shares = [part.right.sum(1) / part.items.sum(1) for part in found.kept()]
    return float(np.concatenate(shares).mean())


def curve(found: Counts, points: int = POINTS) -> dict[str, list[Any]]:
    """Compute precision and recall within radius r: {"radius", "precision", "recall"}, evenly spaced radii 0..K.

    Precision is the mean over the queries that find anything within r, None if none does.
    """
    radii = np.unique(np.linspace(0, found.items.shape[1] - 1, points).round().astype(int))
    recall, precision, finding, queries = np.zeros(len(radii)), np.zeros(len(radii)), np.zeros(len(radii)), 0
    for part in found.kept():
        items, right = (np.cumsum(x, axis=1) for x in part)
        recall += (right[:, radii] / right[:, -1:]).sum(0)
        precision += (right[:, radii] / np.maximum(items[:, radii], 1)).sum(0)
        finding += (items[:, radii] > 0).sum(0)
        queries += len(right)
    means = [float(total / some) if some else None for total, some in zip(precision, finding, strict=True)]
    return {"radius": radii.tolist(), "precision": means, "recall": (recall / queries).tolist()}


def random_recall(positives: np.ndarray, gallery: int, ks: Sequence[int]) -> dict[str, float]:
    """Compute {"R@k"} in percent of a random order of the gallery, for positives [n,P] padded with -1."""
    right = (np.asarray(positives) >= 0).sum(1)
    found = retrieval.Places(np.zeros_like(right), np.full_like(right, gallery), right)  # as if all codes were alike
    return {f"R@{k}": 100.0 * float(np.mean(found.hits(k))) for k in ks}
