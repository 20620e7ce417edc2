"""A run that writes captions in the language it is asked for, and their scores by language."""

import dataclasses
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import xmodal_jax as xmodal
from xmodal_jax.assemble import assemble
from xmodal_jax.cli import main
from xmodal_jax.config_file import freeze
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.errors import UserError
from xmodal_jax.eval.caption import caption_scores
from xmodal_jax.eval.captioning import caption_split, mean_scores
from xmodal_jax.eval.tables import further_grids, scores_grid
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.report import write_report
from xmodal_jax.training.begin import refuse_other_starts
from xmodal_jax.training.loop import make_run

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (20, 140, 20), "grey": (120, 120, 120)}
CAPTIONS = {  # words of English begin with a, of German with b, of French with c
    "en": {"red": "apple amber", "blue": "azure air", "green": "apple acid", "grey": "ash air"},
    "de": {"red": "brand baum", "blue": "blau bach", "green": "busch baum", "grey": "blei bach"},
    "fr": {"red": "cerise", "blue": "ciel", "green": "chou", "grey": "cendre"},
}
TRAIN, TEST = 24, 8
LACKING = 3  # of the test records, without a German caption
TOWER = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}


def item(number, split):
    """A picture of one colour with noise, and its captions."""
    colour = list(COLOURS)[number % 4]
    pixels = np.random.default_rng([number, len(split)]).normal(COLOURS[colour], 8, (8, 8, 3)).clip(0, 255)
    file, codes = io.BytesIO(), [*CAPTIONS]
    Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
    if split == "test" and number < LACKING:
        codes.remove("de")
    return Item(
        f"{split}{number}", {"own": file.getvalue()}, {code: [CAPTIONS[code][colour]] for code in codes}, split=split
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of four colours, named in three languages."""
    place = tmp_path_factory.mktemp("colours") / "set"
    items = [item(number, split) for split, count in (("train", TRAIN), ("test", TEST)) for number in range(count)]
    prepare(memory_source(items), place)
    return place


def config_of(folder, *languages, **fields):
    """The config of a small captioner in some languages."""
    config = xmodal.config("quickstart", "tiny", {"data.path": str(folder), "data.languages": languages}, **fields)
    config.objectives = {"lm": {"languages": True, "smoothing": 0.0}}
    config.encoders.image.update(size=8, patch=8, **TOWER)
    config.encoders.text.update(length=5, positions=8, **TOWER)
    config.fusion.update(layers=1, hidden=32, dropout=0.0)
    config.evals = {"written": {"kind": "captioning", "beam": 1}}
    config.eval.languages, config.eval.rerank, config.eval.params = (*languages, "fr"), (), "student"
    config.optimizer.lr, config.optimizer.warmup, config.batch_size = 5e-3, 5, 24
    return config


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run of a few hundred steps."""
    workdir = tmp_path_factory.mktemp("runs") / "both"
    return xmodal.train(config_of(folder, "en", "de", steps=200), workdir, evaluate=False, quiet=True)


@pytest.fixture(scope="module")
def pictures():
    """A picture of each colour that was not trained on."""
    return [np.full((8, 8, 3), colour, np.uint8) for colour in COLOURS.values()]


@pytest.fixture(scope="module")
def split(run):
    """What `caption_split` says of the test split."""
    return caption_split(run.assembly, run.params, beam=1)


def test_each_start_writes_its_language_and_what_the_picture_shows(run, pictures):
    for code in ("en", "de"):
        assert run.caption(pictures, beam=1, language=code) == list(CAPTIONS[code].values())
    assert run.caption(pictures, beam=1) == list(CAPTIONS["en"].values()), "without a language the first"
    assert run.caption(pictures, beam=2, language="de") == list(CAPTIONS["de"].values())


def test_a_language_that_the_run_does_not_know_is_refused_before_a_picture_is_read(run, pictures):
    said = re.escape("the run writes captions in en, de, not in 'fr'; write one of these")
    with pytest.raises(UserError, match=said):
        run.caption(["missing.png"], language="fr")
    with pytest.raises(UserError, match=said):
        caption_split(run.assembly, run.params, "none", language="fr")


def test_a_split_is_captioned_and_scored_in_each_language_that_the_run_writes(split):
    rows, scores = split
    languages = {code: [row for row in rows if row["language"] == code] for code in ("en", "de")}
    assert len(rows) == sum(map(len, languages.values())) == 2 * TEST - LACKING, "French is evaluated and not written"
    assert [row["key"] for row in rows[LACKING : LACKING + 2]] == [f"test{LACKING}"] * 2, "record by record"
    for code, own in languages.items():
        assert all(row["references"] == [CAPTIONS[code][list(COLOURS)[int(row["key"][4:]) % 4]]] for row in own)
        want = caption_scores([row["caption"] for row in own], [row["references"] for row in own])
        counts = {"records": len(own), "lacking": LACKING if code == "de" else 0}
        assert scores["languages"][code] == want | counts and want["CIDEr"] > 1
    for name in ("BLEU-4", "CIDEr"):
        assert scores[name] == pytest.approx(np.mean([scores["languages"][code][name] for code in languages]))
    assert set(scores) == {"BLEU-4", "CIDEr", "languages"}


def test_one_language_is_scored_alone(run, split):
    rows, scores = caption_split(run.assembly, run.params, beam=1, language="de")
    assert rows == [row for row in split[0] if row["language"] == "de"]
    alone = {name: split[1]["languages"]["de"][name] for name in ("BLEU-4", "CIDEr")}
    assert scores == alone | {"languages": {"de": alone | {"records": TEST - LACKING, "lacking": 0}}}
    some = caption_split(run.assembly, run.params, limit=LACKING + 1, beam=1)[1]["languages"]
    assert {code: own["records"] for code, own in some.items()} == {"en": LACKING + 1, "de": 1}


def test_a_limit_counts_records_that_have_a_language_to_write(run):
    other = xmodal.load(run.workdir, {"eval": {"languages": ("fr", "de")}})
    rows, scores = caption_split(other.assembly, other.params, limit=2, beam=1)
    assert [(row["key"], row["language"]) for row in rows] == [(f"test{LACKING + n}", "de") for n in range(2)]
    assert {code: (own["records"], own["lacking"]) for code, own in scores["languages"].items()} == {"de": (2, 0)}


def test_a_split_in_other_languages_is_refused_and_left_out_of_an_evaluation(run, caplog):
    other = xmodal.load(run.workdir, {"eval": {"languages": ("fr",)}})
    said = "the captions of the split are in fr, and those to write in en, de; evaluate on captions in some of these"
    with pytest.raises(UserError, match=said):
        caption_split(other.assembly, other.params, beam=1)
    found = other.evaluate(keep=False)
    assert found["mean"]["itc"] and "evals" not in found and f"no captions are written: {said}" in caplog.text


def test_a_run_that_tells_no_languages_apart_writes_one_caption_for_all(run):
    """Its captions are still scored by language; it cannot be asked for one."""
    decoder = {name: leaf for name, leaf in run.params["decoder"].items() if name != "start"}
    params, model = run.params | {"decoder": decoder}, CrossModal(run.config, run.assembly.model.output_ids)
    blind = dataclasses.replace(run.assembly, model=model)
    rows, scores = caption_split(blind, params, beam=1)
    assert len({(row["key"], row["caption"]) for row in rows}) == TEST and len(rows) == 3 * TEST - LACKING
    assert set(scores["languages"]) == {*CAPTIONS} and scores["languages"]["fr"]["records"] == TEST
    with pytest.raises(UserError, match="the run was trained on captions in en, de, and not on being asked for one"):
        caption_split(blind, params, language="de")
    alone = dataclasses.replace(blind, origin=dataclasses.replace(run.origin, languages={"text": ["de"]}))
    assert {row["language"] for row in caption_split(alone, params, limit=4, beam=1, language="de")[0]} == {"de"}


def test_the_commands_print_and_keep_the_scores_and_the_report_shows_them(run, split, pictures, tmp_path, capsys):
    Image.fromarray(pictures[0]).save(tmp_path / "red.png")
    command = ["caption", "--workdir", str(run.workdir), "--beam", "1"]
    assert main([*command, "--language", "de", str(tmp_path / "red.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'red.png'}\tbrand baum\n"
    assert main([*command, "--language", "fr", str(tmp_path / "red.png")]) == 2
    assert main([*command, "--show", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"test0\ten\t{split[0][0]['caption']}\t(true: apple amber)\n")
    assert str(scores_grid(split[1])) in printed
    assert main(["eval", "--workdir", str(run.workdir)]) == 0
    result = json.loads((run.workdir / "eval-test.json").read_text())
    assert result["evals"]["written"] == split[1]
    ((name, grid),) = further_grids(result)
    said = capsys.readouterr().out
    assert name == "written" and str(grid) in said and "Captions are scored in each language over the" in said
    page = write_report(run.workdir)[0].read_text("utf-8")
    assert "<td>mean of 2</td>" in page and f"<td>{split[1]['languages']['de']['CIDEr']:.3f}</td>" in page
    assert page.count("true: ") == len(re.findall("true: a", page)) > 0, "captions shown are the first language's"


def test_the_table_has_a_line_for_each_language_and_one_for_their_mean():
    tables = {"ja": {"BLEU-4": 0.25, "CIDEr": 1.0}, "en": {"BLEU-4": 0.75, "CIDEr": 2.0}}
    counts = {"ja": {"records": 3, "lacking": 9}, "en": {"records": 12, "lacking": 0}}
    grid = scores_grid(mean_scores(tables, counts))
    assert grid.head == ["captions in", "BLEU-4", "CIDEr", "records", "lacking"]
    assert grid.rows == [
        ["ja", "0.250", "1.000", "3", "9"],
        ["en", "0.750", "2.000", "12", "0"],
        ["mean of 2", "0.500", "1.500", "", ""],
    ]
    assert scores_grid(mean_scores({"en": tables["en"]}, {})).rows == [["BLEU-4", "0.750"], ["CIDEr", "2.000"]]
    (row,) = scores_grid(mean_scores({"ja": tables["ja"]}, counts)).rows
    assert row == ["ja", "0.250", "1.000", "3", "9"], "what a single language was measured on is told"
    named = {code: own | {"species right": 1.0} for code, own in tables.items()}
    assert "species right" not in mean_scores(named, counts), "a taxonomy has its names in one language"
    assert mean_scores({"en": named["en"]}, counts)["species right"] == 1.0
    own = scores_grid({"languages": {"en": 2.0, "de": 1.0}})  # an evaluation of a user's own
    assert own.rows == [["languages/en", "2.000"], ["languages/de", "1.000"]]


def test_a_run_goes_on_in_its_own_languages_alone(run, folder):
    for languages in (("de", "en"), ("en", "fr")):
        other = assemble(freeze(config_of(folder, *languages)))
        with pytest.raises(
            UserError, match=f"begin in en, de, and the config's languages are now {', '.join(languages)}"
        ):
            refuse_other_starts(other, run.workdir)
    refuse_other_starts(assemble(freeze(config_of(folder, "en", "de"))), run.workdir)


def test_captions_that_no_true_one_is_there_for_are_refused_before_training(folder, tmp_path):
    config = config_of(folder, "en", "de")
    config.eval.languages = ("fr",)
    said = "config.evals.written writes captions in de, en, and those to score by are in fr; write some of these in"
    with pytest.raises(UserError, match=said):
        xmodal.train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_another_run_takes_the_starts_of_the_languages_in_common(run, folder):
    config = config_of(folder, "de", "fr", "en", init=str(run.workdir))
    found = make_run(assemble(freeze(config)), jax.devices()[:1]).fresh().params["decoder"]["start"]
    kept = np.asarray(run.params["decoder"]["start"])
    np.testing.assert_array_equal(found[np.array([0, 2])], kept[np.array([1, 0])])
    assert np.abs(np.asarray(found[1]) - kept).max(axis=1).min() > 1e-3, "French is new"
