"""Encoding a split: blocks against single rows, padding left out, mirror images averaged."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.encode.embed import READ_BYTES, Embedder, PairScorer
from xmodal_jax.eval.code_tables import cosine_table
from xmodal_jax.eval.evaluate import evaluate


@pytest.fixture(scope="module")
def test_split(opened_run):
    """The evaluation split of the tiny run."""
    assembly, _ = opened_run
    data = assembly.config.data
    return eval_split(data.path, data.eval_split, assembly.specs, data)


def pictures(split, flip=False):
    """All pictures of a split in one block."""
    return np.stack([split.left.read(number, flip) for number in range(len(split.keys))])


def test_blocks_give_the_rows_of_one_call_without_padding(opened_run, test_split):
    assembly, params = opened_run
    embedder = Embedder(assembly.model, params)
    found = embedder.side(test_split.left, 5, keep_tokens=True)
    whole = embedder.rows("image", pictures(test_split))
    assert len(found.embed) == len(test_split.keys) % 5 + 5 * (len(test_split.keys) // 5)
    for name in ("embed", "tokens", "codes"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), atol=1e-5)
    assert embedder.side(test_split.left, 5).tokens is None


def test_texts_keep_their_masks(opened_run, test_split):
    assembly, params = opened_run
    found = Embedder(assembly.model, params).side(test_split.right, 7, keep_tokens=True)
    np.testing.assert_array_equal(found.mask, test_split.right.ids != 0)
    assert found.tokens.shape[:2] == test_split.right.ids.shape


def test_flip_is_the_mean_of_a_picture_and_its_mirror_image(opened_run, test_split):
    assembly, params = opened_run
    config = dataclasses.replace(assembly.config, eval=dataclasses.replace(assembly.config.eval, flip=True))
    found = Embedder(assembly.model.clone(config=config), params).side(test_split.left, 5, keep_tokens=True)
    plain, mirrored = pictures(test_split), pictures(test_split, flip=True)
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    one, other = (Embedder(assembly.model, params).rows("image", images) for images in (plain, mirrored))
    mean = one.embed + other.embed
    np.testing.assert_allclose(found.embed, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found.codes, (one.codes + other.codes) / 2, atol=1e-5)
    np.testing.assert_allclose(found.tokens, one.tokens, atol=1e-5)
    assert not np.allclose(one.embed, other.embed, atol=1e-3)


@pytest.mark.parametrize("room", [READ_BYTES, 0])
def test_the_pair_scorer_is_the_models_score(opened_run, test_split, monkeypatch, room):
    assembly, params = opened_run
    monkeypatch.setattr("xmodal_jax.encode.embed.READ_BYTES", room)
    embedder = Embedder(assembly.model, params)
    image, text = (embedder.side(side, 8, keep_tokens=True) for side in (test_split.left, test_split.right))
    rows = np.array([3, 0, 2], np.int32), np.array([1, 5, 1], np.int32)
    sides = (
        (image.tokens[rows[0]], image.embed[rows[0]]),
        (text.tokens[rows[1]], text.embed[rows[1]], text.mask[rows[1]]),
    )
    expected = assembly.model.apply({"params": params}, *sides, method="score")
    score = PairScorer(assembly.model, params, image, text)
    assert len(jax.tree.leaves(score.arrays[0])) == (3 if room else 2)  # keys and values, or tokens; the embeddings
    np.testing.assert_allclose(score(*rows), expected, atol=1e-4)
    ends = [np.flatnonzero(row).max() + 1 for row in text.mask]
    np.testing.assert_array_equal(score.lengths, ends)
    assert score.length_of(rows[1]) == min(8 * -(-max(ends[1], ends[5]) // 8), text.mask.shape[1])


def test_views_that_miss_records_are_scored_with_their_own_captions(shapes_files, opened_run, tmp_path):
    """Two records lack one view each: a view's captions are those of its own pictures."""
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    for row in rows:
        row["views"] = {view: str(shapes_files.parent / name) for view, name in row["views"].items()}
    test = [row for row in rows if row["split"] == "test"]
    del test[2]["views"]["filled"], test[5]["views"]["outline"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert main(["data", "prepare", "jsonl", "--path", str(path), "--out", str(tmp_path / "data")]) == 0
    assembly, params = opened_run
    config = dataclasses.replace(
        assembly.config, data=dataclasses.replace(assembly.config.data, path=str(tmp_path / "data"))
    )
    moved = dataclasses.replace(assembly, config=config)
    found = evaluate(moved, params, quick=True)
    assert "ensemble" not in found  # the views do not hold the same pictures
    for view in ("filled", "outline"):
        split = eval_split(config.data.path, "test", assembly.specs, config.data, view)
        embedder = Embedder(assembly.model, params)
        image, text = (embedder.side(side, 8).embed for side in (split.left, split.right))
        assert found["views"][view]["itc"] == cosine_table(image, text, split)
