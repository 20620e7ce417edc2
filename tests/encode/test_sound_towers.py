"""Feature caches of sounds: the tokens of frozen towers, stored, trained on, and made anew of a query's file."""

import io

import jax
import numpy as np
import pytest
from ct2 import encoder_variables, model_bin
from effects import checkpoint
from PIL import Image
from sounds import noise, pcm_of, tone, wav_of

from xmodal_jax.api import load
from xmodal_jax.assemble import NamedCaches
from xmodal_jax.cli import main, parser
from xmodal_jax.config_file import freeze
from xmodal_jax.convert import aisfx, whisper
from xmodal_jax.data.card import Card, is_padded
from xmodal_jax.data.config import DataConfig, FieldConfig
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.readers import InputSpec
from xmodal_jax.data.sound import Sound, pack_sound
from xmodal_jax.data.sound_reader import SoundReader
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.split import Split
from xmodal_jax.encode.towers import TOWERS, tower_encoder, tower_input
from xmodal_jax.errors import UserError
from xmodal_jax.models.whisper import WhisperEncoder, WhisperWindows
from xmodal_jax.settings import defaults
from xmodal_jax.training.loop import train

NAME = "whisper-tiny.en-audio-2"  # the cache's, of two pieces at most
SECONDS = (0.2, 0.7, 2.0, 31.0)


def wave_of_record(number):
    """Tones and noise of four lengths, the last longer than a piece."""
    seconds = SECONDS[number % 4]
    return tone(seconds, hertz=(300.0 * (1 + number % 4),)) + noise(seconds, seed=number, loud=0.01)


def picture():
    """A grey PNG file."""
    file = io.BytesIO()
    Image.new("L", (8, 8), 90).save(file, "PNG")
    return file.getvalue()


def stored(number):
    """What a record keeps of it."""
    return pack_sound(Sound(16_000, pcm_of(wave_of_record(number))))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights with Whisper's bands and positions, and a small width."""
    path = tmp_path_factory.mktemp("weights") / "model.bin"
    path.write_bytes(model_bin(encoder_variables(layers=1, mels=80, positions=1500)))
    return path


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """A data set of 12 records, two without sound, with the cache."""
    found = []
    for number in range(12):
        media = {"audio": {"voice": stored(number)}} if number % 6 != 4 else {}
        split = "test" if number % 3 == 0 else "train"
        found.append(Item(f"{number}", {"photo": picture()}, {"en": [f"sound {number % 4}"]}, split=split, media=media))
    out = tmp_path_factory.mktemp("sounds") / "set"
    prepare(memory_source(found, "sounds", "none"), out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whisper, "whisper_files", lambda name: [weights])  # the package's place
        options = ["--tower", "whisper-tiny.en", "--medium", "audio", "--frames", "2"]
        assert main(["data", "features", "--data", str(out), *options]) == 0
    return out


def test_windows_are_means_of_the_tokens_that_are_of_the_sound(rng):
    tower = WhisperWindows(WhisperEncoder(16, 1, 2, 8, 20), 5)
    x = np.concatenate([rng.normal(size=(2, 8, 40)), np.ones((2, 1, 40))], 1).astype(np.float32)
    x[1, 8, 14:] = 0  # 7 tokens of 20
    params = tower.init(jax.random.key(0), x)["params"]
    found = np.asarray(tower.apply({"params": params}, x))
    tokens = np.asarray(tower.encoder.apply({"params": params["encoder"]}, x[:, :8]))
    np.testing.assert_allclose(found[0], tokens[0].reshape(4, 5, 16).mean(1), atol=1e-5)
    np.testing.assert_allclose(found[1, :2], [tokens[1, :5].mean(0), tokens[1, 5:7].mean(0)], atol=1e-5)
    assert (found[1, 2:] == 0).all()


def test_a_cache_has_a_token_for_each_half_second_and_zeros_behind_them(folder, weights, monkeypatch):
    monkeypatch.setattr(whisper, "whisper_files", lambda name: [weights])
    tokens_of, entry = whisper.whisper_tokens("tiny.en"), Card.load(folder).feature(NAME)
    assert (entry["tokens"], entry["width"], entry["medium"], entry["size"]) == (120, 16, "audio", 0)
    split = Split(folder, "train", DataConfig(fields={"audio": FieldConfig(features=(NAME,)), "text": FieldConfig()}))
    lengths = set()
    for row in range(len(split)):
        number = int(split.sidecar.keys[row])
        if number % 6 == 4:
            continue
        found, wanted = split.tokens(row, "voice", False, (NAME,)), tokens_of(stored(number))
        lengths.add(len(wanted))
        assert found.dtype == np.float16 and found.shape == (120, 16)
        np.testing.assert_allclose(found[: len(wanted)], wanted, atol=4e-3)
        assert (found[len(wanted) :] == 0).all()
    split.close()
    assert lengths == {1, 2, 4, 62}  # ceil(seconds / 0.5)


def test_a_run_trains_on_the_cache_and_encodes_files_alike(folder, weights, monkeypatch, tmp_path):
    monkeypatch.setattr(whisper, "whisper_files", lambda name: [weights])
    config = defaults()
    config.batch_size, config.steps, config.log_every, config.data.path = 8, 2, 1, str(folder)
    text = {"kind": "bert", "length": 8, "positions": 8, "width": 16, "layers": 1, "heads": 2, "hidden": 16}
    config.encoders = {"audio": {"kind": "features"}, "text": text}
    config.data.fields = {"audio": {"features": (NAME,)}, "text": {}}
    config.eval.pairs, config.eval.rerank, config.objectives = (("audio", "text"),), (), {"itc": {"queue": 0}}
    config.objectives.itc.pair = ("audio", "text")
    config.joint.embed, config.fusion.heads = 8, 2
    train(freeze(config), tmp_path / "run")
    run, path = load(tmp_path / "run"), tmp_path / "a.wav"
    path.write_bytes(wav_of(wave_of_record(6)))
    side = run.embedder
    split = Split(folder, "test", run.config.data)
    row = list(split.sidecar.keys).index("6")
    wanted = side.rows("audio", split.tokens(row, "voice", False, (NAME,))[None]).embed
    split.close()
    np.testing.assert_allclose(run.encode("audio", [path]), wanted, atol=2e-3)
    assert "4 records, 4 captions" in str(run.evaluate(keep=False))


def test_the_command_knows_all_towers():
    with pytest.raises(SystemExit):
        parser().parse_args(["data", "features", "--data", "x", "--tower", "none"])
    for name in TOWERS:
        assert parser().parse_args(["data", "features", "--data", "x", "--tower", name]).tower == name


def test_a_plan_without_data_has_the_shapes_of_the_caches(folder):
    for name, tokens, width in (("lite0-128-video-12", 12, 2560), ("aisfx-effect-3", 3, 512)):
        entry = NamedCaches().feature(name)
        assert (entry["tokens"], entry["width"]) == (tokens, width) and is_padded(entry)
    own, planned = Card.load(folder).feature(NAME), NamedCaches().feature(NAME)
    assert planned["tokens"] == own["tokens"] and planned["medium"] == own["medium"] and is_padded(own)


def test_a_size_of_what_has_none_is_refused(folder, capsys):
    for options, words in (
        (
            ["--tower", "whisper-tiny.en", "--medium", "audio", "--size", "5"],
            "--size is 5, and the inputs of the tower",
        ),
        (["--medium", "video", "--size", "0"], "--size is 0; write the side of the pictures in pixels, 1 to 4096"),
    ):
        assert main(["data", "features", "--data", str(folder), *options]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "encoder", "words"),
    [
        (
            {},
            {"kind": "frames", "tower": {"kind": "vit", "size": 16, "patch": 8}},
            "reads frames, and its field 'image'",
        ),
        ({}, {"kind": "spectrogram"}, "reads sound, and its field 'image' gives pixels; write an encoder of pixels"),
        ({"medium": "video"}, {"kind": "spectrogram"}, "reads sound, and its field 'image' gives frames"),
        ({"medium": "text"}, {"kind": "spectrogram"}, "reads sound, and its field 'image' gives words"),
    ],
)
def test_an_encoder_that_cannot_read_its_field_is_refused(field, encoder, words):
    config = defaults()
    config.encoders.image, config.data.fields.image = encoder, field
    with pytest.raises(UserError, match=words):
        freeze(config)


def test_what_a_tower_of_sounds_cannot_do_is_one_sentence(folder):
    with pytest.raises(UserError, match="the tower 'aisfx' does not read the medium 'image'; write one of audio, eff"):
        tower_input("aisfx", "image", 0, 4)
    own = FieldConfig(encoder="audio", medium="audio", of="audio", features=(NAME,))
    with pytest.raises(UserError, match="shows its sound blanked in part, and config.encoders.audio takes cached tok"):
        SoundReader(Split(folder, "train", DataConfig()), own, InputSpec(cached=True))


def test_effects_have_a_token_for_each_block(tmp_path, monkeypatch):
    own = aisfx.aisfx_from_torch({name: own.numpy() for name, own in checkpoint().items()})
    monkeypatch.setattr(aisfx, "load_aisfx", lambda path=None: own)
    wanted = aisfx.aisfx_tokens()(stored(2))
    what = tower_input("aisfx", "effect", 0, 12)
    found = tower_encoder("aisfx")(np.stack(what.read(stored(2))))[:, 0]
    assert what.medium == "effect" and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
