"""Load frozen towers by name, as plain functions from what they read to tokens."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from xmodal_jax.data.card import OF_PICTURES
from xmodal_jax.data.records import PICTURES
from xmodal_jax.data.tower_input import TowerInput, picture_input
from xmodal_jax.data.video import VIDEO, frames_input
from xmodal_jax.encode.apply import apply
from xmodal_jax.errors import UserError
from xmodal_jax.models.aisfx import EffectTokens
from xmodal_jax.models.efficientnet import EfficientNetLite0
from xmodal_jax.models.grid import pooling_groups
from xmodal_jax.models.heads import pooled_features
from xmodal_jax.models.whisper import WhisperWindows
from xmodal_jax.parallel.mesh import local_mesh, replicated, split_rows, to_host
from xmodal_jax.types import Array, Params


class Tower(NamedTuple):
    """A frozen tower: how it is loaded, and how it reads each medium that it takes."""

    load: Callable[[], tuple[nn.Module, Params]]
    """Function that returns the tower and its parameters."""
    media: dict[str, Callable[[int, int], TowerInput]]
    """How it reads a medium, by the medium: a function of the size (px) and of the most parts of a view."""
    size: int = 224
    """Usual size of its inputs in pixels; 0: they have none."""
    parts: int = 12
    """Usual number of parts of a view that are encoded, at most."""
    batch: int = 64
    """Usual number of inputs that are encoded together."""


def _lite0() -> tuple[EfficientNetLite0, Params]:
    """Load EfficientNet-Lite0 with its installed weights."""
    from xmodal_jax.convert.huggingface import load_lite0

    return EfficientNetLite0(summarize=True), load_lite0()


def _pictures(size: int, parts: int) -> TowerInput:
    """Return how a tower of pictures reads them: one part each."""
    del parts
    return picture_input(size)


def _whisper(name: str) -> tuple[nn.Module, Params]:
    """Load Whisper's encoder with the installed weights `name`, as one token for each half second."""
    from xmodal_jax.convert.whisper import load_whisper, whisper_files

    encoder, params = load_whisper(whisper_files(name))
    return WhisperWindows(encoder), {"encoder": params}


def _aisfx() -> tuple[nn.Module, Params]:
    """Load aiSFX's tower with its installed weights."""
    from xmodal_jax.convert.aisfx import load_aisfx

    net, params = load_aisfx()
    return EffectTokens(net), {"net": params}


def _speech(medium: str, size: int, parts: int) -> TowerInput:
    """Return how Whisper reads a medium of sounds: pieces of 30 s, with a row that tells where the sound is."""
    del size

    def read(data: bytes) -> list[np.ndarray]:
        from xmodal_jax.convert.whisper import marked_pieces

        return marked_pieces(data, parts)

    return TowerInput(read, medium, parts, mirrored=False, drops_zeros=True)


def _effects(medium: str, size: int, parts: int) -> TowerInput:
    """Return how aiSFX reads a medium of sounds: blocks of 2.3 s, every 1.2 s."""
    del size

    def read(data: bytes) -> list[np.ndarray]:
        from xmodal_jax.convert.aisfx import aisfx_pieces
        from xmodal_jax.convert.sound_tokens import wave_of
        from xmodal_jax.data.spectrogram import AISFX

        return [*aisfx_pieces(wave_of(data, AISFX.rate)).inputs[:parts]]

    return TowerInput(read, medium, parts, mirrored=False)


SOUNDS = ("audio", "effect")  # media of the sources that have sounds
TOWERS: dict[str, Tower] = {
    "lite0": Tower(_lite0, {PICTURES: _pictures, VIDEO: frames_input}),
    "aisfx": Tower(_aisfx, {medium: functools.partial(_effects, medium) for medium in SOUNDS}, 0, 12, 16),
} | {
    f"whisper-{name}": Tower(
        functools.partial(_whisper, name), {medium: functools.partial(_speech, medium) for medium in SOUNDS}, 0, 1, 4
    )
    for name in ("tiny.en", "base")
}


def find_tower(name: str) -> Tower:
    """Return an entry of `TOWERS`. Raises UserError for a name that is none."""
    if name not in TOWERS:
        raise UserError(f"there is no tower '{name}'; write one of {', '.join(TOWERS)}")
    return TOWERS[name]


def tower_input(name: str, medium: str, size: int, parts: int) -> TowerInput:
    """Return how the tower `name` reads a medium. Raises UserError for one that it does not take."""
    media = find_tower(name).media
    if medium not in media:
        raise UserError(f"the tower '{name}' does not read the medium '{medium}'; write one of {', '.join(media)}")
    return media[medium](size, parts)


def cache_input(cache: dict[str, Any]) -> TowerInput:
    """Return what the tower behind a feature cache reads, by the cache's entry in a card or in run.json."""
    told = OF_PICTURES | cache
    found = tower_input(told["tower"], told["medium"], told["size"], told["parts"])
    return dataclasses.replace(found, pool=told["pool"])


def tower_encoder(name: str, pool: str = "") -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from inputs [b,...], such as uint8 images, to float32 tokens [b,N,D] of the frozen tower.

    With `pool` "mean" one token [b,1,D'] is left of each: the means of the tower's groups of tokens, such as the grid
    of a picture and its summary, each normalised and joined, as the linear path of a head pools them. The inputs are
    split over all local devices. Raises UserError for a tower that is not in `TOWERS`, or whose weights are not there.
    """
    tower, params = find_tower(name).load()
    mesh = local_mesh()
    params = jax.device_put(params, replicated(mesh))

    @jax.jit
    def run(params: Params, inputs: Array) -> Array:
        tokens = apply(tower, params, inputs)
        groups = pooling_groups(name, tokens.shape[1])
        return pooled_features(tokens, None, pool, groups)[:, None] if pool else tokens

    return lambda inputs: to_host(run(params, split_rows(mesh, inputs)), len(inputs))
