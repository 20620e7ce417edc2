"""Means over folds against each fold evaluated by itself; galleries smaller than what is asked of them."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import changed

from xmodal_jax.checks import refuse_impossible
from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.encode.embed import PairScorer
from xmodal_jax.errors import UserError
from xmodal_jax.eval import folds, hashing, rerank, retrieval
from xmodal_jax.eval.evaluate import Evaluator, evaluate
from xmodal_jax.eval.tables import as_text, notes, retrieval_grid


@pytest.fixture(scope="module")
def in_folds(opened_run):
    """Evaluate the tiny run's 12 pictures in three folds of four, with re-ranking of 2 and, cut to a fold, of 8."""
    assembly, params = opened_run
    asked = changed(assembly, eval={"folds": 3, "fold_pictures": 4, "rerank": (2, 8), "views": ("filled",)})
    return asked, params, evaluate(asked, params)


def test_a_mean_over_folds_is_that_of_each_fold_by_itself(in_folds):
    assembly, params, result = in_folds
    evaluator, tables = Evaluator(assembly, params), result["mean"]["folds"]
    split = evaluator.open("test", "filled")
    image, text = (evaluator.embedder.side(side, 64, True) for side in (split.left, split.right))

    def part(side, rows):
        return dataclasses.replace(side, **{k: v[rows] for k, v in vars(side).items() if v is not None})

    wanted = {"itc": [], "codes": [], 2: [], 4: []}
    for first in (0, 4, 8):
        texts = [row for row, owner in enumerate(split.right.owner) if first <= owner < first + 4]
        own, captions = part(image, slice(first, first + 4)), part(text, texts)
        right = retrieval.positives_from_owners(split.right.owner[texts] - first, split.right.numbers[texts], 4)
        sides = (own.embed, captions.embed)
        wanted["itc"].append(
            [retrieval.recall(*pair, way, (1,)) for pair, way in zip((sides, sides[::-1]), right, strict=True)]
        )
        codes = (own.codes, captions.codes)
        wanted["codes"].append(
            [hashing.hamming_recall(*pair, way, (1,)) for pair, way in zip((codes, codes[::-1]), right, strict=True)]
        )
        score = PairScorer(assembly.model, params, own, captions)
        again = rerank.rerank(score, *sides, *right, (2, 4), "add", result["weight"], (1,))
        for k, table in again.items():
            wanted[k].append([table["i2t"], table["t2i"]])
    found = {"itc": tables["itc"], "codes": tables["codes"], **tables["rerank"]}
    assert sorted(tables["rerank"]) == [2, 4]
    for name, own in wanted.items():
        for number, side in enumerate(("i2t", "t2i")):
            mean = np.mean([fold[number]["R@1"] for fold in own])
            assert found[name][side]["R@1"] == pytest.approx(mean, abs=1e-4), (name, side)


def test_the_table_shows_the_folds_beside_the_whole_split(in_folds):
    _, _, result = in_folds
    rows = retrieval_grid(json.loads(json.dumps(result))).rows
    of_folds = [row for row in rows if row[0] == "filled, 3 folds"]
    assert [row[1] for row in of_folds] == [row[1].replace("best 8", "best 4") for row in rows[: len(of_folds)]]
    assert of_folds[0][2] == f"{result['mean']['folds']['itc']['i2t']['R@1']:.1f}"
    assert of_folds[0][4] == "" and rows[0][4] != ""  # four pictures have no R@5 and R@10
    assert any(line.startswith("3 folds: the mean over 3 groups of 4 pictures") for line in notes(result))


def test_captions_are_in_the_fold_of_their_picture(opened_run):
    split = Evaluator(*opened_run).open("test", "filled")
    parts = list(folds.folds_of(split, 2, 5))
    assert [part.split.keys for part in parts] == [split.keys[:5], split.keys[5:10]]
    for part in parts:
        for owner, row in zip(part.split.right.owner, part.right, strict=True):
            assert part.split.keys[owner] == split.keys[split.right.owner[row]]
            assert part.split.right.words[list(part.right).index(row)] == split.right.words[row]
        np.testing.assert_array_equal(part.split.left.read(1), split.left.read(int(part.left[1])))


def test_folds_that_the_split_does_not_have_are_refused_before_training_and_before_encoding(opened_run):
    assembly, params = opened_run
    wrong = changed(assembly, eval={"folds": 5})
    words = "config.eval.folds is 5, each of config.eval.fold_pictures=1000 pictures, and split 'test' has 12, not 5000"
    with pytest.raises(UserError, match=words):
        evaluate(wrong, params, say=pytest.fail)
    with pytest.raises(UserError, match=words):
        refuse_impossible(wrong.config, Card.load(wrong.config.data.path))


def test_shortlists_end_with_the_gallery(opened_run):
    assembly, params = opened_run
    whole = evaluate(changed(assembly, eval={"rerank": (4, 16, 64), "views": ("filled",)}), params)
    known = evaluate(changed(assembly, eval={"rerank": (4, 12), "views": ("filled",)}), params)

    def recalls(result):
        return {k: (own["i2t"], own["t2i"]) for k, own in result["mean"]["rerank"].items()}

    assert list(recalls(whole)) == [4, 12] and recalls(whole) == recalls(known)
    said = "Re-ranking the best 16, 64 was asked for; the gallery ends at 12."
    assert said in notes(whole) and not any("was asked for" in line for line in notes(known))


def test_one_record_is_a_gallery_too(opened_run, shapes_files, tmp_path):
    assembly, params = opened_run
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    rows = [
        row | {"split": "test" if number == 0 else "train", "caption": row["caption"][:1]}
        for number, row in enumerate(rows)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["data", "prepare", "jsonl", "--path", tmp_path / "pairs.jsonl", "--root", shapes_files.parent]
    assert main([*map(str, command), "--out", str(tmp_path / "set")]) == 0
    result = evaluate(changed(assembly, data={"path": str(tmp_path / "set")}), params)
    assert (result["records"], result["captions"]) == (1, 1)
    mean = result["mean"]
    for table in (mean["itc"], mean["rerank"][1], mean["codes"], mean["codes"]["chance"]):
        assert table["i2t"]["R@1"] == table["t2i"]["R@1"] == 100.0 and "R@5" not in table["i2t"]
    assert mean["codes"]["precision"]["i2t"] == {"P@1": 1.0, "P random": 1.0}
    text = as_text(json.loads(json.dumps(result)))
    assert "1 records, 1 captions" in text and "R@5" not in text and "ITM re-ranks the best 1" in text
