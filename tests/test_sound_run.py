"""Sound and its blanked copy against captions in one run, whose tower starts from a run on pictures."""

import io

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from sounds import pcm_of, tone, wav_of

from xmodal_jax.api import load
from xmodal_jax.assemble import assemble
from xmodal_jax.config_file import freeze
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.sound import Sound, pack_sound
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.settings import defaults
from xmodal_jax.training.loop import make_run, train
from xmodal_jax.workdir import open_run

TOWER = {"patch": 8, "width": 24, "layers": 1, "heads": 2, "hidden": 32}
NAMES = ("low", "middle", "high", "highest")
HERTZ = (300.0, 900.0, 2000.0, 5000.0)


def sound_of(number, again=0):
    """A tone of 0.2 s, told by the number."""
    return tone(0.2, hertz=(HERTZ[number] * (1 + 0.02 * again),))


def items():
    """48 records of four tones, twelve of each; a picture for each tone, and a quarter without sound."""
    found = []
    for number in range(48):
        kind, again = number % 4, number // 4
        file = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), 60 * kind, np.uint8)).save(file, "PNG")
        media = {"audio": {"x": pack_sound(Sound(16_000, pcm_of(sound_of(kind, again))))}} if number % 16 < 12 else {}
        split = "test" if again >= 9 else "train"
        found.append(
            Item(f"tone-{number}", {"p": file.getvalue()}, {"en": [f"a {NAMES[kind]} tone"]}, split=split, media=media)
        )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The prepared data set."""
    out = tmp_path_factory.mktemp("tones") / "set"
    prepare(memory_source(items(), "tones", "none"), out)
    return out


def small(folder, fields, encoders, pair, **changes):
    """A config of one pair of fields."""
    config = defaults()
    config.name, config.batch_size, config.steps, config.log_every = "tones", 8, 2, 2
    config.data.path = str(folder)
    text = {"kind": "bert", "length": 8, "positions": 8, "width": 24, "layers": 1, "heads": 2, "hidden": 32}
    config.encoders, config.data.fields = {"text": text} | encoders, {"text": {}} | fields
    config.eval.pairs, config.eval.every = (pair,), 0
    config.joint.update({"embed": 16})
    config.optimizer.update({"lr": 5e-3, "warmup": 0})
    config.objectives = {"itc": {"pair": pair, "queue": 0}}
    for name, value in changes.items():
        config[name] = value
    return config


def pictures(folder):
    """The run on pictures."""
    encoders = {"image": {"kind": "vit", "size": 16} | TOWER}
    return freeze(small(folder, {"image": {}}, encoders, ("image", "text")))


def tones(folder, **changes):
    """The run on sound, whose segments have as many patches as a picture."""
    audio = {"kind": "spectrogram", "tower": TOWER, "segments": 2, "steps": 16, "mels": 16, "window": 256}
    fields = {"audio": {"required": False}, "audio2": {"of": "audio"}}
    config = small(folder, fields, {"audio": audio}, ("audio", "text"), **changes)
    config.objectives.aa = {"kind": "itc", "pair": ("audio", "audio2"), "queue": 0}
    return freeze(config)


@pytest.fixture(scope="module")
def before(folder, tmp_path_factory):
    """The work directory of the run on pictures."""
    workdir = tmp_path_factory.mktemp("before") / "run"
    train(pictures(folder), workdir)
    return workdir


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The work directory of a run of four steps on sound."""
    workdir = tmp_path_factory.mktemp("tones") / "run"
    train(tones(folder, steps=4), workdir)
    return workdir


def flat(tree):
    """Leaves by path."""
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def test_a_tower_of_pictures_starts_one_of_sound(folder, before):
    theirs = flat(open_run(before)[1])
    config = tones(folder, init=str(before), init_paths=(("audio/tower/", "image/tower/"),))
    found = flat(make_run(assemble(config), jax.devices()[:1]).fresh().params)
    same = [path for path in found if path.startswith("audio/tower/") and "type" not in path]
    assert len(same) > 15 and "audio/tower/types" in found
    for path in same:
        np.testing.assert_array_equal(found[path], theirs[path.replace("audio/", "image/")], err_msg=path)


def test_a_run_trains_the_whole_tower_and_encodes_files(folder, trained, tmp_path):
    model = load(trained)
    before = flat(make_run(assemble(tones(folder, steps=4)), jax.devices()[:1]).fresh().params)
    for path, leaf in flat(model.params).items():
        assert np.isfinite(leaf).all(), path
        if path.startswith("audio/"):
            assert (leaf != before[path]).any(), path
    files = [tmp_path / f"{name}.wav" for name in ("one", "same", "other")]
    for file, kind in zip(files, (0, 0, 3), strict=True):
        file.write_bytes(wav_of(sound_of(kind)))
    found = model.encode("audio", files)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-3
