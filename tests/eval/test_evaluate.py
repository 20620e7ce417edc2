"""Evaluation with views and languages of its own: train on some drawings and words, ask with others."""

import json

import numpy as np
import pytest
from tiny import changed

from xmodal_jax.checks import refuse_impossible
from xmodal_jax.cli import main
from xmodal_jax.config_checks import check
from xmodal_jax.data.card import Card
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import Evaluator, averaged, ensure_weight, evaluate
from xmodal_jax.eval.hashing import mean_average_precision
from xmodal_jax.eval.tables import language_grid, notes, retrieval_grid


def test_views_of_evaluation_take_the_place_of_those_of_training(opened_run):
    assembly, params = opened_run
    both = evaluate(assembly, params, quick=True)
    trained = changed(assembly, data={"views": ("filled",)})
    assert list(evaluate(trained, params, quick=True)["views"]) == ["filled"]
    asked = evaluate(changed(trained, eval={"views": ("outline",)}), params, quick=True)
    assert asked["views"] == {"outline": both["views"]["outline"]} and asked["mean"] == both["views"]["outline"]


def test_averaged_views_have_unit_length_whether_they_agree_or_not(opened_run):
    """A caption nearer to the picture whose views disagree: its mean is short, and was behind for every caption."""
    views = np.array([[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 0.28, 0.96]]], np.float32)  # [views,pictures,E]
    mean = averaged(views)
    np.testing.assert_allclose(np.linalg.norm(mean, axis=1), 1, rtol=1e-6)
    caption = np.array([0.6, 0.45, 0.66])
    assert np.argmax(mean @ caption) == 0 and np.argmax(views.mean(0) @ caption) == 1
    assembly, params = opened_run
    found, encode, data = [], Embedder(assembly.model, params), assembly.config.data
    for view in ("filled", "outline"):
        split = eval_split(data.path, "test", assembly.specs, data, view)
        found.append(encode.side(split.left, 64).embed)
    image, text = found[0] + found[1], encode.side(split.right, 64).embed
    scores = text @ (image / np.linalg.norm(image, axis=1, keepdims=True)).T
    own = np.take_along_axis(scores, split.right.owner[:, None], axis=1)
    table = evaluate(assembly, params, quick=True)["ensemble"]["t2i"]
    assert table["R@5"] == pytest.approx(100 * np.mean((scores > own).sum(1) < 5))


@pytest.fixture(scope="module")
def two_languages(shapes_files, tmp_path_factory):
    """The shapes with captions in "en" and in "tags"."""
    folder = tmp_path_factory.mktemp("languages")
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    for row in rows:
        row["caption"] = {"en": row["caption"], "tags": " ".join(row["id"].split("-"))}
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["data", "prepare", "jsonl", "--path", folder / "pairs.jsonl", "--root", shapes_files.parent]
    assert main([*map(str, command), "--out", str(folder / "set")]) == 0
    return folder / "set"


def test_languages_of_evaluation_take_the_place_of_those_of_training(opened_run, two_languages):
    assembly, params = opened_run
    moved = changed(assembly, data={"path": str(two_languages)})
    asked = changed(moved, eval={"languages": ("tags",)})
    assert [evaluate(one, params, quick=True)["captions"] for one in (moved, asked)] == [24, 12]
    assert Evaluator(asked, params).open("test", "filled").right.words[0].count(" ") == 1
    said = notes(evaluate(asked, params, quick=True))
    assert f"Captions in tags; data set '{two_languages}'." in said


def test_each_language_has_a_table_of_its_own(opened_run, two_languages):
    """Beside the pool of both, each language's table is that of an evaluation in this language alone."""
    assembly, params = opened_run
    data = {"path": str(two_languages)}
    both, *alone = (
        changed(assembly, data=data, eval={"languages": own, "views": ("filled",), "rerank": (2,)})
        for own in (("en", "tags"), ("en",), ("tags",))
    )
    pooled = evaluate(both, params)
    assert (pooled["records"], pooled["captions"]) == (12, 36)
    for code, own in zip(("en", "tags"), alone, strict=True):
        table, wanted = pooled["mean"]["languages"][code], evaluate(own, params)["mean"]
        for name in ("itc", "codes"):
            assert table[name]["i2t"] == pytest.approx(wanted[name]["i2t"]), (code, name)
        assert table["rerank"][2]["t2i"] == pytest.approx(wanted["rerank"][2]["t2i"], abs=0.5)
    rows = [row[0] for row in language_grid(json.loads(json.dumps(pooled))).rows]
    assert {*rows[:2]} == {"en", "tags"} and "mean of 2, ITM re-ranks the best 2" in rows


def test_the_weight_of_itm_is_chosen_as_it_was_trained(opened_run):
    assembly, params = opened_run
    trained = changed(assembly, data={"views": ("filled",)}, eval={"weight": -1.0, "rerank": (4,)})
    asked = changed(trained, eval={"views": ("outline",)})
    evaluators = [Evaluator(one, params) for one in (trained, asked)]
    weights = [ensure_weight(one, one.embedder, lambda _: None) for one in evaluators]
    assert weights[0] == weights[1]


def test_what_the_data_set_does_not_have_is_refused(opened_run):
    assembly, params = opened_run
    for field, name in (("views", "oil"), ("languages", "fr")):
        with pytest.raises(UserError, match=rf"config.eval.{field}: .* has no \['{name}'\]; write some of"):
            evaluate(changed(assembly, eval={field: (name,)}), params, quick=True)


def test_own_captions_alone_can_be_right(opened_run, tmp_path, shapes_files):
    """All shapes with one and the same caption."""
    assembly, params = opened_run
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    for row in rows:
        row["caption"] = "a shape"
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["data", "prepare", "jsonl", "--path", tmp_path / "pairs.jsonl", "--root", shapes_files.parent]
    assert main([*map(str, command), "--out", str(tmp_path / "set")]) == 0
    moved = changed(assembly, data={"path": str(tmp_path / "set")}, eval={"rerank": (4,)})
    text, own = (evaluate(changed(moved, eval={"relevance": right}), params) for right in ("same", "own"))
    count = text["records"]
    assert "ceiling" not in text["mean"] and text["mean"]["itc"]["t2i"]["R@1"] == 100.0
    best = own["mean"]["ceiling"]
    assert best["t2i"]["R@1"] == pytest.approx(100 / count, abs=0.01)  # one of the pictures that share their caption
    for table in (own["mean"]["itc"], own["mean"]["rerank"][4], own["mean"]["codes"]):
        assert table["t2i"]["R@1"] <= best["t2i"]["R@1"] + 0.01
    grid = str(retrieval_grid(own))
    assert "best possible (captions repeat)" in grid and "best possible" not in str(retrieval_grid(text))
    assert "Right is a picture's own captions alone" in " ".join(notes(own))
    with pytest.raises(UserError, match="config.eval.relevance is 'any'; write one of same, own"):
        check(changed(moved, eval={"relevance": "any"}).config)


def test_a_finished_run_takes_them_on_the_command_line(tiny_run, capsys):
    command = ["eval", "--workdir", str(tiny_run[0]), "--config.eval.rerank=()"]
    assert main([*command, "--config.eval.views=('outline',)"]) == 0
    assert list(json.loads((tiny_run[0] / "eval-test.json").read_text())["views"]) == ["outline"]
    assert main([*command, "--config.eval.views=('oil',)"]) == 2
    assert "config.eval.views" in capsys.readouterr().err
    assert main(["eval", "--workdir", str(tiny_run[0])]) == 0  # as the other tests expect it


def test_codes_are_asked_of_the_splits_that_are_the_gallery(opened_run):
    """The tables are those of the codes of both splits joined by hand; recall stays that of the split itself."""
    assembly, params = opened_run
    plain, other = (
        evaluate(changed(assembly, eval={"gallery": gallery, "rerank": ()}), params)
        for gallery in ((), ("train", "test"))
    )
    encode, data = Embedder(assembly.model, params), assembly.config.data
    for view in ("filled", "outline"):
        codes, labels = {}, {}
        for name in ("test", "train"):
            split = eval_split(data.path, name, assembly.specs, data, view)
            codes[name] = [encode.side(side, 64).codes for side in (split.left, split.right)]
            labels[name] = split.labels, split.labels[split.right.owner]
        for number, side in enumerate(("i2t", "t2i")):
            gallery = np.concatenate([codes[name][1 - number] for name in ("train", "test")])
            shared = labels["test"][number], np.concatenate([labels[name][1 - number] for name in ("train", "test")])
            want = mean_average_precision(np.sign(codes["test"][number]), np.sign(gallery), *shared)
            assert other["views"][view]["labels"][side]["MAP@ALL"] == pytest.approx(want, abs=1e-6)
        assert other["views"][view]["codes"] == plain["views"][view]["codes"]
    assert any("rank the splits train, test" in line for line in notes(other))


@pytest.mark.parametrize(
    ("gallery", "words"),
    [
        (("valid",), "config.eval.gallery: .* has no .'valid'.; write some of test, train"),
        (("train", "train"), "write each split once"),
    ],
)
def test_a_gallery_that_is_not_there_is_refused_before_training_and_before_encoding(opened_run, gallery, words):
    assembly, params = opened_run
    wrong = changed(assembly, eval={"gallery": gallery})
    with pytest.raises(UserError, match=words):
        evaluate(wrong, params)
    with pytest.raises(UserError, match=words):
        refuse_impossible(wrong.config, Card.load(wrong.config.data.path))


def test_a_gallery_wants_labels(opened_run, shapes_files, tmp_path):
    assembly, params = opened_run
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row | {"labels": []}) for row in rows))
    command = ["data", "prepare", "jsonl", "--path", tmp_path / "pairs.jsonl", "--root", shapes_files.parent]
    assert main([*map(str, command), "--out", str(tmp_path / "set")]) == 0
    bare = changed(assembly, data={"path": str(tmp_path / "set")}, eval={"gallery": ("train",)})
    with pytest.raises(UserError, match="asks for shared labels, and .* has none"):
        evaluate(bare, params)
    with pytest.raises(UserError, match="config.data.labels is False; write"):
        evaluate(changed(assembly, data={"labels": False}, eval={"gallery": ("train",)}), params)
