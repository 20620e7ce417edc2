"""A development split: whole groups, nothing lost, caches row by row beside it."""

import dataclasses
import importlib.util
import pathlib
import shutil

import numpy as np
import pytest

from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.features import write_features
from xmodal_jax.data.split import Split
from xmodal_jax.errors import UserError

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "hold_out.py"


@pytest.fixture(scope="module")
def hold_out():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("hold_out", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_groups_stay_whole(hold_out):
    groups = ["a", "b", "a", "c", "b", "d"]
    chosen = hold_out.held_out_groups(groups, 3, seed=0)
    assert 3 <= sum(group in chosen for group in groups) <= 4
    assert chosen == hold_out.held_out_groups(groups, 3, seed=0)


def test_the_new_splits_share_no_group_and_lose_nothing(hold_out, shapes_data, tmp_path):
    source, out = tmp_path / "shapes", tmp_path / "dev"
    shutil.copytree(shapes_data, source)
    mean = lambda images: images.reshape(len(images), 1, -1, 3).mean(2, dtype=np.float32)
    write_features(source, "mean", mean, size=16)
    hold_out.main([str(source), "--records", "4", "--name", "val", "--out", str(out)])
    config = DataConfig(path=str(out), features=("mean",))
    splits = {name: Split(out, name, config) for name in ("train", "val")}
    old = Split(source, "train", dataclasses.replace(config, path=str(source)))
    keys = {name: [split.record(i)["key"] for i in range(len(split))] for name, split in splits.items()}
    assert len(keys["val"]) == 4 and sorted(keys["train"] + keys["val"]) == sorted(
        old.record(i)["key"] for i in range(len(old))
    )
    row = next(i for i in range(len(old)) if old.record(i)["key"] == keys["val"][2])
    view = old.views[0]
    np.testing.assert_array_equal(splits["val"].tokens(2, view, True), old.tokens(row, view, True))
    assert Card.load(out).split("val")["records"] == 4
    for split in (*splits.values(), old):
        split.close()
    with pytest.raises(UserError, match="nothing was overwritten"):
        hold_out.main([str(source), "--records", "4", "--out", str(out)])
