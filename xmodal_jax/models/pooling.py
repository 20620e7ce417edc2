"""From a tower's tokens to one vector: mean, first token, or learned attention."""

import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import attend, attention_params, layer_norm, project_heads
from xmodal_jax.types import Array, Params


def masked_mean(tokens: Array, mask: Array | None) -> Array:
    """Mean over the tokens [B,N,D] that `mask` [B,N] keeps (all without a mask) -> [B,D], in float32."""
    tokens = tokens.astype(jnp.float32)
    if mask is None:
        return tokens.mean(1)
    weight = mask.astype(jnp.float32)[:, :, None]
    return (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


def first_token(tokens: Array, mask: Array | None) -> Array:
    """The [CLS] token: tokens [B,N,D] -> [B,D]."""
    del mask
    return tokens[:, 0].astype(jnp.float32)


POOLS = {"mean": masked_mean, "cls": first_token}


def probe_params(key: Array, width: int) -> Params:
    """Attention pooling: one learned query [1,1,D] and an attention layer (Lee et al. 2019, Set Transformer's PMA)."""
    probe, attention = jax.random.split(key)
    return {
        "probe": 0.02 * jax.random.normal(probe, (1, 1, width)),
        "attention": attention_params(attention, width),
    }


def attention_pool(params: Params, tokens: Array, mask: Array | None, heads: int) -> Array:
    """tokens [B,N,D] -> [B,D]: what the learned probe reads from the tokens."""
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
