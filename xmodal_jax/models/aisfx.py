"""The convolutional tower of aiSFX (Ma and Lerch, ISMIR 2022), trained to tell the categories of sound effects.

Batch norm is folded into the convolutions when weights are loaded (`convert/aisfx.py`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.resnet import conv, conv_params
from xmodal_jax.types import Array

BLOCKS = 4  # each of two convolutions; all but the last halve time and frequency


def halved(x: Array) -> Array:
    """Take the maximum over 2x2 places of x [B,T,M,D] -> [B,T//2,M//2,D]."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


class EffectsNet(nn.Module):
    """The tower of aiSFX: log-mel spectrogram float32 [B,M,T] in 0..1 -> one vector [B,D].

    Eight 3x3 convolutions of D/8, D/4, D/2 and D channels; then the mean over frequency and the maximum over time.
    """

    width: int = 512
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Create the convolutions."""
        inputs, made = 1, []
        for block in range(BLOCKS):
            outputs = self.width // 2 ** (BLOCKS - 1 - block)
            for place in range(2):
                made.append(self.param(f"block{block}_{place}", conv_params, (3, 3, inputs, outputs)))
                inputs = outputs
        self.convolutions = made

    def __call__(self, mel: Array, key: Array | None = None) -> Array:
        """Encode spectrograms [B,M,T] as vectors [B,D]; `key` is unused (no dropout)."""
        del key
        x = jnp.swapaxes(mel, 1, 2)[..., None].astype(self.dtype)
        for number, params in enumerate(self.convolutions):
            x = jax.nn.relu(conv(params, x, 1))
            if number % 2 and number < 2 * BLOCKS - 1:
                x = halved(x)
        return x.mean(2).max(1)


class EffectTokens(nn.Module):
    """The tower of aiSFX with its vector as the one token of a spectrogram: [B,M,T] -> [B,1,D]."""

    net: EffectsNet

    @nn.compact
    def __call__(self, mel: Array, key: Array | None = None) -> Array:
        """Encode spectrograms [B,M,T]; `key` is unused."""
        return self.net(mel, key)[:, None]
