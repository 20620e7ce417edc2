"""BERT text tower: parameters as in the paper (Devlin et al. 2019), layers stacked for `scan_blocks`.

Parity with Hugging Face's `BertModel` is tested; `convert/huggingface.py` maps the names.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import REMAT
from xmodal_jax.models.layers import (
    BlockStyle,
    block_params,
    dropout,
    layer_norm,
    norm_params,
    real_tokens,
    scan_blocks,
    spread,
    stack_params,
)
from xmodal_jax.models.words import WordConfig
from xmodal_jax.parallel.rules import whole
from xmodal_jax.types import Array, Params


def embedding_params(key: Array, vocab_size: int, positions: int, width: int) -> Params:
    """Draw word [V,D], position [P,D] and segment [2,D] tables, and the LayerNorm that follows their sum."""
    word, position, segment = jax.random.split(key, 3)
    return {
        "word": 0.02 * jax.random.normal(word, (vocab_size, width)),
        "position": 0.02 * jax.random.normal(position, (positions, width)),
        "type": 0.02 * jax.random.normal(segment, (2, width)),
        "norm": norm_params(width),
    }


@dataclass(frozen=True)
class BertConfig(WordConfig):
    """A BERT encoder. Its `init` is "minilm", the installed all-MiniLM-L6-v2, or a folder with model.safetensors."""

    kind: str = "bert"
    """Kind of encoder: BERT."""
    width: int = limited(384, least=1)
    """Width D of the tokens."""
    layers: int = limited(6, least=1)
    """Number of transformer blocks."""
    heads: int = limited(12, least=1)
    """Attention heads of each block; they must divide `width`."""
    hidden: int = limited(1536, least=1)
    """Units of each block's MLP."""
    positions: int = limited(512, least=1)
    """Rows of the position table: the longest text, in tokens."""
    dropout: float = limited(0.0, least=0.0, most=0.99)
    """Dropout rate in every block and on the embeddings."""
    eps: float = limited(1e-12, least=0.0)
    """Added to the variance in each norm: 1e-12 in BERT, 1e-5 in RoBERTa and XLM-R."""
    remat: str = limited("dots", among=REMAT)
    """What the backward pass recomputes: "none", "dots" (all but matrix products), "full", or "offload"."""

    def check(self, where: str) -> None:
        """Refuse texts longer than the position table."""
        super().check(where)
        if self.length > self.positions:
            raise UserError(f"{where}.length is {self.length}, but {where} has {self.positions} positions; write fewer")

    def module(self, dtype: jnp.dtype) -> "Bert":
        """Build the tower."""
        names = ("vocab_size", "width", "layers", "heads", "hidden", "positions", "dropout", "eps", "remat")
        return Bert(**{name: getattr(self, name) for name in names}, dtype=dtype)


class Bert(nn.Module):
    """A BERT tower: token ids [B,L] -> tokens [B,L,D]. Position 0 is [CLS]; id 0 is padding."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int = 512
    dropout: float = 0.0
    eps: float = 1e-12
    remat: str = "dots"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Create the embedding tables and the stack of blocks."""
        width, hidden = self.width, self.hidden
        self.embed = self.param("embed", embedding_params, self.vocab_size, self.positions, width)
        self.stack = self.param("layers", stack_params, self.layers, lambda key: block_params(key, width, hidden))

    @property
    def style(self) -> BlockStyle:
        """Constants of this tower's blocks, which the decoder runs too."""
        return BlockStyle(self.heads, eps=self.eps, dropout=self.dropout, remat=self.remat)

    def embed_tokens(self, ids: Array, key: Array | None = None, start: Array | None = None) -> Array:
        """Map ids [B,L] to the normalised sum of word, position and segment embeddings [B,L,D].

        A `start` [B,D] is one more term of the first token's sum.
        """
        tables = self.embed
        x = whole(tables["word"])[ids]
        x = x + spread(tables["position"][: ids.shape[1]], x) + spread(tables["type"][0], x)
        if start is not None:
            x = x + jnp.pad(start[:, None].astype(x.dtype), ((0, 0), (0, ids.shape[1] - 1), (0, 0)))
        return dropout(layer_norm(tables["norm"], x, self.eps).astype(self.dtype), self.dropout, key)

    def __call__(self, ids: Array, key: Array | None = None) -> Array:
        """Encode ids [B,L] as tokens [B,L,D]; `key` turns dropout on."""
        embed_key, stack_key = jax.random.split(key) if key is not None else (None, None)
        mask = padding_mask(ids)
        return scan_blocks(self.style, self.stack, self.embed_tokens(ids, embed_key), mask, key=stack_key)


def padding_mask(ids: Array) -> Array:
    """Return the attention mask bool [B,1,1,L] of ids [B,L]: True at real tokens, False at padding."""
    return real_tokens(ids)[:, None, None, :]
