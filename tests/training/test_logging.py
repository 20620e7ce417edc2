"""Training as a library: it prints nothing and hooks nothing by itself; its numbers go to the writers it is given."""

import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from test_keep_best import numbers
from test_loop import PLAIN, tiny

from xmodal_jax import api
from xmodal_jax.checks import refuse_impossible
from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError
from xmodal_jax.training import quiet
from xmodal_jax.training.log import TrainLog, roughly
from xmodal_jax.training.loop import run_training
from xmodal_jax.training.quiet import LOGGERS, quiet_orbax

WANDB = importlib.util.find_spec("wandb") is not None
PLACES = "('tensorboard', 'wandb')" if WANDB else "('tensorboard',)"


def hooks() -> list:
    """What of the process a library could change: hooks, filters, handlers and signals."""
    loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio", "xmodal_jax")]
    kept = [(list(logger.filters), len(logger.handlers)) for logger in loggers]
    return [sys.unraisablehook, kept, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]


@contextlib.contextmanager
def offline():
    """Weights & Biases without a network, and without what it says on the terminal."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("WANDB_MODE", "offline")
        changed.setenv("WANDB_SILENT", "true")
        yield


@pytest.fixture(scope="module")
def told(shapes_data, tmp_path_factory):
    """(workdir, result, stream) of a run in two starts, with everything on; hooks are looked at inside."""
    workdir, stream = tmp_path_factory.mktemp("told") / "run", io.StringIO()
    before = hooks()

    def evaluate(run, state, poll):
        assert hooks() == before
        return numbers(float(state.step))

    def config(steps: int):
        changed = (f"steps={steps}", "eval.every=4", "optimizer.warmup=2", f"log.to={PLACES}")
        return tiny(PLAIN, shapes_data, *changed)

    with offline():
        run_training(config(8), workdir, evaluate, progress=stream)
        result = run_training(config(9), workdir, evaluate)
    return workdir, result, stream.getvalue()


def test_a_stream_shows_what_is_under_way(told):
    lines = told[2].splitlines()
    assert lines[0].startswith("50 % of the training captions") or lines[0].startswith("compiling the train step")
    at = lines.index("compiling the train step, which may take minutes")
    assert lines[at + 1].startswith("first step, compilation included: ") and " 1/8 " in lines[at + 2]
    (pace,) = [line for line in lines if line.startswith("about ")]
    assert " to go (" in pace and " steps/s, " in pace and pace.endswith(" pairs/s)")
    assert lines.index(pace) < next(number for number, line in enumerate(lines) if " 6/8 " in line)
    assert "evaluation at step 4: i2t R@1 0.7, t2i R@1 0.7, rSum 4.0" in lines


def test_nothing_is_printed_without_a_stream(told, shapes_data, tmp_path, capfd, caplog):
    """The third start has nothing left to do but its words; those of training are seen through logging."""
    workdir, result, _ = told
    caplog.set_level(logging.INFO, "xmodal_jax")
    capfd.readouterr()
    with offline():
        again = run_training(tiny(PLAIN, shapes_data, "steps=9", "eval.every=4", "optimizer.warmup=2"), workdir)
    log = TrainLog(tmp_path, 9, 8, 8)
    log.say("a line")
    log.step(9, {"loss/itc": 1.0}, 0.0)
    assert capfd.readouterr() == ("", "")
    assert f"resuming '{workdir}' at step 9 of 9" in caplog.text and "a line" in caplog.text and "9/9" in caplog.text
    assert (result.step, result.ended, result.evaluation, again.evaluation) == (9, "finished", *[numbers(9.0)] * 2)


@pytest.mark.parametrize("configured", [0, logging.INFO, logging.WARNING])
def test_a_line_from_python_comes_once(told, shapes_data, monkeypatch, capsys, configured):
    """By the handlers of a program that has some, else on stderr; handlers, filters and levels stay as they were."""
    root, package, stream = logging.getLogger(), logging.getLogger("xmodal_jax"), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])  # those of the tests
    monkeypatch.setattr(root, "level", logging.WARNING)
    if configured:
        logging.basicConfig(level=configured, stream=stream)
    before = hooks(), root.level, package.level
    capsys.readouterr()
    config = tiny(PLAIN, shapes_data, "steps=9", "eval.every=4", "optimizer.warmup=2")
    api.train(config, told[0], evaluate=False)
    assert (hooks(), root.level, package.level) == before
    shown = capsys.readouterr()
    counts = [text.count(f"resuming '{told[0]}' at step 9 of 9") for text in (shown.out, shown.err, stream.getvalue())]
    assert counts == ([0, 0, 1] if configured else [0, 1, 0])


def test_opening_a_run_and_reading_records_leave_the_root_logger_alone(told, shapes_data):
    """In a process of their own, where orbax and array_record are imported for the first time."""
    script = """
import logging, sys
import xmodal_jax as xmodal
from xmodal_jax.data.records import open_records
print(xmodal.load(sys.argv[1]).step)
with open_records(sys.argv[2], "test") as records:
    print(len(records[0]) > 0)
print(logging.getLogger().handlers)
logging.getLogger("xmodal_jax").warning("a warning")
"""
    command = [sys.executable, "-c", script, str(told[0]), str(shapes_data)]
    path = os.pathsep.join([str(pathlib.Path(api.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["9", "True", "[]", ""]), done.stderr
    assert done.stderr.splitlines()[-1] == "a warning"


def test_the_learning_rate_is_logged(told):
    lines = [json.loads(line) for line in (told[0] / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert len(rates) == 9 and rates[0] == pytest.approx(rates[1] / 2) and rates[1] == max(rates)


def test_tensorboard_has_losses_and_evaluations(told):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(told[0] / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("loss/itc")] == list(range(1, 10))
    assert [(point.step, point.value) for point in events.Scalars("eval/itc/rSum")] == [(4, 4.0), (8, 8.0), (9, 9.0)]


@pytest.mark.skipif(not WANDB, reason="wandb is not installed")
def test_wandb_has_losses_and_evaluations_of_one_run(told):
    files = sorted((told[0] / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and {path.stem.removeprefix("run-") for path in files} == {
        (told[0] / "wandb-id").read_text().strip()
    }
    rows = [row for path in files for row in history(path)]
    assert [row["step"] for row in rows if "loss/itc" in row] == list(range(1, 10))
    assert [row["eval/itc/rSum"] for row in rows if "eval/itc/rSum" in row] == [4.0, 8.0, 9.0]
    assert all(math.isfinite(row["lr"]) for row in rows if "loss/itc" in row)


def history(path: pathlib.Path) -> list[dict]:
    """The points of a run that Weights & Biases kept in a file."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records_of(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def records_of(data: bytes, block: int = 32768) -> list[bytes]:
    """The records of a file in LevelDB's log format behind a header of 7 bytes: parts (CRC, length, kind) of blocks."""
    found, at, parts = [], 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little is left for a part
            at += block - at % block
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found, parts = [*found, parts], b""
    return found


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named(shapes_data, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=rf"names '{name}', and that package is not .*write pip install -e '.\[{name}\]'"
    ):
        refuse_impossible(tiny(PLAIN, shapes_data, f"log.to=('{name}',)"), Card.load(shapes_data))


def test_another_place_for_the_log_is_refused(shapes_data):
    with pytest.raises(UserError, match=r"config.log.to has 'disk'; write some of tensorboard, wandb, such as"):
        tiny(PLAIN, shapes_data, "log.to=('disk',)")


def test_hooks_of_a_program_end_with_their_context(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # the tests themselves are in such a context
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    monkeypatch.setattr(quiet, "_abandoned", threading.Event())  # other tests of this process made orbax fail
    before = hooks()
    with quiet_orbax():
        assert hooks() != before
        with quiet_orbax():
            pass
        assert hooks() != before
    assert hooks() == before


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "1 second"), (41, "41 seconds"), (720, "12 minutes"), (12600, "3.5 hours"), (180000, "2.1 days")],
)
def test_times_in_words(seconds, text):
    assert roughly(seconds) == text
