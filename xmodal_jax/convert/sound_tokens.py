"""Make tokens of a sound by a frozen tower: pieces of its spectrogram -> the tower -> means over windows of time."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.sound import Sound, mono, unpack_sound, waves

Tokens = Callable[[np.ndarray], np.ndarray]


class Pieces(NamedTuple):
    """A sound as a frozen tower takes it."""

    inputs: np.ndarray
    """Spectrograms float32 [n,M,T], one of each piece of time."""
    real: tuple[int, ...]
    """Number of the tower's tokens of each piece that are of the sound, the others being of silence behind it."""


def windows(tokens: np.ndarray, real: int, width: int) -> np.ndarray:
    """Return the means float32 [ceil(real / width),D] of each `width` of the first `real` tokens [N,D].

    The last is the mean of those that are left.

    Example:
        >>> windows(np.arange(6.0)[:, None], 5, 2)[:, 0]
        array([0.5, 2.5, 4. ], dtype=float32)
    """
    starts = range(0, real, width)
    return np.stack([tokens[start : min(start + width, real)].mean(0) for start in starts]).astype(np.float32)


def tokens_of(pieces: Pieces, encode: Tokens, width: int, at_once: int = 4) -> np.ndarray:
    """Return the tokens float32 [N,D] of a sound's pieces by `encode`, [b,M,T] -> [b,n,D], averaged by `windows`.

    `at_once` pieces are encoded together, the last ones filled up with zeros, so that one program serves all.
    """
    found = []
    for start in range(0, len(pieces.inputs), at_once):
        block = pieces.inputs[start : start + at_once]
        filled = np.concatenate([block, np.zeros((at_once - len(block), *block.shape[1:]), block.dtype)])
        made = np.asarray(encode(filled), np.float32)[: len(block)]
        found += [windows(own, real, width) for own, real in zip(made, pieces.real[start:], strict=False)]
    return np.concatenate(found)


def wave_of(data: bytes, rate: int, seconds: float = math.inf) -> np.ndarray:
    """Return the mono wave float32 [N] at `rate` Hz of a sound's first `seconds`, as records keep it.

    Raises `CorruptRecord`.
    """
    sound: Sound = unpack_sound(data)
    count = len(sound.pcm) if math.isinf(seconds) else round(seconds * sound.rate)
    return mono(waves(sound._replace(pcm=sound.pcm[:count]), rate))
