"""The benchmark of large class heads, on a few classes of the small tower."""

import importlib.util
import json
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "zeroshot_classes.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("zeroshot_classes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_differ_and_come_again(script):
    names = script.binomials(2000)
    assert len(set(names)) == 2000 and names == script.binomials(2000)
    assert all(len(name.split()) == 2 for name in names)


def test_it_prints_what_it_writes(script, tmp_path, capsys):
    arguments = [
        "--tower",
        "small",
        "--classes",
        "60",
        "--pictures",
        "50",
        "--batch",
        "28",
        "--out",
        str(tmp_path / "x"),
    ]
    script.main(arguments)
    line = json.loads(capsys.readouterr().out)
    assert line == json.loads((tmp_path / "x").read_text())
    assert (line["classes"], line["texts_at_once"], line["largest_score_block"]) == (60, 28, [64, 64])
    assert line["peak_mib"] >= line["peak_mib_before_head"] > 0


def test_the_block_of_8142_classes_is_a_part_of_the_scores(script):
    rows = script.block_rows(2000, 8142)
    assert rows == 512 and rows * 8192 * 4 == 16 * script.MIB < 2000 * 8142 * 4
