"""A run whose evaluations get no better stops early, says so, stays stopped, and goes on with more patience."""

import json

import pytest
from test_keep_best import FLAT, numbers
from test_loop import PLAIN, tiny

from xmodal_jax.training.loop import run_training

VALUES = {1: 10.0, 2: 40.0, 3: 30.0, 4: 20.0, 5: 25.0, 6: 50.0}


def given(run, state, poll) -> dict:
    """The evaluation that `VALUES` has for the state's step."""
    return numbers(VALUES[int(state.step)])


@pytest.fixture(scope="module")
def stopped(shapes_data, tmp_path_factory):
    """(workdir, config of a patience, result) of a run that stopped early at step 4 of 6."""
    workdir = tmp_path_factory.mktemp("early") / "run"

    def config(patience: int):
        return tiny(PLAIN, shapes_data, "steps=6", *FLAT, f"eval.patience={patience}")

    return workdir, config, run_training(config(2), workdir, given)


def marks(workdir) -> list[dict]:
    """The lines of metrics.jsonl that say that the run stopped early."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "stopped_early" in line]


def test_a_run_stops_early_stays_stopped_and_goes_on_with_more_patience(stopped, caplog):
    workdir, config, result = stopped
    assert (result.step, result.ended, result.best_step) == (4, "early", 2)
    assert [line["step"] for line in marks(workdir)] == [4] and marks(workdir)[0]["stopped_early"]["waited"] == 2
    caplog.set_level("INFO", "xmodal_jax")
    again = run_training(config(2), workdir, given)
    assert (again.step, again.ended) == (4, "early") and len(marks(workdir)) == 1, "nothing is trained"
    assert (
        "stopped early at step 4: itc/rSum was best at step 2 (40) and no better in 2 evaluations since; a larger "
        "config.eval.patience goes on from here" in caplog.text
    )
    longer = run_training(config(4), workdir, given)
    assert (longer.step, longer.ended, longer.best_step) == (6, "finished", 6)
