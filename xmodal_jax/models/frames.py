"""An encoder of clips: a tower of pictures on every frame, and layers over the frames in their order.

Each frame becomes one token: the tower's tokens are pooled as the linear path of a head pools them. Without layers the
clip is the mean of its frames (CLIP4Clip's mean pooling, Luo et al. 2022); `layers` adds a transformer over them with a
residual path around it (its "seqTransf"), and `context` a gated convolution over neighbouring frames (the contextual
encoder of DI-vTR, as far as its abstract tells: docs/pages/howto/video.md). The frames may also be the cached tokens of
a frozen tower (kind "features").

Frames that are not there are all zero, in pixels or tokens. They are masked, so that a clip has the same embedding
however many follow it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.data.config import DataConfig
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import REMAT, EncoderConfig
from xmodal_jax.models.heads import pooled_features
from xmodal_jax.models.layers import (
    BlockStyle,
    block_params,
    dense,
    dense_params,
    layer_norm,
    norm_params,
    real_parts,
    scan_blocks,
    spread,
    stack_params,
)
from xmodal_jax.models.layers import dropout as dropped
from xmodal_jax.models.pooling import POOLS
from xmodal_jax.types import Array, DataFacts, Params

INNER = ("pixels", "tokens")  # what the towers of frames read
EPS = 1e-6


@dataclass(frozen=True)
class FramesConfig(EncoderConfig):
    """An encoder of clips: a tower of pictures for each frame, and layers over the frames."""

    kind: str = "frames"
    """Kind of encoder: a tower on every frame."""
    tower: object = field(default_factory=dict)
    """The encoder of a frame, {"kind": ..., its fields}: one of pictures, or "features" for cached tokens of frames.

    Its `pool`, "mean" or "cls", says how a frame becomes one token.
    """
    frames: int = limited(12, least=1)
    """Frames T of a clip; of cached tokens as many as the caches have."""
    width: int = limited(0, least=0)
    """Width D of the clip's tokens, by a dense layer on those of the frames; 0: that of the frames' own, without it."""
    layers: int = limited(4, least=0)
    """Transformer blocks over the frames, beside which the frames themselves pass; 0: none."""
    heads: int = limited(8, least=1)
    """Attention heads of each block; they must divide the width."""
    hidden: int = limited(2048, least=1)
    """Units of each block's MLP."""
    context: int = limited(0, least=0)
    """Frames that the gated convolution sees, an odd number such as 3; 0: no convolution."""
    dropout: float = limited(0.0, least=0.0, most=0.99)
    """Dropout rate of the layers over the frames; that of the tower is its own."""
    remat: str = limited("dots", among=REMAT)
    """What the backward pass of the blocks recomputes: "none", "dots" (all but products), "full", or "offload"."""
    neck_layers: int = limited(0, least=0)
    """Transformer blocks over the tokens before fusion reads them; 0: none."""

    nested: ClassVar[tuple[str, ...]] = ("tower",)

    @property
    def inner(self) -> EncoderConfig:
        """The encoder of a frame."""
        assert isinstance(self.tower, EncoderConfig), "`build_encoders` has made the dict one"
        return self.tower

    @property
    def reads(self) -> str:  # type: ignore[override]
        """Input: "tokens" of feature caches, or "frames"."""
        return "tokens" if self.inner.reads == "tokens" else "frames"

    @property
    def token_width(self) -> int:
        """Width D of the tokens; 0 if only the data tell."""
        return self.width or self.inner.token_width * max(1, len(self.inner.groups))

    @property
    def extent(self) -> int:
        """Pixels of a side of a frame."""
        return self.inner.extent

    def towers(self, where: str, path: str) -> list[tuple[str, str, EncoderConfig]]:
        """Return the place in the config, the path of the parameters, and the config of the frames' tower."""
        return self.inner.towers(f"{where}.tower", f"{path}/frame")

    def with_towers(self, change: Callable[[str, EncoderConfig], EncoderConfig], where: str) -> "FramesConfig":
        """Return the config with the frames' tower changed."""
        return replace(self, tower=self.inner.with_towers(change, f"{where}.tower"))

    def module(self, dtype: jnp.dtype) -> "FramesTower":
        """Build the tower."""
        inner, cached = self.inner, self.reads == "tokens"
        names = ("frames", "width", "layers", "heads", "hidden", "context", "dropout", "remat")
        own = {name: getattr(self, name) for name in names}
        return FramesTower(inner.module(dtype), cached, inner.pool, inner.groups, dtype=dtype, **own)

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """Return shape [T,S,S,3] and dtype of the frames of a clip, or [T,D] of their cached tokens."""
        shape, dtype = self.inner.input(facts)
        return (shape if self.reads == "tokens" else (self.frames, *shape)), dtype

    def filled(self, name: str, data: DataConfig, facts: DataFacts) -> "FramesConfig":
        """Return the config with its tower's completed, and as many frames as cached tokens."""
        inner = self.inner.filled(name, data, facts)
        frames = facts.tokens[0] or self.frames if self.reads == "tokens" else self.frames
        return replace(self, tower=inner, frames=frames)

    def mask(self, x: Array) -> Array:
        """Return the mask bool [B,T] of the frames of x [B,T,...] that are there."""
        return real_parts(x)

    def local_map(self, tokens: int) -> np.ndarray:
        """Return the averages that make local features: each frame is one."""
        return np.eye(tokens, dtype=np.float32)

    def check(self, where: str) -> None:
        """Refuse a tower that is none of pictures, weights beside its own, and sizes that do not fit each other."""
        if not isinstance(self.tower, EncoderConfig):
            raise UserError(f"{where}.tower is {self.tower!r}; write a dict such as {{'kind': 'vit', 'size': 128}}")
        if self.inner.reads not in INNER:
            raise UserError(f"{where}.tower.kind is '{self.inner.kind}', which reads no pictures; write such as 'vit'")
        if self.inner.pool not in POOLS:
            raise UserError(f"{where}.tower.pool is '{self.inner.pool}'; write one of {', '.join(POOLS)}")
        if self.init:
            raise UserError(
                f"{where}.init is '{self.init}'; write {where}.tower.init, as its weights are those of a frame"
            )
        if self.context and self.context % 2 == 0:
            raise UserError(f"{where}.context is {self.context}; write an odd number such as {self.context + 1}, or 0")
        if self.layers and self.token_width % self.heads:
            raise UserError(
                f"{where}.heads is {self.heads}, which does not divide the width {self.token_width}; write a divisor, "
                f"or {where}.width"
            )


def context_params(key: Array, kernel: int, width: int) -> Params:
    """Draw the gated convolution over `kernel` frames: its norm, its kernel [k,D,D] and the layer of its gate."""
    keys = jax.random.split(key)
    return {
        "norm": norm_params(width),
        "kernel": (kernel * width) ** -0.5 * jax.random.normal(keys[0], (kernel, width, width)),
        "bias": jnp.zeros((width,)),
        "gate": dense_params(keys[1], width, width),
    }


def neighbours(params: Params, x: Array, mask: Array) -> Array:
    """Return what each frame of x [B,T,D] takes from its neighbours: a convolution times a gate, [B,T,D].

    Frames that mask [B,T] leaves out count as zeros, as those before the first do.
    """
    y = layer_norm(params["norm"], x, EPS)
    gate = jax.nn.sigmoid(dense(params["gate"], y))
    shown = y * mask[..., None].astype(y.dtype)
    reach = params["kernel"].shape[0] // 2
    padded = jnp.pad(shown, ((0, 0), (reach, reach), (0, 0)))
    moved = jnp.stack([padded[:, place : place + x.shape[1]] for place in range(2 * reach + 1)])
    mixed = jnp.einsum("kbtd,kde->bte", moved, params["kernel"].astype(y.dtype))
    return gate * (mixed + spread(params["bias"], mixed))


class FramesTower(nn.Module):
    """A tower of clips: frames uint8 [B,T,S,S,3], or their cached tokens [B,T,D'], -> a token of each [B,T,D].

    With `cached`, `frame` casts the tokens; else it runs on B * T pictures, and `pool` and `groups` say how each
    becomes one token. Tokens of frames that are not there are zeros.
    """

    frame: nn.Module
    cached: bool
    pool: str
    groups: tuple[int, ...]
    frames: int
    width: int
    layers: int
    heads: int
    hidden: int
    context: int
    dropout: float = 0.0
    remat: str = "dots"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """Encode the clips x [B,T,...] as tokens [B,T,D]; `key` turns dropout on."""
        keys = jax.random.split(key, 3) if key is not None else (None, None, None)
        mask = real_parts(x)
        shown = mask[..., None].astype(self.dtype)
        own = self.frame_tokens(x, keys[0]).astype(self.dtype)
        if self.width:
            own = dense(self.param("project", dense_params, own.shape[-1], self.width, own.shape[-1] ** -0.5), own)
        own = dropped(own, self.dropout, keys[1]) * shown
        return (own + self.over_time(own, mask, keys[2])) * shown

    def frame_tokens(self, x: Array, key: Array | None) -> Array:
        """Return one token [B,T,D'] of each frame of x [B,T,...]."""
        if self.cached:
            return self.frame(x, key)
        tokens = self.frame(x.reshape(-1, *x.shape[2:]), key)
        return pooled_features(tokens, None, self.pool, self.groups).reshape(*x.shape[:2], -1)

    def over_time(self, own: Array, mask: Array, key: Array | None) -> Array:
        """Return what the layers over the frames own [B,T,D], mask [B,T], add to them [B,T,D]."""
        more, width = jnp.zeros_like(own), own.shape[-1]
        if self.context:
            more = more + neighbours(self.param("context", context_params, self.context, width), own, mask)
        if self.layers:
            position = self.param("position", lambda k: 0.02 * jax.random.normal(k, (1, self.frames, width)))
            stack = self.param("layers", stack_params, self.layers, lambda k: block_params(k, width, self.hidden))
            style = BlockStyle(self.heads, pre_norm=True, eps=EPS, dropout=self.dropout, remat=self.remat)
            read = own + position[:, : own.shape[1]].astype(own.dtype)
            more = more + scan_blocks(style, stack, read, mask[:, None, None, :], key=key)
        return more
