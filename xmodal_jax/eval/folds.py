"""Evaluate retrieval in folds: a split cut into groups of pictures, each ranked by itself, and the mean over them.

COCO's "1K test" is the mean over five folds of 1,000 pictures of its 5,000 test pictures, in the order of the split.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

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
    return dataclasses.replace(whole, tokens=None, mask=None).take(rows)


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
    the records that have any. Two sides of captions are both cut where they have the same languages. Else the second
    is, if it has several, and the first keeps its own: English captions ask those of each language.
    """
    both = (split.left.language, split.right.language)
    left, right = (set() if own is None else {*np.unique(own).tolist()} for own in both)
    codes, sides = (right, (left == right, True)) if len(right) > 1 else (left, (True, False))
    return {code: _of_language(split, code, sides) for code in sorted(codes)} if len(codes) > 1 else {}


def _of_language(split: EvalSplit, code: int, sides: tuple[bool, bool]) -> Fold:
    """Return the fold of one language; `sides` says which of both, left and right, are cut to its captions."""

    def speaks(side: Side, cut: bool) -> np.ndarray:
        return side.language == code if cut and side.language is not None else np.ones(len(side), bool)

    left, right = (speaks(side, cut) for side, cut in zip((split.left, split.right), sides, strict=True))
    records = np.intersect1d(split.left.owner[left], split.right.owner[right])
    left = np.flatnonzero(left & np.isin(split.left.owner, records))
    right = np.flatnonzero(right & np.isin(split.right.owner, records))
    return Fold(left, right, split.part(records, left, right))


def mean_tables(tables: list[Any]) -> Any:
    """Average tables number by number; texts stay.

    A value that some tables lack (no key, or None) is averaged over the others.
    """
    known = [table for table in tables if table is not None]
    first = known[0] if known else None
    if isinstance(first, dict):
        keys = dict.fromkeys(key for table in known for key in table)
        return {key: mean_tables([table[key] for table in known if key in table]) for key in keys}
    if isinstance(first, list):
        alike = len(set(map(len, known))) == 1
        return [mean_tables(list(items)) for items in zip(*known, strict=True)] if alike else first
    return float(np.mean(known)) if isinstance(first, (int, float)) else first


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
