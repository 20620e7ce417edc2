"""The loop: stopped and resumed runs equal whole ones bit by bit, every config trains, NaN ends with a name."""

import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from xmodal_jax import config as configs
from xmodal_jax.cli import main
from xmodal_jax.errors import UserError
from xmodal_jax.train.loop import StopSignal, refuse_non_finite, train

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
SMALL = ("batch_size=8", "data.image_size=16", "data.eval_split=test", "log_every=1")


def tiny(path, data, *overrides):
    """The tiny variant of a config on a data folder, frozen."""
    return configs.freeze(configs.load(f"{path}:tiny", [f"data.path={data}", *SMALL, *overrides]))


def test_a_stopped_run_that_goes_on_equals_a_whole_one(shapes_data, tmp_path):
    config = tiny(CONFIGS[-1], shapes_data, "steps=4", "eval.every=2")
    empty = {"itc": {"i2t": {}, "t2i": {}, "rSum": 0.0}}
    whole = train(config, tmp_path / "whole", lambda run, state: empty)

    def stop(run, state):
        os.kill(os.getpid(), signal.SIGTERM)
        return empty

    handler = signal.getsignal(signal.SIGTERM)
    halfway = train(config, tmp_path / "stopped", stop)
    assert int(halfway.step) == 2 and signal.getsignal(signal.SIGTERM) is handler
    resumed = train(config, tmp_path / "stopped", lambda run, state: empty)
    assert int(resumed.step) == 4
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    losses = [[line[line.index('"loss/') :] for line in own if '"loss/' in line] for own in lines]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_and_evaluates(path, shapes_data, tmp_path):
    changed = [f"--config.{item}" for item in (f"data.path={shapes_data}", *SMALL, "steps=2", "eval.rerank=(4,)")]
    assert main(["train", "--config", f"{path}:tiny", "--workdir", str(tmp_path), *changed]) == 0
    assert main(["eval", "--workdir", str(tmp_path)]) == 0
    assert (tmp_path / "eval-test.json").is_file()


def test_a_second_signal_ends_the_process_at_once():
    def raises(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, raises)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.seen
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_steps_skipped_in_a_row_end_the_run_by_the_name_of_the_objective():
    config = configs.freeze(configs.defaults())
    metrics = {"loss/itc": float("nan"), "loss/itm": 0.5, "skips_in_row": config.optimizer.max_skips - 1}
    refuse_non_finite(config, metrics)
    with pytest.raises(UserError, match="the loss of itc is not finite"):
        refuse_non_finite(config, metrics | {"skips_in_row": config.optimizer.max_skips})
    with pytest.raises(UserError, match="the gradient is not"):
        refuse_non_finite(config, {"loss/itm": 0.5, "skips_in_row": config.optimizer.max_skips})


def test_nan_in_the_parameters_stops_a_real_run(shapes_data, tmp_path):
    config = tiny(
        CONFIGS[-1],
        shapes_data,
        "steps=6",
        "optimizer.max_skips=2",
        "joint.temperature_min=1e-30",
        "joint.temperature=1e-30",
    )
    with pytest.raises(UserError, match="2 steps in a row were skipped"):
        train(config, tmp_path)
