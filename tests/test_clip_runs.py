"""Clips from files to hits: prepared, trained on as frames and as cached tokens, evaluated, encoded and searched."""

import json

import jax
import numpy as np
import pytest
from clips import video_bytes
from flax.traverse_util import flatten_dict

from xmodal_jax.api import load
from xmodal_jax.assemble import abstract_params, assemble
from xmodal_jax.cli import main
from xmodal_jax.config_file import freeze
from xmodal_jax.data.card import Card
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.split import Split
from xmodal_jax.encode.inputs import read_inputs
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import evaluate
from xmodal_jax.models.heads import pooled_features
from xmodal_jax.settings import defaults
from xmodal_jax.training.loop import train
from xmodal_jax.weights import pretrained, with_pixel_statistics
from xmodal_jax.workdir import open_run

FRAMES, SIZE = 4, 32
WAYS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
COLOURS = {"red": (250, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 250), "white": (250, 250, 250)}


def moving_square(way, colour, count):
    """Frames of a square that moves over grey: of two ways on a line, single frames do not tell which."""
    found = []
    for place in range(count):
        image = np.full((32, 32, 3), 90, np.uint8)
        shift = round((place / (count - 1) - 0.5) * 20)
        x, y = 12 + WAYS[way][0] * shift, 12 + WAYS[way][1] * shift
        image[y : y + 8, x : x + 8] = COLOURS[colour]
        found.append(image)
    return found


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """The JSON Lines of 32 videos: each way in each colour, one of 9 frames in train and one of 5 in test."""
    folder, rows = tmp_path_factory.mktemp("clips"), []
    for split, count in (("train", 9), ("test", 5)):
        for way in WAYS:
            for colour in COLOURS:
                name = f"{way}-{colour}-{split}.mp4"
                (folder / name).write_bytes(video_bytes(moving_square(way, colour, count)))
                rows.append({"video": name, "caption": f"a {colour} square moves {way}", "split": split})
    path = folder / "clips.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def clip_set(clip_files):
    """The data set, with cached tokens of four frames of each clip."""
    folder = clip_files.parent / "set"
    assert main(["data", "prepare", "jsonl", "--path", str(clip_files), "--out", str(folder)]) == 0
    command = ["data", "features", "--data", str(folder), "--medium", "video", "--size", str(SIZE), "--batch", "8"]
    assert main([*command, "--frames", str(FRAMES)]) == 0
    return folder


def config_of(path, video, **field):
    """A config of clips and words."""
    config = defaults()
    config.data.path, config.batch_size, config.steps, config.log_every = str(path), 16, 4, 2
    config.encoders = {
        "video": video,
        "text": {"kind": "bert", "length": 10, "positions": 10, "width": 16, "layers": 1, "heads": 2, "hidden": 16},
    }
    config.data.fields = {"video": field, "text": {}}
    config.data.augment.update({"crop_min_area": 1.0, "flip": 0.0})
    config.eval.pairs, config.eval.rerank = (("video", "text"),), (4,)
    config.fusion.update({"layers": 1, "heads": 2, "hidden": 16})
    config.joint.update({"embed": 8, "bits": 8})
    config.optimizer.update({"lr": 5e-3, "warmup": 0})
    config.objectives = {"itc": {"pair": ("video", "text"), "queue": 0}, "itm": {"pair": ("video", "text")}}
    return config


OVER_TIME = {"width": 16, "layers": 1, "heads": 2, "hidden": 16, "context": 3}
VIT = {"kind": "vit", "size": SIZE, "patch": 8, "width": 16, "layers": 1, "heads": 2, "hidden": 16}
CACHE = f"lite0-{SIZE}-video-{FRAMES}"


def test_the_cache_has_a_token_for_each_frame(clip_set):
    entry = Card.load(clip_set).feature(CACHE)
    told = {name: entry[name] for name in ("medium", "parts", "pool", "tokens", "width", "tower", "size", "views")}
    assert told == {
        **{"medium": "video", "parts": FRAMES, "pool": "mean", "tokens": FRAMES, "width": 2560},
        **{"tower": "lite0", "size": SIZE, "views": ["plain", "flip"]},
    }


def test_cached_tokens_are_those_of_the_tower_on_the_frames(clip_set):
    """By the tower itself, frame by frame: the means of its grid and of its summary, each normalised."""
    from xmodal_jax.convert.huggingface import load_lite0
    from xmodal_jax.models.efficientnet import EfficientNetLite0

    video = {"kind": "frames", "tower": {"kind": "efficientnet", "size": SIZE}, "frames": FRAMES} | OVER_TIME
    assembly = assemble(freeze(config_of(clip_set, video)))
    found = eval_split(clip_set, "test", assembly.specs, assembly.config.data, pair=("video", "text"))
    split = Split(clip_set, "test", freeze(config_of(clip_set, video, features=(CACHE,))).data)
    tower, params = EfficientNetLite0(summarize=True), load_lite0()
    for place in (0, 7):
        tokens = tower.apply({"params": params}, found.left.read(place))
        grid, summary = np.asarray(tokens[:, :-1]).mean(1), np.asarray(tokens[:, -1])
        parts = [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6) for x in (grid, summary)]
        cached = split.tokens(int(found.rows[place]), "clip", False, (CACHE,)).astype(np.float32)
        np.testing.assert_allclose(cached, np.concatenate(parts, 1), atol=0.02)
        pooled = pooled_features(tokens, None, "mean", assembly.config.encoders["video"].inner.groups)
        np.testing.assert_allclose(cached, pooled, atol=0.02)
    split.close()


def test_a_file_is_read_as_the_cache_was_made(clip_set, clip_files):
    assembly = assemble(freeze(config_of(clip_set, {"kind": "features"}, features=(CACHE,))))
    path = clip_files.parent / "left-blue-test.mp4"
    (read,) = read_inputs(assembly, "video", [path])
    split = Split(clip_set, "test", assembly.config.data)
    row = [*split.sidecar.keys].index(path.name)
    np.testing.assert_allclose(read, split.tokens(row, "clip", False, (CACHE,)), atol=0.01)
    split.close()
    with pytest.raises(UserError, match="the field 'video' takes paths of files, and one input is ndarray"):
        read_inputs(assembly, "video", [np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.parametrize(
    ("video", "field"),
    [
        ({"kind": "frames", "tower": VIT, "frames": FRAMES} | OVER_TIME, {}),
        ({"kind": "frames", "tower": {"kind": "features"}} | OVER_TIME, {"features": (CACHE,)}),
    ],
    ids=["frames", "cached"],
)
def test_a_run_is_trained_evaluated_encoded_and_searched(clip_set, clip_files, tmp_path, video, field):
    state = train(freeze(config_of(clip_set, video, **field)), tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))
    assembly, params, _ = open_run(tmp_path / "run")
    result = evaluate(assembly, params)
    assert result["records"] == 16 and set(result["mean"]["itc"]) >= {"i2t", "t2i"} and "rerank" in result["mean"]
    run, paths = load(tmp_path / "run"), [clip_files.parent / f"{way}-red-test.mp4" for way in ("left", "up")]
    found = run.encode("video", paths)
    assert found.shape == (2, 8) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    index = ["index", "--workdir", str(tmp_path / "run"), "--field", "video", "--out", str(tmp_path / "index")]
    assert main(index) == 0
    assert main(["search", "--index", str(tmp_path / "index"), "a red square moves left", "-k", "2"]) == 0


@pytest.mark.slow
def test_a_tower_starts_from_a_run_of_pictures(clip_set, tmp_path):
    """`init_paths` puts the tower of one run under the frames of another."""
    told = {"pixel_mean": (0.4, 0.4, 0.4), "pixel_std": (0.2, 0.2, 0.2)}
    first = config_of(clip_set, {"kind": "frames", "tower": VIT | told, "frames": FRAMES, "layers": 0})
    train(freeze(first), tmp_path / "first")
    second = config_of(clip_set, {"kind": "frames", "tower": VIT, "frames": FRAMES} | OVER_TIME)
    second.init, second.steps = str(tmp_path / "first"), 1
    second.init_paths, second.optimizer.freeze = (("video/tower/frame/", "video/tower/frame/"),), "^video/tower/frame/"
    state = train(freeze(second), tmp_path / "second")
    one = open_run(tmp_path / "first")[1]["video"]["tower"]["frame"]
    assert open_run(tmp_path / "second")[0].config.encoders["video"].inner.statistics == tuple(told.values())
    for left, right in zip(*map(jax.tree.leaves, (one, state.params["video"]["tower"]["frame"])), strict=True):
        np.testing.assert_array_equal(left, right)


def test_weights_of_a_frames_tower_are_named_in_it(clip_set):
    """They come under its path, with its statistics of pixels; those that do not fit are told by its place."""
    tower = {"kind": "efficientnet", "size": SIZE, "init": "lite0"}
    config = freeze(config_of(clip_set, {"kind": "frames", "tower": tower, "frames": FRAMES} | OVER_TIME))
    found = pretrained(config)
    assert found and all(path.startswith("video/tower/frame/") for path in found)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract_params(assemble(config)), sep="/").items()}
    assert all(shapes[path] == leaf.shape for path, leaf in found.items())
    inner = with_pixel_statistics(config).encoders["video"].inner
    assert inner.pixel_mean == (127 / 255,) * 3
    wrong = config_of(clip_set, {"kind": "frames", "tower": VIT | {"init": "lite0"}, "frames": FRAMES})
    with pytest.raises(UserError, match="video.tower.init='lite0' needs config.encoders.video.tower.kind"):
        pretrained(freeze(wrong))
