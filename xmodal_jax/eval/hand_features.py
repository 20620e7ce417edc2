"""Hand features of pictures and captions, for a linear floor: no learned weights, NumPy and Pillow only.

Pictures: colour histogram + HOG + thumbnail, brought to equal variance on the training split. Captions: tf-idf of the
words of the training captions.
"""

import collections
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xmodal_jax.data import captions as texts
from xmodal_jax.data.card import Card
from xmodal_jax.data.columns import Texts
from xmodal_jax.data.image import CorruptImage, decode, resize
from xmodal_jax.data.records import CorruptRecord, check_record, open_records, pictures
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.errors import UserError

SIZE = 64  # px of a side of the pictures that the features see
WORDS = 2000  # at most so many columns of tf-idf
FLIPPED = ".flip"  # ends the name of a view of mirrored copies, which are trained on and not asked


@dataclass
class Side:
    """Pictures and captions of n records of a split, which are numbered 0 .. n-1 here.

    `pixels` {view: uint8 [m,S,S,3]}; `rows` {view: int [m]}, the record of each picture; `captions` [M], with `owner`
    int [M], the record, and `keys` int [M], the text number of each.
    """

    records: int
    pixels: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    captions: Texts
    owner: np.ndarray
    keys: np.ndarray


@dataclass
class Features:
    """Features of a split: `image` {view: [m,D]}, `rows` {view: int [m]}, `text` [M,D'], `owner` and `keys` int [M]."""

    image: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    text: np.ndarray
    owner: np.ndarray
    keys: np.ndarray

    def subset(self, records: np.ndarray) -> "Features":
        """Return the part whose records are True in `records` bool [n]; records keep their numbers."""
        image = {view: rows[records[self.rows[view]]] for view, rows in self.image.items()}
        rows = {view: rows[records[rows]] for view, rows in self.rows.items()}
        mine = records[self.owner]
        return Features(image, rows, self.text[mine], self.owner[mine], self.keys[mine])

    def records_of(self, view: str) -> np.ndarray:
        """Return the records that have a picture of `view` and a caption, int [r], in order."""
        return np.intersect1d(self.rows[view], self.owner)

    def records(self) -> np.ndarray:
        """Return the records that have a picture and a caption, int [r], in order."""
        return np.intersect1d(np.concatenate(list(self.rows.values())), self.owner)

    def asked_views(self) -> list[str]:
        """Return the views that have a record to ask for; copies that are mirrored for training are none."""
        return [view for view in self.rows if not view.endswith(FLIPPED) and len(self.records_of(view))]


def read_side(
    folder: os.PathLike | str, split: str, languages: Sequence[str], size: int = SIZE, limit: int = 0
) -> Side:
    """Read the pictures of a split at `size` x `size` and its captions in some languages.

    Args:
      limit: read at most so many records, spread evenly over those with a picture and a caption; 0 reads all.

    Raises:
      UserError: the split has no pictures, or no captions in one of the languages, or a record cannot be read.
    """
    card = Card.load(folder)
    own = _open_sidecar(folder, card, split, languages)
    pairs, rows = own.all_pairs(tuple(dict.fromkeys(languages))), np.arange(len(own))
    pictured = np.any([own.having(view) for view in card.views], axis=0)
    both = np.intersect1d(np.flatnonzero(pictured), own.owner[pairs])
    if limit and len(both) > limit:
        rows = both[np.linspace(0, len(both) - 1, limit).astype(int)]
    place = np.full(len(own), -1)
    place[rows] = np.arange(len(rows))
    pairs = pairs[place[own.owner[pairs]] >= 0]
    pixels, numbers = _read_pictures(folder, split, rows, size)
    return Side(len(rows), pixels, numbers, own.texts.take(pairs), place[own.owner[pairs]], own.number[pairs])


def _open_sidecar(folder: os.PathLike | str, card: Card, split: str, languages: Sequence[str]) -> Sidecar:
    """Open the sidecar of a split that has pictures and captions in all `languages`."""
    own, there = Sidecar(folder, card, split), card.split(split)["languages"]
    if own.pictures == 0 or set(card.views) <= set(card.without_pixels):
        raise UserError(f"'{folder}': split {split!r} has no pictures; this floor is between pictures and captions.")
    for language in languages:
        if language not in there:
            known = f"it has some in {', '.join(there)}" if there else "it has none at all"
            raise UserError(f"'{folder}': split {split!r} has no captions in {language!r}; {known}.")
    return own


def _read_pictures(
    folder: os.PathLike | str, split: str, rows: np.ndarray, size: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read the pictures of some rows int [n]: {view: uint8 [m,size,size,3]}, and {view: int [m]}, places in `rows`."""
    pixels, places = collections.defaultdict(list), collections.defaultdict(list)
    with open_records(folder, split) as records:
        for place, row in enumerate(rows.tolist()):
            try:
                for view, data in pictures(check_record(records[row])).items():
                    pixels[view].append(resize(decode(data, size), size))
                    places[view].append(place)
            except (CorruptRecord, CorruptImage) as error:
                raise UserError(
                    f"row {row} of split {split!r} cannot be read ({error}); copy or prepare the data set again."
                ) from error
    stacked = {view: np.stack(images) for view, images in sorted(pixels.items())}
    return stacked, {view: np.array(places[view]) for view in stacked}


def colour_histogram(images: np.ndarray, levels: int = 5) -> np.ndarray:
    """Return the square root of the joint RGB histogram: uint8 [n,S,S,3] -> [n, levels^3]."""
    level = images.astype(np.int64) * levels // 256
    cell = (level @ [levels * levels, levels, 1]).reshape(len(images), -1)
    cell += levels**3 * np.arange(len(images))[:, None]
    counts = np.bincount(cell.ravel(), minlength=len(images) * levels**3).reshape(len(images), -1)
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def gradient_histogram(images: np.ndarray, cell: int = 8, bins: int = 9) -> np.ndarray:
    """Return HOG (Dalal and Triggs, 2005), uint8 [n,S,S,3] -> [n, (S/cell)^2 bins], each cell over its 3 x 3 cells."""
    down, across = np.gradient(images.mean(axis=3), axis=(1, 2))
    place = np.arctan2(down, across) % np.pi / np.pi * bins
    energy, low = np.hypot(down, across), np.floor(place).astype(int)
    side = images.shape[1] // cell
    table = np.zeros((len(images), side, side, bins))
    for number in range(bins):  # each pixel shares its energy between the two nearest orientations
        share = (low % bins == number) * (1 - place + low) + ((low + 1) % bins == number) * (place - low)
        table[..., number] = (energy * share).reshape(len(images), side, cell, side, cell).sum(axis=(2, 4))
    around = np.pad((table**2).sum(axis=3), ((0, 0), (1, 1), (1, 1)))
    area = sum(around[:, i : i + side, j : j + side] for i in range(3) for j in range(3))
    return np.minimum(table / np.sqrt(area + 1e-2)[..., None], 0.4).reshape(len(images), -1)


def thumbnail(images: np.ndarray, side: int = 8) -> np.ndarray:
    """Return mean colours of side x side areas, between 0 and 1: uint8 [n,S,S,3] -> [n, 3 side^2]."""
    area = images.shape[1] // side
    return images.reshape(len(images), side, area, side, area, 3).mean(axis=(2, 4)).reshape(len(images), -1) / 255


def hand_image_features(images: np.ndarray, block: int = 500) -> list[np.ndarray]:
    """Return the three blocks of features of uint8 [n,S,S,3], float32 [n,*] each."""
    makers = (colour_histogram, gradient_histogram, thumbnail)
    return [
        np.concatenate([make(images[i : i + block]).astype(np.float32) for i in range(0, len(images), block)])
        for make in makers
    ]


class TfIdf:
    """tf-idf rows of unit length over the words of the training captions that occur in at least two of them."""

    def __init__(self, captions: Sequence[str], size: int = WORDS):
        # in the order of the captions: a set's order differs between processes, and it decides between equal counts
        count = collections.Counter(word for caption in captions for word in dict.fromkeys(texts.words(caption)))
        kept = [word for word, times in count.most_common(size) if times > 1]
        self.column = {word: column for column, word in enumerate(kept)}
        self.weight = np.log((1 + len(captions)) / (1 + np.array([count[word] for word in kept]))) + 1

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Return the rows of captions [M], float32 [M,V]."""
        table = np.zeros((len(captions), len(self.column)), np.float32)
        for row, caption in zip(table, captions, strict=True):
            for word in texts.words(caption):
                if word in self.column:
                    row[self.column[word]] += self.weight[self.column[word]]
        return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6)


def hand_features(train: Side, test: Side) -> tuple[Features, Features]:
    """Return the hand features of both splits, with vocabulary and scales of the blocks from the training split."""
    blocks = {view: hand_image_features(images) for view, images in train.pixels.items()}
    spread = np.array([np.concatenate(parts).var(axis=0).sum() for parts in zip(*blocks.values(), strict=True)])
    scales = np.sqrt(np.where(spread > 0, spread, 1))  # pictures of one colour have no gradients at all
    words = TfIdf(train.captions)
    asked = {view: hand_image_features(images) for view, images in test.pixels.items()}
    return _features(train, blocks, scales, words), _features(test, asked, scales, words)


def _features(side: Side, blocks: dict[str, list[np.ndarray]], scales: np.ndarray, words: TfIdf) -> Features:
    """Join the blocks of each view, each divided by its scale, with the captions' rows."""
    image = {
        view: np.hstack([part / scale for part, scale in zip(parts, scales, strict=True)])
        for view, parts in blocks.items()
    }
    return Features(image, side.rows, words(side.captions), side.owner, side.keys)
