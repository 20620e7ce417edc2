"""One encoder: the tower, neck, head and hash head of one entry of `config.encoders`.

A kind of encoder is a frozen config class beside its module, derived from `EncoderConfig`; `models.ENCODERS` names
them. Its fields are what a user may set; its methods answer the questions of the rest of the package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.data.config import DataConfig
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
from xmodal_jax.settings import FusionConfig, JointConfig
from xmodal_jax.types import Array, DataFacts

REMAT = ("none", "dots", "full", "offload")


@dataclass(frozen=True)
class EncoderConfig:
    """The fields and methods that all kinds of encoders share."""

    kind: str = ""
    """Kind of encoder: a name in `models.ENCODERS`, or a class of one's own such as "my_encoder.py:MyConfig"."""
    init: str = ""
    """Weights to start the tower from: a name that the kind knows, or a folder; "" starts at random."""
    pool: str = limited("mean", among=POOL_CHOICES)
    """How tokens become the embedding, such as "mean", "cls" or "mean+gpo" (models/pooling.py)."""
    token_hidden: int = limited(0, least=0)
    """Units of the MLP that an aggregator applies to each token; 0: none."""
    head_hidden: int = limited(0, least=0)
    """Units of the MLP beside the head's linear path; 0: none."""
    head_dropout: float = limited(0.0, least=0.0, most=0.99)
    """Dropout rate in the head and the neck."""
    cache_tokens: bool = False
    """True computes a frozen tower's tokens once per input and keeps them (encode/token_cache.py)."""

    reads: ClassVar[str] = ""
    """Input of the tower: "pixels", "tokens" (of a feature cache), "words", or another word of a kind's own."""
    lacks: ClassVar[tuple[str, ...]] = ()
    """Parts of the model that the tower cannot serve."""
    why: ClassVar[str] = ""
    """The reason for `lacks`, as the end of a sentence."""
    dropout: ClassVar[float] = 0.0
    """Dropout rate of the tower; a field where it has dropout."""
    vocab_size: ClassVar[int] = 0
    """Number of ids that the tower reads; a field where it reads words."""
    languages: ClassVar[tuple[str, ...]] = ()
    """Languages that the tower tells apart; a field where it does."""
    groups: ClassVar[tuple[int, ...]] = ()
    """Numbers of consecutive tokens that are pooled together; (): all are."""
    nested: ClassVar[tuple[str, ...]] = ()
    """Fields that hold another encoder, {"kind": ..., its fields}."""
    neck_layers: ClassVar[int] = 0
    """Transformer blocks over the tokens before fusion reads them."""

    @property
    def token_width(self) -> int:
        """Width D' of the tower's tokens; 0 if only the data tell."""
        return getattr(self, "width", 0)

    @property
    def extent(self) -> int:
        """Size of an input: pixels of a side, or tokens of a text; 0 if it is fixed."""
        return 0

    @property
    def form(self) -> Any:
        """What the reader of the input must know beside its size (`InputSpec.form`); None: nothing."""
        return None

    @property
    def necked(self) -> bool:
        """True if a neck stands between the tower's tokens and those that fusion reads."""
        return self.reads != "words"

    def module(self, dtype: jnp.dtype) -> nn.Module:
        """Build the tower: (x [B,...], key) -> tokens [B,N,D']."""
        raise NotImplementedError

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """Return (shape, dtype) of one input, given what is known of the data set."""
        raise NotImplementedError

    def filled(self, name: str, data: DataConfig, facts: DataFacts) -> "EncoderConfig":
        """Return the config of the encoder `name` completed from the data; raise UserError if they contradict it."""
        return self

    def mask(self, x: Array) -> Array | None:
        """Return the mask bool [B,N] of the tower's real tokens for the input x [B,...], or None if all are real."""
        return None

    def local_map(self, tokens: int) -> np.ndarray | None:
        """Return the averages [P,N] float32 that make local features of `tokens` tokens, or None.

        None makes each token but the first a local feature.
        """
        return None

    def towers(self, where: str, path: str) -> list[tuple[str, str, "EncoderConfig"]]:
        """Return (place in the config, path of the parameters, config) of each tower whose weights `init` may name.

        `where` and `path` are those of this one.
        """
        return [(where, path, self)]

    def with_towers(self, change: "Callable[[str, EncoderConfig], EncoderConfig]", where: str) -> "EncoderConfig":
        """Return the config with each of `towers` changed: `change` takes its place in the config, and itself."""
        return change(where, self)

    def check(self, where: str) -> None:
        """Refuse sizes that do not fit each other."""
        heads, width = getattr(self, "heads", 1), self.token_width
        if width % heads:
            raise UserError(f"{where}.heads is {heads}, which does not divide the width {width}; write a divisor")


class Neck(nn.Module):
    """The layers between tower and fusion: [B,N,D'] -> norm, dense layer, positions, optional blocks -> [B,N,D]."""

    width: int
    layers: int
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, raw: Array, key: Array | None = None, mask: Array | None = None) -> Array:
        """Map the tower's tokens [B,N,D'] to fusion's [B,N,D]; the blocks read those of mask [B,N] (None: all)."""
        x = layer_norm(self.param("norm_in", lambda _: norm_params(raw.shape[-1])), raw)
        x = dense(self.param("project", dense_params, raw.shape[-1], self.width, raw.shape[-1] ** -0.5), x)
        position = self.param("position", lambda k: 0.02 * jax.random.normal(k, (raw.shape[1], self.width)))
        x = x + spread(position, x)
        if self.layers:
            style = BlockStyle(self.heads, pre_norm=True, eps=1e-6, dropout=self.dropout)
            stack = self.param("layers", stack_params, self.layers, lambda k: block_params(k, self.width, self.hidden))
            x = scan_blocks(style, stack, x, None if mask is None else mask[:, None, None, :], key=key)
        return layer_norm(self.param("norm_out", lambda _: norm_params(self.width)), x)


class Encoder(nn.Module):
    """The tower, neck, head and hash head of one entry of `config.encoders`.

    `is_query` marks the encoder whose tokens are fusion's query. With `fusion.aggregated` its embedding is added to its
    first token; other encoders get their embedding as one more token.
    """

    section: EncoderConfig
    fusion: FusionConfig
    joint: JointConfig
    dtype: str
    is_query: bool = False

    def setup(self) -> None:
        """Create the tower, neck, heads and embedding token."""
        own, fusion, joint = self.section, self.fusion, self.joint
        self.tower = own.module(jnp.dtype(self.dtype))
        self.neck = Neck(fusion.width, own.neck_layers, fusion.heads, fusion.hidden, own.head_dropout)
        self.head = Projection(
            joint.embed, own.pool, own.head_hidden, own.head_dropout, own.groups, token_hidden=own.token_hidden
        )
        self.aggregate = EmbeddingToken(fusion.width)
        self.hash = HashHead(joint.bits, joint.hash_hidden, joint.hash_kind)

    def raw(self, x: Array, key: Array | None = None) -> Array:
        """Run the tower on x [B,...] -> its own tokens [B,N,D']."""
        return self.tower(x, key)

    def neck_tokens(
        self, raw: Array, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Map the tower's tokens [B,N,D'], mask [B,N], to fusion's [B,N,D]; return them with the key for what follows.

        Without a neck, as where nothing reads tokens, they are the tower's own.
        """
        if not self.section.necked:
            return raw, key
        keys = jax.random.split(key) if key is not None else (None, None)
        return (self.neck(raw, keys[0], mask) if self.has_variable("params", "neck") else raw), keys[1]

    def embed(
        self, raw: Array, tokens: Array, mask: Array | None, key: Array | None = None, read: Array | None = None
    ) -> Array:
        """Map tokens [B,N,D'] and [B,N,D], and the shared encoder's output `read` [B,D], to unit embeddings [B,E]."""
        return self.head(raw, tokens, mask, key, read)

    def with_embedding(self, tokens: Array, embed: Array) -> Array:
        """Add the embedding [B,E] to tokens [B,N,D], if `fusion.aggregated` asks for it."""
        if not self.has_variable("params", "aggregate"):
            return tokens
        own = self.aggregate(embed).astype(tokens.dtype)
        parts = [tokens[:, :1] + own, tokens[:, 1:]] if self.is_query else [tokens, own]
        return jnp.concatenate(parts, axis=1)

    def locals(self, raw: Array) -> Array:
        """Map the tower's tokens [B,N,D'] to unit local features [B,P,E].

        A grid gives at most 4 x 4, a text all tokens but the first. Padding has local features too; the
        caller masks them.
        """
        places = self.section.local_map(raw.shape[1])
        if places is None:
            return l2_normalize(self.head.token_features(raw[:, 1:]).astype(jnp.float32))
        features = self.head.token_features(raw)
        averages = jnp.asarray(places).astype(features.dtype)
        return l2_normalize(jnp.einsum("pn,bne->bpe", averages, features).astype(jnp.float32))

    def codes(self, embed: Array) -> Array:
        """Map embeddings [B,E] to relaxed codes [B,K]."""
        return self.hash(embed)

    def touch_readers(self, raw: Array, read: bool) -> None:
        """Run the neck and the embedding token if any part reads them, so that `init` makes their parameters."""
        if self.section.necked and (read or parse_pool(self.section.pool)[1] in ("attention", "shared")):
            self.neck(raw)
        if read and self.fusion.aggregated:
            self.aggregate(jnp.zeros((1, self.joint.embed)))
