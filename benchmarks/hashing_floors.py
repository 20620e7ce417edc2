"""How good are linear hash codes? CCA signs, CMFH and regression to label codes on the features of cca_floor.py.

    python benchmarks/pooled_towers.py DATA --features lite0-128 --language en-tags --out pooled.npz
    python benchmarks/hashing_floors.py DATA --towers pooled.npz --language en-tags \\
      --train-views noto openmoji --views openmoji twemoji --no-flip \\
      --out benchmarks/results/hashing_floors-emoji_views.json

CCA signs: the first K canonical variates of `cca_floor.fit_cca`, centred, by their sign. CMFH (Ding et al. 2014, CVPR):
one latent factor for both sides of a pair, min l |X1 - U1 V|^2 + (1 - l) |X2 - U2 V|^2 + m sum |V - P X|^2 + g R, by
alternating ridge regressions; codes are the signs of P X. Both are linear and see pairs only. "Label codes" sees
labels: every label gets K random signs, an item's target is the sum over its labels, and each side's codes are the
signs of a ridge regression to the targets; what a linear map does with the supervision that CMHR-DRN has.

The ridges of CCA, CMFH's projections and the regression are chosen on every fifth training record, at 64 bits, by mean
recall (CCA, CMFH) or MAP (label codes); the linear maps are then made of all of them.

For each number of bits: recall by Hamming distance, expected over ties, in percent, and where the data set has
labels MAP@ALL with the value of random codes beside it. Each view of the pictures as the query, then their mean.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cca_floor import (
    HELD_OUT,
    Features,
    Side,
    fit_cca,
    hand_features,
    mean_row,
    pair_weights,
    read_side,
    tower_features,
)
from report import data_facts

from xmodal_jax.data.card import Card
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.split import multi_hot
from xmodal_jax.errors import UserError, output_file, run_script
from xmodal_jax.eval import hashing, retrieval

RIDGES = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
Codes = Callable[[np.ndarray, str], np.ndarray]  # (features [n,D], "image" or "text") -> hash values [n,K]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features of a split and the labels [n,C] of its records."""

    features: Features
    labels: np.ndarray

    def subset(self, records: np.ndarray) -> "Labelled":
        """Select the records that are True in `records` bool [n] (rows keep their numbers)."""
        return Labelled(self.features.subset(records), self.labels)


def cca_codes(train: Labelled, bits: int, ridge: float) -> Codes:
    """Return codes by canonical variates; their means over the training pairs are zero already."""
    image, pairs = pair_weights(train.features)
    left, right, _ = fit_cca(image, train.features.text, pairs, bits, ridge)
    sides = {"image": left, "text": right}

    def code(rows: np.ndarray, side: str) -> np.ndarray:
        mean, matrix = sides[side]
        shared = (rows - mean) @ matrix
        return np.pad(shared, ((0, 0), (0, bits - shared.shape[1])), constant_values=-1.0)  # fewer variates than bits

    return code


def ridge_inverse(x: np.ndarray, ridge: float) -> np.ndarray:
    """Compute (X X' + r tr(X X')/D I)^-1 X of columns [D,n].

    Times transposed targets [K,n] it is their regression on X.
    """
    gram = x @ x.T
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram)
    return np.linalg.solve(gram, x).astype(np.float32)


def cmfh(
    left: np.ndarray,
    right: np.ndarray,
    bits: int,
    ridge: float,
    share: float = 0.5,
    m: float = 100.0,
    g: float = 0.01,
    rounds: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute CMFH's projections [bits,D] and [bits,D'] of centred aligned rows [n,D], [n,D'].

    Names are as in the paper: l = `share`. The ridge of P is `ridge` times the mean variance, not g / m, which for rows
    of unit length is next to none. Stops after `rounds`, or when V moves by less than a thousandth of its length in a
    round.
    """
    xs, weights = (left.T, right.T), (share, 1.0 - share)
    v = np.random.default_rng(seed).normal(size=(bits, left.shape[0])).astype(np.float32)

    def solve(target, rows, r):
        return np.linalg.solve(rows @ rows.T + r * np.eye(len(rows)), rows @ target.T).T

    solved = [ridge_inverse(x, ridge) for x in xs]  # P = V @ this.T
    for _ in range(rounds):
        bases = [solve(x, v, g / w) for x, w in zip(xs, weights, strict=True)]
        maps = [v @ own.T for own in solved]
        gram = sum(w * u.T @ u for w, u in zip(weights, bases, strict=True)) + (2 * m + g) * np.eye(bits)
        asked = sum(w * u.T @ x + m * p @ x for w, u, x, p in zip(weights, bases, xs, maps, strict=True))
        before, v = v, np.linalg.solve(gram, asked).astype(np.float32)
        if np.linalg.norm(v - before) < 1e-3 * np.linalg.norm(before):
            break
    return maps[0], maps[1]


def paired(train: Labelled) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the rows of both sides of every (picture, caption) pair, and each pair's record."""
    image, pairs = pair_weights(train.features)
    rows, columns = pairs.nonzero()
    return {"image": image[rows], "text": train.features.text[columns]}, train.features.owner[columns]


def linear(sides: dict[str, np.ndarray], fit: Callable[..., Sequence[np.ndarray]]) -> Codes:
    """Return codes by one matrix a side, [K,D], made by `fit` from the centred rows."""
    means = {name: own.mean(0) for name, own in sides.items()}
    found = fit(*(sides[name] - means[name] for name in ("image", "text")))
    maps = dict(zip(("image", "text"), found, strict=True))
    return lambda rows, side: (rows - means[side]) @ maps[side].T


def cmfh_codes(train: Labelled, bits: int, ridge: float) -> Codes:
    """Fit CMFH on every (picture, caption) pair of the training split."""
    return linear(paired(train)[0], lambda image, text: cmfh(image, text, bits, ridge))


def label_codes(train: Labelled, bits: int, ridge: float) -> Codes:
    """Fit a ridge regression to the sum of random signs of a record's labels."""
    sides, record = paired(train)
    signs = np.random.default_rng(0).choice(np.float32([-1.0, 1.0]), (train.labels.shape[1], bits))
    targets = (train.labels[record] @ signs).T
    return linear(
        sides, lambda *xs: [(targets - targets.mean(1, keepdims=True)) @ ridge_inverse(x.T, ridge).T for x in xs]
    )


METHODS: dict[str, Callable[[Labelled, int, float], Codes]] = {
    "CCA signs": cca_codes,
    "CMFH": cmfh_codes,
    "label codes": label_codes,
}


def choose_ridge(name: str, train: Labelled, bits: int = 64) -> float:
    """Choose from `RIDGES` by the result on every fifth training record, fitted on the others."""
    held_out = np.arange(len(train.labels)) % HELD_OUT == 0
    fitted, asked = train.subset(~held_out), train.subset(held_out)

    def score(ridge: float) -> float:
        code = METHODS[name](fitted, bits, ridge)
        views = [view for view in asked.features.rows if not view.endswith(".flip")]
        table = mean_tables([tables_of(view, asked, code) for view in views])
        return sum(own["MAP@ALL"] for own in table["labels"].values()) if name == "label codes" else table["mR"]

    return max(RIDGES, key=score)


def read_labels(folder: str, split: str) -> np.ndarray:
    """Read the multi-hot labels [n,C] of a split's records."""
    card = Card.load(folder)
    own = Sidecar(folder, card, split)
    return multi_hot([own.labels(row) for row in range(len(own))], len(card.label_names))


def tables_of(view: str, split: Labelled, code: Codes) -> dict[str, Any]:
    """Measure the codes with one view on the image side: recall, and MAP if there are labels."""
    test, labels = split.features, split.labels
    records, owner = np.unique(test.rows[view], return_inverse=True)
    mine = np.isin(test.owner, records)
    positives = retrieval.positives_from_owners(
        np.searchsorted(records, test.owner[mine]), test.keys[mine], len(records)
    )
    image, text = code(test.image[view], "image")[np.argsort(owner)], code(test.text[mine], "text")
    asked = (positives[0] >= 0).any(axis=1)  # a record without a caption in this language asks nothing
    sides = ((image[asked], text, positives[0][asked]), (text, image, positives[1]))
    ks = tuple(k for k in (1, 5, 10) if k <= min(len(image), len(text)))
    found = retrieval.summary(*(hashing.hamming_recall(*side, ks) for side in sides))
    if labels.any():
        asked = hashing.Labelled(image, text, labels[records], labels[test.owner[mine]])
        found["labels"] = hashing.label_table(asked, asked, min(50, len(image), len(text)))
    return found


def mean_tables(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Average tables over the views."""
    mean = mean_row(tables)
    if all("labels" in table for table in tables):
        sides = tables[0]["labels"]

        def of(side, name):
            return float(np.mean([table["labels"][side][name] for table in tables]))

        mean["labels"] = {side: {name: of(side, name) for name in row} for side, row in sides.items()}
    return mean


def with_views(features: Features, views: Sequence[str], flip: bool) -> Features:
    """Select the pictures of `views` (none: all), with or without their mirrored copies."""
    known = [view for view in features.image if not view.endswith(".flip")]
    for view in views:
        if view not in known:
            raise UserError(f"the data set has no view '{view}'; it has {', '.join(known)}")
    kept = [view for view in features.image if view.removesuffix(".flip") in (views or known)]
    kept = [view for view in kept if flip or not view.endswith(".flip")]

    def pick(table):
        return {view: table[view] for view in kept}

    return dataclasses.replace(features, image=pick(features.image), rows=pick(features.rows))


def read(args: argparse.Namespace) -> tuple[Labelled, Labelled]:
    """Read features and labels of the training and the evaluation split."""
    names = (args.train_split, args.eval_split)
    train, test = (read_side(args.data, name, args.language, args.size) for name in names)
    sides: tuple[Side, Side] = (train, test)
    found = tower_features(args.towers, *sides, names) if args.towers else hand_features(*sides)
    chosen = with_views(found[0], args.train_views, args.flip), with_views(found[1], args.views, False)
    return tuple(Labelled(own, read_labels(args.data, name)) for own, name in zip(chosen, names, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each method and number of bits; write all, with the settings, to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--towers", default="", help="pooled features (pooled_towers.py); without: hand features")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--eval-split", default="test")
    parser.add_argument("--language", default="en")
    parser.add_argument("--train-views", nargs="*", default=[], help="of the pictures; none: all")
    parser.add_argument("--views", nargs="*", default=[], help="of the pictures that are asked with; none: all")
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="leave mirrored copies out")
    parser.add_argument("--size", type=int, default=64, help="px of hand features")
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args(arguments)
    train, test = read(args)
    lines = []
    for name in args.methods if train.labels.any() else [name for name in args.methods if name != "label codes"]:
        ridge = choose_ridge(name, train)
        for bits in args.bits:
            started = time.perf_counter()
            code = METHODS[name](train, bits, ridge)
            line = {"method": name, "bits": bits, "ridge": ridge, "fit_seconds": time.perf_counter() - started}
            line |= mean_tables([tables_of(view, test, code) for view in test.features.rows])
            lines.append(line)
            print(json.dumps(line), flush=True)
    if args.out:
        card = Card.load(args.data)
        facts = {"data": card.name, "of": data_facts(card), "language": args.language, "flip": args.flip}
        facts |= {"train_views": sorted(args.train_views), "views": sorted(args.views)}
        args.out.write_text(json.dumps(facts | {"rows": lines}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    run_script(main)
