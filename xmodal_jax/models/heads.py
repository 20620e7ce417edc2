"""Small heads on pooled features: joint embedding, matching, token logits and hash codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import dense, dense_params, dropout, layer_norm, norm_params, spread
from xmodal_jax.models.pooling import POOLS, attention_pool, masked_mean, probe_params
from xmodal_jax.parallel.rules import pin_rows, whole
from xmodal_jax.types import Array, Params


def l2_normalize(x: Array, eps: float = 1e-6) -> Array:
    """Rows of x [..., E] scaled to unit length; a zero row stays zero and its gradient finite."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + eps * eps)


def fan_in(inputs: int) -> float:
    """Standard deviation that keeps the scale of a dense layer's output."""
    return inputs**-0.5


def pooled_features(raw: Array, mask: Array | None, pool: str, groups: tuple[int, ...]) -> Array:
    """What the linear path of a `Projection` reads: tokens [B,N,D] pooled over each of `groups` (all without any).

    Each pooled vector is normalised for itself (LayerNorm without parameters), then they are joined -> [B, groups * D].
    """
    edges = [sum(groups[: i + 1]) for i in range(len(groups) - 1)]
    parts = [masked_mean(part, None) for part in jnp.split(raw, edges, axis=1)] if groups else [POOLS[pool](raw, mask)]
    return jnp.concatenate([layer_norm(norm_params(part.shape[-1]), part, 1e-6) for part in parts], axis=-1)


class Projection(nn.Module):
    """Pooled features -> unit embedding [B,E]: a linear map plus, with `hidden`, a two-layer MLP beside it.

    The linear path is what CCA solves for and may start from it (`train/warmstart.py`); the MLP starts at zero and adds
    to it. `pool` is "mean", "cls", or "mean+attention", where a learned probe reads `tokens` besides. `groups` splits the
    N tokens into consecutive parts (several input resolutions, a summary token), each pooled for itself.
    """

    embed: int
    pool: str = "mean"
    hidden: int = 0
    dropout: float = 0.0
    groups: tuple[int, ...] = ()
    heads: int = 8

    @nn.compact
    def __call__(self, raw: Array, tokens: Array, mask: Array | None, key: Array | None = None) -> Array:
        """raw [B,N,D'] (the tower's output), tokens [B,N,D] (what fusion reads), mask [B,N] -> [B,E]."""
        keys = jax.random.split(key, 3) if key is not None else (None, None, None)
        x = pooled_features(raw, mask, self.pool.split("+")[0], self.groups)
        width = x.shape[-1]
        x = dropout(x, self.dropout, keys[0])
        out = dense(self.param("linear", dense_params, width, self.embed, fan_in(width)), x)
        if self.hidden:
            up = self.param("up", dense_params, width, self.hidden, fan_in(width))
            down = self.param("down", dense_params, self.hidden, self.embed, 0.0)
            out = out + dense(down, dropout(jax.nn.gelu(dense(up, x)), self.dropout, keys[1]))
        if self.pool.endswith("+attention"):
            probe = self.param("probe", probe_params, tokens.shape[-1])
            read = dropout(attention_pool(probe, tokens, mask, self.heads), self.dropout, keys[2])
            out = out + dense(self.param("attended", dense_params, read.shape[-1], self.embed, 0.0), read)
        return l2_normalize(out)


class TokenHead(nn.Module):
    """Hidden states -> logits over the output vocabulary, with BERT's transform and the tied word table."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, hidden: Array, table: Array) -> Array:
        """hidden [..., D], table [V,D] (rows of the word embedding that may be predicted) -> logits [..., V], float32."""
        x = jax.nn.gelu(dense(self.param("transform", dense_params, self.width, self.width), hidden), approximate=False)
        x = layer_norm(self.param("norm", lambda _: norm_params(self.width)), x)
        bias = self.param("bias", lambda _: jnp.zeros((self.outputs,)))
        table = whole(table.astype(x.dtype))
        logits = pin_rows(jnp.einsum("...d,vd->...v", pin_rows(x), table, preferred_element_type=jnp.float32))
        return logits + spread(bias, logits)


class MatchHead(nn.Module):
    """Fused tokens -> ITM logits [b,2] (not matching, matching), from [CLS] and the mean of the fused tokens.

    With `agreement` it starts from the contrastive towers: it also reads where the two unit embeddings agree, their
    product by element (whose sum is the cosine), so that it need not find the joint space again from few pairs.
    """

    dropout: float = 0.0
    agreement: bool = True

    @nn.compact
    def __call__(self, fused: Array, mask: Array, image: Array, text: Array, key: Array | None = None) -> Array:
        """fused [b,L,D], mask [b,L], unit embeddings of the pair [b,E] each -> logits [b,2], float32."""
        parts = [fused[:, 0].astype(jnp.float32), masked_mean(fused, mask)]
        if self.agreement:
            parts.append(image * text * image.shape[-1])  # of order one, whatever the width
        pooled = dropout(jnp.concatenate(parts, axis=-1), self.dropout, key)
        width = pooled.shape[-1]
        x = jax.nn.gelu(dense(self.param("up", dense_params, width, width // 2, fan_in(width)), pooled))
        return dense(self.param("down", dense_params, width // 2, 2), x)


class FusedHead(nn.Module):
    """The fused [CLS] of a pair -> its unit joint embedding, for contrast between fused representations."""

    embed: int

    @nn.compact
    def __call__(self, fused: Array) -> Array:
        """fused [b,L,D] -> [b,E], float32."""
        first = fused[:, 0].astype(jnp.float32)
        return l2_normalize(
            dense(self.param("project", dense_params, first.shape[-1], self.embed, fan_in(first.shape[-1])), first)
        )


class LogitBias(nn.Module):
    """A learned scalar added to the logits of pairs; it starts at -10 (Zhai et al. 2023, SigLIP)."""

    @nn.compact
    def __call__(self) -> Array:
        """-> float32 scalar."""
        return self.param("bias", lambda _: jnp.float32(-10.0)).astype(jnp.float32)


class HashHead(nn.Module):
    """Unit embeddings [B,E] -> relaxed codes in (-1, 1) [B,K]; the code is their sign (Jiang and Li 2017, DCMH)."""

    bits: int
    hidden: int = 512

    @nn.compact
    def __call__(self, embed: Array) -> Array:
        """embed [B,E] -> tanh codes [B,K], float32."""
        width = embed.shape[-1]
        up: Params = self.param("up", dense_params, width, self.hidden, 1.0)
        down: Params = self.param("down", dense_params, self.hidden, self.bits, fan_in(self.hidden))
        return jnp.tanh(dense(down, jax.nn.gelu(dense(up, embed))))
