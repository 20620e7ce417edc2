"""Pooling of a tower's tokens to one vector: mean, first token, learned attention, or weights of sorted features.

A pool string is a base path ("mean" or "cls"), one of `EXTRAS` beside it ("mean+gpo"), or an aggregator alone ("gpo").
"+shared" adds the output of a transformer that both sides share (models/reasoning.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.models.layers import attend, attention_params, layer_norm, project_heads
from xmodal_jax.types import Array, Params


def masked_mean(tokens: Array, mask: Array | None) -> Array:
    """Average the tokens [B,N,D] that `mask` [B,N] keeps (all without a mask) -> [B,D], in float32."""
    tokens = tokens.astype(jnp.float32)
    if mask is None:
        return tokens.mean(1)
    weight = mask.astype(jnp.float32)[:, :, None]
    return (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


def first_token(tokens: Array, mask: Array | None) -> Array:
    """Return the [CLS] token of tokens [B,N,D] -> [B,D]."""
    del mask
    return tokens[:, 0].astype(jnp.float32)


POOLS = {"mean": masked_mean, "cls": first_token}
AGGREGATORS = ("gpo", "max", "average", "unit")  # they pool projected tokens, not raw ones
EXTRAS = ("attention", *AGGREGATORS, "shared")
POOL_CHOICES = (*POOLS, *(f"{base}+{extra}" for base in POOLS for extra in EXTRAS), *AGGREGATORS)


def parse_pool(pool: str) -> tuple[str, str]:
    """Split a pool string into (base, extra), either of which may be "".

    Example:
        >>> parse_pool("mean+gpo"), parse_pool("cls"), parse_pool("gpo")
        (('mean', 'gpo'), ('cls', ''), ('', 'gpo'))
    """
    base, _, extra = pool.partition("+")
    return ("", base) if base in AGGREGATORS else (base, extra)


def probe_params(key: Array, width: int) -> Params:
    """Draw attention pooling: one learned query [1,1,D] and an attention layer (PMA of Lee et al. 2019)."""
    probe, attention = jax.random.split(key)
    return {
        "probe": 0.02 * jax.random.normal(probe, (1, 1, width)),
        "attention": attention_params(attention, width),
    }


def attention_pool(params: Params, tokens: Array, mask: Array | None, heads: int) -> Array:
    """Pool tokens [B,N,D] by the attention of the learned probe -> [B,D]."""
    attention = params["attention"]
    x = layer_norm(attention["norm"], tokens)
    probe = jnp.broadcast_to(params["probe"].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    look = None if mask is None else mask[:, None, None, :]
    read = attend(
        attention,
        probe,
        project_heads(attention["key"], x, heads),
        project_heads(attention["value"], x, heads),
        look,
        heads,
    )
    return read[:, 0].astype(jnp.float32)


def masked_max(tokens: Array, mask: Array) -> Array:
    """Take the maximum in each dimension over the tokens [B,N,E] that `mask` [B,N] keeps -> [B,E]; 0 without any."""
    tokens = tokens.astype(jnp.float32)
    best = jnp.where(mask[:, :, None], tokens, jnp.finfo(jnp.float32).min).max(1)
    return jnp.where(mask.any(1)[:, None], best, 0.0)


def dropped_tokens(key: Array, mask: Array, share: float = 0.2) -> Array:
    """Leave some tokens out of mask [B,N], never all of a row (size augmentation, Chen et al. 2021).

    With u ~ U(0, 1) for each row, a row with u above `share` loses each token with probability `share` * u.
    """
    rows, tokens = jax.random.split(key)
    u = jax.random.uniform(rows, (mask.shape[0], 1))
    chance = jnp.where(u > share, share * u, 0.0)
    kept = mask & (jax.random.uniform(tokens, mask.shape) >= chance)
    return jnp.where(kept.any(1, keepdims=True), kept, mask)


def position_encoding(count: int, width: int = 32) -> np.ndarray:
    """Return interleaved sines and cosines of positions 0 ... count - 1, [count, width] (Vaswani et al. 2017)."""
    angle = np.arange(count)[:, None] * np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))[None, :]
    return np.stack([np.sin(angle), np.cos(angle)], axis=2).reshape(count, width).astype(np.float32)


def descending_ranks(x: Array) -> Array:
    """Rank each number of x [B,N,E] among its column's N, largest first: int32 [B,N,E]; ties in order of N.

    By counting: N comparisons per number. XLA's sort of such columns and its gradient take ten times as long on a CPU.
    """
    x, order = jax.lax.stop_gradient(x), jnp.arange(x.shape[1])[None, :, None]

    def count(places: Array, j: Array) -> tuple[Array, None]:
        other = jax.lax.dynamic_slice_in_dim(x, j, 1, axis=1)
        ahead = (other > x) | ((other == x) & (order > j))
        return places + ahead.astype(places.dtype), None

    small = jnp.int8 if x.shape[1] <= 127 else jnp.int32
    return jax.lax.scan(count, jnp.zeros(x.shape, small), jnp.arange(x.shape[1]))[0].astype(jnp.int32)


class GPO(nn.Module):
    """Generalized pooling operator (Chen et al. 2021, VSE-infinity, section 3): learned weights of sorted features.

    Features are sorted in each dimension, largest first, and the k-th of n gets the weight theta[n, k], which a
    bidirectional GRU over the encoded positions 0 ... n - 1 generates, as in VSE-infinity's published code. The
    weights depend on the size of the set alone, so they are a table with a row for each size, made once per pass and
    not per example.
    """

    hidden: int = 32
    temperature: float = 0.1

    @nn.compact
    def weights(self, sizes: tuple[int, ...]) -> Array:
        """Return theta float32 [len(sizes), max(sizes)]: a row sums to 1 over n positions, and is 0 behind."""
        count, lengths = max(sizes), jnp.asarray(sizes, jnp.int32)
        encoded = jnp.asarray(position_encoding(count))
        encoded = jnp.broadcast_to(encoded[None], (len(sizes), *encoded.shape))

        states = []
        for name in ("forward", "backward"):
            run = nn.RNN(nn.GRUCell(self.hidden, name=name), reverse=name == "backward", keep_order=True)
            states.append(run(encoded, seq_lengths=lengths))
        both = 0.5 * (states[0] + states[1])
        score = nn.Dense(1, use_bias=False, name="score")(both)[:, :, 0] / self.temperature
        real = jnp.arange(count)[None, :] < lengths[:, None]
        return jax.nn.softmax(jnp.where(real, score, jnp.finfo(jnp.float32).min), axis=1)

    def __call__(self, tokens: Array, mask: Array | None) -> Array:
        """Pool the tokens [B,N,E] that `mask` [B,N] keeps (all without a mask) -> float32 [B,E]."""
        x, count = tokens.astype(jnp.float32), tokens.shape[1]
        if mask is None:
            theta = self.weights((count,))[0]
            return (theta[descending_ranks(x)] * x).sum(1)
        table = self.weights(tuple(range(1, count + 1)))
        theta = table[jnp.maximum(mask.sum(1), 1) - 1]
        ranks = descending_ranks(jnp.where(mask[:, :, None], x, jnp.finfo(jnp.float32).min))
        weight = jax.vmap(lambda row, places: row[places])(theta, ranks)
        return (weight * jnp.where(mask[:, :, None], x, 0.0)).sum(1)
