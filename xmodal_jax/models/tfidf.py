"""A bag-of-words text tower: TF-IDF weights of a caption, one fully connected layer, one token (CMHR-DRN, DCMH).

The vector has an entry for each word id: the id's count times its inverse document frequency among the training
captions, scaled to length one. Ids that never count ([PAD], [CLS], [SEP] and the other special ones), and ids that no
training caption has, have frequency 0 in the table, so nothing here needs to know them. The table is a parameter that
gets no gradient: a checkpoint has it, and evaluation needs no data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import dense_params, dropout, spread
from xmodal_jax.models.pooling import parse_pool
from xmodal_jax.models.words import WordConfig
from xmodal_jax.parallel.rules import whole
from xmodal_jax.types import Array


def inverse_document_frequency(ids: np.ndarray, vocab_size: int, special: Sequence[int]) -> np.ndarray:
    """Return float32 [V] ln((1 + n) / (1 + captions with the word)) + 1 from ids [n,L] of n training captions.

    0 for `special` ids, and for ids that occur in none (a weight that was never trained would only add noise).
    """
    seen = np.zeros(vocab_size, np.int64)
    for row in ids:
        seen[np.unique(row)] += 1
    idf = np.where(seen > 0, np.log((1 + len(ids)) / (1 + seen)) + 1, 0.0)
    idf[np.asarray(special, np.int64)] = 0.0
    return idf.astype(np.float32)


def tfidf_weights(ids: Array, idf: Array) -> Array:
    """Return each position's share float32 [B,L] in its caption's TF-IDF vector of length one, for ids [B,L].

    A word that occurs c times has the entry c * idf, spread over its c positions; so the squared length is the sum over
    positions of c * idf^2, and the vector itself, V wide, is never made. A caption without a counted word has zeros.
    """
    weight = idf[ids]
    count = (ids[:, :, None] == ids[:, None, :]).astype(jnp.float32).sum(2)
    square = (count * jnp.square(weight)).sum(1, keepdims=True)
    return weight * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def tfidf_vectors(ids: Array, idf: Array) -> Array:
    """Return the TF-IDF vectors float32 [B,V] of ids [B,L], of length one, for distances between few captions."""

    def vector(words: Array, weights: Array) -> Array:
        return jnp.zeros(idf.shape, jnp.float32).at[words].add(weights)

    return jax.vmap(vector)(ids, tfidf_weights(ids, idf))


@dataclass(frozen=True)
class TfIdfConfig(WordConfig):
    """An encoder of words by TF-IDF and one dense layer."""

    kind: str = "tfidf"
    """Kind of encoder: TF-IDF."""
    width: int = limited(1536, least=1)
    """Units of the dense layer, the width D of its only token."""
    dropout: float = limited(0.0, least=0.0, most=0.99)
    """Dropout rate on the layer's output."""

    lacks: ClassVar[tuple[str, ...]] = ("fusion", "decoder", "vocabulary", "locals")
    why: ClassVar[str] = "keeps no words to read"

    def module(self, dtype: jnp.dtype) -> "TfIdf":
        """Build the tower."""
        return TfIdf(self.vocab_size, self.width, self.dropout, dtype)

    def mask(self, x: Array) -> None:
        """Return None: a caption has one token, which is real."""
        return None

    def check(self, where: str) -> None:
        """Refuse BERT's options: weights, kept tokens, pools that read words."""
        super().check(where)
        if parse_pool(self.pool)[1] in ("shared", "attention"):
            raise UserError(
                f"{where}.pool is '{self.pool}', but {where}.kind='tfidf' has no words to read; write 'mean'"
            )
        for name, value, instead in (("init", self.init, "''"), ("cache_tokens", self.cache_tokens, "False")):
            if value:
                raise UserError(
                    f"{where}.{name} is {value!r}, but {where}.kind is 'tfidf', not 'bert'; write {instead}"
                )


class TfIdf(nn.Module):
    """A TF-IDF tower: token ids [B,L] -> one token [B,1,D], ReLU of a dense layer (Jiang and Li 2017's text net)."""

    vocab_size: int
    width: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, key: Array | None = None) -> Array:
        """Encode ids [B,L] as [B,1,D]; `key` turns dropout on."""
        idf = self.param("idf", lambda _: jnp.ones((self.vocab_size,)))
        params = self.param("words", dense_params, self.vocab_size, self.width)
        weights = tfidf_weights(ids, jax.lax.stop_gradient(idf).astype(jnp.float32)).astype(self.dtype)
        rows = whole(params["kernel"].astype(self.dtype))[ids]
        x = jnp.einsum("bl,bld->bd", weights, rows)
        x = jax.nn.relu(x + spread(params["bias"], x))
        return dropout(x, self.dropout, key)[:, None]
