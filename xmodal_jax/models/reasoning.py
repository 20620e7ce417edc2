"""A transformer that both sides go through (Messina et al. 2021, TERN: transformer encoder reasoning network).

Picture tokens and words, each behind a learned first token of its own, pass the same blocks with the same parameters;
the first token's output is the side's global feature (I-CLS, T-CLS). Blocks are PyTorch's `TransformerEncoderLayer` as
TERN takes it: norm after the sum, ReLU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import BlockStyle, block_params, scan_blocks, stack_params
from xmodal_jax.types import Array


class SharedEncoder(nn.Module):
    """One set of blocks for both sides: tokens [B,N,D] -> output [B,D] of the side's learned first token."""

    names: tuple[str, ...]
    """Names of the encoders."""
    width: int
    layers: int = 2
    heads: int = 4
    hidden: int = 2048
    dropout: float = 0.1
    remat: str = "dots"

    def setup(self) -> None:
        """Create a first token for each side and the stack of blocks."""

        def draw(key: Array) -> Array:
            return 0.02 * jax.random.normal(key, (1, 1, self.width))

        self.first = {side: self.param(f"{side}_cls", draw) for side in self.names}
        width, hidden = self.width, self.hidden
        self.stack = self.param("layers", stack_params, self.layers, lambda key: block_params(key, width, hidden))

    def __call__(self, side: str, tokens: Array, mask: Array | None, key: Array | None = None) -> Array:
        """Encode tokens [B,N,D] of the encoder `side`, of which `mask` [B,N] are real (None: all) -> [B,D]."""
        first = jnp.broadcast_to(self.first[side].astype(tokens.dtype), (tokens.shape[0], 1, self.width))
        x, look = jnp.concatenate([first, tokens], axis=1), None
        if mask is not None:
            look = jnp.concatenate([jnp.ones((mask.shape[0], 1), bool), mask], axis=1)[:, None, None, :]
        style = BlockStyle(self.heads, activation="relu", eps=1e-5, dropout=self.dropout, remat=self.remat)
        return scan_blocks(style, self.stack, x, look, key=key)[:, 0]
