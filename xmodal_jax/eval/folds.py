"""Evaluate retrieval in folds: a split cut into groups of pictures, each ranked by itself, and the mean over them.

COCO's "1K test" is the mean over five folds of 1,000 pictures of its 5,000 test pictures, in the order of the split.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from xmodal_jax.data.evaluation import EvalSplit, Side
from xmodal_jax.encode.embed import Embedded, PairScorer
from xmodal_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Fold:
    """Some records of a split: the places `left` [n] and `right` [m] of their inputs, and the part of the split."""

    left: np.ndarray
    right: np.ndarray
    split: EvalSplit

    def sides(self, left: Embedded, right: Embedded) -> tuple[Embedded, Embedded]:
        """Select the fold's inputs from both sides of the whole split."""
        return _taken(left, self.left), _taken(right, self.right)


def _taken(whole: Embedded, rows: np.ndarray) -> Embedded:
    """Select rows of a side, without its tokens and mask."""
    return Embedded(**jax.tree.map(lambda x: x[rows], vars(dataclasses.replace(whole, tokens=None, mask=None))))


def folds_of(split: EvalSplit, count: int, pictures: int) -> Iterator[Fold]:
    """Yield the first `count` times `pictures` records in their order; an input is in the fold of its record."""
    for first in range(0, count * pictures, pictures):
        yield fold_of(split, np.arange(first, first + pictures))


def fold_of(split: EvalSplit, records: np.ndarray) -> Fold:
    """Return the fold of some records int [r]."""
    places = split.of_records(records)
    return Fold(*places, split.part(records, *places))


def languages_of(split: EvalSplit) -> dict[int, Fold]:
    """Return a fold for each language of a split's captions, by its place in the card's list.

    There is none if all are of one language. A fold has the captions of its language, and the other side's inputs of
    the records that have any. Of two sides of captions in different languages, such as English and its translations,
    the second is told apart, or the first where the second is of one language.
    """
    left, right = (
        () if side.language is None else tuple(np.unique(side.language)) for side in (split.left, split.right)
    )
    told = (split.left, split.right) if left == right else (split.right if len(right) > 1 or not left else split.left,)
    codes = sorted({*left, *right} if left == right or not (left and right) else (right if len(right) > 1 else left))
    return {int(code): _of_language(split, code, told) for code in codes} if len(codes) > 1 else {}


def _of_language(split: EvalSplit, code: int, told: tuple[Side, ...]) -> Fold:
    """Return the fold of one language of the sides `told`."""

    def speaks(side: Side) -> np.ndarray:
        apart = side.language is not None and any(side is one for one in told)
        return side.language == code if apart else np.ones(len(side), bool)

    left, right = speaks(split.left), speaks(split.right)
    records = np.intersect1d(split.left.owner[left], split.right.owner[right])
    left = np.flatnonzero(left & np.isin(split.left.owner, records))
    right = np.flatnonzero(right & np.isin(split.right.owner, records))
    return Fold(left, right, split.part(records, left, right))


class FoldScorer:
    """A pair scorer of the whole split, asked by the rows of a fold: its caches and programs serve every fold."""

    def __init__(self, whole: PairScorer, fold: Fold) -> None:
        self.whole, self.fold = whole, fold
        self.lengths = whole.lengths[fold.right]

    def length_of(self, text_rows: np.ndarray) -> int:
        """Return the length at which these texts of the fold are scored."""
        return self.whole.length_of(self.fold.right[text_rows])

    def __call__(self, image_rows: np.ndarray, text_rows: np.ndarray) -> Array:
        """Score one block of the fold's pairs by their log-odds."""
        return self.whole(self.fold.left[image_rows].astype(np.int32), self.fold.right[text_rows].astype(np.int32))
