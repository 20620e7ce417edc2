"""The linear floor of a data set: how far regularised CCA between hand features of pictures and captions gets.

A run that stays below has learned little. `write_floor` measures it on a split with everything fitted on the training
split, and keeps the rows in `floors.jsonl` of the data set's folder; `floor_rows` reads them for the tables of an
evaluation and `floor_lines` puts them beside the run. Galleries are those of `xmodal eval`: the records that have both
a picture of the view and a caption, and any picture with an identical caption is right.
"""

import datetime
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from xmodal_jax.atomic import write_file
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import PAIR
from xmodal_jax.errors import UserError
from xmodal_jax.eval import retrieval
from xmodal_jax.eval.hand_features import Features, hand_features, read_side
from xmodal_jax.eval.tables import DIRECTIONS, Row, sections

FLOORS_FILE = "floors.jsonl"
FEATURES = "hand features"
MADE_OF = "regularised CCA between colour histogram + HOG + thumbnail and tf-idf of words"
MEAN = "mean of the views"
REGULARISATIONS = (0.03, 0.1, 0.3, 1.0, 3.0)
HELD_OUT = 5  # every fifth training record chooses the regularisation
FEWEST = 10  # training records
MOST = 10_000  # training records: a minute and 2.3 GB on two cores where each has five captions
DIM = 128
KS = (1, 5, 10)
SAME = 1e-9  # variance of float32 features of about unit length that is rounding alone

Projection = tuple[np.ndarray, np.ndarray]  # mean [D] and matrix [D,dim]
Cca = tuple[Projection, Projection, np.ndarray]  # of pictures, of captions, and the correlations [dim]
Tables = dict[str, Any]


class Moments(NamedTuple):
    """Means [D], [D'] of pictures and captions over their pairs; covariances [D,D], [D',D'], between them [D,D']."""

    image_mean: np.ndarray
    text_mean: np.ndarray
    image: np.ndarray
    text: np.ndarray
    cross: np.ndarray


def moments(image: np.ndarray, text: np.ndarray, pairs: scipy.sparse.csr_array) -> Moments:
    """Return the moments of image [n,D] and text [M,D'] over weighted pairs [n,M]."""
    image_mean, image_cov = _covariance(image, pairs.sum(axis=1))
    text_mean, text_cov = _covariance(text, pairs.sum(axis=0))
    cross = (image - image_mean).T.astype(np.float64) @ (pairs @ (text - text_mean)) / pairs.sum()
    return Moments(image_mean, text_mean, image_cov, text_cov, cross)


def _covariance(rows: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean [D] and covariance [D,D] of rows [n,D]."""
    weight = (weight / weight.sum()).astype(rows.dtype)  # float32 features: half the time of the largest product
    mean = weight @ rows
    centred = (rows - mean) * np.sqrt(weight)[:, None]
    return mean, (centred.T @ centred).astype(np.float64)


def _root(covariance: np.ndarray, regularisation: float) -> np.ndarray:
    """Return the lower Cholesky factor of the covariance [D,D] + regularisation x its mean variance x I."""
    ridge = max(regularisation * np.trace(covariance) / len(covariance), 1e-9)
    return scipy.linalg.cholesky(covariance + ridge * np.eye(len(covariance)), lower=True)


def solve_cca(found: Moments, dim: int, regularisation: float) -> Cca:
    """Solve regularised canonical correlation analysis for the moments of pairs; see `fit_cca`.

    Raises UserError where all pictures or all captions are the same, so that nothing varies together.
    """
    if min(np.trace(found.image), np.trace(found.text)) < SAME or not found.cross.any():
        raise UserError("CCA finds nothing in common: all training pictures, or all training captions, look the same.")
    image_root, text_root = _root(found.image, regularisation), _root(found.text, regularisation)
    cross = scipy.linalg.solve_triangular(image_root, found.cross, lower=True)
    cross = scipy.linalg.solve_triangular(text_root, cross.T, lower=True).T
    rank = min(cross.shape)  # the solver finds fewer than all: a tenth of the time of a full decomposition
    left, correlations, right = scipy.sparse.linalg.svds(cross, min(dim, rank - 1), v0=np.ones(rank))
    assert left is not None and right is not None  # both are asked for
    # trans=1 solves for the transposed root
    image_matrix = scipy.linalg.solve_triangular(image_root, left, lower=True, trans=1) * correlations
    text_matrix = scipy.linalg.solve_triangular(text_root, right.T, lower=True, trans=1) * correlations
    best = np.argsort(-correlations)
    sides = (found.image_mean, image_matrix[:, best]), (found.text_mean, text_matrix[:, best])
    return *sides, correlations[best]


def fit_cca(image: np.ndarray, text: np.ndarray, pairs: scipy.sparse.csr_array, dim: int, regularisation: float) -> Cca:
    """Fit regularised canonical correlation analysis over weighted pairs.

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
    return solve_cca(moments(image, text, pairs), dim, regularisation)


def project(rows: np.ndarray, side: Projection) -> np.ndarray:
    """Return rows [n,D] in the shared space, unit length, float32 [n,dim]."""
    shared = (rows - side[0]) @ side[1]
    return (shared / np.maximum(np.linalg.norm(shared, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def pair_weights(features: Features) -> tuple[np.ndarray, scipy.sparse.csr_array]:
    """Return all pictures of all views [n,D] and the matrix [n,M] that pairs each with its record's captions."""
    image = np.concatenate(list(features.image.values()))
    record = np.concatenate(list(features.rows.values()))
    order = np.argsort(features.owner, kind="stable")
    first, last = (np.searchsorted(features.owner[order], record, side) for side in ("left", "right"))
    captions = np.concatenate([order[a:b] for a, b in zip(first, last, strict=True)])
    rows = np.repeat(np.arange(len(record)), last - first)
    return image, scipy.sparse.csr_array((np.ones(len(captions)), (rows, captions)), (len(image), len(features.text)))


def retrieval_of(view: str, test: Features, cca: Cca) -> Tables:
    """Return `retrieval.summary` between the pictures of one view and the captions of the same records."""
    records = test.records_of(view)
    theirs, mine = np.isin(test.rows[view], records), np.isin(test.owner, records)
    order = np.argsort(test.rows[view][theirs])
    owner = np.searchsorted(records, test.owner[mine])
    to_text, to_image = retrieval.positives_from_owners(owner, test.keys[mine], len(records))
    image, text = project(test.image[view][theirs][order], cca[0]), project(test.text[mine], cca[1])
    ks = tuple(k for k in KS if k <= min(len(image), len(text)))
    return retrieval.summary(retrieval.recall(image, text, to_text, ks), retrieval.recall(text, image, to_image, ks))


def choose_regularisation(train: Features, dim: int) -> float:
    """Return the one of REGULARISATIONS with the highest rSum on every fifth training record, fitted on the others."""
    held_out = np.zeros(1 + max(rows.max() for rows in (*train.rows.values(), train.owner) if len(rows)), bool)
    held_out[train.records()[::HELD_OUT]] = True
    fitted, asked = train.subset(~held_out), train.subset(held_out)
    image, pairs = pair_weights(fitted)
    found = moments(image, fitted.text, pairs)

    def total(regularisation: float) -> float:
        cca = solve_cca(found, dim, regularisation)
        return sum(retrieval_of(view, asked, cca)["rSum"] for view in asked.asked_views())

    return max(REGULARISATIONS, key=total)


def mean_row(rows: Sequence[Tables]) -> Tables:
    """Return the mean of the views' summaries; of a measure that some lack, the mean of the others."""
    means = []
    for side in DIRECTIONS:
        names = dict.fromkeys(name for row in rows for name in row[side])
        means.append({name: float(np.mean([row[side][name] for row in rows if name in row[side]])) for name in names})
    return retrieval.summary(*means)


def rounded(row: Any) -> Any:
    """Return the same tree with its floats to four decimals, as a JSON line should show them."""
    if isinstance(row, dict):
        return {name: rounded(value) for name, value in row.items()}
    return round(row, 4) if isinstance(row, float) else row


def measure(
    name: str, train: Features, test: Features, dim: int = DIM, regularisation: float | None = None
) -> list[Tables]:
    """Return the rows of one kind of features: one per view, and their mean.

    `regularisation`: None chooses it on the training split. Raises UserError for too few records or words.
    """
    _refuse_too_little(train, test)
    begin = time.perf_counter()
    value = choose_regularisation(train, dim) if regularisation is None else regularisation
    image, pairs = pair_weights(train)
    cca = fit_cca(image, train.text, pairs, dim, value)
    tables = {view: retrieval_of(view, test, cca) for view in test.asked_views()}
    if len(tables) > 1:
        tables[MEAN] = mean_row(list(tables.values()))
    facts = {"features": name, "regularisation": value, "dim": len(cca[2]), "train_pairs": int(pairs.sum())}
    facts["seconds"] = time.perf_counter() - begin
    return [{**facts, "view": view, **table} for view, table in tables.items()]


def _refuse_too_little(train: Features, test: Features) -> None:
    """Raise UserError where there is too little to fit or nothing to ask."""
    if (count := len(train.records())) < FEWEST:
        raise UserError(
            f"{count} training records have a picture and a caption; a linear floor needs {FEWEST} or more."
        )
    if (words := train.text.shape[1]) < 2:
        raise UserError(
            f"{words} words occur in two or more training captions; a linear floor needs 2 or more of them."
        )
    if not test.asked_views():
        raise UserError("No record of the split has both a picture and a caption, so there is no floor to measure.")


def write_floor(
    data: os.PathLike | str,
    split: str,
    languages: Sequence[str] = ("en",),
    say: Callable[[str], None] = lambda _: None,
    train: str = "train",
) -> list[Tables]:
    """Measure the floor of a split and write it to `floors.jsonl` of the data set, in place of an earlier one.

    All is fitted on the split `train`, on at most `MOST` of its records. Deterministic.

    Args:
      data: the folder of a prepared data set with pictures and captions.
      say: hears what is under way.

    Returns:
      The rows written, one per view and their mean where there are several: "name", "split", "i2t" and "t2i" in
      percent, "mR", "rSum", "origin", "date", "records" and "captions" of the split, and how it was measured.

    Raises:
      UserError: no pictures or captions, too few training records, or a folder that cannot be written.
    """
    if split == train:
        raise UserError(f"the floor is fitted on split {train!r}, so it means nothing there; name a held-out split.")
    languages = tuple(dict.fromkeys(languages))
    sides = []
    for name, limit in ((train, MOST), (split, 0)):
        say(f"hand features of split '{name}'")
        sides.append(read_side(data, name, languages, limit=limit))
    features = hand_features(*sides)
    say("CCA between them")
    card, fitted = Card.load(data), features[0].records()
    how = f"{MADE_OF}, fitted on {len(fitted):,} of the {card.split(train)['records']:,} records of split '{train}'"
    facts = {"split": split, "languages": list(languages), "train_records": len(fitted)}
    facts |= {"data": card.name, "fingerprint": card.fingerprint}
    rows = [_described(row, card, facts, features[1], how) for row in measure(FEATURES, *features)]
    _replace_rows(pathlib.Path(data) / FLOORS_FILE, rows, card)
    return rows


def _described(row: Tables, card: Card, facts: Tables, test: Features, how: str) -> Tables:
    """Return a row of `measure` with its name, what it was measured on, and its origin in words."""
    view, today = row["view"], datetime.date.today().isoformat()
    name = f"CCA on {row['features']}" + (f", {view}" if len(test.asked_views()) > 1 else "")
    if len(card.languages) > 1:
        name += f", captions in {' + '.join(facts['languages'])}"
    records = test.records_of(view) if view in test.rows else test.records()
    captions = int(np.isin(test.owner, records).sum())
    origin = f"{how}, regularisation {row['regularisation']:g}; "
    origin += f"measured on {len(records):,} records of split '{facts['split']}', {today}"
    named = {"name": name, "origin": origin, "date": today, "records": len(records), "captions": captions}
    del row["seconds"]  # the same data give the same line
    return named | facts | rounded(row)


def _replace_rows(path: pathlib.Path, rows: Sequence[Tables], card: Card) -> None:
    """Write rows to a file of lines, in place of those of the same name and split and of those of earlier data."""
    new = {(row["name"], row["split"]) for row in rows}

    def stays(line: str) -> bool:
        old, mark = _parsed(line), card.fingerprint
        return (old.get("name"), old.get("split")) not in new and old.get("fingerprint", mark) == mark

    kept = [line for line in _lines(path) if line.strip() and stays(line)]
    write_file(path, "".join(f"{line}\n" for line in [*kept, *map(json.dumps, rows)]))


def _lines(path: pathlib.Path) -> list[str]:
    """Return the lines of a file, none where it is missing."""
    return path.read_text("utf-8", "replace").splitlines() if path.is_file() else []


def _parsed(line: str) -> Tables:
    """Return the object of a JSON line, {} for a torn line."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def floor_rows(data: os.PathLike | str, split: str) -> list[Row]:
    """Return the floors of a split that `floors.jsonl` of the data set holds, as rows of the tables of an evaluation.

    The summary of each is its whole line. Torn lines, and those measured before the data set was made anew, are passed
    over.
    """
    folder = pathlib.Path(data)
    lines = _lines(folder / FLOORS_FILE)
    mark = Card.load(folder).fingerprint if lines else ""
    found = [row for row in map(_parsed, lines) if row.get("split") == split and row.get("fingerprint", mark) == mark]
    return [Row(row["view"], f"CCA on {row['features']}", _summary(row)) for row in found if _is_whole(row)]


def _is_whole(row: Tables) -> bool:
    """Return True if a line names its features and view and has finite recall in both directions."""
    if not all(isinstance(row.get(name), str) for name in ("features", "view")):
        return False
    return all(_is_recall(row.get(side)) for side in DIRECTIONS)


def _is_recall(side: Any) -> bool:
    """Return True for {"R@1": number, ...} of finite numbers."""
    if not isinstance(side, dict) or "R@1" not in side:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in side.values())


def _summary(row: Tables) -> Tables:
    """Return a line with the totals that it may lack, without the seconds, which in tables are those of re-ranking."""
    known = {name: value for name, value in row.items() if name != "seconds"}
    return retrieval.summary(*(row[side] for side in DIRECTIONS)) | known


def floor_lines(result: Tables, rows: Sequence[Row]) -> list[str]:
    """Return sentences that put floors beside the run's embeddings, to stand below its table.

    Args:
      result: an evaluation's result (`eval.evaluate.evaluate`).
      rows: the floors of the same split (`floor_rows`); those of other views or languages are left out.
    """
    if tuple(result.get("pair", PAIR)) != PAIR:
        return []
    own = {view: tables["itc"] for view, tables in sections(result)}
    shown = [row for row in rows if row.view in own and _same_captions(result, row.summary)]
    if {row.view for row in rows} - {MEAN} != set(result["views"]):  # then the means are over different views
        shown = [row for row in shown if row.view != MEAN]
    lines = [_compared(row, own[row.view], len(own) > 1) for row in shown]
    if lines and result.get("relevance", "same") == "own":
        lines.append("The floor counts any picture whose captions hold the same text; the run its own alone.")
    origins = dict.fromkeys(row.summary["origin"] for row in shown if "origin" in row.summary)
    return lines + [f"Floor: {origin}." for origin in origins]


def _same_captions(result: Tables, floor: Tables) -> bool:
    """Return True unless a floor is known to be of captions in other languages than the result's."""
    ours, theirs = result.get("languages"), floor.get("languages")
    return not (ours and theirs) or set(ours) == set(theirs)


def _compared(floor: Row, run: Tables, named: bool) -> str:
    """Return the sentence of one floor beside the run's summary; `named`: it says which view it is of."""
    name = f"{floor.name}, {floor.view}" if named else floor.name
    return f"{name} (this data set): {_numbers(floor.summary)}; this run: {_numbers(run)}{_times(run, floor.summary)}"


def _numbers(summary: Tables) -> str:
    """Return R@1 of both directions and their total as text."""
    return ", ".join(
        [*(f"{side} R@1 {summary[side]['R@1']:.1f}" for side in DIRECTIONS), f"rSum {summary['rSum']:.1f}"]
    )


def _times(run: Tables, floor: Tables) -> str:
    """Return how many times the floor's rSum the run's is, "" above a floor of nothing."""
    if not floor["rSum"]:
        return ""
    times = run["rSum"] / floor["rSum"]
    return f" ({times:.1f} times)" if times >= 1 else f" ({times:.2f} times, below the floor)"
