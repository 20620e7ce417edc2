"""Going on with a run: what must be the same, what may change and is said, and one run at a time in a folder."""

import fcntl
import io
import json
import shutil

import jax
import numpy as np
import pytest
from test_loop import EMPTY, PLAIN, records, tiny

from xmodal_jax.errors import UserError
from xmodal_jax.parallel.processes import lost_peer
from xmodal_jax.training.begin import changes, say_large_batch
from xmodal_jax.training.log import TrainLog
from xmodal_jax.training.loop import say_short_run, train
from xmodal_jax.training.state import examples_seen
from xmodal_jax.types import DataFacts


@pytest.fixture(scope="module")
def begun(shapes_data, tmp_path_factory):
    """A work directory with two steps of the tiny run, made once; copy it before going on."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    train(tiny(PLAIN, shapes_data, "steps=2"), workdir)
    return workdir


@pytest.fixture
def workdir(begun, tmp_path):
    """A copy of `begun`."""
    return shutil.copytree(begun, tmp_path / "run")


def test_what_changed_since_the_last_start_is_said(workdir, shapes_data, caplog):
    caplog.set_level("INFO", "xmodal_jax")
    train(tiny(PLAIN, shapes_data, "steps=3", "optimizer.lr=0.002"), workdir)
    said = caplog.text
    assert f"resuming '{workdir}' at step 2 of 3; changed since its last start: " in said
    assert "steps 2 -> 3" in said and "optimizer.lr 0.001 -> 0.002" in said and "vocab_size" not in said
    assert json.loads((workdir / "run.json").read_text())["config"]["steps"] == 3


def test_a_finished_run_is_not_changed_into_what_was_never_trained(workdir, shapes_data):
    before = (workdir / "run.json").read_bytes()
    changed = ("steps=2", "encoders.text.length=10")
    with pytest.raises(UserError, match=r"config.encoders.text.length 12 -> 10 would change its model without any"):
        train(tiny(PLAIN, shapes_data, *changed), workdir)
    assert (workdir / "run.json").read_bytes() == before
    train(tiny(PLAIN, shapes_data, "steps=2", "log_every=2"), workdir)  # which changes no model


def test_checkpoints_without_what_tells_of_them_are_not_gone_on_with(workdir, shapes_data):
    (workdir / "run.json").unlink()
    with pytest.raises(UserError, match=r"run' has checkpoints and no run.json, which tells what they were trained on"):
        train(tiny(PLAIN, shapes_data, "steps=3"), workdir)


def test_other_word_ids_under_the_same_weights_are_refused(workdir, shapes_data, tmp_path):
    other = shutil.copytree(shapes_data, tmp_path / "other")
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = sorted(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(tokenizer))
    kept = (workdir / "tokenizer-text.json").read_bytes()
    with pytest.raises(
        UserError, match=r"the tokenizer '.*other/tokenizer.json' is not the one that '.*run' was trained with"
    ):
        train(tiny(PLAIN, other, "steps=3"), workdir)
    assert (workdir / "tokenizer-text.json").read_bytes() == kept


@pytest.mark.parametrize(
    "overrides, profile, sentence",
    [
        (("steps=1",), None, "is at step 2 already, and config.steps is 1; write more steps"),
        (("steps=4",), (1, 2), "profile ends at step 2, and this run takes steps 3 to 4"),
        (("steps=4",), (3, 5), "profile ends at step 5, and this run takes steps 3 to 4"),
        (("steps=4", "optimizer.sgd_after=1"), None, "sgd_after is 1, but the 2 updates of '.*run' are Adam's and"),
    ],
)
def test_steps_that_are_not_there_are_refused(workdir, shapes_data, overrides, profile, sentence):
    before = (workdir / "run.json").read_bytes()
    with pytest.raises(UserError, match=sentence):
        train(tiny(PLAIN, shapes_data, *overrides), workdir, None, profile)
    assert (workdir / "run.json").read_bytes() == before


def test_a_second_run_in_the_same_work_directory_is_refused(workdir, shapes_data):
    with (workdir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is training in"):
            train(tiny(PLAIN, shapes_data, "steps=3"), workdir)


def test_a_lost_peer_is_known_behind_other_errors():
    peer = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    wrapped = ValueError("the save failed")
    wrapped.__cause__ = peer
    assert lost_peer(peer) and lost_peer(wrapped) and lost_peer(ExceptionGroup("several", [KeyError("x"), wrapped]))
    assert lost_peer(UserError("checkpoint 4 could not be saved (UNKNOWN: Gloo AllGather failed: reset by peer)"))
    assert not lost_peer(ValueError("Connection closed by peer")) and not lost_peer(
        jax.errors.JaxRuntimeError("INTERNAL")
    )


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self):
        """It is one."""
        return True


def test_a_line_does_not_run_into_the_progress_line(tmp_path):
    stream = Terminal()
    log = TrainLog(tmp_path, 10, 4, 0, stream)
    log.step(5, {"loss/itc": 1.0}, 0.0)
    log.say("step 6: update skipped")
    log.step(7, {"loss/itc": 1.0}, 0.0)
    log.close()
    lines = stream.getvalue().split("\n")
    assert lines[0].endswith("itc 1.000") and lines[1] == "step 6: update skipped" and lines[-1] == ""


def test_another_batch_size_goes_on_with_the_next_example(workdir, shapes_data):
    """After two steps of 8 one of 16: 32 pairs seen, and the log never goes back."""
    state = train(tiny(PLAIN, shapes_data, "steps=3", "batch_size=16"), workdir)
    seen = [line["pairs"] for line in records(workdir)]
    assert seen == [8, 16, 32] and examples_seen(state.cursor) == 32 and int(state.step) == 3


FLAT = ("optimizer.warmup=0", "optimizer.end_lr=1.0")  # a learning rate that does not depend on `steps`


def test_a_run_goes_on_at_every_boundary_with_the_steps_that_are_left(shapes_data, tmp_path):
    """Ends at an epoch's end (3: 24 examples of 12 records), a save and an evaluation (4) and the last step (5)."""

    def config(steps):
        return tiny(PLAIN, shapes_data, f"steps={steps}", "eval.every=2", "checkpoint.every=2", *FLAT)

    evaluated = []

    def quick(run, state, poll):
        evaluated.append(int(state.step))
        return EMPTY

    whole = train(config(5), tmp_path / "whole", quick)
    assert evaluated == [2, 4, 5]  # also after the last step
    evaluated.clear()
    for steps in (3, 4, 5, 5):
        state = train(config(steps), tmp_path / "parts", quick)
        assert int(state.step) == steps and examples_seen(state.cursor) == 8 * steps
    assert evaluated == [2, 3, 4, 5], "each once: the last start had nothing left to do"
    trained = [line["step"] for line in records(tmp_path / "parts") if "loss" in line]
    assert trained == [1, 2, 3, 4, 5]
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def test_a_run_that_ends_inside_its_warm_up_is_told(shapes_data, caplog):
    say_short_run(tiny(PLAIN, shapes_data, "steps=3", "optimizer.warmup=3"))
    assert not caplog.records
    say_short_run(tiny(PLAIN, shapes_data, "steps=3", "optimizer.warmup=60"))
    assert "the learning rate only climbs, to 5 % of config.optimizer.lr" in caplog.text


def test_a_field_that_is_new_in_the_package_changes_no_run(workdir, shapes_data):
    config, path = tiny(PLAIN, shapes_data, "steps=2", "objectives.itc.alpha=0.2"), workdir / "run.json"
    told = json.loads(path.read_text())
    told["config"]["encoders"]["text"].pop("eps")
    path.write_text(json.dumps(told))
    found = changes(config, workdir)
    assert not any("eps" in name for name in found)
    assert any(name.endswith("itc.alpha") for name in found)
    other = tiny(PLAIN, shapes_data, "steps=2", "encoders.text.eps=1e-5")
    assert "encoders.text.eps" in changes(other, workdir)  # other than the default that it had


def test_a_batch_larger_than_the_data_is_said(shapes_data, caplog):
    config = tiny(PLAIN, shapes_data, "batch_size=16")
    say_large_batch(config, DataFacts(records=12, steps_per_epoch=12 / 16))
    assert "has 12 training records" in caplog.text and "write config.batch_size=12 or less" in caplog.text
    caplog.clear()
    say_large_batch(config, DataFacts(records=16, steps_per_epoch=1.0))
    say_large_batch(config, DataFacts())  # nothing is known of the data
    assert not caplog.text
