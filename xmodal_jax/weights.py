"""Pretrained weights that a config names: read, held against the config, and how their towers read pixels."""

import dataclasses
import logging
import pathlib

import numpy as np
from flax.traverse_util import flatten_dict

from xmodal_jax.config import Config
from xmodal_jax.config_checks import field_of
from xmodal_jax.convert import huggingface, resnet
from xmodal_jax.convert.described import KINDS, Statistics, read_statistics, refuse_contradiction
from xmodal_jax.errors import refuse_unless
from xmodal_jax.models.crossmodal import PIXELS, pixel_statistics
from xmodal_jax.types import Params

log = logging.getLogger(__name__)

LOADERS = {"efficientnet": huggingface.load_lite0, "vit": huggingface.load_vit, "resnet": resnet.load_resnet}


def pretrained(config: Config) -> dict[str, np.ndarray]:
    """{path: array} of the pretrained starts that the config names; empty from scratch.

    Raises UserError for weights of another architecture than the config's, or that read pixels by other statistics.
    """
    found: dict[str, np.ndarray] = {}
    if config.text.init:
        found |= {f"text/{path}": leaf for path, leaf in flatten_dict(text_weights(config), sep="/").items()}
    if config.image.init:
        refuse_other_architecture(config, "image", config.image.kind, config.image.init)
        refuse_other_statistics(config)
        tower = image_weights(config.image.kind, config.image.init)
        found |= {f"image/{path}": leaf for path, leaf in flatten_dict(tower, sep="/").items()}
    return found


def text_weights(config: Config) -> Params:
    """The weights that `config.text.init` names."""
    text = config.text
    refuse_unless(
        text.kind == "bert",
        f"config.text.init='{text.init}' needs config.text.kind='bert', not '{text.kind}'; "
        "write --config.text.init= for none",
    )
    path = huggingface.minilm_path() if text.init == "minilm" else pathlib.Path(text.init)
    refuse_other_architecture(config, "text", text.kind, path)
    return huggingface.load_minilm(path)


def image_weights(kind: str, init: str) -> Params:
    """The weights that `config.image.init` names for a tower of `kind`; UserError where there can be none."""
    refuse_unless(
        kind in LOADERS and (init != "lite0" or kind == "efficientnet"),
        f"config.image.init='{init}' needs config.image.kind="
        f"{repr('efficientnet') if init == 'lite0' else 'one of ' + ', '.join(LOADERS)}, not '{kind}'",
    )
    return LOADERS[kind](None if init == "lite0" else init)


def refuse_other_architecture(config: Config, side: str, kind: str, weights: str | pathlib.Path) -> None:
    """Refuse weights whose config.json contradicts the config; where there is none, say what is taken for granted."""
    if kind not in KINDS or not pathlib.Path(weights).exists():
        return  # what is missing is told by who reads it
    fields = (*KINDS[kind].fields.values(), "image.depth", "image.width")
    if refuse_contradiction(kind, weights, {name: field_of(config, name) for name in fields}):
        return
    if kind != "resnet":  # whose weights tell it all by their shapes
        heads = getattr(config, side).heads
        log.warning("no config.json tells how '%s' was made: config.%s.heads=%d is assumed", weights, side, heads)


def weights_statistics(config: Config) -> Statistics | None:
    """What the weights of `config.image.init` say of pixels; None where they say nothing."""
    image = config.image
    if image.init == "lite0":
        return PIXELS["efficientnet"]
    return read_statistics(image.init, PIXELS[image.kind]) if image.init else None


def with_pixel_statistics(config: Config) -> Config:
    """Fill in the statistics of pixels that the config leaves empty: those of the weights, or else of the kind of tower."""
    image = config.image
    if image.kind not in PIXELS or (image.pixel_mean and image.pixel_std):
        return config
    found = weights_statistics(config)
    mean, std = found or PIXELS[image.kind]
    mean, std = image.pixel_mean or mean, image.pixel_std or std
    if image.init and found is None:
        log.warning(
            "no preprocessor_config.json tells how '%s' reads pixels: config.image.pixel_mean=%s and pixel_std=%s are "
            "assumed",
            image.init, mean, std,
        )  # fmt: skip
    return dataclasses.replace(config, image=dataclasses.replace(image, pixel_mean=mean, pixel_std=std))


def refuse_other_statistics(config: Config) -> None:
    """Refuse statistics of pixels that are not those of the weights."""
    found = weights_statistics(config) if config.image.kind in PIXELS else None
    if found is None:
        return
    for name, ours, theirs in zip(("pixel_mean", "pixel_std"), pixel_statistics(config.image), found, strict=True):
        refuse_unless(
            max(abs(own - other) for own, other in zip(ours, theirs, strict=True)) < 1e-5,
            f"config.image.{name} is {ours}, and the weights of config.image.init='{config.image.init}' were trained "
            f"with {tuple(theirs)}; write '--config.image.{name}=()' to take theirs",
        )
