"""The loop: stopped and resumed runs equal whole ones bit by bit, every config trains, NaN ends with a name."""

import json
import math
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from xmodal_jax import config_file as configs
from xmodal_jax.cli import main
from xmodal_jax.errors import UserError
from xmodal_jax.training.log import METRICS_FILE
from xmodal_jax.training.loop import train
from xmodal_jax.training.stop import StopSignal

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
PLAIN = CONFIGS[0].with_name("vit2cmh.py")  # for tests that look at a run, not at a method
SMALL = ("batch_size=8", "encoders.image.size=16", "data.eval_split=test", "log_every=1", "optimizer.end_lr=1.0")


LIGHT = "objectives={'itc': {'queue': 16}, 'hash': {'weight': 0.1}}"  # what these tests look at is not the objectives


def tiny(path, data, *overrides):
    """The tiny variant of a config on a data folder with two objectives, frozen."""
    overrides = (LIGHT, *overrides)
    return configs.freeze(configs.load(f"{path}:tiny", [f"data.path={data}", *SMALL, *overrides]))


EMPTY = {"itc": {"i2t": {}, "t2i": {}, "rSum": 0.0}}


def records(workdir):
    """metrics.jsonl without what depends on the clock and the machine."""
    clock = ("pairs_per_s", "data_wait", "tflop_per_s", "mfu", "memory_gb")
    lines = (json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def test_a_run_stopped_while_evaluating_goes_on_and_equals_a_whole_one(shapes_data, tmp_path):
    config = tiny(PLAIN, shapes_data, "steps=4", "eval.every=2")
    whole = train(config, tmp_path / "whole", lambda run, state, poll: EMPTY)
    seen = []

    def stop(run, state, poll):
        os.kill(os.getpid(), signal.SIGTERM)
        poll()
        seen.append("the evaluation went on")
        return EMPTY

    handler = signal.getsignal(signal.SIGTERM)
    halfway = train(config, tmp_path / "stopped", stop, handle_signals=True)
    assert int(halfway.step) == 2 and signal.getsignal(signal.SIGTERM) is handler and not seen
    resumed = train(config, tmp_path / "stopped", lambda run, state, poll: EMPTY)
    assert int(resumed.step) == 4
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    both = [records(tmp_path / name) for name in ("whole", "stopped")]
    assert [line["step"] for line in both[0]] == [1, 2, 2, 3, 4, 4] and both[0] == both[1]  # the evaluation came later


def test_a_real_evaluation_polls_between_its_blocks(shapes_data, tmp_path, caplog):
    """A signal that comes while the weights are evaluated ends the run there, and the state is saved."""
    from xmodal_jax.eval.evaluate import evaluate

    polls = []

    def quick(run, state, poll):
        def count():
            polls.append(poll)
            if len(polls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            poll()

        return evaluate(run.assembly, state.params, quick=True, poll=count)["mean"]

    config = tiny(PLAIN, shapes_data, "steps=4", "eval.every=2", "eval.batch_size=4")
    caplog.set_level("INFO", "xmodal_jax")
    assert int(train(config, tmp_path, quick, handle_signals=True).step) == 2
    assert len(polls) == 2 and "stopped by a signal at step 2; saved" in caplog.text


def losses_of(workdir):
    """Return all losses in metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    return [value for line in lines for name, value in line.items() if name.startswith("loss")]


# Hashing. Other tests of the quick tier train mvsen's graph, vit2cmh, acquirers of languages and captions by language;
# test_configs.py takes a step of every config, and pages of the docs train five more in the slow tier.
FAMILIES = ("tecmh",)
OTHERS = [pytest.param(path, marks=pytest.mark.slow) for path in CONFIGS if path.stem not in ("quickstart", *FAMILIES)]


@pytest.mark.parametrize(
    "path", [*(CONFIGS[0].with_name(f"{name}.py") for name in FAMILIES), *OTHERS], ids=lambda path: path.stem
)
def test_every_config_trains_and_evaluates(path, shapes_data, tmp_path):
    changed = [f"--config.{item}" for item in (f"data.path={shapes_data}", *SMALL, "steps=2", "eval.rerank=(4,)")]
    assert main(["train", "--config", f"{path}:tiny", "--workdir", str(tmp_path), *changed]) == 0
    assert main(["eval", "--workdir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "eval-test.json").read_text())
    loaded = configs.load(f"{path}:tiny")
    matched = "itm" in loaded.objectives or loaded.scorer.get("kind", "fusion") != "fusion"
    assert set(found["mean"].get("rerank", ())) == ({"4"} if matched else set()) and found["step"] == 2
    losses = losses_of(tmp_path)
    assert len(losses) > 1 and all(map(math.isfinite, losses))


def test_the_quickstart_trains_and_evaluates(tiny_run):
    found = json.loads((tiny_run[0] / "eval-test.json").read_text())
    assert set(found["mean"]["rerank"]) == {"4", "8"} and found["step"] == 4
    losses = losses_of(tiny_run[0])
    assert len(losses) == 2 * 6 and all(map(math.isfinite, losses))  # the sum and five objectives, twice


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


def test_nan_in_the_parameters_stops_a_real_run(shapes_data, tmp_path, caplog):
    caplog.set_level("INFO", "xmodal_jax")
    config = tiny(
        PLAIN,
        shapes_data,
        "steps=6",
        "optimizer.max_skips=2",
        "joint.temperature_min=1e-30",
        "joint.temperature=1e-30",
        "encoders.text.length=5",
    )
    with pytest.raises(UserError, match=r"2 steps in a row were skipped: .* \(of log_temperature\)"):
        train(config, tmp_path)
    said = caplog.text
    # "a red circle" is whole, "the circle is red" is not
    assert (
        "50 % of the training captions lose their end: config.encoders.text.length is 5 tokens; 6 would keep 99 %"
        in said
    )
    assert "step 1: update skipped, every loss is finite but the gradient is not" in said and "step 2: update" in said


def test_profile_events_and_numbers_of_the_log(shapes_data, tmp_path):
    """One run with everything on that looks at it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(PLAIN, shapes_data, "steps=4", "log.to=('tensorboard',)")
    train(config, tmp_path, None, (2, 3))
    line = records(tmp_path)[-1]
    assert {"pairs", "teacher/drift", "itc/temperature", "skipped", "bad_rows", "loss/itc"} <= set(line)
    assert not any(name.startswith("nonfinite/") for name in line)
    raw = json.loads((tmp_path / METRICS_FILE).read_text().splitlines()[-1])
    assert raw["memory_gb"] > 0.1 and raw["tflop_per_s"] > 0 and "mfu" not in raw  # no data sheet of this CPU
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = events.Scalars("loss/itc")
    assert [point.step for point in points] == [1, 2, 3, 4]
    assert points[-1].value == pytest.approx(line["loss/itc"], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("optimizer.freeze=^text/tower/",),
            "freeze '\\^text/tower/' freezes the tower of config.encoders.text, "
            ".* random as config.encoders.text.init is empty",
        ),
        (
            ("optimizer.freeze=^image/tower/",),
            "freeze '\\^image/tower/' freezes the tower of config.encoders.image, "
            ".* config.encoders.image.init is empty; write",
        ),
        (
            ("encoders.text={'kind': 'gru', 'width': 32, 'cache_tokens': True}", "optimizer.freeze=^text/tower/"),
            "freezes the tower of config.encoders.text, .* with config.encoders.text.cache_tokens=False",
        ),
    ],
)
def test_a_tower_that_stays_random_is_refused(shapes_data, tmp_path, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny(PLAIN, shapes_data, *overrides), tmp_path)
    assert not list(tmp_path.iterdir()) and not (shapes_data / "texts").exists()
