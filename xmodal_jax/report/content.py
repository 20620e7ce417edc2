"""Compute what a report shows from a work directory: curves, tables, queries with their answers, captions."""

import contextlib
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from xmodal_jax import __version__
from xmodal_jax.assemble import Assembly
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
from xmodal_jax.settings import Config
from xmodal_jax.training.log import METRICS_FILE, duration, read_log
from xmodal_jax.types import Params
from xmodal_jax.workdir import open_run

TO_LEFT, TO_RIGHT, CAPTIONED = 12, 4, 8
AT_ONCE = 4  # captions, all written in blocks of this shape
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
    """Everything that `page` and `picture` draw, of the first pair of fields that was evaluated.

    `run` is the name of the work directory, `facts` say how the run and the report were made, `evaluations` are (step,
    {direction: {"R@k": percent}}) of the quick evaluations while training. `view` is that of the pictures where the
    pair's left side is pictures; `to_left` has queries of its right side, such as captions for pictures, `to_right`
    those of its left side.
    """

    run: str
    facts: dict[str, str]
    remarks: list[str]
    curves: list[Curve]
    evaluations: list[tuple[int, dict[str, dict[str, float]]]]
    result: dict[str, Any]
    floors: list[Floor]
    view: str
    to_left: list[Query]
    to_right: list[Query]
    samples: list[Sample]

    @property
    def measure(self) -> str:
        """The recall that charts show, of the smallest k: "R@1" unless the config asks for others."""
        return recall_names(self.result)[0]

    @property
    def names(self) -> tuple[str, str]:
        """The names of the two sides of the pair."""
        return names_of(self.result)

    @property
    def gallery(self) -> str:
        """The name of the gallery that `to_left` is ranked over."""
        return self.names[0] if self.view in ("", PICTURES) else f"{self.names[0]} ({self.view})"


def pair_of(result: dict[str, Any]) -> tuple[str, str]:
    """Return the two fields that a result is of."""
    one, two = result.get("pair", PAIR)
    return one, two


def names_of(result: dict[str, Any]) -> tuple[str, str]:
    """Return the names of the two sides of a result: those of the fields, or "pictures" and "words"."""
    return ("pictures", "words") if pair_of(result) == PAIR else pair_of(result)


def unheard(_: str) -> None:
    """Say nothing about progress."""


def gather(workdir: pathlib.Path, data: str = "", say: Callable[[str], None] = unheard) -> Content:
    """Open the run and compute what its report shows, with the data set `data` (default: the run's own).

    Where the run's data set is gone, the report says so and has no queries and captions. `say` is called before each
    part of the work. Raises UserError for a folder without a run, or without an evaluation of its evaluation split.
    """
    say("opening the run")
    assembly, params, step = open_run(workdir, {"data": {"path": data}} if data else None)
    config, origin = assembly.config, assembly.origin
    if origin is None:
        raise UserError(f"'{workdir}' does not say what it was trained on; train it again")
    split, lines = config.data.eval_split, read_metrics(workdir)
    facts = provenance(config, step, lines)
    if not data and origin.locate() is None:
        return without_data(workdir, facts, split, origin, lines)
    card = Card.load(config.data.path)
    result = read_result(result_file(origin, "eval", split, card.fingerprint), workdir)
    found = Evaluator(assembly, params).open(split, "", result.get("relevance", "same"), pair_of(result))
    embedder, right = Embedder(assembly.model, params), retrieval.positives(found)
    say(f"embedding split '{split}'")
    left_rows, right_rows = (embedder.side(side, config.eval.batch_size).embed for side in (found.left, found.right))
    source = Split(config.data.path, split, dataclasses.replace(config.data, features=()))
    with contextlib.closing(source):
        left, asks = (Shown(found, side, source) for side in (found.left, found.right))
        say("answering queries")
        return Content(
            run=workdir.resolve().name,
            facts=facts | tested_on(card.name, card.source, card.licence, card.split(split)["records"], split),
            remarks=other_settings(config, card, result) + without_pictures(card, found.view),
            curves=curves(lines),
            evaluations=evaluations(lines),
            result=result,
            floors=floors_of(config.data.path, split, recall_names(result), right, found.pair),
            view=found.view if left.pictured else "",
            to_left=queries(asks, right_rows, left, left_rows, right[1], TO_LEFT),
            to_right=queries(left, left_rows, asks, right_rows, right[0], TO_RIGHT),
            samples=samples(assembly, params, embedder, found, left, say),
        )


def without_data(
    workdir: pathlib.Path, facts: dict[str, str], split: str, origin: Origin, lines: list[dict[str, Any]]
) -> Content:
    """Return what a report can show of a run whose data set is gone: what was measured while it was there."""
    own = origin.data
    result = read_result(result_file(origin, "eval", split, own["fingerprint"]), workdir)
    return Content(
        run=workdir.resolve().name,
        facts=facts | tested_on(own["name"], own["source"], own["licence"], own["splits"][split]["records"], split),
        remarks=[f"the data set is not at {own['path']!r} now, so there are no queries (--data names another place)"],
        curves=curves(lines),
        evaluations=evaluations(lines),
        result=result,
        floors=[],
        view=next(iter(result["views"])),
        to_left=[],
        to_right=[],
        samples=[],
    )


class Shown:
    """The inputs of one side as they are shown: a small picture, where the side has pictures, and words."""

    def __init__(self, found: EvalSplit, side: Side, source: Split) -> None:
        there = found.view not in source.card.without_pixels
        self.pictured = has_views(source.cfg.fields, side.field) and there
        self.side, self._found, self._source = side, found, source

    def picture(self, place: int) -> bytes | None:
        """Return the picture at a place of the side, in the view that is evaluated; None where the side has none."""
        if not self.pictured:
            return None
        row = int(self._found.rows[self.side.owner[place]])
        return limit_size(pictures(self._source.record(row))[self._found.view], THUMBNAIL)

    def words(self, place: int) -> str:
        """Return the caption at a place of the side; of another medium its record's first caption, or its key."""
        if self.side.words is not None:
            return self.side.words[place]
        record = int(self.side.owner[place])
        return next(iter(self._found.words_of(record)), self._found.keys[record])


def read_result(path: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """Read a result of `xmodal eval`. Raises UserError when it has not been run, or the file is damaged."""
    if not path.is_file():
        raise UserError(f"'{path}' is missing; run `xmodal eval --workdir {workdir}` first")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON ({error}); run `xmodal eval --workdir {workdir}` again") from error


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl that hold losses or evaluations; none where there is no such file."""
    lines = read_log(workdir) if (workdir / METRICS_FILE).is_file() else []
    return [line for line in lines if "pairs" in line or "eval" in line]


def curves(lines: list[dict[str, Any]]) -> list[Curve]:
    """Return a curve for each objective, hashing's last; steps with a loss that is not finite (null) are left out."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("loss/"))
    found = []
    for name in names:
        kept = [(line["pairs"], line[name]) for line in lines if line.get(name) is not None]
        found.append(Curve(name.removeprefix("loss/"), [pairs for pairs, _ in kept], [value for _, value in kept]))
    return sorted(found, key=lambda curve: curve.name.startswith("hash"))  # a picture of one curve draws the first


def evaluations(lines: list[dict[str, Any]]) -> list[tuple[int, dict[str, dict[str, float]]]]:
    """Return the steps that were evaluated while training, with the recall of the embeddings in both directions."""
    found = []
    for line in lines:
        table = line.get("eval", {}).get("itc")
        if table:
            recall = {side: {k: v for k, v in table[side].items() if k.startswith("R@")} for side in ("i2t", "t2i")}
            found.append((line["step"], recall))
    return found


def provenance(config: Config, step: int, lines: list[dict[str, Any]]) -> dict[str, str]:
    """Return what made the weights and the report, {name: words}."""
    devices = jax.local_devices()
    found = {"config": config.name, "seed": str(config.seed), "step": f"{step} of {config.steps}"}
    trained = [line for line in lines if "pairs" in line]
    if trained:
        seen = [line["pairs"] for line in trained]
        seconds = sum(
            (after - before) / line["pairs_per_s"]
            for before, after, line in zip([0, *seen[:-1]], seen, trained, strict=True)
        )
        rate = seen[-1] / max(seconds, 1e-9)
        found["training"] = f"{seen[-1]:,} pairs in {duration(seconds)} ({rate:.3g} pairs/s)"
    found["weights"] = config.eval.params
    found["report"] = f"{datetime.date.today().isoformat()}, xmodal_jax {__version__}"
    found["device"] = f"{len(devices)} x {devices[0].device_kind}"
    return found


def tested_on(name: str, source: str, licence: str, records: int, split: str) -> dict[str, str]:
    """Return what the run was trained and tested on, {name: words}."""
    return {"data": f"{name} ({source})", "licence": licence, "test": f"{records} records of split '{split}'"}


def other_settings(config: Config, card: Card, result: dict[str, Any]) -> list[str]:
    """Return a phrase where the tables were made with other data, views or languages than the run's config names.

    Views matter for pairs with pictures, languages for those with captions.
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


def without_pictures(card: Card, view: str) -> list[str]:
    """Return a phrase where there are features of the evaluated view and no pictures to show."""
    if view not in card.without_pixels:
        return []
    return ["the data set has features of its pictures and not the pictures: the first caption stands for each"]


def spaced(total: int, count: int) -> list[int]:
    """Return at most `count` numbers below `total`, evenly spaced: the same ones whatever the scores are."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})


def queries(
    asks: Shown, rows: np.ndarray, gives: Shown, gallery: np.ndarray, right: np.ndarray, count: int
) -> list[Query]:
    """Answer at most `count` inputs of one side [n,E] from the other [m,E]; `right` answers are [n,P]."""
    made = []
    for number, best, rank in ranked(rows, gallery, right, spaced(len(rows), count)):
        answers = [Answer(gives.picture(row), gives.words(row), row in right[number]) for row in best]
        made.append(Query("" if asks.pictured else asks.words(number), asks.picture(number), answers, rank))
    return made


def ranked(
    query: np.ndarray, gallery: np.ndarray, right: np.ndarray, chosen: list[int]
) -> list[tuple[int, list[int], float]]:
    """Return (query, its best rows, expected rank of its first right one) for the `chosen` of queries [n,E]."""
    _, rows = retrieval.topk(query[chosen], gallery, min(TOP, len(gallery)))
    ranks = retrieval.places(query[chosen], gallery, right[chosen]).ranks()
    return [
        (number, [int(row) for row in best], float(rank))
        for number, best, rank in zip(chosen, rows, ranks, strict=True)
    ]


def samples(
    assembly: Assembly,
    params: Params,
    embedder: Embedder,
    found: EvalSplit,
    shown: Shown,
    say: Callable[[str], None] = unheard,
) -> list[Sample]:
    """Write captions for evenly spaced pictures, a few at a time; return them with the true ones.

    A run that tells languages apart writes in the first of its own, for pictures that have true ones in it. There are
    none where the run trained no decoder, or the pair lacks captions or the pictures that the decoder reads.
    """
    trained = "decoder" in assembly.parts and "decoder" in params
    reads = found.left.encoder == assembly.config.fusion.pair[0]
    if not trained or not (reads and shown.pictured) or found.right.words is None:
        return []
    names, starts, made = Card.load(assembly.config.data.path).languages, assembly.model.starts, []
    if starts and starts[0] not in names:
        return []
    language = names.index(starts[0]) if starts else None
    truths = {
        number: found.words_of(int(found.left.owner[number]), language) for number in spaced(len(found.left), CAPTIONED)
    }
    chosen = [number for number, own in truths.items() if own]
    for start in range(0, len(chosen), AT_ONCE):
        say(f"captions {start} of {len(chosen)}")
        some = chosen[start : start + AT_ONCE]
        tokens = embedder.rows(found.left.encoder, np.stack([found.left.read(number, False) for number in some])).tokens
        assert tokens is not None  # rows() keeps them unless told otherwise
        for number, caption in zip(some, write_captions(assembly, params, tokens), strict=True):
            picture = shown.picture(number)
            assert picture is not None  # the side is pictured
            made.append(Sample(picture, caption, truths[number]))
    return made
