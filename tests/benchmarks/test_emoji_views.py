"""The emoji of several vendors as JSON lines: what is kept, and bad input in one sentence with exit code 2."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
ROW = {"id": "1f600", "views": {"noto": "a.png"}, "caption": "grin", "tags": ["face", "grin"], "labels": ["s", "f"]}


def run(script, *arguments):
    """The script in a process of its own, as a user starts it."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_flags_are_left_out_and_tags_are_a_language(tmp_path):
    flag = ROW | {"id": "2", "labels": ["flags", "country"]}
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, (ROW, flag))))
    assert run("emoji_views.py", tmp_path, "--out", tmp_path / "out.jsonl").returncode == 0
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["caption"] == {"en": "grin", "en-tags": "grin, face"} and row["labels"] == ["s/f"]
    again = run("emoji_views.py", tmp_path, "--out", tmp_path / "out.jsonl")
    assert again.returncode == 2 and "exists; write another --out" in again.stderr


def test_names_in_other_languages_are_kept_where_they_are_asked_for(tmp_path):
    rows = [ROW | {"captions": {"de": "grinsen", "fr": "sourire"}}, ROW | {"id": "2", "captions": {"de": "lachen"}}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("emoji_views.py", tmp_path, "--out", tmp_path / "out.jsonl", "--languages", "fr,de").returncode == 0
    one, two = (json.loads(line)["caption"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert one == {"en": "grin", "en-tags": "grin, face", "fr": "sourire", "de": "grinsen"} and "fr" not in two
    done = run("emoji_views.py", tmp_path, "--out", tmp_path / "other.jsonl", "--languages", "xx")
    assert done.returncode == 2 and "--languages: 'xx' is a language of no row" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("{", "line 1 is no JSON object"),
        ('{"id": 1}', "line 1 has no ['views']"),
        ("3", "line 1 is no JSON object"),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path, text, words):
    if text is not None:
        (tmp_path / "pairs.jsonl").write_text(text)
    done = run("emoji_views.py", tmp_path, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_filtering_names_a_folder_without_a_run(tmp_path):
    done = run("filtering.py", "--workdir", tmp_path)
    assert done.returncode == 2 and "holds no run" in done.stderr and "Traceback" not in done.stderr
