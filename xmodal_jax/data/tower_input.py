"""How frozen towers read the media of records, for feature caches and for queries."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from xmodal_jax.data.image import eval_image
from xmodal_jax.data.records import PICTURES


@dataclasses.dataclass(frozen=True)
class TowerInput:
    """How a frozen tower reads a medium: what it takes of the stored bytes of one view."""

    read: Callable[[bytes], Sequence[np.ndarray]]
    """Function: the bytes of a view -> its parts, each one input of the tower, all of one shape, at most `parts`.

    It raises `CorruptRecord` or `CorruptImage`.
    """
    medium: str = PICTURES
    """Medium that is read."""
    parts: int = 1
    """Most inputs of the tower that a view has: 1 of a picture, frames of a clip."""
    mirrored: bool = True
    """Whether `part[:, ::-1]` is its mirror image, whose tokens may be kept too."""
    drops_zeros: bool = False
    """Whether tokens of the tower that are all zero tell that nothing is there, as behind the end of a sound.

    They are not kept then; of other towers a token that happens to be zero is changed a little.
    """
    pool: str = ""
    """What is kept of each part: "", its tokens; "mean", their mean (`encode.towers.tower_encoder`)."""


def picture_input(size: int) -> TowerInput:
    """Return how a tower of pictures reads them, whole, at a size in pixels."""
    decode = eval_image(size)
    return TowerInput(lambda data: [decode(data)])
