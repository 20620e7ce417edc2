"""Skipped steps: named when they happen, one step late, and the end after too many in a row."""

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.train.watch import SkipWatch, cause

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
