"""The assembled model: two towers, a joint space, fusion, a captioning decoder and hash heads.

Every method is a pure function through `model.apply({"params": p}, ..., method=name)`; the teacher is the same model on
another tree of parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.config import Config, ImageConfig
from xmodal_jax.models import efficientnet, resnet, vit
from xmodal_jax.models.bert import Bert
from xmodal_jax.models.bridge import Bridge
from xmodal_jax.models.decoder import Decoder
from xmodal_jax.models.efficientnet import EfficientNetLite0
from xmodal_jax.models.features import FeatureTokens
from xmodal_jax.models.fusion import EmbeddingToken, Fusion
from xmodal_jax.models.grid import local_map
from xmodal_jax.models.gru import Gru
from xmodal_jax.models.heads import (
    FusedHead,
    HashHead,
    JoinedHead,
    LogitBias,
    MatchHead,
    Projection,
    TokenHead,
    l2_normalize,
)
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
from xmodal_jax.models.pooling import parse_pool
from xmodal_jax.models.reasoning import SharedEncoder
from xmodal_jax.models.resnet import ResNet
from xmodal_jax.models.tfidf import TfIdf
from xmodal_jax.models.vit import ViT
from xmodal_jax.types import Array, Params


def image_tower(config: Config) -> nn.Module:
    """The image tower that `config.image.kind` names."""
    image = config.image
    if image.kind == "features":
        return FeatureTokens()
    mean, std = pixel_statistics(image)
    reads = dict(mean=mean, std=std, dtype=jnp.dtype(config.dtype))
    if image.kind == "efficientnet":
        return EfficientNetLite0(summarize=True, **reads)
    if image.kind == "resnet":
        return ResNet(image.depth, image.width, remat=image.remat, **reads)
    shape = dict(patch=image.patch, width=image.width, layers=image.layers, heads=image.heads, hidden=image.hidden)
    return ViT(image_size=config.data.image_size, dropout=image.dropout, remat=image.remat, **shape, **reads)


PIXELS = {
    kind: (tower.MEAN, tower.STD)
    for kind, tower in (("vit", vit), ("resnet", resnet), ("efficientnet", efficientnet))
}


def pixel_statistics(image: ImageConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in 0..1 as the image tower reads them: the config's, or the kind's own."""
    mean, std = PIXELS[image.kind]
    return image.pixel_mean or mean, image.pixel_std or std


def text_tower(config: Config) -> nn.Module:
    """The text tower that `config.text.kind` names."""
    text, dtype = config.text, jnp.dtype(config.dtype)
    if text.kind == "tfidf":
        return TfIdf(text.vocab_size, text.hidden, text.dropout, dtype)
    if text.kind == "gru":
        return Gru(text.vocab_size, text.width, text.hidden, text.layers, text.dropout, dtype)
    return Bert(
        vocab_size=text.vocab_size, width=text.width, layers=text.layers, heads=text.heads, hidden=text.hidden,
        positions=text.positions, dropout=text.dropout, remat=text.remat, dtype=dtype,
    )  # fmt: skip


READERS = frozenset({"fusion", "decoder", "bridge"})  # parts that read the tokens that the neck makes


def text_mask(config: Config, ids: Array) -> Array | None:
    """Which of the text tower's tokens of ids [B,L] are real, [B,L]; None where all are (TF-IDF makes one of a text)."""
    return None if config.text.kind == "tfidf" else ids != 0


class Neck(nn.Module):
    """Raw image tokens [B,N,D'] -> what fusion reads [B,N,D]: norm, a dense layer, positions, optional blocks."""

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


class CrossModal(nn.Module):
    """The model of one config. `output_ids` are the word ids that MLM and LM may predict (empty: all)."""

    config: Config
    output_ids: tuple[int, ...] = ()

    def setup(self) -> None:
        image, text, fusion, joint = self.config.image, self.config.text, self.config.fusion, self.config.joint
        self.image = image_tower(self.config)
        self.image_neck = Neck(text.width, image.neck_layers, fusion.heads, text.hidden, image.head_dropout)
        self.image_head = Projection(
            joint.embed,
            image.pool,
            image.head_hidden,
            image.head_dropout,
            image.groups,
            token_hidden=image.token_hidden,
        )
        self.text = text_tower(self.config)
        self.text_head = Projection(
            joint.embed, text.pool, text.head_hidden, text.head_dropout, token_hidden=text.token_hidden
        )
        self.fusion = Fusion(
            text.width, fusion.layers, fusion.heads, fusion.hidden, text.width, fusion.dropout, fusion.remat
        )
        self.image_aggregate = EmbeddingToken(text.width)
        self.text_aggregate = EmbeddingToken(text.width)
        self.decoder = Decoder(text.width, text.layers, fusion.layers)
        self.match = MatchHead(fusion.head_dropout, fusion.agreement)
        self.vocabulary = TokenHead(text.width, len(self.output_ids) or text.vocab_size)
        self.hash_image = HashHead(joint.bits, joint.hash_hidden, joint.hash_kind)
        self.hash_text = HashHead(joint.bits, joint.hash_hidden, joint.hash_kind)
        self.shared = SharedEncoder(
            text.width, joint.shared_layers, joint.shared_heads, joint.shared_hidden, joint.shared_dropout
        )
        self.sigmoid = LogitBias()
        self.bridge = Bridge(self.config.bridge.kind, text.width, fusion.heads, self.config.bridge.hidden)
        self.fused_head = FusedHead(joint.embed)
        self.joined_head = JoinedHead()
        if self.is_initializing() or self.has_variable("params", "log_temperature"):
            self.log_temperature = self.param("log_temperature", lambda _: jnp.log(jnp.float32(joint.temperature)))

    def image_tower(self, image: Array, key: Array | None = None) -> Array:
        """image [B,...] as the tower takes it -> its own tokens [B,N,D']."""
        return self.image(image, key)

    def image_joint(self, raw: Array, key: Array | None = None) -> tuple[Array, Array]:
        """The tower's tokens [B,N,D'] -> tokens [B,N,D] for fusion, unit embedding [B,E].

        Where nothing reads tokens there is no neck, and they are the tower's own. With `config.fusion.aggregated` there is
        one token more, made of the embedding.
        """
        keys = jax.random.split(key) if key is not None else (None, None)
        tokens = self.image_neck(raw, keys[0]) if self.has_variable("params", "image_neck") else raw
        embed = self.embed("image", raw, tokens, None, keys[1])
        if self.has_variable("params", "image_aggregate"):
            tokens = jnp.concatenate([tokens, self.image_aggregate(embed).astype(tokens.dtype)], axis=1)
        return tokens, embed

    def image_locals(self, raw: Array) -> Array:
        """The tower's tokens [B,N,D'] -> unit local features [B,P,E]: grids averaged to at most 4 x 4, no summaries."""
        places = jnp.asarray(local_map(self.config.image, raw.shape[1]))
        features = self.image_head.token_features(raw)
        return l2_normalize(jnp.einsum("pn,bne->bpe", places.astype(features.dtype), features).astype(jnp.float32))

    def text_tower(self, ids: Array, key: Array | None = None) -> Array:
        """ids [B,L] -> tokens [B,L,D]."""
        return self.text(ids, key)

    def text_joint(self, tokens: Array, ids: Array, key: Array | None = None) -> tuple[Array, Array]:
        """The tower's tokens [B,L,D] of ids [B,L] -> tokens [B,L,D] for fusion, unit embedding [B,E].

        With `config.fusion.aggregated` the first token has the embedding added.
        """
        embed = self.embed("text", tokens, tokens, text_mask(self.config, ids), key)
        if self.has_variable("params", "text_aggregate"):
            first = tokens[:, :1] + self.text_aggregate(embed).astype(tokens.dtype)
            tokens = jnp.concatenate([first, tokens[:, 1:]], axis=1)
        return tokens, embed

    def text_locals(self, tokens: Array) -> Array:
        """Tokens [B,L,D] -> unit local features [B,L-1,E] of all but the first, padding too (mask it)."""
        return l2_normalize(self.text_head.token_features(tokens[:, 1:]).astype(jnp.float32))

    def encode_image(self, image: Array) -> tuple[Array, Array]:
        """image [B,...] -> tokens [B,N,D] for fusion, unit embedding [B,E]; no dropout."""
        return self.image_joint(self.image_tower(image))

    def encode_text(self, ids: Array) -> tuple[Array, Array]:
        """ids [B,L] -> tokens [B,L,D], unit embedding [B,E]; no dropout."""
        return self.text_joint(self.text_tower(ids), ids)

    def encode_kept(self, ids: Array, tokens: Array) -> tuple[Array, Array]:
        """`encode_text` of ids [B,L] from the tower's own tokens [B,L,D]."""
        return self.text_joint(tokens.astype(jnp.dtype(self.config.dtype)), ids)

    def fuse(
        self, image: Array, text: Array, mask: Array, rows: Array | None = None, key: Array | None = None
    ) -> Array:
        """image tokens [B,N,D], text tokens [b,L,D], mask [b,L], rows int [b] -> fused tokens [b,L,D]."""
        return self.fusion(image, text, mask, rows, key)

    def decode(self, image: Array, ids: Array, rows: Array | None = None, key: Array | None = None) -> Array:
        """image tokens [B,N,D], ids [b,L] from the start token on -> hidden states [b,L,D]."""
        return self.decoder(self.text, self.fusion, image, ids, rows, key)

    def match_logits(self, fused: Array, mask: Array, image: Array, text: Array, key: Array | None = None) -> Array:
        """fused [b,L,D], mask [b,L], unit embeddings of the pair [b,E] each -> ITM logits [b,2]."""
        return self.match(fused, mask, image, text, key)

    def bridge_delta(self, student: Array, teacher: Array, mask: Array | None = None) -> Array:
        """student and teacher tokens [B,N,D], mask [B,N] -> what the residual attention adds, [B,N,D]."""
        return self.bridge(student, teacher, mask)

    def reembed(self, side: str, raw: Array, tokens: Array, mask: Array | None) -> Array:
        """The head of `side` on the tower's raw tokens [B,N,D'] and other `tokens` [B,N,D] -> unit embedding [B,E]."""
        return self.embed(side, raw, tokens, mask)

    def embed(self, side: str, raw: Array, tokens: Array, mask: Array | None, key: Array | None = None) -> Array:
        """The head of `side` on the tower's raw tokens [B,N,D'] and fusion's [B,N,D] -> unit embedding [B,E].

        Where the side's pool asks for it, the transformer that both sides share reads the tokens first.
        """
        section, head = (self.config.image, self.image_head) if side == "image" else (self.config.text, self.text_head)
        read = None
        if parse_pool(section.pool)[1] == "shared":
            read = self.shared(side, tokens, mask, None if key is None else jax.random.fold_in(key, 4))
        return head(raw, tokens, mask, key, read)

    def fused_embed(self, fused: Array) -> Array:
        """Fused tokens [b,L,D] of a pair -> unit joint embedding [b,E]."""
        return self.fused_head(fused)

    def joined_embed(self, fused: Array, image: Array, text: Array) -> Array:
        """Fused tokens [b,L,D] of a pair and its unit embeddings [b,E] -> unit joint embedding [b,E] among these."""
        return self.joined_head(fused, image, text)

    def caption_tokens(self, image: Array) -> Array:
        """Image tokens [B,N,D] -> those that the decoder reads when captions are written.

        After training there is one encoder, so the bridge of a captioner that was trained with it reads its tokens twice.
        """
        entries = self.config.objectives.items()
        captioners = [fields for name, fields in entries if fields.get("kind", name) == "lm"]
        bridged = any(fields.get("bridge", False) and fields.get("weight", 1.0) != 0 for fields in captioners)
        return image + self.bridge(image, image) if bridged else image

    def score(self, image: tuple[Array, Array], text: tuple[Array, Array], mask: Array) -> Array:
        """Pair score of aligned rows, the ITM log-odds [b], from (tokens, embeddings) of both sides.

        image ([b,N,D], [b,E]), text ([b,L,D], [b,E]), mask [b,L].
        """
        logits = self.match(self.fuse(image[0], text[0], mask), mask, image[1], text[1])
        return logits[:, 1] - logits[:, 0]

    def remember(self, image: Array) -> Params:
        """Image tokens [B,N,D] -> what fusion reads of them, for `score_cached`."""
        return self.fusion.remember(image)

    def begin(self, text: Array, mask: Array) -> Array:
        """Text tokens [M,L,D], mask [M,L] -> what fusion starts from, for `score_cached`."""
        return self.fusion.begin(text, mask)

    def score_cached(self, read: Params, begun: Array, mask: Array, image: Array, text: Array) -> Array:
        """`score` of aligned rows from what `remember` and `begin` keep of each side, and the embeddings [b,E]."""
        logits = self.match(self.fusion.finish(read, begun, mask), mask, image, text)
        return logits[:, 1] - logits[:, 0]

    def token_logits(self, hidden: Array) -> Array:
        """hidden [...,D] -> logits [...,V] over the output vocabulary (`output_ids`, or all word ids)."""
        table = self.text.embed["word"]
        return self.vocabulary(hidden, table[jnp.asarray(self.output_ids)] if self.output_ids else table)

    def hash_image_codes(self, embed: Array) -> Array:
        """Image embeddings [B,E] -> relaxed codes [B,K]."""
        return self.hash_image(embed)

    def hash_text_codes(self, embed: Array) -> Array:
        """Text embeddings [B,E] -> relaxed codes [B,K]."""
        return self.hash_text(embed)

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

    def _touch_readers(self, raw: Array, read: bool) -> None:
        """Make what turns the tower's tokens into those that other parts read, where any do: the passes look for it."""
        if read or parse_pool(self.config.image.pool)[1] in ("attention", "shared"):
            self.image_neck(raw)
        if read and self.config.fusion.aggregated:
            empty = jnp.zeros((1, self.config.joint.embed))
            self.image_aggregate(empty)
            self.text_aggregate(empty)

    def touch(self, image: Array, ids: Array, parts: frozenset[str]) -> Array:
        """Run what the objectives use once, so that `init` makes exactly those parameters."""
        raw = self.image_tower(image)
        self._touch_readers(raw, bool(parts & READERS))
        tokens, embed = self.image_joint(raw)
        words, caption = self.encode_text(ids)
        if "fusion" in parts:
            self.fuse(tokens, words, ids != 0)
        if "match" in parts:
            self.match_logits(words, ids != 0, embed, caption)
        if "decoder" in parts:
            self.decode(tokens, ids)
        if "vocabulary" in parts:
            self.token_logits(words)
        if "hash" in parts:
            self.hash_image_codes(embed)
            self.hash_text_codes(embed)
        if "locals" in parts:
            self.image_locals(raw)
            self.text_locals(words)
        if "sigmoid" in parts:
            self.logit_bias()
        if "bridge" in parts:
            self.bridge_delta(tokens, tokens)
        if "fused" in parts:
            self.fused_embed(words)
        if "joined" in parts:
            self.joined_embed(words, embed, caption)
        return embed


def init_params(model: CrossModal, key: Array, image: Array, ids: Array, parts: frozenset[str]) -> Params:
    """Fresh parameters of the towers and of the modules named in `parts`.

    Both hash heads start alike: they read one joint space, where what is near in it gets near codes from the first step on.
    """
    params = model.init(key, image, ids, parts, method="touch")["params"]
    if "temperature" not in parts:  # what reads it then, such as the draw of negatives, takes the config's
        del params["log_temperature"]
    return params | ({"hash_text": jax.tree.map(jnp.copy, params["hash_image"])} if "hash" in parts else {})
