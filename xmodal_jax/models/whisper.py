"""Whisper's encoder (Radford et al. 2022): two convolutions over time, fixed positions, pre-norm blocks.

Weights come from `convert/whisper.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import (
    BlockStyle,
    block_params,
    layer_norm,
    norm_params,
    scan_blocks,
    spread,
    stack_params,
)
from xmodal_jax.types import Array, Params

EPS = 1e-5  # PyTorch's default


def conv_params(key: Array, inputs: int, outputs: int) -> Params:
    """Draw a convolution over three steps of time: kernel [3,C,D], and a zero bias."""
    return {"kernel": (3 * inputs) ** -0.5 * jax.random.normal(key, (3, inputs, outputs)), "bias": jnp.zeros(outputs)}


def conv(params: Params, x: Array, stride: int) -> Array:
    """Convolve x [B,T,C] over three steps, one step of padding on either side -> [B,ceil(T / stride),D]."""
    kernel = params["kernel"].astype(x.dtype)
    y = jax.lax.conv_general_dilated(x, kernel, (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))
    return y + spread(params["bias"], y)


def sinusoids(count: int, width: int) -> Array:
    """Return Whisper's positions float32 [count,width]: sines in the first half, cosines in the second."""
    rate = jnp.exp(-jnp.log(10_000.0) / (width // 2 - 1) * jnp.arange(width // 2, dtype=jnp.float32))
    angle = jnp.arange(count, dtype=jnp.float32)[:, None] * rate[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class WhisperEncoder(nn.Module):
    """Whisper's encoder: log-mel spectrogram float32 [B,M,T] -> tokens [B,T/2,D], after the final norm.

    30 s are T = 3,000 steps and 1,500 tokens; a shorter spectrogram has the first positions.
    """

    width: int = 384
    layers: int = 4
    heads: int = 6
    mels: int = 80
    positions: int = 1500
    remat: str = "dots"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Create the convolutions, the positions, the stack of blocks and the final norm."""
        width = self.width
        self.first = self.param("first", conv_params, self.mels, width)
        self.second = self.param("second", conv_params, width, width)
        self.position = self.param("position", lambda _: sinusoids(self.positions, width))
        self.stack = self.param("layers", stack_params, self.layers, lambda key: block_params(key, width, 4 * width))
        self.norm = self.param("norm", lambda _: norm_params(width))

    def __call__(self, mel: Array, key: Array | None = None) -> Array:
        """Encode spectrograms [B,M,T] as tokens [B,T/2,D]; `key` is unused (no dropout)."""
        del key
        x = jnp.swapaxes(mel, 1, 2).astype(self.dtype)
        for params, stride in ((self.first, 1), (self.second, 2)):
            x = jax.nn.gelu(conv(params, x, stride), approximate=False)
        x = x + spread(self.position[: x.shape[1]], x)
        style = BlockStyle(self.heads, pre_norm=True, eps=EPS, remat=self.remat)
        return layer_norm(self.norm, scan_blocks(style, self.stack, x, None), EPS)


class WhisperWindows(nn.Module):
    """Whisper's encoder with means over windows of time: [B,M+1,T] -> tokens [B,T/2/W,D].

    The last row of an input is 1 at the steps that are of the sound and 0 behind its end. A window is the mean of its
    tokens that are of the sound, and zero if none is.
    """

    encoder: WhisperEncoder
    window: int = 25

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """Encode spectrograms with their row of steps that are real; `key` is unused."""
        del key
        tokens = self.encoder(x[:, :-1])
        real = x[:, -1, ::2].astype(tokens.dtype)
        summed = (tokens * real[..., None]).reshape(len(x), -1, self.window, tokens.shape[-1]).sum(2)
        count = real.reshape(len(x), -1, self.window).sum(2)
        return summed / jnp.maximum(count, 1)[..., None]
