"""Tabulate hash codes: recall, precision, curves and MAP at every length of the code, each beside chance."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.evaluation import EvalSplit
from xmodal_jax.encode.embed import Embedded
from xmodal_jax.eval import curves, hashing, retrieval
from xmodal_jax.search.numpy_engine import unit_rows
from xmodal_jax.search.writer import as_int8

PRECISION_AT = (1, 10, 50, 100, 500)
DIRECTIONS = ("i2t", "t2i")

Pair = tuple[np.ndarray, np.ndarray]  # queries and gallery


def all_tables(
    image: Embedded, text: Embedded, split: EvalSplit, lengths: Sequence[int], gallery: hashing.Labelled | None = None
) -> dict[str, Any]:
    """Tabulate the whole codes and, under "nested" {bits: tables}, the first bits of the shorter `lengths`.

    Tables are "codes", "relaxed" (the cosine of codes before their signs are taken; absent for a head that gives
    signs), "labels" and "label_curves" if the split has labels, and "int8" once for all lengths: the embeddings with a
    gallery in a quarter of the bytes, as an index keeps it, and float32 queries.

    `gallery` holds the items that queries rank by shared labels, instead of the split itself.
    """
    *short, whole = lengths
    tables = tables_of(image, text, split, whole, gallery) | {"int8": int8_table(image.embed, text.embed, split)}
    nested = {str(bits): tables_of(image, text, split, bits, gallery) for bits in short}
    return tables | ({"nested": nested} if nested else {})


def cosine_table(image: np.ndarray, text: np.ndarray, split: EvalSplit) -> dict[str, Any]:
    """Summarise retrieval by embeddings [n,E] and [M,E] in both directions (`retrieval.summary`)."""
    return _two_ways((image, text), (text, image), split)


def int8_table(image: np.ndarray, text: np.ndarray, split: EvalSplit) -> dict[str, Any]:
    """Summarise retrieval as `cosine_table` does, with int8 galleries (`writer.as_int8`) and float32 queries."""
    texts, images = (unit_rows(as_int8(unit_rows(side))) for side in (text, image))
    return _two_ways((image, texts), (text, images), split)


def _two_ways(to_text: Pair, to_image: Pair, split: EvalSplit) -> dict[str, Any]:
    """Summarise retrieval from the (query, gallery) of each direction."""
    ks, (texts, images) = fitting_recall(split), retrieval.positives(split)
    return retrieval.summary(retrieval.recall(*to_text, texts, ks), retrieval.recall(*to_image, images, ks))


def fitting_recall(split: EvalSplit) -> tuple[int, ...]:
    """Return the k of R@k that both galleries can have."""
    return tuple(k for k in (1, 5, 10) if k <= min(len(split.left), len(split.right)))


def tables_of(
    image: Embedded, text: Embedded, split: EvalSplit, bits: int, gallery: hashing.Labelled | None = None
) -> dict[str, Any]:
    """Tabulate the first `bits` bits."""
    assert image.codes is not None and text.codes is not None, "the model has a hash head"
    one, two = image.codes[:, :bits], text.codes[:, :bits]
    tables = {"codes": codes_table(one, two, split) | {"float_bytes": 4 * image.embed.shape[1]}}
    # a head that gives signs has nothing before them
    if not all(np.isin(np.abs(side), (0, 1)).all() for side in (one, two)):
        tables["relaxed"] = cosine_table(unit_rows(one), unit_rows(two), split)
    if split.labels is None or not split.labels.any():
        return tables
    asked = labelled(image, text, split).first(bits)
    return tables | label_tables(asked, asked if gallery is None else gallery.first(bits))


def labelled(image: Embedded, text: Embedded, split: EvalSplit) -> hashing.Labelled:
    """Return the codes of a split with its labels."""
    assert image.codes is not None and text.codes is not None and split.labels is not None, "codes are asked for labels"
    return hashing.Labelled(image.codes, text.codes, split.labels[split.left.owner], split.labels[split.right.owner])


def label_tables(asked: hashing.Labelled, gallery: hashing.Labelled) -> dict[str, Any]:
    """Tabulate MAP and precision ("labels") and curves ("label_curves") by shared labels, in both directions."""
    smaller = min(len(gallery.image), len(gallery.text))
    table: dict[str, dict[str, Any]] = hashing.label_table(asked, gallery, min(50, smaller))
    drawn = {}
    for side, (queries, items, ours, theirs) in asked.ways(gallery).items():
        counted = curves.counts(queries, items, curves.by_labels(ours, theirs))
        table[side] |= curves.precision_at(counted, fitting_precision(smaller))
        table[side] |= {"P random": curves.chance_precision(counted)}
        drawn[side] = curves.curve(counted)
    return {"labels": table, "label_curves": drawn}


def fitting_precision(smaller: int) -> tuple[int, ...]:
    """Return the N of P@N that galleries of at least `smaller` rows can have."""
    return tuple(n for n in PRECISION_AT if n <= smaller)


def codes_table(image: np.ndarray, text: np.ndarray, split: EvalSplit) -> dict[str, Any]:
    """Tabulate retrieval of the very pair by Hamming distance over the signs of codes [n,K] and [M,K], both directions.

    Returns:
      `retrieval.summary` with "bits", "bytes" of an item, and for each direction "optimistic" and "pessimistic" recall
        (ties all won, all lost), "chance" recall, "precision" {"P@N", "P random"} and "curves"; and "alike" of the
        worse side (`alike`).
    """
    ks = fitting_recall(split)
    positives = retrieval.positives(split)
    pairs = list(zip(DIRECTIONS, ((image, text), (text, image)), positives, strict=True))
    found = {side: hashing.hamming_places(*pair, right) for side, pair, right in pairs}

    def recall(of: Callable[[retrieval.Places], retrieval.Places]) -> dict[str, dict[str, float]]:
        return {side: retrieval.recall_of_places(of(place), ks) for side, place in found.items()}

    table = retrieval.summary(**recall(lambda place: place))
    table |= {"optimistic": recall(retrieval.Places.won), "pessimistic": recall(retrieval.Places.lost)}
    table |= {"chance": {side: curves.random_recall(right, len(pair[1]), ks) for side, pair, right in pairs}}
    counted = {side: curves.counts(*pair, curves.by_positives(right, len(pair[1]))) for side, pair, right in pairs}
    ns = fitting_precision(min(len(split.left), len(split.right)))

    def precision(own: curves.Counts) -> dict[str, float]:
        return curves.precision_at(own, ns) | {"P random": curves.chance_precision(own)}

    table |= {"precision": {side: precision(own) for side, own in counted.items()}}
    table |= {"curves": {side: curves.curve(own) for side, own in counted.items()}}
    return table | {"bits": image.shape[1], "bytes": image.shape[1] // 8, "alike": max(alike(image), alike(text))}


def alike(values: np.ndarray) -> float:
    """Measure how nearly the signs of codes [n,K] are one code: mean square of the bits' means, 1 if all are equal.

    The estimate has no bias: n random codes are expected to give 0, however few they are. A single code gives 0.
    """
    count, means = len(values), np.where(values > 0, 1.0, -1.0).mean(axis=0)
    return float((count * np.square(means).mean() - 1) / (count - 1)) if count > 1 else 0.0
