"""Parts of scorers that reason over similarity vectors: guided attention, the vectors, and graphs of them.

Functions are written for one pair, without an axis of rows (`pair_score.SplitScorer`), and computed in float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.models.heads import fan_in, l2_normalize
from xmodal_jax.models.layers import dense, dense_params, dropout, spread
from xmodal_jax.models.pair_score import Prepared, ScorerConfig, Side, SplitScorer
from xmodal_jax.models.pooling import masked_mean
from xmodal_jax.types import Array, Params


@dataclass(frozen=True)
class SimilarityConfig(ScorerConfig):
    """The fields that scorers over similarity vectors share.

    A score is between 0 and 1 (see `sigmoid`), as wide as a cosine: evaluation adds it to the cosine with weight 1.
    """

    width: int = limited(256, least=1)
    """Width of a similarity vector."""
    space: int = limited(0, least=0)
    """Width that a dense layer for each side maps tokens to before they are compared; 0: compared as they are."""
    sharpness: float = limited(9.0, least=0.0)
    """Factor on cosines in the softmax of attention (SCAN's lambda, which SGRAF takes too)."""
    dropout: float = limited(0.0, least=0.0, most=0.99)
    """Dropout rate on the tokens of both sides, in training (SGRAF: 0.4 on regions and word vectors)."""
    sigmoid: bool = True
    """End in a sigmoid: scores between 0 and 1, for which a hinge has margin 0.2; False: any real number."""

    split: ClassVar[bool] = True
    default_weight: ClassVar[float | None] = 1.0

    def serves(self, encoders: tuple[str, str], fused: tuple[str, str]) -> bool:
        """Return True only for the encoders of `config.fusion.pair`: regions first, words second."""
        return encoders == fused


def fair(inputs: int, outputs: int) -> float:
    """Return the standard deviation of Glorot and Bengio 2010, as SGRAF draws its layers with."""
    return (2.0 / (inputs + outputs)) ** 0.5


def cosines(asks: Array, read: Array) -> Array:
    """Return the products [L,N] of unit tokens [L,D] and [N,D]."""
    return asks @ read.T


def guided_attention(cosine: Array, asks: Array, read: Array, sharpness: float) -> Array:
    """Weigh what is read for each token that asks (SCAN, Lee et al. 2018, as Diao et al. 2021 have it) -> [L,N].

    A leaky ReLU of the cosines [L,N], normalised over all that ask for one that is read, then a softmax over what is
    read. `asks` bool [L] and `read` bool [N] are True for real tokens; others enter neither norm nor softmax.
    """
    x = jnp.where(asks[:, None], jax.nn.leaky_relu(cosine, 0.1), 0.0)
    x = jnp.where(read[None, :], sharpness * l2_normalize(x.T).T, jnp.finfo(x.dtype).min)
    return jax.nn.softmax(x, axis=1)


def attended(weights: Array, tokens: Array) -> Array:
    """Return the unit mean [L,D] of tokens [N,D] for each row of weights [L,N]."""
    return l2_normalize(weights @ tokens)


def similarity(params: Params, one: Array, two: Array) -> Array:
    """Return similarity vectors [L,S] of vectors [L,D] (or [S] of [D]): a dense layer of (one - two)^2, made unit."""
    return l2_normalize(dense(params, jnp.square(one - two)))


def similarity_params(key: Array, inputs: int, width: int) -> Params:
    """Draw the dense layer of `similarity`."""
    return dense_params(key, inputs, width, fair(inputs, width))


def reasoning_params(key: Array, width: int) -> Params:
    """Draw one step of `reason`; the bias of its keys would add the same to a node's edges, and is left out."""
    query, keys, value = (dense_params(part, width, width, fair(width, width)) for part in jax.random.split(key, 3))
    return {"query": query, "key": {"kernel": keys["kernel"]}, "value": value}


def reason(params: Params, nodes: Array, real: Array, count: int | None = None) -> Array:
    """Return ReLU(W_g E s) [count,S] for the first `count` of the nodes s [n,S] (default: all), real bool [n].

    The edges E = softmax((W_q s)(W_k s)^T) are computed as (W_q s) W_k s^T with one product W_q^T W_k made before:
    a dense layer a step less for each pair.
    """
    query, key = params["query"], params["key"]["kernel"]
    asks = nodes[:count] @ (query["kernel"] @ key.T)
    asks = asks + spread(key @ query["bias"], asks)
    logits = jnp.where(real[None, :], asks @ nodes.T, jnp.finfo(nodes.dtype).min)
    return jax.nn.relu(dense(params["value"], jax.nn.softmax(logits, axis=1) @ nodes))


def readout_params(key: Array, width: int) -> Params:
    """Draw the layer from a global node to a score."""
    return dense_params(key, width, 1, fair(width, 1))


def readout(params: Params, node: Array, sigmoid: bool) -> Array:
    """Return the score of a global node [S], a scalar."""
    score = dense(params, node)[0]
    return jax.nn.sigmoid(score) if sigmoid else score


def with_whole(whole: Array, nodes: Array, real: Array) -> tuple[Array, Array]:
    """Put the global node [1,S] before nodes [n,S]; return them with their mask bool [1+n]."""
    return jnp.concatenate([whole, nodes]), jnp.concatenate([jnp.ones((1,), bool), real])


class TokenSides(SplitScorer):
    """The work on a side alone that scorers over similarity vectors share: tokens in one space, of length one."""

    config: SimilarityConfig
    inputs: int
    """Width D of the tokens."""
    embed: int
    """Width E of the embeddings."""

    @property
    def compared(self) -> int:
        """Width of the tokens that are compared."""
        return self.config.space or self.inputs

    def setup(self) -> None:
        """Create the dense layers of the tokens, and the layers of the pair part (`set_up`)."""
        if self.config.space:
            draw = (dense_params, self.inputs, self.config.space, fan_in(self.inputs))
            self.project = {name: self.param(f"{name}_project", *draw) for name in ("first", "second")}
        self.set_up()

    def set_up(self) -> None:
        """Create the other parameters."""
        raise NotImplementedError

    def context(self, tokens: Array, mask: Array, first: bool, key: Array | None) -> Array:
        """Return tokens [b,N,D] that have read their like; by default those given."""
        return tokens

    def prepare(self, side: Side, first: bool, key: Array | None = None) -> Prepared:
        """Return unit tokens float32 [b,N,D] and, of whole inputs, embeddings and the tokens' unit mean [b,D]."""
        keys = (None, None) if key is None else jax.random.split(key)
        tokens = side.tokens.astype(jnp.float32)
        mask = jnp.ones(tokens.shape[:2], bool) if side.mask is None else side.mask
        if self.config.space:
            tokens = dense(self.project["first" if first else "second"], tokens)
        tokens = self.context(dropout(tokens, self.config.dropout, keys[0]), mask, first, keys[1])
        tokens = l2_normalize(tokens)
        whole = {"embed": side.embed.astype(jnp.float32), "mean": l2_normalize(masked_mean(tokens, mask))}
        return Prepared(tokens, whole, mask)
