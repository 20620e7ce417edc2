"""The assembled model: an encoder for each row of `config.encoders`, a joint space, fusion, a captioning decoder.

Every method is a pure function through `model.apply({"params": p}, ..., method=name)`; the teacher is the same model on
another tree of parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.config import Config
from xmodal_jax.models.bridge import Bridge
from xmodal_jax.models.decoder import Decoder
from xmodal_jax.models.encoder import Encoder
from xmodal_jax.models.fusion import Fusion
from xmodal_jax.models.heads import FusedHead, JoinedHead, LogitBias, MatchHead, TokenHead
from xmodal_jax.models.layers import real_tokens
from xmodal_jax.models.pooling import parse_pool
from xmodal_jax.models.reasoning import SharedEncoder
from xmodal_jax.models.scorer import Side
from xmodal_jax.types import Array, Params

READERS = frozenset({"fusion", "decoder", "bridge"})  # parts that read the tokens that the neck makes


class CrossModal(nn.Module):
    """The model of one config. `output_ids` are the word ids that MLM and LM may predict (empty: all)."""

    config: Config
    output_ids: tuple[int, ...] = ()

    def setup(self) -> None:
        encoders, fusion, joint = self.config.encoders, self.config.fusion, self.config.joint
        for name, own in encoders.items():
            setattr(self, name, Encoder(own, fusion, joint, self.config.dtype, name == fusion.pair[1]))
        asks, width = self.config.asking, fusion.width
        self.fusion = Fusion(width, fusion.layers, fusion.heads, fusion.hidden, width, fusion.dropout, fusion.remat)
        self.decoder = Decoder(width, getattr(asks, "layers", 1), fusion.layers)
        self.match = MatchHead(fusion.head_dropout, fusion.agreement)
        self.vocabulary = TokenHead(width, len(self.output_ids) or asks.vocab_size)
        self.scorer = self.config.scorer.built(width, joint.embed, self.fusion, self.match)
        self.shared = SharedEncoder(
            tuple(encoders), width, joint.shared_layers, joint.shared_heads, joint.shared_hidden, joint.shared_dropout
        )
        self.sigmoid = LogitBias()
        self.bridge = Bridge(self.config.bridge.kind, width, fusion.heads, self.config.bridge.hidden)
        self.fused_head = FusedHead(joint.embed)
        self.joined_head = JoinedHead()
        if self.is_initializing() or self.has_variable("params", "log_temperature"):
            self.log_temperature = self.param("log_temperature", lambda _: jnp.log(jnp.float32(joint.temperature)))

    def raw(self, encoder: str, x: Array, key: Array | None = None) -> Array:
        """The input x [B,...] of an encoder -> its tower's own tokens [B,N,D']."""
        return getattr(self, encoder).raw(x, key)

    def joint(self, encoder: str, raw: Array, x: Array, key: Array | None = None) -> tuple[Array, Array]:
        """The tower's tokens [B,N,D'] of the input x -> tokens [B,N,D] for fusion, unit embedding [B,E].

        With `config.fusion.aggregated` the embedding is among the tokens.
        """
        own = getattr(self, encoder)
        tokens, key = own.neck_tokens(raw, key)
        embed = self.embed(encoder, raw, tokens, self.config.encoders[encoder].mask(x), key)
        return own.with_embedding(tokens, embed), embed

    def locals(self, encoder: str, raw: Array) -> Array:
        """The tower's tokens [B,N,D'] -> unit local features [B,P,E]; see `Encoder.locals`."""
        return getattr(self, encoder).locals(raw)

    def encode(self, encoder: str, x: Array) -> tuple[Array, Array]:
        """The input x [B,...] -> tokens [B,N,D] for fusion, unit embedding [B,E]; no dropout."""
        return self.joint(encoder, self.raw(encoder, x), x)

    def encode_cached(self, encoder: str, x: Array, tokens: Array) -> tuple[Array, Array]:
        """`encode` of x from the tower's own tokens [B,N,D'], which were kept."""
        return self.joint(encoder, tokens.astype(jnp.dtype(self.config.dtype)), x)

    def codes(self, encoder: str, embed: Array) -> Array:
        """Embeddings [B,E] -> relaxed codes [B,K]."""
        return getattr(self, encoder).codes(embed)

    def fuse(
        self,
        memory: Array,
        query: Array,
        mask: Array,
        rows: Array | None = None,
        key: Array | None = None,
        memory_mask: Array | None = None,
    ) -> Array:
        """memory tokens [B,N,D], query tokens [b,L,D], masks [B,N] and [b,L], rows int [b] -> fused tokens [b,L,D]."""
        return self.fusion(memory, query, mask, rows, key, memory_mask)

    def decode(
        self,
        memory: Array,
        ids: Array,
        rows: Array | None = None,
        key: Array | None = None,
        memory_mask: Array | None = None,
    ) -> Array:
        """memory tokens [B,N,D] and their mask [B,N], ids [b,L] from the start token on -> hidden states [b,L,D]."""
        tower = getattr(self, self.config.fusion.pair[1]).tower
        return self.decoder(tower, self.fusion, memory, ids, rows, key, memory_mask)

    def match_logits(self, fused: Array, mask: Array, image: Array, text: Array, key: Array | None = None) -> Array:
        """fused [b,L,D], mask [b,L], unit embeddings of the pair [b,E] each -> ITM logits [b,2]."""
        return self.match(fused, mask, image, text, key)

    def bridge_delta(self, student: Array, teacher: Array, mask: Array | None = None) -> Array:
        """student and teacher tokens [B,N,D], mask [B,N] -> what the residual attention adds, [B,N,D]."""
        return self.bridge(student, teacher, mask)

    def embed(self, encoder: str, raw: Array, tokens: Array, mask: Array | None, key: Array | None = None) -> Array:
        """The encoder's head on the tower's raw tokens [B,N,D'] and fusion's [B,N,D] -> unit embedding [B,E].

        Where its pool asks for it, the transformer that all encoders share reads the tokens first.
        """
        read = None
        if parse_pool(self.config.encoders[encoder].pool)[1] == "shared":
            read = self.shared(encoder, tokens, mask, None if key is None else jax.random.fold_in(key, 4))
        return getattr(self, encoder).embed(raw, tokens, mask, key, read)

    def fused_embed(self, fused: Array) -> Array:
        """Fused tokens [b,L,D] of a pair -> unit joint embedding [b,E]."""
        return self.fused_head(fused)

    def joined_embed(self, fused: Array, image: Array, text: Array) -> Array:
        """Fused tokens [b,L,D] of a pair and its unit embeddings [b,E] -> unit joint embedding [b,E] among these."""
        return self.joined_head(fused, image, text)

    def bridged_tokens(self, tokens: Array) -> Array:
        """Tokens [B,N,D] -> those that a captioner trained through the bridge reads when captions are written.

        After training there is one encoder, so the bridge reads its tokens twice.
        """
        return tokens + self.bridge(tokens, tokens)

    def score(self, one: Side, two: Side) -> Array:
        """Pair scores [b] of aligned rows by `config.scorer`."""
        return self.scorer(Side(*one), Side(*two))

    def cache_memory(self, memory: Array) -> Params:
        """Tokens [B,N,D] -> what fusion reads of them, for `score_cached`."""
        return self.fusion.cache_memory(memory)

    def cache_query(self, query: Array, mask: Array) -> Array:
        """Tokens [M,L,D], mask [M,L] -> what fusion starts from, for `score_cached`."""
        return self.fusion.cache_query(query, mask)

    def score_cached(
        self, read: Params, begun: Array, mask: Array, one: Array, two: Array, read_mask: Array | None = None
    ) -> Array:
        """`score` of aligned rows from what `cache_memory` and `cache_query` keep of each side, embeddings [b,E] and masks."""
        return self.scorer.fuse_cached(read, begun, one, two, mask, read_mask)

    def token_logits(self, hidden: Array) -> Array:
        """hidden [...,D] -> logits [...,V] over the output vocabulary (`output_ids`, or all word ids)."""
        table = getattr(self, self.config.fusion.pair[1]).tower.embed["word"]
        return self.vocabulary(hidden, table[jnp.asarray(self.output_ids)] if self.output_ids else table)

    def temperature(self) -> Array:
        """The learned temperature; each update ends inside the configured interval (`projected` in train/step.py).

        The config's where no objective trains it.
        """
        if not self.has_variable("params", "log_temperature"):
            return jnp.float32(self.config.joint.temperature)
        return jnp.exp(self.log_temperature)

    def logit_bias(self) -> Array:
        """The learned bias of the sigmoid loss, a float32 scalar."""
        return self.sigmoid()

    def init_all(self, inputs: dict[str, Array], parts: frozenset[str]) -> None:
        """Run what the objectives use once, so that `init` makes exactly those parameters."""
        raws = {name: self.raw(name, x) for name, x in inputs.items()}
        for name, raw in raws.items():
            getattr(self, name).touch_readers(raw, bool(parts & READERS))
        done = {name: self.joint(name, raw, inputs[name]) for name, raw in raws.items()}
        for name, (_, embed) in done.items():
            if "hash" in parts:
                self.codes(name, embed)
            if "locals" in parts:
                self.locals(name, raws[name])
        memory, asks = self.config.fusion.pair
        self._touch_pairs(done[memory], done[asks], inputs[asks], parts)

    def _touch_pairs(self, memory: tuple, asks: tuple, ids: Array, parts: frozenset[str]) -> None:
        """Run what reads two encoders, or one's words."""
        (tokens, embed), (words, caption) = memory, asks
        if "fusion" in parts:
            self.fuse(tokens, words, real_tokens(ids))
        if "scorer" in parts:
            self.score((tokens, embed), (words, caption, real_tokens(ids)))
        if "match" in parts:
            self.match_logits(words, real_tokens(ids), embed, caption)
        if "decoder" in parts:
            self.decode(tokens, ids)
        if "vocabulary" in parts:
            self.token_logits(words)
        if "sigmoid" in parts:
            self.logit_bias()
        if "bridge" in parts:
            self.bridge_delta(tokens, tokens)
        if "fused" in parts:
            self.fused_embed(words)
        if "joined" in parts:
            self.joined_embed(words, embed, caption)


def init_params(model: CrossModal, key: Array, inputs: dict[str, Array], parts: frozenset[str]) -> Params:
    """Fresh parameters of the encoders, whose `inputs` are batches of one, and of the modules named in `parts`.

    All hash heads start alike: they read one joint space, where what is near in it gets near codes from the first step on.
    """
    params = dict(model.init(key, inputs, parts, method="init_all")["params"])
    if "temperature" not in parts:  # what reads it then, such as the draw of negatives, takes the config's
        del params["log_temperature"]
    if "hash" in parts:
        first = params[next(iter(inputs))]["hash"]
        params |= {name: params[name] | {"hash": jax.tree.map(jnp.copy, first)} for name in list(inputs)[1:]}
    return params
