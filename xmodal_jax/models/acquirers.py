"""MLA's text tower (Zhang et al. 2022): a frozen transformer that learns languages by an embedding and acquirers.

Words of all languages come from one table through a dense layer into the transformer's own width; after each of its
blocks an acquirer of the text's language adds x + W2 relu(W1 x). The blocks are those of a tower that was trained in
one language (`config.init` with `config.init_paths`), so its outputs stay what they are.

An input is a row of L token ids and, last, the place of the language in `languages`; -1, another language, takes the
mean of all acquirers.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.data.config import DataConfig
from xmodal_jax.errors import UserError
from xmodal_jax.models.bert import Bert, BertConfig, padding_mask
from xmodal_jax.models.layers import (
    block_params,
    dense,
    dense_params,
    layer_norm,
    norm_params,
    scan_blocks,
    spread,
    stack_params,
)
from xmodal_jax.models.layers import dropout as dropped
from xmodal_jax.parallel.rules import whole
from xmodal_jax.types import Array, DataFacts, Params


@dataclass(frozen=True)
class AcquirerConfig(BertConfig):
    """A BERT with acquirers of languages. Its `init` is a folder whose word table the multilingual embedding takes."""

    kind: str = "acquirers"
    """Kind of encoder: BERT with acquirers."""
    languages: tuple[str, ...] = ()
    """Languages that have an acquirer; (): those of `config.init`, then those of the field's captions."""
    acquirer: int = limited(192, least=1)
    """Units of each acquirer: half of `width` as in the paper."""
    word_width: int = limited(384, least=1)
    """Width of the word table."""

    lacks: ClassVar[tuple[str, ...]] = ("fusion", "decoder", "vocabulary")
    why: ClassVar[str] = "the last column of its inputs is a language and no token"

    def check(self, where: str) -> None:
        """Refuse languages that come twice, and a cache of tokens that would not follow the acquirers."""
        super().check(where)
        twice = [name for name in self.languages if self.languages.count(name) > 1]
        if twice:
            raise UserError(f"{where}.languages has '{twice[0]}' twice; write it once")
        if self.cache_tokens:
            raise UserError(f"{where}.cache_tokens is True, and its acquirers train; write False")

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """Return shape [L+1] and dtype of a text's ids and language."""
        return (self.length + 1,), "int32"

    def filled(self, name: str, data: DataConfig, facts: DataFacts) -> "AcquirerConfig":
        """Return the config with the size of the vocabulary, and the languages of the data where it names none.

        Raises UserError for captions to train on in a language that it has no acquirers of.
        """
        full = super().filled(name, data, facts)
        assert isinstance(full, AcquirerConfig)
        known = full.languages or data.spoken(name)
        new = [language for language in data.spoken(name) if language not in known]
        if new:
            raise UserError(
                f"config.data has captions in '{new[0]}', and config.encoders.{name} acquirers of {', '.join(known)}; "
                f"to add a language to a run begin another with config.init, else name it in config.encoders.{name}."
                "languages"
            )
        return replace(full, languages=known)

    def mask(self, x: Array) -> Array | None:
        """Return the mask bool [B,L] of real tokens among ids and language [B,L+1]."""
        return super().mask(x[:, :-1])

    def module(self, dtype: jnp.dtype) -> "Acquirers":
        """Build the tower."""
        names = ("vocab_size", "width", "layers", "heads", "hidden", "positions", "dropout", "eps", "remat")
        own = {name: getattr(self, name) for name in (*names, "acquirer", "word_width")}
        return Acquirers(**own, languages=len(self.languages), dtype=dtype)


def word_params(key: Array, vocab_size: int, positions: int, width: int, word_width: int) -> Params:
    """Draw the word table [V,W], its dense layer W -> D, position [P,D] and segment [2,D] tables, and the LayerNorm."""
    word, project, position, segment = jax.random.split(key, 4)
    return {
        "word": 0.02 * jax.random.normal(word, (vocab_size, word_width)),
        "project": dense_params(project, word_width, width, word_width**-0.5),
        "position": 0.02 * jax.random.normal(position, (positions, width)),
        "type": 0.02 * jax.random.normal(segment, (2, width)),
        "norm": norm_params(width),
    }


def acquirer_params(key: Array, languages: int, layers: int, width: int, units: int) -> Params:
    """Draw acquirers with leading axes [languages, layers]; W2 is zero, so that at first they add nothing."""
    down = stack_params(key, languages, lambda one: stack_params(one, layers, lambda k: dense_params(k, width, units)))
    up = {"kernel": jnp.zeros((languages, layers, units, width)), "bias": jnp.zeros((languages, layers, width))}
    return {"down": down, "up": up}


def by_layer(leaf: Array) -> Array:
    """Bring a leaf [languages, layers, ...] to [layers, languages + 1, ...]; the last language is the mean of all."""
    return jnp.swapaxes(jnp.concatenate([leaf, leaf.mean(0, keepdims=True)]), 0, 1)


def acquired(params: Params, x: Array, language: Array) -> Array:
    """Add the acquirers' part to x [B,L,D]: x + W2 relu(W1 x) with the weights of each row's `language` int [B].

    params: those of one layer, with a leading axis of languages; -1 is the last.
    """

    def layer(part: Params, x: Array) -> Array:
        kernel, bias = (part[name][language].astype(x.dtype) for name in ("kernel", "bias"))
        return jnp.einsum("bld,bdh->blh", x, kernel) + bias[:, None]

    return x + layer(params["up"], jax.nn.relu(layer(params["down"], x)))


class Acquirers(Bert):
    """The tower: ids and language [B,L+1] -> tokens [B,L,D]; without languages a BERT with another word table."""

    acquirer: int = 192
    word_width: int = 384
    languages: int = 0

    def setup(self) -> None:
        """Create the embedding tables, the stack of blocks, and the acquirers."""
        width, hidden = self.width, self.hidden
        self.embed = self.param("embed", word_params, self.vocab_size, self.positions, width, self.word_width)
        self.stack = self.param("layers", stack_params, self.layers, lambda key: block_params(key, width, hidden))
        self.acquirers = self.param("acquirers", acquirer_params, self.languages, self.layers, width, self.acquirer)

    def embed_tokens(self, ids: Array, key: Array | None = None) -> Array:
        """Map ids [B,L] to the normalised sum of projected word, position and segment embeddings [B,L,D]."""
        tables = self.embed
        x = dense(tables["project"], whole(tables["word"])[ids])
        x = x + spread(tables["position"][: ids.shape[1]], x) + spread(tables["type"][0], x)
        return dropped(layer_norm(tables["norm"], x, self.eps).astype(self.dtype), self.dropout, key)

    def __call__(self, ids: Array, key: Array | None = None) -> Array:
        """Encode ids and language [B,L+1] as tokens [B,L,D]; `key` turns dropout on."""
        ids, language = ids[:, :-1], ids[:, -1]
        embed_key, stack_key = jax.random.split(key) if key is not None else (None, None)
        stack = {**self.stack, "acquirer": jax.tree.map(by_layer, self.acquirers)}

        def after(params: Params, x: Array) -> Array:
            return acquired(params["acquirer"], x, language)

        x = self.embed_tokens(ids, embed_key)
        return scan_blocks(self.style, stack, x, padding_mask(ids), key=stack_key, after=after)
