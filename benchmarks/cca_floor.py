"""How far does linear algebra get? The retrieval floor of a data set: regularised CCA between two sets of features.

    python benchmarks/cca_floor.py DATA --eval-split val                       # hand features
    python benchmarks/cca_floor.py DATA --eval-split val --towers pooled.npz   # and pooled features of frozen towers

Hand features: colour histogram + HOG + thumbnail against tf-idf of the words; NumPy, SciPy and Pillow only. Frozen
towers: an .npz with, for both splits, `<split>.image.<view>` [n,D] (a row per record that has the view, in the order
of the records), optionally `train.image.<view>.flip` (mirrored copies, trained on as well), and `<split>.text` [M,D']
(a row per caption, in the order of the records).

Prints one JSON line per row: R@1/5/10 in both directions and rSum in percent, each view of the pictures as the query
and, where there are several, their mean. Any image with an identical caption is right. Vocabulary, means and
projections come from the training split alone; regularisation and dimensions are arguments, and with
`--regularisation auto` a held-out fifth of the training records chooses the first.
"""

import argparse
import collections
import dataclasses
import json
import time
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from xmodal_jax.data import captions as texts
from xmodal_jax.data.card import Card
from xmodal_jax.data.columns import Texts
from xmodal_jax.data.image import decode, resize
from xmodal_jax.data.records import check_record, open_records
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.errors import UserError, run_script
from xmodal_jax.eval import retrieval

REGULARISATIONS = (0.03, 0.1, 0.3, 1.0, 3.0)
HELD_OUT = 5


@dataclasses.dataclass
class Side:
    """One split. n records, M captions: pixels {view: uint8 [m,S,S,3]}, rows {view: int [m] record of each picture},
    captions [M], owner int [M] record and keys int [M] text number of each caption."""

    records: int
    pixels: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    captions: Texts
    owner: np.ndarray
    keys: np.ndarray


@dataclasses.dataclass
class Features:
    """Features of one split: image {view: [m,D]}, rows {view: int [m]}, text [M,D'], owner int [M], keys int [M]."""

    image: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    text: np.ndarray
    owner: np.ndarray
    keys: np.ndarray

    def subset(self, records: np.ndarray) -> "Features":
        """Select the records that are True in `records` bool [n]."""
        image = {view: rows[records[self.rows[view]]] for view, rows in self.image.items()}
        rows = {view: rows[records[rows]] for view, rows in self.rows.items()}
        mine = records[self.owner]
        return Features(image, rows, self.text[mine], self.owner[mine], self.keys[mine])


# --- reading --------------------------------------------------------------------------------------------------------


def read_side(folder: str, split: str, language: str, size: int) -> Side:
    """Read all pictures of a split at `size` x `size` and all captions of one language."""
    pixels, rows = collections.defaultdict(list), collections.defaultdict(list)
    own = Sidecar(folder, Card.load(folder), split)
    pairs = own.all_pairs((language,))
    if len(pairs) == 0:
        raise UserError(f"{folder}: split {split!r} has no captions in {language!r}.")
    with open_records(folder, split) as records:
        for row, record in enumerate(map(check_record, records)):
            for view, data in record["media"]["image"].items():
                pixels[view].append(resize(decode(data, size), size))
                rows[view].append(row)
    stacked = {view: np.stack(images) for view, images in sorted(pixels.items())}
    numbered = {view: np.array(rows[view]) for view in stacked}
    return Side(len(own), stacked, numbered, own.texts.take(pairs), own.owner[pairs], own.number[pairs])


# --- hand features --------------------------------------------------------------------------------------------------


def colour_histogram(images: np.ndarray, levels: int = 5) -> np.ndarray:
    """Return the square root of the joint RGB histogram: uint8 [n,S,S,3] -> [n, levels^3]."""
    level = images.astype(np.int64) * levels // 256
    cell = (level @ [levels * levels, levels, 1]).reshape(len(images), -1)
    cell += levels**3 * np.arange(len(images))[:, None]
    counts = np.bincount(cell.ravel(), minlength=len(images) * levels**3).reshape(len(images), -1)
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def gradient_histogram(images: np.ndarray, cell: int = 8, bins: int = 9) -> np.ndarray:
    """Compute HOG (Dalal and Triggs, 2005): uint8 [n,S,S,3] -> [n, (S/cell)^2 bins], each cell over its 3 x 3 cells."""
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
    """Return the mean colours of side x side areas, between 0 and 1: uint8 [n,S,S,3] -> [n, 3 side^2]."""
    area = images.shape[1] // side
    return images.reshape(len(images), side, area, side, area, 3).mean(axis=(2, 4)).reshape(len(images), -1) / 255


def hand_image_features(images: np.ndarray, block: int = 500) -> list[np.ndarray]:
    """Compute the three feature blocks of uint8 [n,S,S,3], float32 [n,*] each."""
    makers = (colour_histogram, gradient_histogram, thumbnail)
    return [
        np.concatenate([make(images[i : i + block]).astype(np.float32) for i in range(0, len(images), block)])
        for make in makers
    ]


class TfIdf:
    """tf-idf rows of unit length over the words of the training captions that occur at least twice."""

    def __init__(self, captions: Sequence[str], size: int = 2000):
        count = collections.Counter(word for caption in captions for word in set(texts.words(caption)))
        kept = [word for word, times in count.most_common(size) if times > 1]
        self.column = {word: column for column, word in enumerate(kept)}
        self.weight = np.log((1 + len(captions)) / (1 + np.array([count[word] for word in kept]))) + 1

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Count words: captions [M] -> float32 [M,V]."""
        table = np.zeros((len(captions), len(self.column)), np.float32)
        for row, caption in zip(table, captions, strict=True):
            for word in texts.words(caption):
                if word in self.column:
                    row[self.column[word]] += self.weight[self.column[word]]
        return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6)


def hand_features(train: Side, test: Side) -> tuple[Features, Features]:
    """Compute hand features of both splits; image blocks are brought to equal variance by the training split."""
    blocks = {side is test: {view: hand_image_features(x) for view, x in side.pixels.items()} for side in (train, test)}
    scales = [
        np.sqrt(np.concatenate([parts[i] for parts in blocks[False].values()]).var(axis=0).sum()) for i in range(3)
    ]
    words = TfIdf(train.captions)
    sides = []
    for side in (train, test):
        image = {
            view: np.hstack([x / s for x, s in zip(parts, scales, strict=True)])
            for view, parts in blocks[side is test].items()
        }
        sides.append(Features(image, side.rows, words(side.captions), side.owner, side.keys))
    return sides[0], sides[1]


# --- frozen towers --------------------------------------------------------------------------------------------------


def tower_features(path: str, train: Side, test: Side, names: tuple[str, str]) -> tuple[Features, Features]:
    """Read pooled features from an .npz (see the head of this file), rows to unit length.

    Raises:
      UserError: an array is missing or has another number of rows than the data.
    """
    arrays = np.load(path)

    def rows(name: str, count: int) -> np.ndarray:
        if name not in arrays:
            raise UserError(f"{path} has no array {name!r}; it has {', '.join(arrays.files)}.")
        found = arrays[name].astype(np.float32)
        if len(found) != count:
            raise UserError(f"{path}: {name!r} has {len(found)} rows, the data {count}; write it again.")
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)

    def features(side: Side, split: str) -> Features:
        image = {view: rows(f"{split}.image.{view}", len(own)) for view, own in side.rows.items()}
        own_rows = dict(side.rows)
        for view in side.rows if side is train else ():
            if f"{split}.image.{view}.flip" in arrays:
                image[f"{view}.flip"] = rows(f"{split}.image.{view}.flip", len(side.rows[view]))
                own_rows[f"{view}.flip"] = side.rows[view]
        text = rows(f"{split}.text", len(side.captions))
        return Features(image, own_rows, text, side.owner, side.keys)

    return features(train, names[0]), features(test, names[1])


# --- CCA ------------------------------------------------------------------------------------------------------------


def _whitener(rows: np.ndarray, weight: np.ndarray, regularisation: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean [D] and the lower Cholesky factor of the regularised covariance.

    `regularisation` x its mean variance x I is added to the covariance.
    """
    weight = (weight / weight.sum()).astype(rows.dtype)  # float32 features: half the time of the largest product
    mean = weight @ rows
    centred = (rows - mean) * np.sqrt(weight)[:, None]
    covariance = (centred.T @ centred).astype(np.float64)
    covariance[np.diag_indices_from(covariance)] += max(regularisation * np.trace(covariance) / len(covariance), 1e-9)
    return mean, scipy.linalg.cholesky(covariance, lower=True)


def fit_cca(image: np.ndarray, text: np.ndarray, pairs: scipy.sparse.csr_array, dim: int, regularisation: float):
    """Fit a regularised canonical correlation analysis over weighted pairs.

    Maximises the correlation of image and text projections, with covariances C + r tr(C)/D I (Vinod, 1976): the
    singular vectors of Lx^-1 Cxy Ly^-T, where L L^T are the regularised covariances. Each dimension is weighted by its
    correlation (Gong et al., 2014): without that the many weak ones drown the few strong ones.

    Args:
      image: [n,D]; text: [M,D'].
      pairs: [n,M], the weight of each pair; covariances are over pairs: with five captions an image counts five times.
      dim: dimensions kept, at most min(D, D') - 1; regularisation: r.

    Returns:
      (mean [D], matrix [D,dim]) of the image side and of the text side, and the correlations [dim].
    """
    image_mean, image_root = _whitener(image, pairs.sum(axis=1), regularisation)
    text_mean, text_root = _whitener(text, pairs.sum(axis=0), regularisation)
    cross = (image - image_mean).T.astype(np.float64) @ (pairs @ (text - text_mean)) / pairs.sum()
    cross = scipy.linalg.solve_triangular(image_root, cross, lower=True)
    cross = scipy.linalg.solve_triangular(text_root, cross.T, lower=True).T
    rank = min(cross.shape)  # the solver finds fewer than all: a tenth of the time of a full decomposition
    left, correlations, right = scipy.sparse.linalg.svds(cross, min(dim, rank - 1), v0=np.ones(rank))
    image_matrix = scipy.linalg.solve_triangular(image_root, left, lower=True, trans="T") * correlations
    text_matrix = scipy.linalg.solve_triangular(text_root, right.T, lower=True, trans="T") * correlations
    best = np.argsort(-correlations)
    return (image_mean, image_matrix[:, best]), (text_mean, text_matrix[:, best]), correlations[best]


def project(rows: np.ndarray, side: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Map rows [n,D] to unit length in the shared space, float32 [n,dim]."""
    shared = (rows - side[0]) @ side[1]
    return (shared / np.maximum(np.linalg.norm(shared, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def pair_weights(features: Features) -> tuple[np.ndarray, scipy.sparse.csr_array]:
    """Return the pictures of all views [n,D] and the matrix [n,M] that pairs each with its record's captions."""
    image = np.concatenate(list(features.image.values()))
    record = np.concatenate(list(features.rows.values()))
    order = np.argsort(features.owner, kind="stable")
    first, last = (np.searchsorted(features.owner[order], record, side) for side in ("left", "right"))
    captions = np.concatenate([order[a:b] for a, b in zip(first, last, strict=True)])
    pictures = np.repeat(np.arange(len(record)), last - first)
    return image, scipy.sparse.csr_array(
        (np.ones(len(captions)), (pictures, captions)), (len(image), len(features.text))
    )


# --- the rows of the table ------------------------------------------------------------------------------------------


def retrieval_of(view: str, test: Features, cca) -> dict:
    """Call `retrieval.summary` with the pictures of one view on the image side."""
    records, owner = np.unique(test.rows[view], return_inverse=True)
    mine = np.isin(test.owner, records)
    to_text, to_image = retrieval.positives_from_owners(
        np.searchsorted(records, test.owner[mine]), test.keys[mine], len(records)
    )
    asked = (to_text >= 0).any(axis=1)  # a record without a caption in this language asks nothing
    image, text = project(test.image[view], cca[0])[np.argsort(owner)], project(test.text[mine], cca[1])
    return retrieval.summary(
        retrieval.recall(image[asked], text, to_text[asked]), retrieval.recall(text, image, to_image)
    )


def choose_regularisation(train: Features, dim: int) -> float:
    """Choose from REGULARISATIONS by the rSum on every fifth training record, fitted on the others."""
    last = max(rows.max() for rows in train.rows.values())
    held_out = np.arange(last + 1) % HELD_OUT == 0
    fitted, asked = train.subset(~held_out), train.subset(held_out)
    image, pairs = pair_weights(fitted)

    def total(regularisation: float) -> float:
        cca = fit_cca(image, fitted.text, pairs, dim, regularisation)
        return sum(retrieval_of(view, asked, cca)["rSum"] for view in asked.rows if not view.endswith(".flip"))

    return max(REGULARISATIONS, key=total)


def mean_row(rows: list[dict]) -> dict:
    """Average several summaries (the views of the pictures)."""
    mean = {
        side: {name: float(np.mean([row[side][name] for row in rows])) for name in rows[0][side]}
        for side in ("i2t", "t2i")
    }
    return retrieval.summary(mean["i2t"], mean["t2i"])


def rounded(row):
    """Round all floats of the tree to four decimals, as a JSON line shows them."""
    if isinstance(row, dict):
        return {name: rounded(value) for name, value in row.items()}
    return round(row, 4) if isinstance(row, float) else row


def floor(name: str, train: Features, test: Features, dim: int, regularisation: str) -> list[dict]:
    """Return the rows of one kind of features: one per view, and their mean."""
    begin = time.perf_counter()
    value = choose_regularisation(train, dim) if regularisation == "auto" else float(regularisation)
    image, pairs = pair_weights(train)
    cca = fit_cca(image, train.text, pairs, dim, value)
    tables = {view: retrieval_of(view, test, cca) for view in test.rows}
    if len(tables) > 1:
        tables["mean of the views"] = mean_row(list(tables.values()))
    facts = {"features": name, "regularisation": value, "dim": len(cca[2]), "train_pairs": int(pairs.sum())}
    facts["seconds"] = time.perf_counter() - begin
    return [{**facts, "view": view, **table} for view, table in tables.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="folder of a prepared data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--eval-split", default="test")
    parser.add_argument("--language", default="en")
    parser.add_argument("--towers", help=".npz of pooled features of frozen towers")
    parser.add_argument("--regularisation", default="0.3", help='a number, or "auto": chosen on training data')
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--size", type=int, default=64, help="side in px of the pictures the hand features see")
    args = parser.parse_args(arguments)
    card = Card.load(args.data)
    train, test = (read_side(args.data, split, args.language, args.size) for split in (args.split, args.eval_split))
    kinds = {"hand": lambda: hand_features(train, test)}
    if args.towers:
        kinds["frozen towers"] = lambda: tower_features(args.towers, train, test, (args.split, args.eval_split))
    for name, make in kinds.items():
        for row in floor(name, *make(), args.dim, args.regularisation):
            line = {"benchmark": "cca_floor", "data": card.name, "split": args.eval_split, **rounded(row)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run_script(main)
