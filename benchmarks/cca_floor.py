"""How far does linear algebra get? The retrieval floor of a data set: regularised CCA between two sets of features.

    python benchmarks/cca_floor.py DATA --eval-split val                       # hand features
    python benchmarks/cca_floor.py DATA --eval-split val --towers pooled.npz   # and pooled features of frozen towers

Hand features: colour histogram + HOG + thumbnail against tf-idf of the words (xmodal_jax/eval/hand_features.py). Frozen
towers: an .npz with, for both splits, `<split>.image.<view>` [n,D] (a row per record that has the view, in the order
of the records), optionally `train.image.<view>.flip` (mirrored copies, trained on as well), and `<split>.text` [M,D']
(a row per caption, in the order of the records).

Prints one JSON line per row: R@1/5/10 in both directions and rSum in percent, each view of the pictures as the query
and, where there are several, their mean. Any image with an identical caption is right. Vocabulary, means and
projections come from the training split alone; regularisation and dimensions are arguments, and with
`--regularisation auto` a held-out fifth of the training records chooses the first.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np

from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError, run_script
from xmodal_jax.eval import hand_features as hand
from xmodal_jax.eval.floor import DIM, HELD_OUT, fit_cca, mean_row, measure, pair_weights, rounded
from xmodal_jax.eval.hand_features import (
    FLIPPED,
    Features,
    Side,
    TfIdf,
    colour_histogram,
    gradient_histogram,
    hand_features,
    thumbnail,
)

__all__ = [  # what hashing_floors.py and the tests take from here
    "HELD_OUT",
    "Features",
    "Side",
    "TfIdf",
    "colour_histogram",
    "fit_cca",
    "gradient_histogram",
    "hand_features",
    "mean_row",
    "pair_weights",
    "read_side",
    "thumbnail",
    "tower_features",
]


def read_side(folder: str, split: str, language: str, size: int) -> Side:
    """Read all pictures of a split at `size` x `size` and all captions of one language."""
    return hand.read_side(folder, split, (language,), size)


def tower_features(path: str, train: Side, test: Side, names: tuple[str, str]) -> tuple[Features, Features]:
    """Return pooled features from an .npz (see the head of this file), rows to unit length.

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
            if f"{split}.image.{view}{FLIPPED}" in arrays:
                image[f"{view}{FLIPPED}"] = rows(f"{split}.image.{view}{FLIPPED}", len(side.rows[view]))
                own_rows[f"{view}{FLIPPED}"] = side.rows[view]
        text = rows(f"{split}.text", len(side.captions))
        return Features(image, own_rows, text, side.owner, side.keys)

    return features(train, names[0]), features(test, names[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="folder of a prepared data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--eval-split", default="test")
    parser.add_argument("--language", default="en")
    parser.add_argument("--towers", help=".npz of pooled features of frozen towers")
    parser.add_argument("--regularisation", default="0.3", help='a number, or "auto": chosen on training data')
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--size", type=int, default=hand.SIZE, help="side in px of the pictures the hand features see")
    args = parser.parse_args(arguments)
    card, value = Card.load(args.data), None if args.regularisation == "auto" else float(args.regularisation)
    train, test = (read_side(args.data, split, args.language, args.size) for split in (args.split, args.eval_split))
    kinds = {"hand": lambda: hand_features(train, test)}
    if args.towers:
        kinds["frozen towers"] = lambda: tower_features(args.towers, train, test, (args.split, args.eval_split))
    for name, make in kinds.items():
        for row in measure(name, *make(), args.dim, value):
            line = {"benchmark": "cca_floor", "data": card.name, "split": args.eval_split, **rounded(row)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run_script(main)
