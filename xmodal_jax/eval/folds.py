"""Retrieval in folds: a split cut into groups of pictures, each ranked by itself, and the mean over them.

COCO's "1K test" is the mean over five folds of 1,000 pictures of its 5,000 test pictures, in the order of the split.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from xmodal_jax.data.evaluation import EvalSplit
from xmodal_jax.encode.embed import Embedded
from xmodal_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Fold:
    """Some pictures of a split and their captions: the split's rows `images` [n] and `texts` [m] of them, and its part."""

    images: np.ndarray
    texts: np.ndarray
    split: EvalSplit

    def image(self, whole: Embedded) -> Embedded:
        """The fold's pictures, of those of the whole split."""
        return _taken(whole, self.images)

    def text(self, whole: Embedded) -> Embedded:
        """The fold's captions, of those of the whole split."""
        return _taken(whole, self.texts)


def _taken(whole: Embedded, rows: np.ndarray) -> Embedded:
    return Embedded(**jax.tree.map(lambda x: x[rows], vars(dataclasses.replace(whole, tokens=None, mask=None))))


def folds_of(split: EvalSplit, count: int, pictures: int) -> Iterator[Fold]:
    """The first `count` times `pictures` pictures in their order; a caption is in the fold of its picture."""
    for first in range(0, count * pictures, pictures):
        images = np.arange(first, first + pictures)
        texts = np.flatnonzero((split.caption_owner >= first) & (split.caption_owner < first + pictures))
        yield Fold(images, texts, split.part(images, texts))


class FoldScorer:
    """A pair scorer of the whole split, asked by the rows of a fold: what it keeps and has compiled serves every fold."""

    def __init__(self, whole: Callable[[np.ndarray, np.ndarray], Array], fold: Fold) -> None:
        self.whole, self.fold = whole, fold
        self.lengths = whole.lengths[fold.texts]

    def length_of(self, text_rows: np.ndarray) -> int:
        """The length at which these texts of the fold are scored."""
        return self.whole.length_of(self.fold.texts[text_rows])

    def __call__(self, image_rows: np.ndarray, text_rows: np.ndarray) -> Array:
        """Log-odds of one block of the fold's pairs."""
        return self.whole(self.fold.images[image_rows].astype(np.int32), self.fold.texts[text_rows].astype(np.int32))
