"""Transformer layers as pure functions over plain dicts of parameters.

A stack of layers is one dict whose leaves carry a leading layer axis; `scan_blocks` walks it with `lax.scan`, so a deep
tower compiles as fast as one layer and rematerialisation works on every backend (on CPU `jax.checkpoint` does not
affect an unrolled loop). Modules keep such a dict as one linen parameter, which lets the captioning decoder run the
text tower's layers with its own self-attention by swapping one entry of the dict.

Parameter layout of one block (PyTorch's transformer, post- or pre-norm):

    attention: {query, key, value, out: {kernel [D,D], bias [D]}, norm: {scale [D], bias [D]}}
    cross:     the same, key and value read the other modality (optional)
    mlp:       {up: {kernel [D,F], bias}, down: {kernel [F,D], bias}, norm}
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xmodal_jax.parallel.rules import pin_rows
from xmodal_jax.types import Array, Params

POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keeps the same as "dots", in the host's memory: for accelerators (`xmodal plan` tells the saving).
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


Reading = tuple[Array, Array, Array | None]  # keys and values [b,N,heads,d] of cross-attention, and its mask


class BlockStyle(NamedTuple):
    """The constants of a stack of layers: heads, norm placement, activation, numerics."""

    heads: int
    """Attention heads."""
    pre_norm: bool = False
    """True puts the norm before each branch (ViT), False after each sum (BERT)."""
    activation: str = "gelu"
    """"gelu", the exact erf form as in BERT and ViT; another name with "gelu" is approximate; or "relu"."""
    eps: float = 1e-12
    """Added to the variance in each norm."""
    dropout: float = 0.0
    """Dropout rate on each branch."""
    remat: str = "dots"
    """Name of a policy in `POLICIES`."""


def dense_params(key: Array, inputs: int, outputs: int, scale: float = 0.02) -> Params:
    """Draw a dense layer from a normal of standard deviation `scale` (BERT's), with a zero bias."""
    return {"kernel": scale * jax.random.normal(key, (inputs, outputs)), "bias": jnp.zeros((outputs,))}


def norm_params(width: int) -> Params:
    """Return LayerNorm parameters: scale one, bias zero, both [D]."""
    return {"scale": jnp.ones((width,)), "bias": jnp.zeros((width,))}


def attention_params(key: Array, width: int, memory_width: int | None = None) -> Params:
    """Draw multi-head attention with its norm; keys and values read `memory_width` features (default: `width`)."""
    keys, source = jax.random.split(key, 4), memory_width or width
    return {
        "query": dense_params(keys[0], width, width),
        "key": dense_params(keys[1], source, width),
        "value": dense_params(keys[2], source, width),
        "out": dense_params(keys[3], width, width),
        "norm": norm_params(width),
    }


def block_params(key: Array, width: int, hidden: int, memory_width: int | None = None) -> Params:
    """Draw one transformer block; with `memory_width` it also has cross-attention over tokens of that width."""
    keys = jax.random.split(key, 4)
    params = {
        "attention": attention_params(keys[0], width),
        "mlp": {
            "up": dense_params(keys[1], width, hidden),
            "down": dense_params(keys[2], hidden, width),
            "norm": norm_params(width),
        },
    }
    if memory_width is not None:
        params["cross"] = attention_params(keys[3], width, memory_width)
    return params


def stack_params(key: Array, layers: int, init: Callable[[Array], Params]) -> Params:
    """Stack `layers` independent draws of `init` on a new leading axis."""
    return jax.vmap(init)(jax.random.split(key, layers))


def spread(vector: Array, like: Array) -> Array:
    """Reshape a vector [D] to [1, ..., 1, D] with the rank and dtype of `like` (no implicit promotion anywhere)."""
    return jnp.expand_dims(vector, tuple(range(like.ndim - vector.ndim))).astype(like.dtype)


def dense(params: Params, x: Array) -> Array:
    """Apply a dense layer to x [..., D] -> [..., F], in the dtype of x."""
    y = x @ params["kernel"].astype(x.dtype)
    return y + spread(params["bias"], y)


def layer_norm(params: Params, x: Array, eps: float = 1e-12) -> Array:
    """Normalise the last axis (LayerNorm), computed in float32 and returned in the dtype of x."""
    y = x.astype(jnp.float32)
    centred = y - y.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (y * spread(params["scale"], y) + spread(params["bias"], y)).astype(x.dtype)


def real_tokens(ids: Array) -> Array:
    """Return a bool mask of ids [...,L], True for words; 0 is padding."""
    return ids != 0


def pick_rows(x: Array, rows: Array) -> Array:
    """Gather rows of x [B, ...] -> [b, ...].

    `rows` int [b] are row numbers of x; `rows` int [G,m] are row numbers inside each of G equal blocks of consecutive
    rows of x (b = G * m): when the blocks do not cross devices, no row does.
    """

    def take(block: Array, index: Array) -> Array:
        return block.at[index].get(mode="promise_in_bounds")

    if rows.ndim == 1:
        return take(x, rows)
    blocks = x.reshape(rows.shape[0], -1, *x.shape[1:])
    return jax.vmap(take)(blocks, rows).reshape(-1, *x.shape[1:])


def every_row(x: Array, step: int) -> Array:
    """Take rows 0, step, 2 * step ... of x [B, ...], by a reshape: a strided slice would move rows between devices."""
    return x if step == 1 else x.reshape(-1, step, *x.shape[1:])[:, 0]


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Apply inverted dropout to x [..., D]; without a key or at rate 0 return x.

    One byte decides for each number, four to a random word (drawing words is most of the cost on a CPU), so the rate is
    a multiple of 1/256; numbers that are kept are scaled by exactly that rate.
    """
    drop = round(rate * 256)
    if key is None or drop == 0:
        return x
    *lead, width = x.shape
    words = jax.random.bits(key, (*lead, -(-width // 4)), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*lead, -1)[..., :width]
    return jnp.where(draws >= jnp.uint8(drop), x * (256 / (256 - drop)), jnp.zeros_like(x))


def project_heads(params: Params, x: Array, heads: int) -> Array:
    """Project x [b,L,D] and split it into heads -> [b,L,heads,D/heads]."""
    y = dense(params, x)
    return y.reshape(*y.shape[:-1], heads, y.shape[-1] // heads)


def attend(params: Params, x: Array, keys: Array, values: Array, mask: Array | None, heads: int) -> Array:
    """Apply softmax attention of x [b,L,D] over projected keys and values [b,M,heads,d].

    `mask` is boolean, broadcastable to [b,heads,L,M]; True means "may look". Logits and softmax are float32.
    """
    query = project_heads(params["query"], x, heads)
    logits = jnp.einsum("blhd,bmhd->bhlm", query, keys, preferred_element_type=jnp.float32)
    logits = logits / jnp.sqrt(jnp.float32(query.shape[-1]))
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bhlm,bmhd->blhd", weights, values)
    return dense(params["out"], mixed.reshape(x.shape[:-1] + (-1,)))


def self_attention(params: Params, x: Array, mask: Array | None, heads: int) -> Array:
    """Apply self-attention to x [b,L,D] under `mask` (see `attend`)."""
    return attend(
        params, x, project_heads(params["key"], x, heads), project_heads(params["value"], x, heads), mask, heads
    )


def feed_forward(params: Params, x: Array, activation: str) -> Array:
    """Apply two dense layers with a non-linearity between them, x [..., D] -> [..., D]."""
    hidden = dense(params["up"], x)
    hidden = jax.nn.gelu(hidden, approximate=activation != "gelu") if "gelu" in activation else jax.nn.relu(hidden)
    return dense(params["down"], hidden)


def _residual(style: BlockStyle, norm: Params, x: Array, key: Array | None, inner: Callable[[Array], Array]) -> Array:
    """Apply one residual branch, with the norm before it (ViT) or after the sum (BERT)."""
    if style.pre_norm:
        return x + dropout(inner(layer_norm(norm, x, style.eps)), style.dropout, key)
    return layer_norm(norm, x + dropout(inner(x), style.dropout, key), style.eps)


def block(
    style: BlockStyle,
    params: Params,
    x: Array,
    mask: Array | None,
    memory: Reading | None = None,
    key: Array | None = None,
) -> Array:
    """Run one transformer block on x [b,L,D].

    `memory` holds the keys and values [b,N,heads,d] and the mask (or None) of cross-attention; None skips it.
    """
    keys = jax.random.split(key, 3) if key is not None else (None, None, None)
    return block_reading(style, params, block_looking(style, params, x, mask, keys[0]), memory, keys[1:])


def block_looking(style: BlockStyle, params: Params, x: Array, mask: Array | None, key: Array | None = None) -> Array:
    """Run the first branch of a block, its self-attention, which does not depend on the other modality."""
    attention = params["attention"]
    return _residual(style, attention["norm"], x, key, lambda y: self_attention(attention, y, mask, style.heads))


def block_reading(
    style: BlockStyle, params: Params, x: Array, memory: Reading | None, keys: Array | tuple[None, None] = (None, None)
) -> Array:
    """Run the rest of a block: cross-attention, unless `memory` is None, and the MLP."""
    if memory is not None:
        cross = params["cross"]
        look = partial(attend, cross, keys=memory[0], values=memory[1], mask=memory[2], heads=style.heads)
        x = _residual(style, cross["norm"], x, keys[0], look)
    mlp = params["mlp"]
    return _residual(style, mlp["norm"], x, keys[1], lambda y: feed_forward(mlp, y, style.activation))


def layer_count(stack: Params) -> int:
    """Return the length of the leading layer axis of a stacked dict."""
    return jax.tree.leaves(stack)[0].shape[0]


def scan_blocks(
    style: BlockStyle,
    stack: Params,
    x: Array,
    mask: Array | None,
    memory: Callable[[Params], Reading] | None = None,
    key: Array | None = None,
    after: Callable[[Params, Array], Array] = lambda _, x: x,
) -> Array:
    """Run x [b,L,D] through all layers of `stack` under the remat policy `style.remat`.

    `after(params, x)` changes what each layer gives.

    `memory(cross_params)` gives the keys, values and mask of one layer's cross-attention; it is called inside the scan,
    so the other modality is projected per layer and only where the stack has cross-attention.
    """
    keys = None if key is None or style.dropout == 0.0 else jax.random.split(key, layer_count(stack))

    def layer(carry: Array, inputs: tuple) -> tuple[Array, None]:
        params, layer_key = inputs
        read = memory(params["cross"]) if memory is not None else None
        return pin_rows(after(params, block(style, params, carry, mask, read, layer_key))), None

    policy = POLICIES[style.remat]
    step = layer if policy is None else jax.checkpoint(layer, policy=policy, prevent_cse=False)
    return jax.lax.scan(step, pin_rows(x), (stack, keys))[0]


def real_parts(x: Array) -> Array:
    """Return a bool mask [B,N] of the parts of x [B,N,...], True for those that are not all zero."""
    return (x != 0).any(tuple(range(2, x.ndim)))
