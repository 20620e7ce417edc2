"""The tower that is already in the data: region or grid tokens computed once by a frozen network."""

import flax.linen as nn
import jax.numpy as jnp

from xmodal_jax.types import Array


class FeatureTokens(nn.Module):
    """Cached tokens float16 [B,N,D] -> float32 [B,N,D]. It has no parameters: SCAN's 36 x 2048 regions work alike."""

    @nn.compact
    def __call__(self, tokens: Array, key: Array | None = None) -> Array:
        """Cast; `key` is accepted as for every tower and unused."""
        del key
        return tokens.astype(jnp.float32)
