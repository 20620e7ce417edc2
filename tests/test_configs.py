"""The methods' configs: every variant is valid, and the tiny ones train, save, restore and evaluate."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from xmodal_jax.assemble import abstract_params, assemble_without_data
from xmodal_jax.cli import main
from xmodal_jax.config import freeze, load
from xmodal_jax.objectives import build_objectives
from xmodal_jax.presets import TABLE
from xmodal_jax.workdir import open_run

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
VARIANTS = {
    "recap": (*TABLE, "stamps", "start", "start_flickr8k", "inaturalist", "tiny"),
    "mtgfe": (*TABLE, "emoji_views_plain", "flickr8k_plain", "remote_sensing", "tiny"),
    "adequate_alignment": (*TABLE, "tiny"),
}
QUICK = ("steps=2", "batch_size=8", "log_every=1", "data.image_size=16", "eval.rerank=(4,)")


@pytest.mark.parametrize(("name", "variant"), [(name, own) for name, all_of in VARIANTS.items() for own in all_of])
def test_a_variant_is_valid(name, variant):
    config = freeze(load(f"{FOLDER / name}.py:{variant}"))
    assert config.name == f"{name}-{variant}"
    built = build_objectives(config.objectives, config.batch_size)
    needs = {field for item in built.values() for field in item.needs}
    assert "image2" not in needs or config.data.second_view
    assert "distill_image" not in needs or config.data.embeddings
    params = abstract_params(assemble_without_data(config))  # sizes fit each other
    assert "bridge" in params or name != "recap" or variant.startswith("start")


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def trained(request, shapes_data, tmp_path_factory):
    """(name, workdir) of two steps of a tiny variant, through the command line."""
    workdir = tmp_path_factory.mktemp("configs") / request.param
    changed = [f"--config.{item}" for item in (f"data.path={shapes_data}", *QUICK)]
    assert main(["train", "--config", f"{FOLDER / request.param}.py:tiny", "--workdir", str(workdir), *changed]) == 0
    return request.param, workdir


def test_two_steps_are_finite_and_change_the_weights(trained):
    _, workdir = trained
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(math.isfinite(value) for line in steps for key, value in line.items() if key.startswith("loss"))
    assert steps[0]["loss"] != steps[1]["loss"]


def test_the_checkpoint_restores_and_evaluates(trained):
    name, workdir = trained
    assembly, params, step = open_run(workdir)
    assert step == 2 and assembly.config.name == f"{name}-tiny"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert main(["eval", "--workdir", str(workdir)]) == 0
    found = json.loads((workdir / "eval-test.json").read_text())
    assert set(found["mean"]["rerank"]) == {"4"} and 0 <= found["mean"]["itc"]["rSum"] <= 600


def test_recap_writes_captions_through_its_bridge(trained, capsys):
    name, workdir = trained
    if name != "recap":
        assert main(["caption", "--workdir", str(workdir), "--limit", "2"]) == 2
        assert "no captioning decoder" in capsys.readouterr().err
        return
    assembly, params, _ = open_run(workdir)
    tokens = np.random.default_rng(0).normal(size=(2, 5, assembly.config.text.width)).astype(np.float32)
    read = lambda weights: assembly.model.apply({"params": weights}, tokens, method="caption_tokens")
    shut = params | {"bridge": params["bridge"] | {"gamma": np.float32(0), "gamma_mlp": np.float32(0)}}
    opened = params | {"bridge": params["bridge"] | {"gamma": np.float32(1)}}
    np.testing.assert_array_equal(read(shut), tokens)
    assert np.abs(np.asarray(read(opened)) - tokens).max() > 1e-3
    assert main(["caption", "--workdir", str(workdir), "--limit", "2"]) == 0
    assert "CIDEr" in capsys.readouterr().out
