"""The best checkpoint stays beside the last ones, a run goes on from the last one, and an opened run takes the best."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from test_loop import PLAIN, tiny

from xmodal_jax.errors import UserError
from xmodal_jax.training.best import BestWatch, Standing, chosen
from xmodal_jax.training.checkpoint import Checkpoints
from xmodal_jax.training.loop import run_training, train
from xmodal_jax.workdir import open_run

VALUES = {1: 10.0, 2: 40.0, 3: 30.0, 4: 20.0, 5: 25.0, 6: 5.0}  # rSum at each step
FLAT = ("optimizer.warmup=0", "optimizer.end_lr=1.0", "eval.every=1", "eval.keep_best=rsum", "checkpoint.every=1")


def numbers(value: float) -> dict:
    """An evaluation with this rSum."""
    return {"itc": {"i2t": {"R@1": value / 6}, "t2i": {"R@1": value / 6}, "rSum": value}, "ceiling": {"rSum": 600.0}}


def given(run, state, poll) -> dict:
    """The evaluation that `VALUES` has for the state's step."""
    return numbers(VALUES[int(state.step)])


@pytest.fixture(scope="module")
def best_run(shapes_data, tmp_path_factory):
    """(workdir, result) of five steps with an evaluation after each, the best after the second."""
    workdir = tmp_path_factory.mktemp("best") / "run"
    return workdir, run_training(tiny(PLAIN, shapes_data, "steps=5", *FLAT), workdir, given)


def kept(workdir) -> list[int]:
    """The steps that have a checkpoint."""
    return Checkpoints(workdir, read_only=True).steps()


def test_the_best_checkpoint_stays_beside_the_last_ones(best_run):
    workdir, result = best_run
    assert kept(workdir) == [2, 4, 5]
    assert (result.step, result.ended, result.evaluation_step, result.best_step) == (5, "finished", 5, 2)
    assert result.evaluation == numbers(25.0) and result.seconds > 0
    notes = json.loads((workdir / "checkpoints" / "5" / "notes.json").read_text())["best"]
    assert Standing.from_notes(notes) == Standing("rsum", "itc/rSum", 2, 40.0, 5, 3)


def test_an_opened_run_takes_the_best_or_the_last(best_run):
    workdir, result = best_run
    assert open_run(workdir)[2] == 2
    assert open_run(workdir, {"eval": {"step": "best"}})[2] == 2
    _, params, step = open_run(workdir, {"eval": {"step": "last", "params": "student"}})
    assert step == 5
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(result.state.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_best_checkpoint_is_named(best_run, tmp_path):
    workdir = shutil.copytree(best_run[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"of step 2, is damaged \(it is not there\).*or write config.eval.step=last"):
        open_run(workdir)
    assert open_run(workdir, {"eval": {"step": "last"}})[2] == 5


def test_a_run_in_parts_keeps_the_same_best(best_run, shapes_data, tmp_path):
    """The best of an earlier start counts, bit by bit; a better one later takes its place."""
    for steps in (3, 5):
        state = train(tiny(PLAIN, shapes_data, f"steps={steps}", *FLAT), tmp_path, given)
    whole = best_run[1].state
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    assert kept(tmp_path) == [2, 4, 5]
    texts = [(folder / "checkpoints" / "5" / "notes.json").read_text() for folder in (best_run[0], tmp_path)]
    assert texts[0] == texts[1]
    better = tiny(PLAIN, shapes_data, "steps=6", *FLAT)
    train(better, tmp_path, lambda run, state, poll: numbers(99.0))
    assert kept(tmp_path) == [5, 6] and open_run(tmp_path)[2] == 6


def test_an_evaluation_that_comes_after_the_save_counts(shapes_data, tmp_path):
    """A run that was stopped in its evaluation makes up for it at the next start: the saved step's notes are new."""
    train(tiny(PLAIN, shapes_data, "steps=2", *FLAT, "eval.every=0", "eval.keep_best="), tmp_path)
    result = run_training(tiny(PLAIN, shapes_data, "steps=2", *FLAT), tmp_path, given)
    assert result.best_step == 2 and open_run(tmp_path, {"eval": {"step": "best"}})[2] == 2


def test_a_run_without_a_best_checkpoint_is_refused(tiny_run):
    with pytest.raises(UserError, match=r"has no best checkpoint; train with config.eval.keep_best"):
        open_run(tiny_run[0], {"eval": {"step": "best"}})


def test_names_of_numbers():
    evaluation = numbers(12.0) | {"evals": {"labels": {"right": 3.0}}}
    assert chosen("rsum", evaluation) == ("itc/rSum", 12.0)
    assert chosen("ceiling/rSum", evaluation) == ("ceiling/rSum", 600.0)
    assert chosen("t2i/r@1", evaluation) == ("itc/t2i/R@1", 2.0)
    assert chosen("-right", evaluation) == ("evals/labels/right", 3.0)
    with pytest.raises(UserError, match=r"config.eval.keep_best is 'sum', .*write one of itc/i2t/R@1, .*ceiling/rSum"):
        chosen("sum", evaluation)


def test_lowest_first_ties_and_other_numbers(shapes_data):
    config = dataclasses.replace(tiny(PLAIN, shapes_data).eval, keep_best="-rsum", every=1, patience=2)
    watch = BestWatch(config)
    assert [watch.look(step, numbers(value)) for step, value in ((1, 9.0), (2, 8.0), (3, 8.0))] == [True, True, False]
    assert not watch.look(4, numbers(float("nan"))) and watch.patience_over and watch.standing.step == 2
    other = BestWatch(dataclasses.replace(config, keep_best="i2t/R@1"), watch.standing)
    assert not other.patience_over and other.look(5, numbers(6.0)) and other.standing.value == 1.0


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (("eval.keep_best=rsum",), "config.eval.every=0 makes no quick evaluations"),
        (("eval.patience=3",), "config.eval.keep_best names no number"),
        (("eval.step=first",), "config.eval.step is 'first'; write one of '', last, best"),
        (("eval.average=2", "eval.step=best"), "config.eval.average is 2 and config.eval.step 'best'; write one"),
    ],
)
def test_what_cannot_work_is_refused(shapes_data, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(PLAIN, shapes_data, *overrides)
