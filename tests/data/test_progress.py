"""The progress line passes its items on, counts them and says when it will be done."""

import pytest

from xmodal_jax.data.progress import Progress, progress_line


def test_line_with_a_total():
    line = progress_line("prepare", "records", 40, 160, 2.0)
    assert line == "prepare [" + "#" * 6 + " " * 18 + "] 40/160 records, 20/s, 0:06 left"
    assert progress_line("x", "images", 1, 1000, 2.0).endswith("1/1000 images, 0.5/s, 33:18 left")


def test_line_without_a_total_or_time():
    assert progress_line("read", "rows", 30, 0, 2.0) == "read: 30 rows, 15/s"
    assert progress_line("read", "rows", 0, 5, 0.0).endswith("0/5 rows, 0/s, 0:00 left")


def test_more_than_the_total_does_not_overflow():
    assert progress_line("x", "y", 12, 10, 1.0) == "x [" + "#" * 24 + "] 12/10 y, 12/s, 0:00 left"


def test_items_pass_through_and_the_last_line_is_complete(capsys):
    assert list(Progress(range(7), "prepare", "records", 7)) == list(range(7))
    shown = capsys.readouterr().err
    assert shown.startswith("prepare [####") and "7/7 records" in shown and shown.endswith("\n")
    assert shown.count("\n") == 1, "a quick job is one line of a log"


def test_items_may_count_for_several_units(capsys):
    list(Progress([[1, 2], [3]], "encode", "images", 3, size=len))
    assert "3/3 images" in capsys.readouterr().err


def test_a_slow_job_shows_lines_on_the_way(capsys, monkeypatch):
    monkeypatch.setattr("xmodal_jax.data.progress.LOG_SECONDS", 0.0)
    list(Progress(iter("abc"), "read", "rows"))
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in shown] == [f"read: {n} rows" for n in (1, 2, 3, 3)]


def test_a_late_line_is_for_jobs_that_take_long(capsys, monkeypatch):
    assert list(Progress(range(7), "rank", "pairs", 7, late=True)) == list(range(7))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("xmodal_jax.data.progress.LOG_SECONDS", 0.0)
    list(Progress(range(2), "rank", "pairs", 2, late=True))
    assert [line.split("] ")[1].split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "1/2 pairs",
        "2/2 pairs",
        "2/2 pairs",
    ]


def test_an_error_of_the_items_comes_through():
    def items():
        yield 1
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        list(Progress(items(), "read", "rows", 2))
