"""Floors: the recall of simple methods on the same data; a run that stays below has learned little."""

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_jax.data.card import Card
from xmodal_jax.data.config import PAIR
from xmodal_jax.eval.curves import random_recall

FLOORS_FILE = "floors.jsonl"
KS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Floor:
    """Recall of a simple method in percent ({"R@1": ...}; what was not measured is missing), and its origin."""

    name: str
    i2t: dict[str, float]
    t2i: dict[str, float]
    origin: str


def _floor(name: str, i2t: Sequence[float], t2i: Sequence[float], origin: str) -> Floor:
    """Return a floor of some or all of `KS`."""
    return Floor(name, dict(zip(KS, i2t, strict=False)), dict(zip(KS, t2i, strict=False)), origin)


EMOJI = "measured before this run on 400 held-out concepts of a grouped split, Twemoji and OpenMoji, English names only"
EMOJI_HEADS = f"two-layer heads on pooled features of the frozen towers, 14 s of training; {EMOJI}"
STAMPS = "measured before this run on 590 training and 200 test stamps, without letters and digits"
FLICKR = "measured before this run: 6,000 training images, 1,000 others, 5 captions each"
TOWERS = "regularised CCA between pooled features of frozen EfficientNet-Lite0 and"
HAND = "regularised CCA between colour + HOG + thumbnail and tf-idf"

# A set's floors are shown when its key is in the name or the source of the data card.
FLOORS: dict[str, tuple[Floor, ...]] = {
    "emoji": (
        _floor("CCA on frozen towers, Twemoji", [12.8], [13.8], f"{TOWERS} MiniLM; {EMOJI}"),
        _floor("CCA on frozen towers, OpenMoji", [13.2], [13.5], f"{TOWERS} MiniLM; {EMOJI}"),
        _floor("MLP heads on frozen towers, Twemoji", [17.2], [16.5], EMOJI_HEADS),
        _floor("MLP heads on frozen towers, OpenMoji", [18.5], [17.2], EMOJI_HEADS),
        _floor("MLP heads, both drawings averaged", [20.5], [20.2], EMOJI_HEADS),
    ),
    "stamps": (
        _floor("CCA on hand features", [10.8, 22.8, 29.5], [11.0, 23.8, 30.8], f"{HAND}; {STAMPS}"),
        _floor("CCA on frozen towers", [19.5, 43.8, 53.8], [23.5, 44.8, 56.5], f"{TOWERS} e5; {STAMPS}"),
    ),
    "flickr8k": (
        _floor("CCA on hand features", [3.5, 11.4, 15.4], [3.3, 11.0, 17.1], f"{HAND}; {FLICKR}"),
        _floor("CCA on frozen towers", [21.0, 44.4, 56.5], [16.5, 41.9, 54.2], f"{TOWERS} MiniLM; {FLICKR}"),
        _floor("MLP heads on frozen towers", [21.9], [17.7], f"two-layer heads, InfoNCE, 60 s of training; {FLICKR}"),
    ),
}


def floors_of(
    card: Card,
    split: str,
    names: Sequence[str],
    workdir: pathlib.Path,
    right: tuple[np.ndarray, np.ndarray],
    pair: tuple[str, str] = PAIR,
) -> list[Floor]:
    """Return the floors of a split: chance, the published table, and `floors.jsonl` of the work directory.

    A pair other than pictures and captions has chance alone. `benchmarks/cca_floor.py` prints the file; lines of
    another split and torn lines are skipped. `right` as in `chance`.
    """
    random = chance(right, names)
    if pair != PAIR:
        return [random]
    text = f"{card.name} {card.source}".casefold()
    known = [floor for key, floors in FLOORS.items() if key in text for floor in floors]
    measured = workdir / FLOORS_FILE
    lines = measured.read_text("utf-8").splitlines() if measured.is_file() else []
    return [random, *known, *filter(None, (_measured(line, split) for line in lines))]


def chance(right: tuple[np.ndarray, np.ndarray], names: Sequence[str]) -> Floor:
    """Return the recall of a random order; a caption shared by pictures is a right answer for each.

    `right`: gallery rows of the right answers, padded with -1, of pictures [n,A] and of captions [m,B].
    """
    pictures, captions = (np.asarray(rows) for rows in right)
    ks = [int(name.removeprefix("R@")) for name in names]
    sides = (random_recall(pictures, len(captions), ks), random_recall(captions, len(pictures), ks))
    return Floor("chance", *sides, "a random order, with every right answer counted")


def _measured(line: str, split: str) -> Floor | None:
    """Return the floor on a line of `floors.jsonl`, None for another split or a torn line."""
    try:
        row: Any = json.loads(line)
        i2t, t2i = ({k: float(v) for k, v in row[side].items() if k.startswith("R@")} for side in ("i2t", "t2i"))
        if row["split"] != split or not all(math.isfinite(v) for v in (*i2t.values(), *t2i.values())):
            return None
        name = f"CCA on {row['features']}, {row['view']}"
        return Floor(name, i2t, t2i, f"benchmarks/cca_floor.py on this data, regularisation {row['regularisation']}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
