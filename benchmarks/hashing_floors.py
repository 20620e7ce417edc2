"""How good are linear hash codes? CCA signs, CMFH and random codes on the features of cca_floor.py.

    python benchmarks/hashing_floors.py DATA --towers pooled.npz --bits 16 32 64 128 --out floors.json

CCA signs: the first K canonical variates of `cca_floor.fit_cca`, centred, by their sign. CMFH (Ding et al. 2014, CVPR):
one latent factor for both sides of a pair, min l |X1 - U1 V|^2 + (1 - l) |X2 - U2 V|^2 + m sum |V - P X|^2 + g R, by
alternating ridge regressions; codes are the signs of P X. Both are linear and see pairs only, no labels.

For each number of bits: recall by Hamming distance with expected ranks over ties, in percent, and where the data set has
labels MAP@ALL with the value of random codes beside it. Each view of the pictures as the query, then their mean.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cca_floor import Features, Side, fit_cca, hand_features, mean_row, pair_weights, read_side, tower_features

from xmodal_jax.data.card import Card
from xmodal_jax.data.pipeline import multi_hot
from xmodal_jax.data.records import open_records
from xmodal_jax.errors import run_script
from xmodal_jax.eval import hashing, retrieval

Codes = Callable[[np.ndarray, str], np.ndarray]  # (features [n,D], "image" or "text") -> hash values [n,K]


def cca_codes(train: Features, bits: int, regularisation: float) -> Codes:
    """Canonical variates; their means over the training pairs are zero already."""
    image, pairs = pair_weights(train)
    left, right, _ = fit_cca(image, train.text, pairs, bits, regularisation)
    sides = {"image": left, "text": right}

    def code(rows: np.ndarray, side: str) -> np.ndarray:
        mean, matrix = sides[side]
        shared = (rows - mean) @ matrix
        return np.pad(shared, ((0, 0), (0, bits - shared.shape[1])), constant_values=-1.0)  # fewer variates than bits

    return code


def cmfh(left: np.ndarray, right: np.ndarray, bits: int, share: float = 0.5, m: float = 100.0, g: float = 0.01,
         rounds: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Projections [bits,D] and [bits,D'] of centred aligned rows [n,D], [n,D'] (names as in the paper: l = `share`)."""
    xs, weights = (left.T, right.T), (share, 1.0 - share)
    v = np.random.default_rng(seed).normal(size=(bits, left.shape[0])).astype(np.float32)
    ridge = lambda target, rows, r: np.linalg.solve(rows @ rows.T + r * np.eye(len(rows)), rows @ target.T).T
    solved = [np.linalg.solve(x @ x.T + g / m * np.eye(len(x)), x).T.astype(np.float32) for x in xs]  # P = V @ this
    for _ in range(rounds):
        bases = [ridge(x, v, g / w) for x, w in zip(xs, weights, strict=True)]
        maps = [v @ own for own in solved]
        gram = sum(w * u.T @ u for w, u in zip(weights, bases, strict=True)) + (2 * m + g) * np.eye(bits)
        asked = sum(w * u.T @ x + m * p @ x for w, u, x, p in zip(weights, bases, xs, maps, strict=True))
        v = np.linalg.solve(gram, asked).astype(np.float32)
    return maps[0], maps[1]


def cmfh_codes(train: Features, bits: int) -> Codes:
    """CMFH on every (picture, caption) pair of the training split."""
    image, pairs = pair_weights(train)
    rows, columns = pairs.nonzero()
    sides = {"image": image[rows], "text": train.text[columns]}
    means = {name: own.mean(0) for name, own in sides.items()}
    found = cmfh(*(sides[name] - means[name] for name in ("image", "text")), bits)
    maps = dict(zip(("image", "text"), found, strict=True))
    return lambda rows, side: (rows - means[side]) @ maps[side].T


def read_labels(folder: str, split: str) -> np.ndarray:
    """Multi-hot labels [n,C] of a split's records."""
    with open_records(folder, split) as records:
        return multi_hot([record["labels"] for record in records], len(Card.load(folder).label_names))


def tables_of(view: str, test: Features, code: Codes, labels: np.ndarray) -> dict[str, Any]:
    """Recall of the codes with one view of the pictures on the image side, and MAP where there are labels."""
    records, owner = np.unique(test.rows[view], return_inverse=True)
    mine = np.isin(test.owner, records)
    positives = retrieval.positives_from_owners(
        np.searchsorted(records, test.owner[mine]), test.keys[mine], len(records)
    )
    image, text = code(test.image[view], "image")[np.argsort(owner)], code(test.text[mine], "text")
    sides = ((image, text, positives[0]), (text, image, positives[1]))
    found = retrieval.summary(*(hashing.hamming_recall(*side) for side in sides))
    if labels.any():
        found["labels"] = hashing.label_table(
            image, text, labels[records], labels[test.owner[mine]], min(50, len(image), len(text))
        )
    return found


def mean_tables(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the views."""
    mean = mean_row(tables)
    if all("labels" in table for table in tables):
        sides = tables[0]["labels"]
        of = lambda side, name: float(np.mean([table["labels"][side][name] for table in tables]))
        mean["labels"] = {side: {name: of(side, name) for name in row} for side, row in sides.items()}
    return mean


def read(args: argparse.Namespace) -> tuple[Features, Features]:
    """Features of the training and the evaluation split."""
    names = (args.train_split, args.eval_split)
    train, test = (read_side(args.data, name, args.language, args.size) for name in names)
    sides: tuple[Side, Side] = (train, test)
    return tower_features(args.towers, *sides, names) if args.towers else hand_features(*sides)


def main(arguments: Sequence[str] | None = None) -> None:
    """One JSON line for each method and number of bits; all of them to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--towers", default="", help="pooled features (pooled_towers.py); without: hand features")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--eval-split", default="test")
    parser.add_argument("--language", default="en")
    parser.add_argument("--size", type=int, default=64, help="px of hand features")
    parser.add_argument("--regularisation", type=float, default=0.3)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args(arguments)
    train, test = read(args)
    labels, lines = read_labels(args.data, args.eval_split), []
    for bits in args.bits:
        for name, make in (
            ("CCA signs", lambda b: cca_codes(train, b, args.regularisation)),
            ("CMFH", lambda b: cmfh_codes(train, b)),
        ):
            started = time.perf_counter()
            code = make(bits)
            line = {"method": name, "bits": bits, "fit_seconds": time.perf_counter() - started}
            line |= mean_tables([tables_of(view, test, code, labels) for view in test.rows])
            lines.append(line)
            print(json.dumps(line), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"data": Card.load(args.data).name, "rows": lines}, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
