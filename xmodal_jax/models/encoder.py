"""One encoder: the tower, neck, head and hash head of one row of `config.encoders`.

A kind of encoder is a frozen config class beside its module, derived from `EncoderConfig`; `models.ENCODERS` names them. Its
fields are what a user may set, its methods what the rest of the package asks of it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config import FusionConfig, JointConfig
from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.fusion import EmbeddingToken
from xmodal_jax.models.heads import HashHead, Projection, l2_normalize
from xmodal_jax.models.layers import (
    BlockStyle,
    block_params,
    dense,
    dense_params,
    layer_norm,
    norm_params,
    scan_blocks,
    spread,
    stack_params,
)
from xmodal_jax.models.pooling import POOL_CHOICES, parse_pool
from xmodal_jax.types import Array, DataFacts

REMAT = ("none", "dots", "full", "offload")


@dataclass(frozen=True)
class EncoderConfig:
    """What all kinds of encoders share.

    `init`: weights to start the tower from. `pool`: how tokens become the embedding (models/pooling.py); `token_hidden`:
    width of an aggregator's MLP of each token, 0 for none. `head_hidden`, `head_dropout`: of the MLP beside the linear path.
    `cache_tokens`: a frozen tower's tokens are computed once for each input and kept (encode/token_cache.py).
    """

    kind: str = ""
    init: str = ""
    pool: str = limited("mean", among=POOL_CHOICES)
    token_hidden: int = limited(0, least=0)
    head_hidden: int = limited(0, least=0)
    head_dropout: float = limited(0.0, least=0.0, most=0.99)
    cache_tokens: bool = False

    reads: ClassVar[str] = ""  # what the tower takes: "pixels", "tokens" (of a feature cache) or "words"
    lacks: ClassVar[tuple[str, ...]] = ()  # parts of the model that it cannot serve, and why
    why: ClassVar[str] = ""
    dropout: ClassVar[float] = 0.0  # of the tower; a field where it has any
    vocab_size: ClassVar[int] = 0  # ids that it reads; a field where it reads words
    groups: ClassVar[tuple[int, ...]] = ()  # consecutive tokens that are pooled together
    neck_layers: ClassVar[int] = 0  # transformer blocks over the tokens before fusion reads them

    @property
    def token_width(self) -> int:
        """The width D' of the tower's tokens; 0 where only the data tell."""
        return getattr(self, "width", 0)

    @property
    def extent(self) -> int:
        """How large an input is made for it: pixels of a side, tokens of a text; 0 where that is fixed."""
        return 0

    @property
    def necked(self) -> bool:
        """Whether a neck stands between the tower's tokens and those that fusion reads."""
        return self.reads != "words"

    def module(self, dtype: Any) -> nn.Module:
        """The tower: (x [B,...], key) -> tokens [B,N,D']."""
        raise NotImplementedError

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, by what is known of the data set."""
        raise NotImplementedError

    def filled(self, name: str, data: Any, facts: DataFacts) -> "EncoderConfig":
        """The config of the encoder `name` with what the data decide; a contradiction is a UserError."""
        return self

    def mask(self, x: Array) -> Array | None:
        """Which of the tower's tokens of the input x [B,...] are real, bool [B,N]; None where all are."""
        return None

    def local_map(self, tokens: int) -> np.ndarray | None:
        """The averages that make local features of so many tokens, float32 [P,N]; None: each token but the first is one."""
        return None

    def check(self, where: str) -> None:
        """Refuse sizes that do not fit each other."""
        heads, width = getattr(self, "heads", 1), self.token_width
        if width % heads:
            raise UserError(f"{where}.heads is {heads}, which does not divide the width {width}; write a divisor")


class Neck(nn.Module):
    """The tower's tokens [B,N,D'] -> what fusion reads [B,N,D]: norm, a dense layer, positions, optional blocks."""

    width: int
    layers: int
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, raw: Array, key: Array | None = None) -> Array:
        """raw [B,N,D'] -> [B,N,D]."""
        x = layer_norm(self.param("norm_in", lambda _: norm_params(raw.shape[-1])), raw)
        x = dense(self.param("project", dense_params, raw.shape[-1], self.width, raw.shape[-1] ** -0.5), x)
        position = self.param("position", lambda k: 0.02 * jax.random.normal(k, (raw.shape[1], self.width)))
        x = x + spread(position, x)
        if self.layers:
            style = BlockStyle(self.heads, pre_norm=True, eps=1e-6, dropout=self.dropout)
            stack = self.param("layers", stack_params, self.layers, lambda k: block_params(k, self.width, self.hidden))
            x = scan_blocks(style, stack, x, None, key=key)
        return layer_norm(self.param("norm_out", lambda _: norm_params(self.width)), x)


class Encoder(nn.Module):
    """Tower, neck, head and hash head of one row of `config.encoders`.

    `asks`: it is the side that fusion's query comes from, so an embedding is added to its first token; the embedding of the
    others is a token more (`fusion.aggregated`).
    """

    section: EncoderConfig
    fusion: FusionConfig
    joint: JointConfig
    dtype: str
    asks: bool = False

    def setup(self) -> None:
        own, fusion, joint = self.section, self.fusion, self.joint
        self.tower = own.module(jnp.dtype(self.dtype))
        self.neck = Neck(fusion.width, own.neck_layers, fusion.heads, fusion.hidden, own.head_dropout)
        self.head = Projection(
            joint.embed, own.pool, own.head_hidden, own.head_dropout, own.groups, token_hidden=own.token_hidden
        )
        self.aggregate = EmbeddingToken(fusion.width)
        self.hash = HashHead(joint.bits, joint.hash_hidden, joint.hash_kind)

    def raw(self, x: Array, key: Array | None = None) -> Array:
        """x [B,...] as the tower takes it -> its own tokens [B,N,D']."""
        return self.tower(x, key)

    def neck_tokens(self, raw: Array, key: Array | None = None) -> tuple[Array, Array | None]:
        """The tower's tokens [B,N,D'] -> those that fusion reads [B,N,D], and the key that is left.

        Where nothing reads tokens there is no neck, and they are the tower's own.
        """
        if not self.section.necked:
            return raw, key
        keys = jax.random.split(key) if key is not None else (None, None)
        return (self.neck(raw, keys[0]) if self.has_variable("params", "neck") else raw), keys[1]

    def embed(
        self, raw: Array, tokens: Array, mask: Array | None, key: Array | None = None, read: Array | None = None
    ) -> Array:
        """raw [B,N,D'], tokens [B,N,D], what the shared encoder read of them [B,D] -> unit embedding [B,E]."""
        return self.head(raw, tokens, mask, key, read)

    def with_embedding(self, tokens: Array, embed: Array) -> Array:
        """Tokens [B,N,D] with the embedding [B,E] among them, where `fusion.aggregated` asks for it."""
        if not self.has_variable("params", "aggregate"):
            return tokens
        own = self.aggregate(embed).astype(tokens.dtype)
        parts = [tokens[:, :1] + own, tokens[:, 1:]] if self.asks else [tokens, own]
        return jnp.concatenate(parts, axis=1)

    def locals(self, raw: Array) -> Array:
        """The tower's tokens [B,N,D'] -> unit local features [B,P,E]: of a grid at most 4 x 4, of words all but the first.

        Those of padding are there too (mask them).
        """
        places = self.section.local_map(raw.shape[1])
        if places is None:
            return l2_normalize(self.head.token_features(raw[:, 1:]).astype(jnp.float32))
        features = self.head.token_features(raw)
        averages = jnp.asarray(places).astype(features.dtype)
        return l2_normalize(jnp.einsum("pn,bne->bpe", averages, features).astype(jnp.float32))

    def codes(self, embed: Array) -> Array:
        """Embeddings [B,E] -> relaxed codes [B,K]."""
        return self.hash(embed)

    def touch_readers(self, raw: Array, read: bool) -> None:
        """Make what turns the tower's tokens into those that others read, where any do: the passes look for it."""
        if self.section.necked and (read or parse_pool(self.section.pool)[1] in ("attention", "shared")):
            self.neck(raw)
        if read and self.fusion.aggregated:
            self.aggregate(jnp.zeros((1, self.joint.embed)))
