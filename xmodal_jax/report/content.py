"""What a report shows, computed from a work directory: curves, tables, queries with their answers, captions."""

import contextlib
import dataclasses
import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.config import Config
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import PAIR
from xmodal_jax.data.evaluation import EvalSplit, Side
from xmodal_jax.data.image import limit_size
from xmodal_jax.data.readers import has_views, reader_classes
from xmodal_jax.data.records import PICTURES, pictures
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.eval import retrieval
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.eval.generate import write_captions
from xmodal_jax.eval.tables import recall_names
from xmodal_jax.origin import Origin, result_file
from xmodal_jax.report.floors import Floor, floors_of
from xmodal_jax.train.log import METRICS_FILE, duration
from xmodal_jax.types import Params
from xmodal_jax.workdir import open_run

TO_LEFT, TO_RIGHT, CAPTIONED = 12, 4, 8
TOP = 5
THUMBNAIL = 128  # px of the longer side


@dataclass(frozen=True)
class Answer:
    """One place of a ranking: its picture (encoded, None for what is none), its words, and whether it is right."""

    picture: bytes | None
    caption: str
    right: bool


@dataclass(frozen=True)
class Query:
    """Words or a picture, the best answers, and the expected rank of the first right one."""

    text: str
    picture: bytes | None
    answers: list[Answer]
    rank: float


@dataclass(frozen=True)
class Sample:
    """A picture with the caption that the decoder wrote and the true ones."""

    picture: bytes
    caption: str
    truths: list[str]


@dataclass(frozen=True)
class Curve:
    """A loss over the pairs seen."""

    name: str
    pairs: list[int]
    values: list[float]


@dataclass(frozen=True)
class Content:
    """Everything that `page` and `figure` draw, of the first pair of fields that was evaluated.

    `view` is that of the pictures where the pair's left side is pictures; `to_left` has queries of its right side, such
    as captions for pictures, `to_right` those of its left side.
    """

    name: str
    facts: list[str]
    curves: list[Curve]
    result: dict[str, Any]
    floors: list[Floor]
    view: str
    to_left: list[Query]
    to_right: list[Query]
    samples: list[Sample]

    @property
    def names(self) -> tuple[str, str]:
        """What the two sides of the pair are called."""
        return names_of(self.result)

    @property
    def gallery(self) -> str:
        """What `to_left` is ranked over, in words."""
        return self.names[0] if self.view in ("", PICTURES) else f"{self.names[0]} ({self.view})"


def pair_of(result: dict[str, Any]) -> tuple[str, str]:
    """The two fields that a result is of."""
    return tuple(result.get("pair", PAIR))


def names_of(result: dict[str, Any]) -> tuple[str, str]:
    """What the two fields that a result is of are called: by their names, where they are not pictures and captions."""
    return ("pictures", "words") if pair_of(result) == PAIR else pair_of(result)


def gather(workdir: pathlib.Path, data: str = "") -> Content:
    """Open the run and compute what its report shows, with the data set `data` (default: the run's own).

    Where the run's data set is gone, what needs its pictures and captions is left out, and said to be.
    Raises UserError for a folder without a run or without an evaluation of the run's evaluation split.
    """
    assembly, params, step = open_run(workdir, {"data": {"path": data}} if data else None)
    config = assembly.config
    split, origin = config.data.eval_split, assembly.origin
    if not data and origin.locate() is None:
        return without_data(workdir, config.name, split, origin, step)
    card = Card.load(config.data.path)
    result = read_result(result_file(origin, "eval", split, card.fingerprint), workdir)
    found = Evaluator(assembly, params).open(split, "", result.get("relevance", "same"), pair_of(result))
    embedder, right = Embedder(assembly.model, params), retrieval.positives(found)
    left_rows, right_rows = (embedder.side(side, config.eval.batch_size).embed for side in (found.left, found.right))
    lines = read_metrics(workdir)
    source = Split(config.data.path, split, dataclasses.replace(config.data, features=()))
    with contextlib.closing(source):
        left, asks = (Shown(found, side, source) for side in (found.left, found.right))
        return Content(
            name=config.name,
            facts=facts(card.name, card.source, card.licence, card.split(split)["records"], split, step, lines)
            + other_settings(config, card, result),
            curves=curves(lines),
            result=result,
            floors=floors_of(card, split, recall_names(result), workdir, right, found.pair),
            view=found.view if left.pictured else "",
            to_left=queries(asks, right_rows, left, left_rows, right[1], TO_LEFT),
            to_right=queries(left, left_rows, asks, right_rows, right[0], TO_RIGHT),
            samples=samples(assembly, params, embedder, found, left),
        )


def without_data(workdir: pathlib.Path, name: str, split: str, origin: Origin, step: int) -> Content:
    """What a report can show of a run whose data set is gone: what was measured while it was there."""
    result, lines = (
        read_result(result_file(origin, "eval", split, origin.data["fingerprint"]), workdir),
        read_metrics(workdir),
    )
    own = origin.data
    said = facts(own["name"], own["source"], own["licence"], own["splits"][split]["records"], split, step, lines)
    said.append(f"the data set is not at {own['path']!r} now, so there are no queries (--data names another place)")
    return Content(name, said, curves(lines), result, [], next(iter(result["views"])), [], [], [])


class Shown:
    """How the inputs of one side are shown: the small picture of one, where the side has pictures, and its words."""

    def __init__(self, found: EvalSplit, side: Side, source: Split) -> None:
        self.pictured = has_views(source.cfg.fields, side.field)
        self.side, self._found, self._source = side, found, source

    def picture(self, place: int) -> bytes | None:
        """The picture at a place of the side, in the view that is evaluated."""
        if not self.pictured:
            return None
        row = int(self._found.rows[self.side.owner[place]])
        return limit_size(pictures(self._source.record(row))[self._found.view], THUMBNAIL)

    def words(self, place: int) -> str:
        """The caption at a place of the side; of another medium its record's first caption, or its key."""
        if self.side.words is not None:
            return self.side.words[place]
        record = int(self.side.owner[place])
        return next(iter(self._found.words_of(record)), self._found.keys[record])


def read_result(path: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """What `xmodal eval` kept in a file of a run. Raises UserError when it has not been run, or the file is damaged."""
    if not path.is_file():
        raise UserError(f"'{path}' is missing; run `xmodal eval --workdir {workdir}` first")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON ({error}); run `xmodal eval --workdir {workdir}` again") from error


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that hold losses; none where there is no such file."""
    path, found = workdir / METRICS_FILE, []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn by a crash
        if "pairs" in row:
            found.append(row)
    return found


def curves(lines: list[dict[str, Any]]) -> list[Curve]:
    """One curve per objective; steps with a loss that is not finite (null) are left out."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("loss/"))
    found = []
    for name in names:
        kept = [(line["pairs"], line[name]) for line in lines if line.get(name) is not None]
        found.append(Curve(name.removeprefix("loss/"), [pairs for pairs, _ in kept], [value for _, value in kept]))
    return found


def facts(
    name: str, source: str, licence: str, records: int, split: str, step: int, lines: list[dict[str, Any]]
) -> list[str]:
    """What was trained and tested on, for how long: one phrase each."""
    found = [f"step {step}", f"data: {name} ({source})", f"licence: {licence}"]
    found.append(f"tested on the {records} records of split '{split}'")
    if lines:
        seen = [line["pairs"] for line in lines]
        seconds = sum(
            (after - before) / line["pairs_per_s"]
            for before, after, line in zip([0, *seen[:-1]], seen, lines, strict=True)
        )
        found.insert(1, f"{seen[-1]:,} pairs in {duration(seconds)} ({seen[-1] / max(seconds, 1e-9):.3g} pairs/s)")
    return found


def other_settings(config: Config, card: Card, result: dict[str, Any]) -> list[str]:
    """A phrase where the tables were made with other data, views or languages than the run's config names.

    Views are told of pairs with pictures alone, languages of those with captions.
    """
    own, fields, found = config.eval_data, config.data.fields, {}
    if any(has_views(fields, field) for field in pair_of(result)):
        found["views"] = list(result["views"])
    if any(reader_classes(fields)[field].worded for field in pair_of(result)) and "languages" in result:
        found["languages"] = result["languages"]
    if "data" in result:
        found["data"] = result["data"]
    run = {"views": list(own.views or card.views), "languages": list(own.languages), "data": config.data.path}
    other = [
        f"{name} {value if name == 'data' else ', '.join(value)}" for name, value in found.items() if value != run[name]
    ]
    return [f"the tables are of {'; '.join(other)}, unlike the rest of this report"] if other else []


def spaced(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spaced: the same ones each time, whatever the scores."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})


def queries(
    asks: Shown, rows: np.ndarray, gives: Shown, gallery: np.ndarray, right: np.ndarray, count: int
) -> list[Query]:
    """At most `count` inputs of one side [n,E] as queries for the other [m,E], whose `right` answers are [n,P]."""
    made = []
    for number, best, rank in ranked(rows, gallery, right, spaced(len(rows), count)):
        answers = [Answer(gives.picture(row), gives.words(row), row in right[number]) for row in best]
        made.append(Query("" if asks.pictured else asks.words(number), asks.picture(number), answers, rank))
    return made


def ranked(
    query: np.ndarray, gallery: np.ndarray, right: np.ndarray, chosen: list[int]
) -> list[tuple[int, list[int], float]]:
    """(query, its best gallery rows, expected rank of its first right one) for the `chosen` of queries [n,E]."""
    _, rows = retrieval.topk(query[chosen], gallery, min(TOP, len(gallery)))
    ranks = retrieval.places(query[chosen], gallery, right[chosen]).ranks()
    return [
        (number, [int(row) for row in best], float(rank))
        for number, best, rank in zip(chosen, rows, ranks, strict=True)
    ]


def samples(assembly: Assembly, params: Params, embedder: Embedder, found: EvalSplit, shown: Shown) -> list[Sample]:
    """Captions written for evenly spaced pictures, beside the true ones.

    None of a run without a decoder, and of a pair that has not the pictures that it reads on its left, or no captions.
    """
    reads = found.left.encoder == assembly.config.fusion.pair[0]
    if "decoder" not in params or not (reads and shown.pictured) or found.right.words is None:
        return []
    chosen = spaced(len(found.left), CAPTIONED)
    tokens = embedder.rows(found.left.encoder, np.stack([found.left.read(number, False) for number in chosen])).tokens
    written = write_captions(assembly, params, tokens)
    return [
        Sample(shown.picture(number), caption, found.words_of(int(found.left.owner[number])))
        for number, caption in zip(chosen, written, strict=True)
    ]
