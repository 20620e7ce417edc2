"""Evaluation on all devices: the numbers of one device, and nothing compiled twice."""

import logging

import jax
import numpy as np
import pytest

from xmodal_jax.config_file import freeze, load
from xmodal_jax.encode.embed import Embedder, PairScorer
from xmodal_jax.eval import hashing, retrieval, zeroshot
from xmodal_jax.eval.captioning import caption_split
from xmodal_jax.eval.evaluate import Evaluator, evaluate
from xmodal_jax.eval.rerank import score_pairs
from xmodal_jax.parallel.mesh import mesh_of
from xmodal_jax.training.loop import train


@pytest.fixture(scope="module")
def both(opened_run):
    """The assembly of the tiny run, and its parameters on one device and on all."""
    assembly, params = opened_run
    assert mesh_of(params).size == 8
    return assembly, jax.device_put(params, jax.devices()[0]), params


@pytest.fixture(scope="module")
def encoded(both):
    """[(embedder, pictures, captions)] of the test split, on one device and on all, in blocks that do not divide."""
    assembly, *trees = both
    found = Evaluator(assembly, trees[0]).open("test", "")
    embedders = [Embedder(assembly.model, params) for params in trees]
    return [(own, *(own.side(side, 5, keep_tokens=True) for side in (found.left, found.right))) for own in embedders]


def test_a_block_that_does_not_divide_gives_the_rows_of_one_device(encoded):
    (_, *one), (_, *every) = encoded
    for side, other in zip(one, every, strict=True):
        for name in ("embed", "tokens", "codes"):
            np.testing.assert_allclose(getattr(other, name), getattr(side, name), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("block", [16, 13])
def test_pairs_are_scored_as_on_one_device(both, encoded, block):
    assembly, *trees = both
    draw = np.random.default_rng(0)
    image, text = draw.integers(0, 12, 50, dtype=np.int32), draw.integers(0, 24, 50, dtype=np.int32)
    scorers = [PairScorer(assembly.model, params, *own[1:]) for params, own in zip(trees, encoded, strict=True)]
    one, every = (score_pairs(score, image, text, block) for score in scorers)
    np.testing.assert_allclose(every, one, atol=1e-4)
    assert {len(array.devices()) for array in jax.tree.leaves(scorers[1].arrays)} == {8}


def test_captions_are_those_of_one_device(both):
    assembly, *trees = both
    one, every = (caption_split(assembly, params, limit=5, beam=2) for params in trees)
    assert every == one and len(one[0]) == 5


def test_nearest_rows_and_average_precision_do_not_depend_on_the_devices(rng):
    """Ties are resolved alike too."""
    query, gallery = (rng.integers(-1, 2, (n, 8)).astype(np.float32) for n in (21, 40))
    scores, rows = retrieval.topk(query, gallery, 7)
    want = order(-(query @ gallery.T))[:, :7]
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_array_equal(scores, np.take_along_axis(query @ gallery.T, want, axis=1))
    head = np.eye(8, dtype=np.float32)[:, rng.permutation(8)]
    np.testing.assert_array_equal(zeroshot.best_classes(query + 2, head, 3), order(-(query @ head.T))[:, :3])
    labels = rng.integers(0, 2, (61, 5)).astype(np.float32)
    sides = query, gallery, labels[:21], labels[21:]
    one = [(sides[0][[i]], gallery, labels[[i]], labels[21:]) for i in range(21) if (labels[i] @ labels[21:].T).any()]
    each = [hashing.mean_average_precision(*own) for own in one]
    assert hashing.mean_average_precision(*sides, chunk=6) == pytest.approx(np.mean(each), abs=1e-6)


def order(distance: np.ndarray) -> np.ndarray:
    """Columns [n,m] by ascending distance, equal ones by number."""
    return np.argsort(distance, axis=1, kind="stable")


def close(one: object, other: object) -> None:
    """All numbers of two tables are near each other, but for seconds; all else is the same."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds"}:
            close(one[name], other[name])
    elif isinstance(one, float):
        assert other == pytest.approx(one, abs=1e-3)
    else:
        assert one == other


def test_all_tables_are_those_of_one_device(both):
    assembly, *trees = both
    close(*(evaluate(assembly, params) for params in trees))


def compiled(caplog) -> list[str]:
    """What JAX says that it compiled since this was asked last."""
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling ")]
    caplog.clear()
    return said


def test_a_run_compiles_its_encoders_once_for_all_evaluations(train_tiny, tmp_path, caplog):
    """The second evaluation of a run finds all programs of the first one, and so does re-ranking with other weights."""
    light = "objectives={'itc': {'queue': 8}, 'itm': {}}"
    arguments = train_tiny(tmp_path, light, "eval.every=2")  # no other test has this config, so nothing is compiled yet
    overrides = [item.removeprefix("--config.") for item in arguments if item.startswith("--config.")]
    counts = []

    def whole_and_quick(run, state, poll):
        for quick in (False, True):
            caplog.clear()
            found = evaluate(run.assembly, state.params, quick=quick, poll=poll)["mean"]
            counts.append(compiled(caplog))
        return found

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(freeze(load(arguments[2], overrides)), tmp_path, whole_and_quick)
    whole, *later = counts
    assert any("encode_rows" in said for said in whole) and any("score_rows" in said for said in whole)
    assert later == [[], [], []]
