"""The networks. `ENCODERS` is the only place that names the kinds of encoders for the config."""

from typing import Any

from xmodal_jax.config_build import build
from xmodal_jax.errors import UserError
from xmodal_jax.models.acquirers import AcquirerConfig
from xmodal_jax.models.bert import BertConfig
from xmodal_jax.models.efficientnet import EfficientNetConfig
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.features import FeaturesConfig
from xmodal_jax.models.frames import FramesConfig
from xmodal_jax.models.gru import GruConfig
from xmodal_jax.models.resnet import ResNetConfig
from xmodal_jax.models.scorer import SCORERS, ScorerConfig
from xmodal_jax.models.spectrogram import SpectrogramConfig
from xmodal_jax.models.tfidf import TfIdfConfig
from xmodal_jax.models.vit import ViTConfig
from xmodal_jax.plugins import find_class

ENCODERS: dict[str, type[EncoderConfig]] = {
    "vit": ViTConfig,
    "resnet": ResNetConfig,
    "efficientnet": EfficientNetConfig,
    "features": FeaturesConfig,
    "frames": FramesConfig,
    "spectrogram": SpectrogramConfig,
    "bert": BertConfig,
    "acquirers": AcquirerConfig,
    "gru": GruConfig,
    "tfidf": TfIdfConfig,
}


def build_encoders(section: dict[str, Any]) -> dict[str, EncoderConfig]:
    """Build {name: config of its kind} from `config.encoders`.

    Raises UserError for an unknown kind or field, or a bad value.
    """
    return {name: _built(fields, f"config.encoders.{name}") for name, fields in section.items()}


def _built(fields: Any, where: str) -> EncoderConfig:
    """Build the config of one encoder, and first that of an encoder in it."""
    if not hasattr(fields, "items"):
        raise UserError(f"{where} is {fields!r}; write a dict such as {{'kind': 'vit'}}")
    own, cls = dict(fields), find_class(fields.get("kind", ""), f"{where}.kind", ENCODERS, EncoderConfig)
    for name in cls.nested:
        if name in own:
            own[name] = _built(own[name], f"{where}.{name}")
    return build(cls, own, where)


def build_scorer(section: dict[str, Any]) -> ScorerConfig:
    """Build the scorer's config from `config.scorer`, of kind "fusion" by default.

    Raises UserError as `build_encoders`.
    """
    fields = {"kind": "fusion"} | dict(section)
    return build(find_class(fields["kind"], "config.scorer.kind", SCORERS, ScorerConfig), fields, "config.scorer")
