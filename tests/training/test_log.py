"""metrics.jsonl: one strict JSON line a step, rates and waits, and lines of a lost past are dropped on resume."""

import io
import json

import pytest

from xmodal_jax.training.log import METRICS_FILE, TrainLog, duration


def lines(folder):
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (61.9, "1:01"), (3599, "59:59"), (3723, "1:02:03"), (-5, "0:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_line_per_step_with_rate_and_wait(tmp_path):
    stream = io.StringIO()
    log = TrainLog(tmp_path, steps=10, batch_size=4, first_step=0, stream=stream, flops=3e12, peak=120e12)
    log.last_time -= 2.0  # two seconds ago
    log.step(5, {"loss/itc": 1.25, "itc/accuracy": 0.5}, wait_seconds=1.0, bad_rows=3)
    record = lines(tmp_path)[0]
    assert (record["step"], record["pairs"], record["loss/itc"]) == (5, 20, 1.25)
    assert record["pairs_per_s"] == pytest.approx(10, rel=0.05)
    assert record["data_wait"] == pytest.approx(0.5, rel=0.05)
    assert record["tflop_per_s"] == pytest.approx(30, rel=0.05)
    assert record["mfu"] == pytest.approx(0.25, rel=0.05) and record["memory_gb"] > 0.05
    shown = stream.getvalue()
    assert shown.startswith("[##########          ] 5/10") and "itc 1.250" in shown and shown.endswith("\n")
    assert "accuracy" not in shown and "0:02 left" in shown and "MFU 25 %" in shown and "bad rows 3" in shown


def test_compilation_does_not_count_in_the_rate(tmp_path):
    stream = io.StringIO()
    log = TrainLog(tmp_path, 10, 4, 0, stream)
    log.last_time -= 60.0
    log.compiled(1)
    log.step(1, {}, 0.0)  # of the first step itself there is no other time
    log.last_time -= 2.0
    log.step(6, {}, 0.0)
    rates = [record["pairs_per_s"] for record in lines(tmp_path)]
    assert rates == pytest.approx([4 / 60, 10], rel=0.05)
    assert stream.getvalue().startswith("first step, compilation included: 1:00\n")


def test_an_evaluation_is_kept_and_said_and_takes_no_time(tmp_path):
    stream = io.StringIO()
    log = TrainLog(tmp_path, 10, 4, 0, stream)
    log.last_time -= 62.0  # two seconds of steps, then a minute of evaluation
    table = {"i2t": {"R@1": 12.34, "median_rank": 7.0}, "t2i": {"R@1": 9.0, "R@5": 20.0}, "rSum": 41.34}
    log.evaluated(5, {"itc": table}, 60.0)
    assert stream.getvalue() == "evaluation at step 5: i2t R@1 12.3, t2i R@1/5 9.0 20.0, rSum 41.3\n"
    assert lines(tmp_path)[0]["eval"]["itc"]["i2t"] == {"R@1": 12.34, "median_rank": 7.0}
    log.step(5, {}, 0.0)
    assert lines(tmp_path)[-1]["pairs_per_s"] == pytest.approx(10, rel=0.05)


def test_waiting_is_counted_since_the_last_line(tmp_path):
    log = TrainLog(tmp_path, 10, 4, 0, io.StringIO())
    for step, wait in ((1, 3.0), (2, 3.5)):
        log.last_time -= 1.0
        log.step(step, {}, wait)
    assert [record["data_wait"] for record in lines(tmp_path)] == pytest.approx([3.0, 0.5], rel=0.1)


def test_what_is_not_finite_is_null_in_strict_json(tmp_path):
    TrainLog(tmp_path, 10, 4, 0, io.StringIO()).step(1, {"loss": float("nan"), "grad_norm": float("inf")}, 0.0)
    text = (tmp_path / METRICS_FILE).read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert lines(tmp_path)[0]["loss"] is None and lines(tmp_path)[0]["grad_norm"] is None


def test_a_resumed_run_drops_later_and_torn_lines(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 6, "loss": 3}\n{"step": 8, "lo')
    log = TrainLog(tmp_path, 10, 4, first_step=4, stream=io.StringIO())
    log.write({"step": 5})
    assert [record["step"] for record in lines(tmp_path)] == [2, 4, 5]


def test_on_a_terminal_the_line_is_rewritten_until_the_end(tmp_path):
    class Terminal(io.StringIO):
        """A stream that says it is a terminal."""

        def isatty(self):
            """Yes."""
            return True

    stream = Terminal()
    log = TrainLog(tmp_path, 2, 4, 0, stream)
    log.step(1, {}, 0.0)
    assert stream.getvalue().startswith("\r\x1b[K") and not stream.getvalue().endswith("\n")
    log.step(2, {}, 0.0)
    assert stream.getvalue().endswith("\n")
