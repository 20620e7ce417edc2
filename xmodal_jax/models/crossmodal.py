"""The assembled model: an encoder for each entry of `config.encoders`, a joint space, fusion, a captioning decoder.

Every method is a pure function through `model.apply({"params": p}, ..., method=name)`; the teacher is the same model
with another tree of parameters.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.bridge import Bridge
from xmodal_jax.models.decoder import Decoder
from xmodal_jax.models.encoder import Encoder
from xmodal_jax.models.fusion import Fusion
from xmodal_jax.models.heads import AnswerHead, Classifier, FusedHead, JoinedHead, LogitBias, MatchHead, TokenHead
from xmodal_jax.models.pair_score import ScorerConfig, Side, every_pair
from xmodal_jax.models.pooling import parse_pool
from xmodal_jax.models.reasoning import SharedEncoder
from xmodal_jax.settings import Config
from xmodal_jax.types import Array, Params

CLASSIFIER, START = "classifier", "start"
READERS = frozenset({"fusion", "decoder", "bridge"})  # parts that read the neck's tokens; a scorer tells itself


def classifier_part(target: str, field: str = "") -> str:
    """Return the part of a classifier onto `target`: that of the encoder of `field`, or the one of all encoders."""
    return f"{CLASSIFIER}:{target}:{field}"


def classified(parts: frozenset[str]) -> list[tuple[str, str]]:
    """Return (target, field) of each classifier among the parts of a model, sorted; the field "" is that of all."""
    found = sorted(part.split(":") for part in parts if part.startswith(f"{CLASSIFIER}:"))
    return [(target, field) for _, target, field in found]


def start_part(field: str) -> str:
    """Return the part of start embeddings by language, for the captions of a field."""
    return f"{START}:{field}"


def started(parts: frozenset[str]) -> list[str]:
    """Return the fields whose captions begin by language, among the parts of a model, sorted."""
    return sorted(part.removeprefix(f"{START}:") for part in parts if part.startswith(f"{START}:"))


class CrossModal(nn.Module):
    """The model of one config.

    `output_ids` are the word ids that MLM and LM may predict (empty: all), `classes` the outputs of the classifiers,
    (target, C) each; those of the target "labels" are the answers to questions too. `starts` are the languages that
    captions are begun in, each by an embedding of its own (empty: captions of all languages begin alike).
    """

    config: Config
    output_ids: tuple[int, ...] = ()
    classes: tuple[tuple[str, int], ...] = ()
    starts: tuple[str, ...] = ()

    def setup(self) -> None:
        """Create all submodules; flax makes parameters only of those that `init_all` runs."""
        encoders, fusion, joint = self.config.encoders, self.config.fusion, self.config.joint
        for name, own in encoders.items():
            setattr(self, name, Encoder(own, fusion, joint, self.config.dtype, name == fusion.pair[1]))
        asks, width = self.config.asking, fusion.width
        self.fusion = Fusion(width, fusion.layers, fusion.heads, fusion.hidden, width, fusion.dropout, fusion.remat)
        self.decoder = Decoder(width, getattr(asks, "layers", 1), fusion.layers, len(self.starts))
        self.match = MatchHead(fusion.head_dropout, fusion.agreement)
        self.vocabulary = TokenHead(width, len(self.output_ids) or asks.vocab_size)
        self.scorer = self.pair_score.built(width, joint.embed, self.fusion, self.match)
        self.shared = SharedEncoder(
            tuple(encoders), width, joint.shared_layers, joint.shared_heads, joint.shared_hidden, joint.shared_dropout
        )
        self.classifier = Classifier(self.classes)
        self.answer = AnswerHead(dict(self.classes).get("labels", 0), fusion.head_dropout)
        self.sigmoid = LogitBias()
        self.bridge = Bridge(self.config.bridge.kind, width, fusion.heads, self.config.bridge.hidden)
        self.fused_head = FusedHead(joint.embed)
        self.joined_head = JoinedHead()
        if self.is_initializing() or self.has_variable("params", "log_temperature"):
            self.log_temperature = self.param("log_temperature", lambda _: jnp.log(jnp.float32(joint.temperature)))

    @property
    def pair_score(self) -> ScorerConfig:
        """The config of the scorer."""
        assert isinstance(self.config.scorer, ScorerConfig), "`build_scorer` has made the config's dict one"
        return self.config.scorer

    def raw(self, encoder: str, x: Array, key: Array | None = None) -> Array:
        """Return the encoder's own tower tokens [B,N,D'] of the input x [B,...]."""
        return getattr(self, encoder).raw(x, key)

    def joint(self, encoder: str, raw: Array, x: Array, key: Array | None = None) -> tuple[Array, Array]:
        """Map tower tokens [B,N,D'] of the input x to tokens [B,N,D] for fusion and unit embeddings [B,E].

        With `config.fusion.aggregated` the embedding is among the tokens.
        """
        own = getattr(self, encoder)
        mask = self.config.encoders[encoder].mask(x)
        tokens, key = own.neck_tokens(raw, key, mask)
        embed = self.embed(encoder, raw, tokens, mask, key)
        return own.with_embedding(tokens, embed), embed

    def locals(self, encoder: str, raw: Array) -> Array:
        """Map tower tokens [B,N,D'] to unit local features [B,P,E]; see `Encoder.locals`."""
        return getattr(self, encoder).locals(raw)

    def encode(self, encoder: str, x: Array) -> tuple[Array, Array]:
        """Encode the input x [B,...] as tokens [B,N,D] for fusion and unit embeddings [B,E], without dropout."""
        return self.joint(encoder, self.raw(encoder, x), x)

    def encode_cached(self, encoder: str, x: Array, tokens: Array) -> tuple[Array, Array]:
        """Encode x as `encode` does, from stored tower tokens [B,N,D']."""
        return self.joint(encoder, tokens.astype(jnp.dtype(self.config.dtype)), x)

    def codes(self, encoder: str, embed: Array) -> Array:
        """Map embeddings [B,E] to relaxed codes [B,K]."""
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
        """Fuse query tokens [b,L,D] with memory tokens [B,N,D] -> [b,L,D]; masks [b,L] and [B,N], `rows` int [b]."""
        return self.fusion(memory, query, mask, rows, key, memory_mask)

    def decode(
        self,
        memory: Array,
        ids: Array,
        rows: Array | None = None,
        key: Array | None = None,
        memory_mask: Array | None = None,
        language: Array | None = None,
    ) -> Array:
        """Return hidden states [b,L,D] for ids [b,L], start token first, over memory tokens [B,N,D], mask [B,N].

        `language` int [b] is the place of each row's language in `starts`.
        """
        tower = getattr(self, self.config.fusion.pair[1]).tower
        return self.decoder(tower, self.fusion, memory, ids, rows, key, memory_mask, language)

    def match_logits(self, fused: Array, mask: Array, image: Array, text: Array, key: Array | None = None) -> Array:
        """Return ITM logits [b,2] from fused tokens [b,L,D], their mask [b,L] and both unit embeddings [b,E]."""
        return self.match(fused, mask, image, text, key)

    def bridge_delta(self, student: Array, teacher: Array, mask: Array | None = None) -> Array:
        """Return the residual attention's addition [B,N,D] for student and teacher tokens [B,N,D], mask [B,N]."""
        return self.bridge(student, teacher, mask)

    def embed(self, encoder: str, raw: Array, tokens: Array, mask: Array | None, key: Array | None = None) -> Array:
        """Apply the encoder's head to tower tokens [B,N,D'] and fusion's tokens [B,N,D] -> unit embeddings [B,E].

        A "+shared" pool first runs the transformer that all encoders share over the tokens.
        """
        read = None
        if parse_pool(self.config.encoders[encoder].pool)[1] == "shared":
            read = self.shared(encoder, tokens, mask, None if key is None else jax.random.fold_in(key, 4))
        return getattr(self, encoder).embed(raw, tokens, mask, key, read)

    def fused_embed(self, fused: Array) -> Array:
        """Map fused tokens [b,L,D] of a pair to its unit joint embedding [b,E]."""
        return self.fused_head(fused)

    def joined_embed(self, fused: Array, image: Array, text: Array) -> Array:
        """Map fused tokens [b,L,D] and a pair's unit embeddings [b,E] to a joint one [b,E] in the same space."""
        return self.joined_head(fused, image, text)

    def bridged_tokens(self, tokens: Array) -> Array:
        """Return the tokens [B,N,D] that a captioner trained through the bridge reads when it writes captions.

        After training there is one encoder, so the bridge reads its tokens twice.
        """
        return tokens + self.bridge(tokens, tokens)

    def score(self, one: Side, two: Side) -> Array:
        """Return pair scores [b] of aligned rows by `config.scorer`."""
        return self.scorer(Side(*one), Side(*two))

    def prepare_side(self, side: Side, first: bool, key: Array | None = None) -> Any:
        """Do the scorer's work on one side of pairs, the `first` or the second; `key` turns its dropout on.

        A tree of arrays with rows on the first axis: `Prepared`, or of a scorer that is not split the side itself.
        """
        return self.scorer.prepare(Side(*side), first, key) if self.pair_score.split else Side(*side)

    def score_prepared(self, one: Any, two: Any) -> Array:
        """Return the scores [b] of aligned rows of two sides from `prepare_side`."""
        return self.scorer.aligned(one, two) if self.pair_score.split else self.scorer(one, two)

    def score_pairwise(self, one: Any, two: Any) -> Array:
        """Return the scores [b,M] of all pairs of b and M rows of two sides from `prepare_side`."""
        if self.pair_score.split:
            return self.scorer.pairwise(one, two)
        return self.scorer(*every_pair(one, two)).reshape(len(one.embed), len(two.embed))

    def token_logits(self, hidden: Array) -> Array:
        """Map hidden states [...,D] to logits [...,V] over the output vocabulary (`output_ids`, or all word ids)."""
        table = getattr(self, self.config.fusion.pair[1]).tower.embed["word"]
        return self.vocabulary(hidden, table[jnp.asarray(self.output_ids)] if self.output_ids else table)

    def temperature(self) -> Array:
        """Return the learned temperature, or the config's if no objective trains it.

        Each update keeps it inside the configured interval (`projected` in training/step.py).
        """
        if not self.has_variable("params", "log_temperature"):
            return jnp.float32(self.config.joint.temperature)
        return jnp.exp(self.log_temperature)

    def classify(self, embed: Array, target: str, encoder: str = "") -> Array:
        """Map embeddings [B,E] to float32 logits [B,C] of `target`, by the classifier of an encoder ("": of all)."""
        return self.classifier(embed, target, encoder)

    def answer_logits(self, fused: Array, key: Array | None = None) -> Array:
        """Map fused tokens [b,L,D] of a picture and a question to float32 logits [b,C] of the labels."""
        return self.answer(fused, key)

    def logit_bias(self) -> Array:
        """Return the learned bias of the sigmoid loss, a float32 scalar."""
        return self.sigmoid()

    def init_all(self, inputs: dict[str, Array], parts: frozenset[str]) -> None:
        """Run each module that the objectives use once, so that `init` creates exactly their parameters."""
        raws = {name: self.raw(name, x) for name, x in inputs.items()}
        reads = bool(parts & READERS) or "scorer" in parts and self.pair_score.reads_tokens
        for name, raw in raws.items():
            getattr(self, name).touch_readers(raw, reads)
        done = {name: self.joint(name, raw, inputs[name]) for name, raw in raws.items()}
        for name, (_, embed) in done.items():
            if "hash" in parts:
                self.codes(name, embed)
            if "locals" in parts:
                self.locals(name, raws[name])
        fields = self.config.data.fields
        owners = {(target, fields[field].encoder if field else "") for target, field in classified(parts)}
        for target, encoder in sorted(owners):
            self.classify(done[encoder or next(iter(done))][1], target, encoder)
        memory, asks = self.config.fusion.pair
        self._touch_pairs(done[memory], done[asks], inputs[asks], parts)

    def _touch_pairs(self, memory: tuple, asks: tuple, ids: Array, parts: frozenset[str]) -> None:
        """Run the modules in `parts` that read two encoders, or the words of one."""
        (tokens, embed), (words, caption) = memory, asks
        mask = self.config.asking.mask(ids)
        if "fusion" in parts:
            self.fuse(tokens, words, mask)
        if "scorer" in parts:
            self.score(Side(tokens, embed), Side(words, caption, mask))
        if "match" in parts:
            self.match_logits(words, mask, embed, caption)
        if "answer" in parts:
            self.answer_logits(words)
        if "decoder" in parts:
            self.decode(tokens, ids, language=jnp.zeros(len(ids), jnp.int32) if self.starts else None)
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
    """Draw parameters of the encoders, whose `inputs` are batches of one, and of the modules named in `parts`.

    All hash heads start alike: they read one joint space, where neighbours then get similar codes from the
    first step on.
    """
    params: Params = dict(model.init(key, inputs, parts, method="init_all")["params"])
    if "temperature" not in parts:  # its readers, such as the draw of negatives, then take the config's
        del params["log_temperature"]
    if "hash" in parts:
        first = params[next(iter(inputs))]["hash"]
        for name in list(inputs)[1:]:
            params[name] = {**params[name], "hash": jax.tree.map(jnp.copy, first)}
    return params
