"""A start is solved once for the same data, towers and settings, and again for others; nothing depends on the file."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from xmodal_jax.assemble import assemble
from xmodal_jax.config_file import freeze, load
from xmodal_jax.training.cca_cache import digest, kept_start
from xmodal_jax.training.loop import make_run

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


@pytest.fixture
def fresh(shapes_data, tmp_path):
    """`fresh(overrides...)`: an assembly on a copy of the shapes, and its parameters."""
    folder = tmp_path / "shapes"
    shutil.copytree(shapes_data, folder, ignore=shutil.ignore_patterns("starts"))

    def make(*overrides):
        own = (f"data.path={folder}", "batch_size=8", "encoders.image.size=16", *overrides)
        config = dataclasses.replace(freeze(load(f"{CONFIG}:tiny", list(own))), objectives={"itc": {"queue": 8}})
        run = make_run(assemble(config), jax.devices()[:1])
        return run.assembly, run.fresh().params

    return make


def solution(value):
    """Made-up heads, and how often they were asked for."""
    asked = []

    def solve():
        asked.append(value)
        head = {"kernel": np.full((3, 2), value, np.float32), "bias": np.zeros(2, np.float32)}
        return {"image": head, "text": head}

    return solve, asked


def test_a_second_start_reads_the_first(fresh):
    assembly, params = fresh()
    (first, asked), (second, again) = solution(1.0), solution(2.0)
    made, read = (kept_start(assembly, params, solve) for solve in (first, second))
    assert asked == [1.0] and again == []
    jax.tree.map(np.testing.assert_array_equal, made, read)
    assert [path.suffix for path in (pathlib.Path(assembly.config.data.path) / "starts").iterdir()] == [".npz"]


def test_whatever_a_start_depends_on_changes_its_name(fresh):
    assembly, params = fresh()
    name = digest(assembly, params)
    assert name == digest(*fresh()) == digest(*fresh("steps=7"))
    for change in ("joint.start_ridge=0.5", "data.views=('filled',)", "encoders.text.length=11", "seed=1"):
        assert digest(*fresh(change)) != name, change
    path = assembly.tokenizers["text"].path
    spelled = path.read_text()
    path.write_text(spelled + " ")
    assert digest(*fresh()) != name, "another tokenizer"
    path.write_text(spelled)
    moved = params | {"text": jax.tree.map(lambda x: x + 1, params["text"])}
    assert digest(assembly, moved) != name
    image = params["image"] | {"head": jax.tree.map(lambda x: x + 1, params["image"]["head"])}
    heads = params | {"image": image}
    assert digest(assembly, heads) == name


def test_a_torn_file_is_solved_again_and_a_locked_folder_is_no_error(fresh, caplog, monkeypatch):
    assembly, params = fresh()
    kept_start(assembly, params, solution(1.0)[0])
    path = next((pathlib.Path(assembly.config.data.path) / "starts").iterdir())
    path.write_bytes(path.read_bytes()[:50])
    solve, asked = solution(3.0)
    found = kept_start(assembly, params, solve)
    assert asked == [3.0] and found["image"]["kernel"][0, 0] == 3.0 and "cannot be read" in caplog.text
    shutil.rmtree(path.parent)
    path.parent.write_text("a file in the way")
    for _ in range(2):
        kept_start(assembly, params, solve)
    assert len(asked) == 3
