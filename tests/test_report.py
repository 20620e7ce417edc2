import dataclasses
import datetime
import html.parser
import io
import json
import shutil
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import test_depth
from hypothesis import strategies
from PIL import Image

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import memory_source
from xmodal_jax.errors import UserError
from xmodal_jax.report import charts, content, floors, page, write_report
from xmodal_jax.report import picture as report_picture
from xmodal_jax.training.loop import train


@pytest.fixture(scope="module")
def gathered(tiny_run):
    """What the report of `tiny_run` shows, computed once."""
    return content.gather(tiny_run[0])


@pytest.fixture(scope="module")
def written(tiny_run):
    """The two files of the report."""
    return write_report(tiny_run[0])


class Page(html.parser.HTMLParser):
    """Collects tags, links and the words of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.classes, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.links += [found[name] for name in ("src", "href") if name in found]
        self.classes.append((tag, found.get("class", "")))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_no_other_file(written, tiny_run):
    assert [path.name for path in written] == ["report.html", "report.png"]
    found = Page(written[0].read_text("utf-8"))
    assert found.links and all(link.startswith("data:image/") for link in found.links)
    assert not {"script", "link", "iframe"} & set(found.tags)
    words = " ".join(found.words)
    for expected in (
        "quickstart-tiny",
        "chance",
        "expectation of a hit over random orders of tied items",
        "ITM log-odds",
        "MAP@ALL random",
        "true: a ",
    ):
        assert expected in words


def test_right_answers_are_marked(written, gathered):
    found = Page(written[0].read_text("utf-8"))
    right = sum(answer.right for query in gathered.to_left for answer in query.answers)
    assert found.classes.count(("figure", "right")) == right > 0
    listed = sum(answer.right for query in gathered.to_right for answer in query.answers)
    assert found.classes.count(("li", "right")) == listed


def test_the_picture_frames_right_answers_in_green(written, gathered):
    sheet = np.asarray(Image.open(written[1]).convert("RGB")).astype(int)
    assert sheet.shape[1] == report_picture.WIDTH * report_picture.DPI
    green = np.array([int(report_picture.RIGHT[i : i + 2], 16) for i in (1, 3, 5)])
    right = sum(answer.right for query in gathered.to_left[: report_picture.QUERIES] for answer in query.answers)
    assert right > 0 and (abs(sheet - green).max(axis=2) < 8).sum() > 500 * right
    none = [dataclasses.replace(query, answers=[]) for query in gathered.to_left]
    bare = Image.open(io.BytesIO(report_picture.picture(dataclasses.replace(gathered, to_left=none))))
    assert not (abs(np.asarray(bare.convert("RGB")).astype(int) - green).max(axis=2) < 8).any()


def test_the_page_tells_how_run_and_report_were_made(gathered, written, tiny_run):
    assert gathered.run == "tiny" and gathered.facts["config"] == "quickstart-tiny"
    assert {"seed", "step", "training", "weights", "report", "device", "data", "licence", "test"} < set(gathered.facts)
    assert gathered.facts["report"].startswith(datetime.date.today().isoformat()[:4])
    words = written[0].read_text("utf-8")
    assert "<title>tiny</title>" in words and "<h1>tiny</h1>" in words and "prefers-color-scheme:dark" in words
    assert all(html.escape(fact) in words for fact in gathered.facts.values())
    assert "while training" not in words  # it was not evaluated then


def test_evaluations_while_training_are_a_curve(gathered, tmp_path):
    def line(step, recall):
        both = {"i2t": {"R@1": recall, "R@5": 50.0, "median_rank": 3.0}, "t2i": {"R@1": recall}}
        return json.dumps({"step": step, "eval": {"itc": both | {"rSum": 1.0}}})

    (tmp_path / "metrics.jsonl").write_text(
        "\n".join([line(5, 10.0), line(10, 20.0), '{"step": 10, "pairs": 8}', "[]"])
    )
    lines = content.read_metrics(tmp_path)
    found = content.evaluations(lines)
    assert [step for step, _ in found] == [5, 10] and found[1][1]["i2t"] == {"R@1": 20.0, "R@5": 50.0}
    evaluated = dataclasses.replace(gathered, evaluations=found)
    assert 'alt="R@1 while training"' in page.page(evaluated)
    assert report_picture.picture(evaluated) != report_picture.picture(gathered)


def test_what_is_done_is_said_on_the_way(tiny_run):
    said = []
    content.gather(tiny_run[0], "", said.append)
    assert said == [
        "opening the run",
        "embedding split 'test'",
        "answering queries",
        "captions 0 of 8",
        "captions 4 of 8",
    ]


def test_captions_are_written_where_a_decoder_was_trained(opened_run, gathered):
    assembly, params = opened_run
    untrained = dataclasses.replace(assembly, parts=assembly.parts - {"decoder"})
    assert "decoder" in assembly.parts and gathered.samples
    assert content.samples(untrained, params, *[SimpleNamespace(left=SimpleNamespace(encoder="image"))] * 3) == []


def test_queries_are_answered_as_the_evaluation_ranks(gathered):
    assert len(gathered.to_left) == 12 and len(gathered.to_right) == 4 and len(gathered.samples) == 8
    for query in gathered.to_left:
        assert len(query.answers) == 5
        places = [place for place, answer in enumerate(query.answers, 1) if answer.right]
        assert bool(places) == (query.rank <= 5) and (not places or places[0] == query.rank)
        for answer in query.answers:  # a caption names its picture, so right means the same words
            assert answer.right == (set(answer.caption.split()[1:]) <= set(query.text.split()))


def test_curves_are_the_losses_of_the_log(gathered, tiny_run):
    lines = [json.loads(line) for line in (tiny_run[0] / "metrics.jsonl").read_text().splitlines()]
    assert sorted(curve.name for curve in gathered.curves) == ["hash", "itc", "itm", "lm", "mlm"]
    for curve in gathered.curves:
        assert curve.values == [line[f"loss/{curve.name}"] for line in lines]
    assert gathered.facts["step"] == "4 of 4" and gathered.facts["training"].startswith("32 pairs in ")


def test_charts_of_the_codes_are_those_of_the_tables(gathered):
    def words(content):
        return [said for said, _ in charts.code_charts(content)]

    assert words(gathered) == ["precision over recall of the codes"]
    assert page.codes_section(gathered).count("<img") == 1 and "16-bit code" in page.codes_section(gathered)
    mean = gathered.result["mean"]
    short = {name: mean[name] for name in ("codes", "labels", "label_curves")}
    nested = dataclasses.replace(gathered, result=gathered.result | {"mean": mean | {"nested": {"8": short}}})
    assert words(nested) == ["precision over recall of the codes", "R@10 over bits"]
    assert page.codes_section(nested).count("<img") == 2
    assert charts.code_charts(nested)[0][1] != charts.code_charts(gathered)[0][1]  # a curve for each length
    without = {name: value for name, value in mean.items() if name in ("itc", "rerank")}
    bare = dataclasses.replace(gathered, result=gathered.result | {"mean": without, "views": {"filled": without}})
    assert charts.code_charts(bare) == [] and page.codes_section(bare) == ""


def test_the_best_possible_is_a_floor_and_not_a_result_of_the_run(gathered):
    def with_ceiling(tables):
        return tables | {"ceiling": tables["itc"]}

    views = {view: with_ceiling(tables) for view, tables in gathered.result["views"].items()}
    result = gathered.result | {"views": views, "mean": with_ceiling(gathered.result["mean"])}
    bars = charts.recall_bars(dataclasses.replace(gathered, result=result))
    found = [(label, is_floor) for label, _, is_floor in bars if "best possible" in label]
    assert found == [("best possible (captions repeat)", True)]
    assert len(bars) == len(charts.recall_bars(gathered)) + 1


def test_tables_of_other_views_or_languages_are_called_so(opened_run, tiny_run):
    assembly, _ = opened_run
    config, card = assembly.config, Card.load(assembly.config.data.path)
    result = content.read_result(tiny_run[0] / "eval-test.json", tiny_run[0])
    assert content.other_settings(config, card, result) == []
    outline = {"outline": result["views"]["outline"]}
    (said,) = content.other_settings(config, card, result | {"views": outline, "languages": ["de"]})
    assert said == "the tables are of views outline; languages de, unlike the rest of this report"
    (said,) = content.other_settings(config, card, result | {"data": "elsewhere"})
    assert "data elsewhere" in said


def test_torn_and_non_finite_lines_are_passed_over(tmp_path):
    lines = [
        '{"step": 1, "pairs": 8, "loss/itc": 2.0}',
        '{"step": 2, "pairs": 16, "loss/itc": null}',
        '{"step": 3, "eval": {}}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "pa']))
    (curve,) = content.curves(content.read_metrics(tmp_path))
    assert (curve.pairs, curve.values) == ([8], [2.0])
    assert content.read_metrics(tmp_path / "none") == []


@hypothesis.given(strategies.integers(1, 2000), strategies.integers(1, 20))
def test_queries_are_spread_over_the_split(total, count):
    found = content.spaced(total, count)
    assert len(found) == min(total, count) == len(set(found)) and found == sorted(found)
    assert found[0] == 0 and 0 <= found[-1] < total
    assert np.ptp(np.diff(found)) <= 1 if len(found) > 2 else True


OWN = (np.arange(200)[:, None], np.arange(200)[:, None])  # of 200 pictures with a caption of their own


def test_floors_are_chance_then_those_measured_on_the_data_set(tiny_run, tmp_path):
    names, folder = ["R@1", "R@5", "R@10"], tmp_path / "data"
    shutil.copytree(tiny_run[1], folder)
    (chance,) = floors.floors_of(folder, "test", names, OWN)
    assert chance.i2t == chance.t2i == pytest.approx({"R@1": 0.5, "R@5": 2.5, "R@10": 5.0})
    side = {"R@1": 2.5, "R@5": 9.0}
    row = {"features": "hand features", "view": "filled", "split": "test", "i2t": side, "t2i": side, "origin": "here"}
    (folder / "floors.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"split": "val"}) + '\n{"feat')
    _, measured = floors.floors_of(folder, "test", names, OWN)
    assert (measured.name, measured.origin) == ("CCA on hand features, filled", "here")
    assert measured.i2t == side
    assert floors.floors_of(folder, "test", names, OWN, ("depth", "text")) == [chance]


def test_chance_counts_every_right_answer():
    # two pictures share a caption, two have their own: one right answer of four, or two of four
    to_text, to_image = np.array([[0, 1], [0, 1], [2, -1], [3, -1]]), np.array([[0, 1], [0, 1], [2, -1], [3, -1]])
    found = floors.chance((to_text, to_image), ["R@1", "R@2"])
    assert found.i2t["R@1"] == pytest.approx(100 * (2 / 4 + 1 / 4) / 2)
    assert found.t2i["R@2"] == pytest.approx(100 * ((1 - 1 / 6) + 2 / 4) / 2)
    assert floors.chance((to_text, to_image), ["R@1"]).t2i["R@1"] == pytest.approx(37.5)


def test_a_run_without_an_evaluation_is_refused(tiny_run, tmp_path):
    with pytest.raises(UserError, match="eval-test.json' is missing; run `xmodal eval"):
        content.read_result(tmp_path / "eval-test.json", tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_decoder_and_log_still_has_a_report(gathered):
    bare = dataclasses.replace(gathered, samples=[], curves=[], evaluations=[], to_left=[], floors=gathered.floors[:1])
    text = page.page(bare)
    assert "no metrics.jsonl" in text and "<h2>Captions</h2>" not in text and "Words to pictures" not in text
    heights = [Image.open(io.BytesIO(report_picture.picture(shown))).height for shown in (bare, gathered)]
    assert heights[0] < heights[1] - 300


def test_texts_are_escaped_and_are_no_mathematics(gathered):
    query = dataclasses.replace(gathered.to_left[0], text="<b onclick='x'>&\" $\\frac{$")
    shown = dataclasses.replace(gathered, to_left=[query])
    text = page.page(shown)
    assert "<b onclick" not in text and "&lt;b onclick=&#x27;x&#x27;&gt;&amp;&quot;" in text
    assert report_picture.picture(shown).startswith(b"\x89PNG")


# --- other pairs of fields --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report_of(tmp_path_factory):
    """The function (pair) -> what is shown of a run of two steps that evaluates the pair, and the words of its page.

    The data set is called as one of those that have floors, and some of its records have no captions.
    """

    def made(*pair):
        folder = tmp_path_factory.mktemp("-".join(pair))
        bare = ("thing-24", "thing-36")
        own = [dataclasses.replace(item, captions={}) if item.key in bare else item for item in test_depth.items()]
        prepare(memory_source(own, "emoji", "none"), folder / "emoji", allow_bad=True)
        objectives = {"one": {"kind": "itc", "pair": pair}}
        config = test_depth.depth_config(folder / "emoji", steps=2, eval={"pairs": (pair,)}, objectives=objectives)
        train(config, folder / "run")
        assert main(["eval", "--workdir", str(folder / "run")]) == 0
        written, drawn = write_report(folder / "run")
        with Image.open(drawn) as sheet:
            assert sheet.width == report_picture.WIDTH * report_picture.DPI
        return content.gather(folder / "run"), " ".join(Page(written.read_text("utf-8")).words)

    return made


def test_the_report_of_depth_and_captions_has_their_names_and_no_pictures(report_of):
    shown, words = report_of("depth", "text")
    assert [floor.name for floor in shown.floors] == ["chance"] and shown.remarks == []
    assert "Text to depth" in words and "Depth to text" in words and "among its depth, ranked" in words
    assert "depth>text R@1" in words
    for of_pictures in ("picture", "image to text", "i2t:", "frozen towers"):
        assert of_pictures not in words
    assert shown.samples == [] and len(shown.to_left) == 12 and len(shown.to_right) == 4
    for query in shown.to_left + shown.to_right:
        assert query.picture is None and query.text.startswith("a ") and 0 < len(query.answers) <= 5
        assert all(answer.picture is None and answer.caption for answer in query.answers)
    right = sum(answer.right for query in shown.to_left + shown.to_right for answer in query.answers)
    assert words.count("✓") == right > 0


def test_the_report_of_depth_and_pictures_shows_the_pictures(report_of):
    shown, words = report_of("depth", "image")
    assert shown.samples == [] and "Image to depth" in words and "Depth to image" in words
    assert all(query.picture is not None and query.text == "" for query in shown.to_left)
    assert all(answer.picture is None and answer.caption for query in shown.to_left for answer in query.answers)
    assert all(query.picture is None and query.text for query in shown.to_right)
    assert shown.to_right[0].text == "thing-24", "a record without captions goes by its key"
    assert all(answer.picture is not None for query in shown.to_right for answer in query.answers)
    assert "among its depth, ranked" in words and "Captions in" not in words and len(shown.floors) == 1
