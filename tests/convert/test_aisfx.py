"""aiSFX's tower against a forward pass in SciPy from the same checkpoint; real weights where they are installed."""

import os
import pickle

import jax
import numpy as np
import pytest
import scipy.signal
import torch
from effects import checkpoint
from sounds import noise, pcm_of, tone

from xmodal_jax.convert import aisfx
from xmodal_jax.convert.huggingface import package_file
from xmodal_jax.convert.torch_pickle import read_checkpoint
from xmodal_jax.data.sound import Sound, pack_sound
from xmodal_jax.data.spectrogram import AISFX, log_mel
from xmodal_jax.errors import UserError

WEIGHTS = os.environ.get("AISFX_CHECKPOINT", "")  # a checkpoint that is not installed


def forward(state, mel):
    """The vector [D] of one spectrogram [M,T] in float64: the layers one after the other, norms not folded."""
    state = {name: np.asarray(own, np.float64) for name, own in state.items() if "fc." not in name}
    x = mel.T[None].astype(np.float64)
    for block in range(1, 5):
        for place in (1, 2):
            at = f"embedding_net.conv_block{block}"
            kernel, norm = state[f"{at}.conv{place}.weight"], f"{at}.bn{place}"
            wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            x = np.stack([sum(scipy.signal.correlate2d(c, k, "valid") for c, k in zip(wide, own)) for own in kernel])  # noqa: B905
            mean, var, gain, bias = (
                state[f"{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
            )
            x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * gain + bias, 0)
        if block < 4:
            rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
            x = x[:, :rows, :columns].reshape(len(x), rows // 2, 2, columns // 2, 2).max((2, 4))
    return x.mean(2).max(1)


def test_the_tower_equals_scipy():
    state = {name: own.numpy() for name, own in checkpoint().items()}
    tower, params = aisfx.aisfx_from_torch(state)
    mel = np.random.default_rng(0).uniform(size=(2, 21, 27)).astype(np.float32)
    found = tower.apply({"params": params}, mel)
    assert found.shape == (2, 16)
    for own, made in zip(mel, found, strict=True):
        np.testing.assert_allclose(made, forward(state, own), atol=1e-4)
    fresh = tower.init(jax.random.key(0), mel)["params"]
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)


def test_a_checkpoint_with_numbers_of_numpy_beside_it_is_read(tmp_path):
    state = checkpoint()
    sets = {"sounds": (np.int64(3), np.float64(0.5)), "others": (1, np.array(7)[()])}
    torch.save((state, sets), tmp_path / "checkpoint.pth")
    tower, params = aisfx.load_aisfx(tmp_path / "checkpoint.pth")
    assert tower.width == 16
    plain = {name: own.numpy() for name, own in state.items()}
    for one, other in zip(*map(jax.tree.leaves, (params, aisfx.aisfx_from_torch(plain)[1])), strict=True):
        np.testing.assert_array_equal(one, other)


class Payload:
    """An object that runs something when it is unpickled."""

    def __reduce__(self):
        return os.getcwd, ()


def test_a_program_beside_the_weights_is_not_run(tmp_path):
    torch.save((checkpoint(), [Payload()]), tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=f"{os.getcwd.__module__}.getcwd"):
        read_checkpoint(tmp_path / "checkpoint.pth")


def test_a_list_of_nothing_is_no_checkpoint_of_it(tmp_path):
    torch.save([1, "two"], tmp_path / "checkpoint.pth")
    assert read_checkpoint(tmp_path / "checkpoint.pth") == {}
    with pytest.raises(UserError, match=r"conv_block1\.conv1\.weight' is missing"):
        aisfx.load_aisfx(tmp_path / "checkpoint.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(3))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "plain.pth")


@pytest.mark.parametrize(("steps", "count"), [(5, 1), (99, 1), (100, 1), (149, 1), (150, 2), (260, 4)])
def test_blocks_are_of_a_hundred_steps_every_fifty(steps, count):
    wave = noise((steps - 1) * 1024 / 44_100, 44_100)[:, 0]
    found = aisfx.aisfx_pieces(wave)
    assert found.inputs.shape == (count, 96, 100) and found.real == (1,) * count
    mel = log_mel(wave / np.abs(wave).max(), AISFX) / 9.457798957824707
    assert mel.shape[1] == steps
    for block in range(count):
        own = mel[:, 50 * block : 50 * block + 100]
        np.testing.assert_allclose(found.inputs[block, :, : own.shape[1]], own, atol=1e-6)
        assert not found.inputs[block, :, own.shape[1] :].any()


def test_silence_has_finite_blocks():
    assert np.isfinite(aisfx.aisfx_pieces(np.zeros(5000, np.float32)).inputs).all()


def installed():
    """The file of real weights, or a skip."""
    if WEIGHTS:
        return WEIGHTS
    try:
        return package_file("aisfx", "models/checkpoint.pth", "aisfx")
    except UserError:
        pytest.skip("the package aisfx is not installed")


def test_real_weights_equal_scipy_and_tell_a_tone_from_noise():
    path = installed()
    tower, params = aisfx.load_aisfx(path)
    assert tower.width == 512
    made = aisfx.aisfx_tokens(path)
    sounds = (tone(3.0, 44_100), tone(3.0, 44_100, (450.0,)), noise(3.0, 44_100))
    one, alike, other = (made(pack_sound(Sound(44_100, pcm_of(own)))) for own in sounds)
    assert one.shape == (1, 512) and np.isfinite(one).all()  # 130 steps
    assert np.linalg.norm(one - alike) < np.linalg.norm(one - other)
    mel = aisfx.aisfx_pieces(sounds[2][:, 0]).inputs[0][:24, :16]
    found = tower.apply({"params": params}, mel[None])[0]
    np.testing.assert_allclose(found, forward(read_checkpoint_of(path), mel), atol=1e-3)


def read_checkpoint_of(path):
    """The state by the package's names."""
    return {
        name[name.index("embedding_net") :]: own for name, own in read_checkpoint(path).items() if "embedding" in name
    }
