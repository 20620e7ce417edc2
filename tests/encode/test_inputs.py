"""Pictures from files must reach the model exactly as the same pictures in a data set do."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from xmodal_jax.assemble import assemble, reassemble
from xmodal_jax.cli import main
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.split import Split
from xmodal_jax.encode.inputs import read_inputs
from xmodal_jax.errors import UserError
from xmodal_jax.models.features import FeaturesConfig

SIZES = (32, 64)


def first_file(assembly, folder):
    """The first test picture of an assembly's data set as a file."""
    data = dataclasses.replace(assembly.config.data, features=())
    source = Split(data.path, "test", data)
    path = folder / "first.png"
    path.write_bytes(source.record(0)["media"]["image"][source.views[0]])
    source.close()
    return path


def test_pixels_are_those_of_the_evaluation(opened_run, tmp_path):
    assembly = opened_run[0]
    found = eval_split(assembly.config.data.path, "test", assembly.specs, assembly.config.data)
    read = read_inputs(assembly, "image", [first_file(assembly, tmp_path)] * 2)
    assert read.dtype == np.uint8 and read.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(read[1], found.left.read(0))


@pytest.fixture(scope="module")
def features_assembly(opened_run, shapes_data, tmp_path_factory):
    """A model on cached tokens of the frozen tower at two sizes."""
    folder = tmp_path_factory.mktemp("cached") / "shapes"
    shutil.copytree(shapes_data, folder)
    for size in SIZES:
        assert main(["data", "features", "--data", str(folder), "--size", str(size), "--batch", "8", "--no-flip"]) == 0
    config = opened_run[0].config
    data = dataclasses.replace(config.data, path=str(folder), features=tuple(f"lite0-{size}" for size in SIZES))
    image = FeaturesConfig(pool=config.encoders["image"].pool)
    return assemble(dataclasses.replace(config, data=data, encoders=config.encoders | {"image": image}))


def test_tokens_of_a_file_are_those_of_the_caches(features_assembly, tmp_path):
    data = features_assembly.config.data
    source = Split(data.path, "test", data)
    cached = source.tokens(0, source.views[0], False)
    source.close()
    (read,) = read_inputs(features_assembly, "image", [first_file(features_assembly, tmp_path)])
    assert read.dtype == np.float16 and read.shape == features_assembly.facts.of("image").tokens
    np.testing.assert_allclose(read.astype(np.float32), cached.astype(np.float32), rtol=2e-3, atol=2e-3)


def test_run_json_keeps_the_towers_of_the_caches(features_assembly, tmp_path):
    description = features_assembly.describe()
    shutil.copyfile(features_assembly.tokenizer.path, tmp_path / "tokenizer-text.json")
    again = reassemble(description, tmp_path)
    of_pictures = {"medium": "image", "parts": 1, "pool": ""}
    assert again.caches == {"image": tuple({"tower": "lite0", "size": size} | of_pictures for size in SIZES)}
    assert again.specs == features_assembly.specs | {"text": again.specs["text"]}
    with pytest.raises(UserError, match="does not say which frozen towers"):
        read_inputs(dataclasses.replace(again, caches={}), "image", ["any.png"])
    other = dataclasses.replace(again, caches={"image": ({"tower": "regions", "size": 32},)})
    with pytest.raises(UserError, match="no tower 'regions'"):
        read_inputs(other, "image", ["any.png"])


def test_a_run_json_of_before_caches_had_media_is_read(features_assembly, tmp_path):
    """It has one list of caches and one pair of tokens, and its encoder no `padded`."""
    description = json.loads(json.dumps(features_assembly.describe()))
    shutil.copyfile(features_assembly.tokenizer.path, tmp_path / "tokenizer-text.json")
    description["tokens"] = description["tokens"]["image"]
    description["caches"] = [{"tower": one["tower"], "size": one["size"]} for one in description["caches"]["image"]]
    for field in description["config"]["data"]["fields"].values():
        del field["features"]
    del description["config"]["encoders"]["image"]["padded"]
    again = reassemble(description, tmp_path)
    assert again.config == features_assembly.config
    assert again.specs["image"] == features_assembly.specs["image"]
    (read,) = read_inputs(again, "image", [first_file(again, tmp_path)])
    assert read.shape == features_assembly.facts.of("image").tokens


def test_files_that_are_missing_or_no_pictures_are_named(opened_run, tmp_path):
    with pytest.raises(UserError, match="gone.png' cannot be opened"):
        read_inputs(opened_run[0], "image", [tmp_path / "gone.png"])
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "pipe"), ("", "folder")):
        with pytest.raises(UserError, match=rf"cannot be opened \(it is a {kind}, not a file\)"):
            read_inputs(opened_run[0], "image", [tmp_path / name])
    with pytest.raises(UserError, match="'https://x.org/a.png' cannot be opened .*download it"):
        read_inputs(opened_run[0], "image", ["https://x.org/a.png"])
    whole = first_file(opened_run[0], tmp_path).read_bytes()
    torn = tmp_path / "torn.png"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="torn.png' is no picture"):
        read_inputs(opened_run[0], "image", [torn])
