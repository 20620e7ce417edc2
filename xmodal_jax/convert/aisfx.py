"""Load aiSFX (Ma and Lerch, ISMIR 2022) from the package aisfx, and make tokens of sounds with it.

The code is MIT, the weights are CC BY 4.0. The package has two ways to compute spectrograms; this is its second one
(librosa's), as the first needs another library: the paper's numbers were made with that.
"""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

from xmodal_jax.convert.huggingface import State, fold_batch_norm, package_file, take
from xmodal_jax.convert.sound_tokens import Pieces, tokens_of, wave_of
from xmodal_jax.convert.torch_pickle import read_checkpoint
from xmodal_jax.data.spectrogram import AISFX, log_mel
from xmodal_jax.models.aisfx import BLOCKS, EffectsNet
from xmodal_jax.types import Params

PACKAGE, FILE = "aisfx", "models/checkpoint.pth"
EPS = 1e-5  # PyTorch's default
LOUDEST = 9.457798957824707  # of the spectrograms that it was trained on
STEPS, HOP = 100, 50  # time steps of a block (2.3 s), and from one block to the next


def load_aisfx(path: str | pathlib.Path | None = None) -> tuple[EffectsNet, Params]:
    """Load the tower from `path` or the installed package; float32 NumPy arrays. Raises UserError."""
    path = pathlib.Path(path) if path else package_file(PACKAGE, FILE, PACKAGE)
    return aisfx_from_torch(read_checkpoint(path), str(path))


def aisfx_from_torch(state: State, where: str = "checkpoint") -> tuple[EffectsNet, Params]:
    """Convert the weights by the package's names, batch norm folded; the classifiers are dropped.

    Their kernels are [D,C,time,frequency], ours [time,frequency,C,D].
    """
    start = "embedding_net.conv_block"
    state = {name[name.index(start) :]: array for name, array in state.items() if start in name}
    params = {}
    for block in range(BLOCKS):
        for place in range(2):
            kernel = take(state, f"{start}{block + 1}.conv{place + 1}.weight", where).transpose(2, 3, 1, 0)
            folded = fold_batch_norm(state, kernel, f"{start}{block + 1}.bn{place + 1}", where, EPS)
            params[f"block{block}_{place}"] = {name: np.float32(leaf) for name, leaf in folded.items()}
    return EffectsNet(params[f"block{BLOCKS - 1}_1"]["bias"].shape[0]), params


def aisfx_pieces(wave: np.ndarray) -> Pieces:
    """Cut a mono wave float32 [N] at 44.1 kHz into blocks of 100 time steps, every 50, as spectrograms [n,96,100].

    The wave is scaled to a peak of 1. A last block that is not whole is left out, but for a sound shorter than one,
    which zeros fill up.
    """
    peak = np.abs(wave).max()
    mel = log_mel(wave / (peak or np.float32(1)), AISFX) / np.float32(LOUDEST)
    count = max(1, (mel.shape[1] - STEPS) // HOP + 1)
    mel = np.pad(mel, ((0, 0), (0, max(0, STEPS - mel.shape[1]))))
    return Pieces(np.stack([mel[:, HOP * i : HOP * i + STEPS] for i in range(count)]), (1,) * count)


def aisfx_tokens(path: str | pathlib.Path | None = None) -> Callable[[bytes], np.ndarray]:
    """Return a function from a sound, as records keep it, to tokens float32 [N,512], one for each 1.2 s."""
    tower, params = load_aisfx(path)
    run = jax.jit(lambda params, mel: tower.apply({"params": params}, mel))
    return lambda data: tokens_of(
        aisfx_pieces(wave_of(data, AISFX.rate)), lambda mel: np.asarray(run(params, mel))[:, None], 1
    )
