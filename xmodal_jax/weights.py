"""Read the pretrained weights that a config names, hold them against it, and tell how their towers read pixels."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from xmodal_jax.convert import huggingface, resnet
from xmodal_jax.convert.described import KINDS, Statistics, read_statistics, refuse_contradiction
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.pixels import PixelConfig
from xmodal_jax.settings import Config
from xmodal_jax.types import Params

log = logging.getLogger(__name__)

LOADERS: dict[str, Callable] = {  # of a kind's weights from a file or folder
    "efficientnet": huggingface.load_lite0,
    "vit": huggingface.load_vit,
    "resnet": resnet.load_resnet,
    "bert": huggingface.load_minilm,
    "acquirers": huggingface.load_words,
}
INSTALLED = {"lite0": "efficientnet", "minilm": "bert"}  # weights that come as packages, and their kind

INSTALLED_PATHS: dict[str, Callable] = {
    "lite0": lambda: None,
    "minilm": huggingface.minilm_path,
}  # None: its loader knows


def pretrained(config: Config) -> dict[str, np.ndarray]:
    """Return {path: array} of the pretrained starts that the config names; empty from scratch.

    Raises UserError for weights of another architecture than the config's, or that read pixels by other statistics.
    """
    found: dict[str, np.ndarray] = {}
    for name, encoder in config.encoders.items():
        for where, start, own in encoder.towers(f"config.encoders.{name}", f"{name}/tower"):
            if own.init:
                tower: dict[str, Any] = flatten_dict(tower_weights(where, own), sep="/")
                found |= {f"{start}/{path}": leaf for path, leaf in tower.items()}
    return found


def tower_weights(where: str, own: EncoderConfig) -> Params:
    """Return the weights that an encoder's `init` names; UserError
    where there can be none, and for those of another tower.
    """
    kind = INSTALLED.get(own.init, own.kind)
    if kind != own.kind or own.kind not in LOADERS:
        raise UserError(
            f"{where}.init='{own.init}' needs {where}.kind="
            f"{repr(kind) if own.init in INSTALLED else 'one of ' + ', '.join(LOADERS)}, not '{own.kind}'; "
            f"write {where}.init='' for none"
        )
    path = INSTALLED_PATHS[own.init]() if own.init in INSTALLED else own.init
    refuse_other_architecture(where, own, path)
    refuse_other_statistics(where, own)
    return LOADERS[own.kind](path)


def refuse_other_architecture(where: str, own: EncoderConfig, weights: str | pathlib.Path | None) -> None:
    """Refuse weights whose config.json contradicts the config; where there is none, say what is taken for granted."""
    if own.kind not in KINDS or weights is None or not pathlib.Path(weights).exists():
        return  # what is missing is told by who reads it
    heads = getattr(own, "heads", None)
    if not refuse_contradiction(where, own, weights) and heads is not None:  # shapes tell all the rest
        log.warning("no config.json tells how '%s' was made: %s.heads=%d is assumed", weights, where, heads)


def weights_statistics(own: PixelConfig) -> Statistics | None:
    """Return the statistics of pixels that the weights of an encoder's `init` tell; None where they tell none."""
    if own.init in INSTALLED:
        return own.standard
    return read_statistics(own.init, own.standard) if own.init else None


def with_pixel_statistics(config: Config) -> Config:
    """Fill in the statistics of pixels that the config leaves empty:
    those of the weights, or else of the kind of tower.
    """
    return dataclasses.replace(
        config,
        encoders={
            name: own.with_towers(_with_statistics, f"config.encoders.{name}") for name, own in config.encoders.items()
        },
    )


def _with_statistics(where: str, own: EncoderConfig) -> EncoderConfig:
    """Return an encoder's config with its statistics of pixels filled in; others as they are."""
    if not isinstance(own, PixelConfig) or (own.pixel_mean and own.pixel_std):
        return own
    found = weights_statistics(own)
    mean, std = found or own.standard
    mean, std = own.pixel_mean or mean, own.pixel_std or std
    if own.init and found is None:
        log.warning(
            "no preprocessor_config.json tells how '%s' reads pixels: %s.pixel_mean=%s and pixel_std=%s are assumed",
            own.init,
            where,
            mean,
            std,
        )
    return dataclasses.replace(own, pixel_mean=mean, pixel_std=std)


def refuse_other_statistics(where: str, own: EncoderConfig) -> None:
    """Refuse statistics of pixels that are not those of the weights."""
    found = weights_statistics(own) if isinstance(own, PixelConfig) else None
    if found is None or not isinstance(own, PixelConfig):
        return
    for name, ours, theirs in zip(("pixel_mean", "pixel_std"), own.statistics, found, strict=True):
        if max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) >= 1e-5:
            raise UserError(
                f"{where}.{name} is {ours}, and the weights of {where}.init='{own.init}' were trained with "
                f"{tuple(theirs)}; write '{where}.{name}=()' to take theirs"
            )
