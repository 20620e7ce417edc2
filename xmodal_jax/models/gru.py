"""A recurrent text tower: word vectors and a bidirectional GRU (VSE++, Faghri et al. 2018; SCAN for both directions).

Recurrent retrieval systems before BERT read captions this way; it is there for comparison with transformers. A token's
vector is the mean of both directions' states at its position; padding enters neither.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import dropout, real_tokens
from xmodal_jax.models.words import WordConfig
from xmodal_jax.parallel.rules import whole
from xmodal_jax.types import Array, Params


@dataclass(frozen=True)
class GruConfig(WordConfig):
    """An encoder of words by a bidirectional GRU over word vectors."""

    kind: str = "gru"
    """Kind of encoder: bidirectional GRU."""
    width: int = limited(384, least=1)
    """Width D of the tokens: units of each direction."""
    words: int = limited(300, least=1)
    """Width of the word vectors (VSE++: 300)."""
    layers: int = limited(1, least=1)
    """Number of GRU layers."""
    dropout: float = limited(0.0, least=0.0, most=0.99)
    """Dropout rate on the word vectors."""

    lacks: ClassVar[tuple[str, ...]] = ("decoder", "vocabulary")
    why: ClassVar[str] = "has no blocks that write and no words as wide as its tokens"

    def module(self, dtype: jnp.dtype) -> "Gru":
        """Build the tower."""
        return Gru(self.vocab_size, self.width, self.words, self.layers, self.dropout, dtype)

    def check(self, where: str) -> None:
        """Refuse `init`: there are no weights to read."""
        super().check(where)
        if self.init:
            raise UserError(f"{where}.init is {self.init!r}, but {where}.kind is 'gru', not 'bert'; write ''")


class Gru(nn.Module):
    """A GRU tower: token ids [B,L] -> tokens [B,L,D]. Id 0 is padding; `words` is the width of the word vectors."""

    vocab_size: int
    width: int
    words: int
    layers: int = 1
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, key: Array | None = None) -> Array:
        """Encode ids [B,L] as tokens [B,L,D], zeros at padding; `key` turns dropout on the word vectors on."""

        def draw(key: Array) -> Params:
            return {"word": jax.random.uniform(key, (self.vocab_size, self.words), minval=-0.1, maxval=0.1)}

        x = whole(self.param("embed", draw)["word"])[ids].astype(self.dtype)
        x = dropout(x, self.dropout, key)
        real = real_tokens(ids)
        lengths = real.sum(1)
        start = jnp.zeros((len(ids), self.width), self.dtype)  # flax's own is float32, and would make all states so
        for layer in range(self.layers):
            states = []
            for name in ("forward", "backward"):
                cell = nn.GRUCell(self.width, dtype=self.dtype, name=f"gru_{name}_{layer}")
                run = nn.RNN(cell, reverse=name == "backward", keep_order=True)
                states.append(run(x, initial_carry=start, seq_lengths=lengths))
            x = 0.5 * (states[0] + states[1])
        return jnp.where(real[:, :, None], x, 0.0)
