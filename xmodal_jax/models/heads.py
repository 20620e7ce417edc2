"""Small heads on pooled features: joint embedding, matching, token logits and hash codes."""

from functools import reduce
from operator import add

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import dense, dense_params, dropout, layer_norm, norm_params, spread
from xmodal_jax.models.pooling import (
    AGGREGATORS,
    GPO,
    POOLS,
    attention_pool,
    dropped_tokens,
    masked_max,
    masked_mean,
    parse_pool,
    probe_params,
)
from xmodal_jax.parallel.rules import pin_rows, whole
from xmodal_jax.types import Array, Params


def l2_normalize(x: Array, eps: float = 1e-6) -> Array:
    """Scale the rows of x [..., E] to unit length; a zero row stays zero and its gradient finite.

    Example:
        >>> print(l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3))
        [[0.6 0.8]
         [0.  0. ]]
    """
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + eps * eps)


def fan_in(inputs: int) -> float:
    """Return the standard deviation of weights that keeps the scale of a dense layer's output."""
    return inputs**-0.5


def pooled_features(raw: Array, mask: Array | None, pool: str, groups: tuple[int, ...]) -> Array:
    """Pool tokens [B,N,D] for the linear path of a `Projection`, over each of `groups` (over all without any).

    Each pooled vector is normalised for itself (LayerNorm without parameters), then they are joined -> [B, groups * D].
    """
    edges = [sum(groups[: i + 1]) for i in range(len(groups) - 1)]
    masks = [None] * len(groups) if mask is None else jnp.split(mask, edges, axis=1)
    split = jnp.split(raw, edges, axis=1) if groups else []
    parts = [masked_mean(*own) for own in zip(split, masks, strict=True)] if groups else [POOLS[pool](raw, mask)]
    return jnp.concatenate([layer_norm(norm_params(part.shape[-1]), part, 1e-6) for part in parts], axis=-1)


class TokenMap(nn.Module):
    """A map of each token by itself to E features: a dense layer and, with `hidden`, an MLP (Chen et al. 2021).

    Tokens are normalised first (LayerNorm without parameters). `scale` is the dense layer's start in units of the
    usual standard deviation. Dropout leaves out the same inputs for all tokens of a row:
    a pooled set averages over anything less.
    """

    embed: int
    hidden: int = 0
    dropout: float = 0.0
    scale: float = 1.0

    @nn.compact
    def __call__(self, raw: Array, key: Array | None = None) -> Array:
        """Map raw tokens [B,N,D'] to features [B,N,E]."""
        width = raw.shape[-1]
        x = layer_norm(norm_params(width), raw, 1e-6)
        keys = jax.random.split(key) if key is not None else (None, None)
        x = x * dropout(jnp.ones((x.shape[0], 1, width), x.dtype), self.dropout, keys[0])
        out = dense(self.param("project", dense_params, width, self.embed, self.scale * fan_in(width)), x)
        if self.hidden:
            up = self.param("up", dense_params, width, self.hidden, fan_in(width))
            down = self.param("down", dense_params, self.hidden, self.embed, 0.0)
            out = out + dense(down, dropout(jax.nn.relu(dense(up, x)), self.dropout, keys[1]))
        return out


class Aggregator(nn.Module):
    """Pooling of projected tokens [B,N,E] -> [B,E] by one of `AGGREGATORS`; a key leaves some tokens out.

    "unit" is the mean of the tokens' unit vectors (CLIP4Clip, CLIP4VLA), which leaves none out: they are few.
    """

    kind: str

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, key: Array | None = None) -> Array:
        """Pool x [B,N,E] over the real tokens of mask [B,N] (None: all) -> float32 [B,E]."""
        if self.kind == "unit":
            return masked_mean(l2_normalize(x.astype(jnp.float32)), mask)
        if key is not None:
            mask = dropped_tokens(key, jnp.ones(x.shape[:2], bool) if mask is None else mask)
        if self.kind == "gpo":
            return GPO(name="gpo")(x, mask)
        if self.kind == "average":
            return masked_mean(x, mask)
        return masked_max(x, jnp.ones(x.shape[:2], bool) if mask is None else mask)


AGGREGATOR_START = 0.1  # scale of a token map beside a linear path: the embedding starts close to that path


class Projection(nn.Module):
    """The embedding head: tokens -> unit embedding [B,E], by the paths that `pool` names (`pooling.parse_pool`).

    "mean" or "cls" is a linear map of pooled features plus, with `hidden`, a two-layer MLP beside it. CCA solves for
    the linear path, which may start from it (`training/cca.py`); the MLP starts at zero and adds to it. "+attention"
    adds the output of a learned probe over `tokens`, "+shared" that of an encoder outside (models/reasoning.py); both
    start at zero. "+gpo", "+max", "+average" and "+unit" add an aggregator of projected raw tokens, which starts small.
    "gpo", "max", "average" and "unit" are that aggregator alone (Chen et al. 2021, VSE-infinity).

    `groups` splits the N tokens into consecutive parts (several input resolutions, a summary token), each pooled for
    itself by the linear path. `token_hidden` is the width of the MLP of each token beside an aggregator's dense layer.
    """

    embed: int
    pool: str = "mean"
    hidden: int = 0
    dropout: float = 0.0
    groups: tuple[int, ...] = ()
    heads: int = 8
    token_hidden: int = 0

    def setup(self) -> None:
        """Create the token map and the aggregator; flax makes their parameters only if they run."""
        base, extra = parse_pool(self.pool)
        pools = extra in AGGREGATORS
        scale = AGGREGATOR_START if base and pools else 1.0
        self.token = TokenMap(self.embed, self.token_hidden if pools else 0, self.dropout, scale)
        self.aggregator = Aggregator(extra)

    def __call__(
        self, raw: Array, tokens: Array, mask: Array | None, key: Array | None = None, read: Array | None = None
    ) -> Array:
        """Map the tower's tokens `raw` [B,N,D'] and fusion's `tokens` [B,N,D], mask [B,N], to unit embeddings [B,E].

        `read` [B,D] is the output of the shared encoder, for "+shared".
        """
        base, extra = parse_pool(self.pool)
        paths = [self.base_path(raw, tokens, mask, key, read)] if base else []
        if extra in AGGREGATORS:
            keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, 3))
            paths.append(self.aggregator(self.token(raw, keys[0]), mask, keys[1]))
        return l2_normalize(reduce(add, paths))

    @nn.compact
    def base_path(
        self, raw: Array, tokens: Array, mask: Array | None, key: Array | None, read: Array | None = None
    ) -> Array:
        """Apply the linear path and all that stands beside it but an aggregator -> [B,E], not normalised."""
        base, extra = parse_pool(self.pool)
        keys = jax.random.split(key, 3) if key is not None else (None, None, None)
        x = pooled_features(raw, mask, base, self.groups)
        width = x.shape[-1]
        x = dropout(x, self.dropout, keys[0])
        out = dense(self.param("linear", dense_params, width, self.embed, fan_in(width)), x)
        if self.hidden:
            up = self.param("up", dense_params, width, self.hidden, fan_in(width))
            down = self.param("down", dense_params, self.hidden, self.embed, 0.0)
            out = out + dense(down, dropout(jax.nn.gelu(dense(up, x)), self.dropout, keys[1]))
        if extra == "attention":
            probe = self.param("probe", probe_params, tokens.shape[-1])
            read = dropout(attention_pool(probe, tokens, mask, self.heads), self.dropout, keys[2])
            out = out + dense(self.param("attended", dense_params, read.shape[-1], self.embed, 0.0), read)
        if extra == "shared":
            assert read is not None, "`CrossModal.embed` runs the shared encoder for this pool"
            read = dropout(read.astype(jnp.float32), self.dropout, keys[2])
            out = out + dense(self.param("reasoned", dense_params, read.shape[-1], self.embed, 0.0), read)
        return out

    def token_features(self, raw: Array) -> Array:
        """Map raw tokens [B,N,D'] to the features [B,N,E] that an aggregator pools, not normalised, without dropout.

        A head without an aggregator has a dense layer for it, made only where this is called.
        """
        return self.token(raw)


class TokenHead(nn.Module):
    """The vocabulary head: hidden states -> logits, with BERT's transform and tied word table."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, hidden: Array, table: Array) -> Array:
        """Map hidden [..., D] to float32 logits [..., V]; table [V,D] holds the word vectors that may be predicted."""
        x = jax.nn.gelu(dense(self.param("transform", dense_params, self.width, self.width), hidden), approximate=False)
        x = layer_norm(self.param("norm", lambda _: norm_params(self.width)), x)
        bias = self.param("bias", lambda _: jnp.zeros((self.outputs,)))
        table = whole(table.astype(x.dtype))
        logits = pin_rows(jnp.einsum("...d,vd->...v", pin_rows(x), table, preferred_element_type=jnp.float32))
        return logits + spread(bias, logits)


class MatchHead(nn.Module):
    """The matching head: fused tokens -> ITM logits [b,2] (not matching, matching), from [CLS] and the tokens' mean.

    With `agreement` it starts from the contrastive towers: it also reads the product by element of the two unit
    embeddings (whose sum is the cosine), so that it need not find the joint space again from few pairs.
    """

    dropout: float = 0.0
    agreement: bool = True

    @nn.compact
    def __call__(self, fused: Array, mask: Array, image: Array, text: Array, key: Array | None = None) -> Array:
        """Return float32 logits [b,2] from fused [b,L,D], mask [b,L] and the pair's unit embeddings, [b,E] each."""
        parts = [fused[:, 0].astype(jnp.float32), masked_mean(fused, mask)]
        if self.agreement:
            parts.append(image * text * image.shape[-1])  # scaled to order one, whatever the width
        pooled = dropout(jnp.concatenate(parts, axis=-1), self.dropout, key)
        width = pooled.shape[-1]
        x = jax.nn.gelu(dense(self.param("up", dense_params, width, width // 2, fan_in(width)), pooled))
        return dense(self.param("down", dense_params, width // 2, 2), x)


class FusedHead(nn.Module):
    """A projection of a pair's fused [CLS] to a unit joint embedding, for contrast between fused representations."""

    embed: int

    @nn.compact
    def __call__(self, fused: Array) -> Array:
        """Map fused [b,L,D] to float32 [b,E]."""
        first = fused[:, 0].astype(jnp.float32)
        return l2_normalize(
            dense(self.param("project", dense_params, first.shape[-1], self.embed, fan_in(first.shape[-1])), first)
        )


class JoinedHead(nn.Module):
    """The joint embedding of a pair in the space of both sides: their sum, corrected by the fused [CLS].

    The correction starts at zero, so that contrast with joint embeddings never pulls a trained space towards a random
    one: with random fused keys in its place the embeddings of a CCA start lost 7 to 10 rSum in 60 steps.
    """

    @nn.compact
    def __call__(self, fused: Array, image: Array, text: Array) -> Array:
        """Combine fused [b,L,D] with unit embeddings image and text [b,E] -> unit float32 [b,E]."""
        first = fused[:, 0].astype(jnp.float32)
        correct = self.param("correct", dense_params, first.shape[-1], image.shape[-1], 0.0)
        return l2_normalize(image.astype(jnp.float32) + text.astype(jnp.float32) + dense(correct, first))


class AnswerHead(nn.Module):
    """The head of answers: fused tokens -> logits of the labels, from [CLS] (ViLT, Kim et al. 2021).

    Two layers with LayerNorm and GELU between them, the first twice as wide as the tokens.
    """

    outputs: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, fused: Array, key: Array | None = None) -> Array:
        """Map fused [b,L,D] to float32 logits [b,C]."""
        first = dropout(fused[:, 0].astype(jnp.float32), self.dropout, key)
        width = first.shape[-1]
        x = dense(self.param("up", dense_params, width, 2 * width, fan_in(width)), first)
        x = jax.nn.gelu(layer_norm(self.param("norm", lambda _: norm_params(2 * width)), x))
        return dense(self.param("down", dense_params, 2 * width, self.outputs), x)


class Classifier(nn.Module):
    """Linear classifiers of unit embeddings, one for each target and encoder, or for a target and all encoders.

    `classes` has (target, C) for each target, such as ("labels", 24). Weights start at order one, because embeddings
    have length one.
    """

    classes: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(self, embed: Array, target: str, encoder: str = "") -> Array:
        """Map embed [B,E] to float32 logits [B,C] of `target`; "" is the classifier of all encoders."""
        name = f"{target}_{encoder}" if encoder else target
        outputs = dict(self.classes)[target]
        return dense(self.param(name, dense_params, embed.shape[-1], outputs, 1.0), embed.astype(jnp.float32))


class LogitBias(nn.Module):
    """A learned scalar added to the logits of pairs; it starts at -10 (Zhai et al. 2023, SigLIP)."""

    @nn.compact
    def __call__(self) -> Array:
        """Return the bias, a float32 scalar."""
        return self.param("bias", lambda _: jnp.float32(-10.0)).astype(jnp.float32)


def straight_through_sign(x: Array) -> Array:
    """Return +1 where x > 0, else -1 (as codes are packed), with the gradient of x itself (Bengio et al. 2013)."""
    return jnp.where(x > 0, 1.0, -1.0).astype(x.dtype) + (x - jax.lax.stop_gradient(x))


HASH_KINDS = ("tanh", "sign", "select")


class HashHead(nn.Module):
    """The hash head: unit embeddings [B,E] -> relaxed codes [B,K]; the code is their sign (Jiang and Li 2017, DCMH).

    A layer of `hidden` units (0: none) and a linear one give the numbers that are binarised, by `kind`:

    - "tanh": tanh, in (-1, 1).
    - "sign": the sign of tanh, exactly -1 or +1, with the gradient of tanh; losses see the code that is searched.
    - "select" (DCHMT, Tu et al. 2022): a softmax over two logits for each bit, p0 and p1; the relaxed code is p1 - p0,
      in (-1, 1). DCHMT keeps the 2K numbers p side by side. As p0 = 1 - p1, two codes differ in both numbers of a bit
      by the same amount, half the difference of p1 - p0: the squared distance of the 2K-vectors is that of the
      K-vectors divided by 2, so every loss takes [B,K].

    The hidden layer's activation is GELU, ReLU for "select" as in DCHMT.
    """

    bits: int
    hidden: int = 512
    kind: str = "tanh"

    @nn.compact
    def __call__(self, embed: Array) -> Array:
        """Map embed [B,E] to relaxed codes [B,K], float32."""
        outputs = 2 * self.bits if self.kind == "select" else self.bits
        x = self.logits(embed, outputs)
        if self.kind == "select":
            chance = jax.nn.softmax(x.reshape(*x.shape[:-1], self.bits, 2), axis=-1)
            return chance[..., 1] - chance[..., 0]
        codes = jnp.tanh(x)
        return straight_through_sign(codes) if self.kind == "sign" else codes

    def logits(self, embed: Array, outputs: int) -> Array:
        """Map embed [B,E] to [B,outputs] before binarisation.

        First layers start at order one, because embeddings have length one.
        """
        width = embed.shape[-1]
        if not self.hidden:
            return dense(self.param("linear", dense_params, width, outputs, 1.0), embed)
        up: Params = self.param("up", dense_params, width, self.hidden, 1.0)
        down: Params = self.param("down", dense_params, self.hidden, outputs, fan_in(self.hidden))
        activate = jax.nn.relu if self.kind == "select" else jax.nn.gelu
        return dense(down, activate(dense(up, embed)))
