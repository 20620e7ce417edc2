"""The benchmark of captions at a small size: it makes what it says, and its stages are those of prepare and a run."""

import json
import os
import pathlib
import subprocess
import sys

import captions
import pytest

from xmodal_jax.data.captions import normal_caption

SCRIPT = pathlib.Path(captions.__file__)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "JAX_PLATFORMS": "cpu"}


def test_made_up_records_have_captions_that_repeat():
    items = list(captions.made_up(20_000))
    texts = [text for item in items for own in item.captions.values() for text in own]
    assert len(texts) == 20_000 and len({item.key for item in items}) == len(items)
    counts = [sum(map(len, item.captions.values())) for item in items]
    assert set(counts) == {1, 2, 3, 4, 5} and {code for item in items for code in item.captions} == {"en", "de", "hi"}
    different = len(set(map(normal_caption, texts)))
    assert different < len(set(texts)) < 20_000, "some differ by case alone"


def test_all_stages_are_measured_on_the_code_of_prepare(tmp_path):
    out = tmp_path / "captions.json"
    command = [sys.executable, SCRIPT, "--captions", "3000", "--folder", tmp_path, "--out", out]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    found = json.loads(out.read_text("utf-8"))
    assert found["captions"] == sum(found["languages"].values()) == 3000
    assert list(found["languages"]) == ["en", "de", "hi"]
    texts = {normal_caption(text) for item in captions.made_up(3000) for own in item.captions.values() for text in own}
    assert found["texts"] == len(texts) and 0 < found["shared_percent"] < 50
    stages = ["write", "number", "card", "open", "tokenizer", "used ids", "read random records"]
    assert list(found["stages"]) == stages and found["used_ids"] > 500 and found["read"] > captions.READ
    assert found["interpreter_mb"] > 50 and 0 < found["peak_over_interpreter_mb"] < found["limit_mb"] == 2000
    assert [path.name for path in tmp_path.iterdir()] == ["captions.json"], "the made-up set is gone"


def test_too_much_memory_is_a_failure(tmp_path):
    command = [sys.executable, SCRIPT, "--captions", "3000", "--folder", tmp_path, "--limit", "0.000001"]
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True).returncode == 1


@pytest.mark.parametrize("number, words", [(7, "7"), (1234567, "1 234 567")])
def test_numbers_are_few_words(number, words):
    assert captions.spaced(number) == words
