"""A second pass over the data measures every pair with the weights of one step: alone, on meshes, and when stopped."""

import dataclasses
import io
import os
import signal

import jax
import numpy as np
import pytest

from xmodal_jax import config as load_config
from xmodal_jax.assemble import assemble
from xmodal_jax.config_file import freeze
from xmodal_jax.data.train import train_dataset
from xmodal_jax.forward import Forward
from xmodal_jax.objectives.robust import UNSEEN
from xmodal_jax.training import second_pass
from xmodal_jax.training.log import TrainLog
from xmodal_jax.training.loop import make_run, run_training, train
from xmodal_jax.training.stop import StopSignal

BATCH, EPOCH = 8, 3  # steps in which the 24 pairs of the coloured shapes come by


@pytest.fixture(scope="module")
def config(shapes_data):
    """The tiny RCAR with a second pass after every epoch from the first on."""
    own = {"data.path": str(shapes_data), "data.eval_split": "test", "batch_size": BATCH, "steps": 2 * EPOCH}
    own |= {"encoders.image.size": 16, "eval.every": 0, "eval.keep_best": "", "objectives.refurbish.average": 0.0}
    own |= {f"objectives.refurbish.{name}": "1 epoch" for name in ("warmup", "period")}
    own |= {"objectives.refurbish.measured": "student", "objectives.refurbish.second_pass": True}
    return freeze(load_config("rcar", "tiny", own))


@pytest.fixture(scope="module")
def run(config):
    """The run on one device."""
    return make_run(assemble(config), jax.devices()[:1])


def dataset_of(run):
    """The training data of a run."""
    config = run.assembly.config
    return train_dataset(config.data.path, "train", run.assembly.specs, config.data, config.seed, config.batch_size)


def at_step(run, step):
    """The state of a run before its first step, under the number of another one."""
    return dataclasses.replace(run.fresh(), step=jax.numpy.int32(step))


def passed(run, state, step, log=None):
    """The state after the pass that is due after a step."""
    with StopSignal(False) as stop:
        return second_pass.SecondPass(run, dataset_of(run), log, stop)(state, step)


def log_of(folder):
    """A log whose lines are kept."""
    return TrainLog(folder, 10, BATCH, 0, io.StringIO())


def hinge(one, two, keys):
    """The mean hinge of each pair, both directions, over the rows that do not match it."""
    scores, found = one @ two.T, []
    for i in range(len(scores)):
        others = [j for j in range(len(scores)) if not any(own[i] == own[j] for own in keys)]
        sides = [scores[i, others], scores[others, i]]
        found.append(sum(np.maximum(0.0, 0.2 + side - scores[i, i]).mean() for side in sides))
    return found


def test_every_pair_is_measured_without_dropout_in_the_order_of_the_epoch(run, tmp_path):
    state, log, dataset = at_step(run, EPOCH), log_of(tmp_path), dataset_of(run)
    began = log.last_time
    after = passed(run, state, EPOCH, log)
    expected = np.full(len(after.memory["refurbish"]["loss"]), UNSEEN)
    for number in range(EPOCH):
        batch = dataset.batch_at(number)
        fwd = Forward(run.assembly.model, state.params, batch, None)
        one, two = (np.asarray(fwd.encode(field).unit) for field in ("image", "text"))
        expected[batch["pair"]] = hinge(one, two, [batch["id"], batch["text/key"]])
    np.testing.assert_allclose(after.memory["refurbish"]["loss"][:, 0], expected, rtol=1e-4, atol=1e-6)
    assert (expected != UNSEEN).sum() == 24 and after.memory["refurbish_mixture"]["share"].sum() == pytest.approx(1)
    assert log.stream.getvalue().startswith("second pass after step 3: 24 pairs for refurbish in ")
    assert log.last_time > began  # its seconds count in no rate
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert (np.asarray(state.memory["refurbish"]["loss"]) == UNSEEN).all()  # whole, should the pass be stopped


@pytest.mark.parametrize("step", [1, EPOCH + 1, 2 * EPOCH])
def test_no_pass_is_made_between_two_periods_and_after_the_last_step(run, step):
    state = at_step(run, step)
    assert passed(run, state, step) is state


def test_eight_devices_equal_one(run, config, tmp_path):
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices")
    both = run, make_run(assemble(config))
    found = [jax.device_get(passed(own, at_step(own, EPOCH), EPOCH, log_of(tmp_path)).memory) for own in both]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found)


def test_a_run_that_was_stopped_in_a_pass_makes_it_up(config, tmp_path, monkeypatch):
    whole = run_training(config, tmp_path / "whole")

    class Stopping(second_pass.Loader):
        def __next__(self):
            if self.cursor == BATCH * (EPOCH + 1):  # the second batch of the pass
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__next__()

    with monkeypatch.context() as patch:
        patch.setattr(second_pass, "Loader", Stopping)
        halfway = run_training(config, tmp_path / "stopped", handle_signals=True)
    assert (halfway.step, halfway.ended) == (EPOCH, "signal")
    assert int(halfway.state.memory["refurbish_pass"]["step"][0]) == 0
    resumed = train(config, tmp_path / "stopped")
    assert int(whole.state.memory["refurbish_pass"]["step"][0]) == EPOCH
    for a, b in zip(*map(jax.tree.leaves, map(jax.device_get, (whole.state, resumed))), strict=True):
        np.testing.assert_array_equal(a, b)
