"""Skipped steps and batches without a negative: named when they happen, one step late, and when they end the run."""

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives, lonely
from xmodal_jax.training.step import negatives
from xmodal_jax.training.watch import SkipWatch, cause

GOOD = {"loss/itc": 1.0, "loss/itm": 2.0, "nonfinite/text": 0.0, "skipped": 0, "skips_in_row": 0}


def bad(row, **changes):
    """The metrics of a skipped step, the `row`-th in a row."""
    return GOOD | {"skipped": row, "skips_in_row": row} | changes


def test_the_cause_is_the_objective_or_else_the_modules_of_the_gradient():
    assert cause(GOOD | {"loss/itc": np.inf, "nonfinite/text": 1.0}) == "the loss of itc is not finite"
    assert cause(GOOD | {"nonfinite/text": 1.0}) == "every loss is finite but the gradient is not (of text)"


def test_a_step_is_looked_at_when_the_next_is_sent():
    said = []
    watch = SkipWatch(3, said.append)
    watch.sent(1, bad(1, **{"loss/itm": np.nan}))
    assert not said
    watch.sent(2, GOOD | {"skipped": 1})
    assert said == ["step 1: update skipped, the loss of itm is not finite; skipped 1 in all"]
    watch.finish()
    watch.finish()
    assert len(said) == 1


def test_too_many_in_a_row_end_the_run():
    watch = SkipWatch(2, lambda text: None)
    watch.sent(1, bad(1, **{"nonfinite/text": 1.0}))
    watch.sent(2, bad(2, **{"nonfinite/text": 1.0}))
    with pytest.raises(UserError, match=r"2 steps in a row were skipped: every loss is finite .* \(of text\)"):
        watch.finish()


def test_a_batch_without_a_negative_is_said_once_and_by_name():
    said = []
    watch = SkipWatch(3, said.append, ("itc", "itm"))
    for step, counts in enumerate([(7, 1.0), (7, 0.0), (0, 0.5), (0, 0.0)]):
        watch.sent(step, GOOD | {"negatives": counts[0], "itm/rows": counts[1]})
    watch.finish()
    assert [text.split(":")[:2] for text in said] == [["step 1", " itm"], ["step 2", " itc"]]


def test_a_start_without_any_negative_ends_the_run():
    watch = SkipWatch(3, lambda text: None, ("itc", "itm"))
    for step in range(3):
        watch.sent(step, GOOD | {"negatives": 5, "itm/rows": 0.0})
    with pytest.raises(UserError, match="none of the first 3 batches has a negative for itm: all rows show the same"):
        watch.finish()
    watch = SkipWatch(3, lambda text: None, ("itm",))  # going on, by chance two such batches first: no reason to stop
    for step, rows in enumerate([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]):
        watch.sent(step, GOOD | {"negatives": 5, "itm/rows": rows})
    watch.finish()


def test_only_objectives_that_need_negatives_are_watched():
    def named(section):
        return lonely(build_objectives(section))

    assert named({"itc": {"queue": 0}, "lm": {}, "hash_triplet": {}}) == ("itc", "hash_triplet")
    assert named({"itc": {"queue": 8}, "itm": {}}) == ("itm",), "a queue has negatives too"
    assert named({"itc": {"queue": 8}, "ims": {}}) == (), "so has another's that it reads"
    assert named({"itc": {"queue": 8, "keys": "own"}, "ims": {}}) == ("ims",)
    assert named({"hash_contrast": {"table": 9}, "fused": {"queue": 0}}) == ("fused",)


def test_negatives_are_the_rows_unlike_the_first():
    batch = {"id": np.array([1, 1, 2, 3]), "text/key": np.array([5, 6, 5, 7]), "image": np.zeros((4, 2))}
    assert negatives(batch) == 1.0
    assert negatives(batch | {"text/key": np.full(4, 5)}) == 0.0
