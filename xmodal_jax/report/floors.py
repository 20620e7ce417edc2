"""Floors: the recall of simple methods on the same data; a run that stays below has learned little."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xmodal_jax.data.config import PAIR
from xmodal_jax.eval.curves import random_recall
from xmodal_jax.eval.floor import floor_rows


@dataclass(frozen=True)
class Floor:
    """Recall of a simple method in percent ({"R@1": ...}; what was not measured is missing), and its origin."""

    name: str
    i2t: dict[str, float]
    t2i: dict[str, float]
    origin: str


def floors_of(
    data: str | os.PathLike,
    split: str,
    names: Sequence[str],
    right: tuple[np.ndarray, np.ndarray],
    pair: tuple[str, str] = PAIR,
) -> list[Floor]:
    """Return the floors of a split: chance, and those that were measured on the data set (`xmodal eval --floor`).

    A pair other than pictures and captions has chance alone. `right` as in `chance`.
    """
    random = chance(right, names)
    if pair != PAIR:
        return [random]
    measured = [
        Floor(f"{row.name}, {row.view}", row.summary["i2t"], row.summary["t2i"], row.summary.get("origin", ""))
        for row in floor_rows(data, split)
    ]
    return [random, *measured]


def chance(right: tuple[np.ndarray, np.ndarray], names: Sequence[str]) -> Floor:
    """Return the recall of a random order; a caption shared by pictures is a right answer for each.

    `right`: gallery rows of the right answers, padded with -1, of pictures [n,A] and of captions [m,B].
    """
    pictures, captions = (np.asarray(rows) for rows in right)
    ks = [int(name.removeprefix("R@")) for name in names]
    sides = (random_recall(pictures, len(captions), ks), random_recall(captions, len(pictures), ks))
    return Floor("chance", *sides, "a random order, with every right answer counted")
