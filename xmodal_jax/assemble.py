"""From a config to what runs: tokenizer, model, objectives and starting parameters."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax import __version__
from xmodal_jax.checks import refuse_unbridged, refuse_unserved
from xmodal_jax.config_file import freeze
from xmodal_jax.data.card import CARD_FILE, OF_PICTURES, Card, is_padded
from xmodal_jax.data.readers import InputSpec, Specs
from xmodal_jax.data.split import split_captions
from xmodal_jax.data.text import VOCABULARY, Tokenizer, load_tokenizer, used_ids
from xmodal_jax.errors import UserError
from xmodal_jax.models.crossmodal import CrossModal, classified, init_params, started
from xmodal_jax.models.efficientnet import STRIDE, WIDTH
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.grid import pooling_groups
from xmodal_jax.models.tfidf import inverse_document_frequency
from xmodal_jax.models.words import WordConfig
from xmodal_jax.objectives import build_objectives, fit_objectives, parts
from xmodal_jax.objectives.base import Objective
from xmodal_jax.origin import Origin
from xmodal_jax.settings import Config, as_dict
from xmodal_jax.types import Array, CacheFacts, DataFacts, Params, Vocabulary
from xmodal_jax.weights import with_pixel_statistics


@dataclass(frozen=True)
class Assembly:
    """A resolved config and the objects it names."""

    config: Config
    tokenizers: Mapping[str, Tokenizer]  # of each encoder of words
    model: CrossModal
    objectives: dict[str, Objective]
    facts: DataFacts
    caches: Mapping[str, tuple[dict[str, Any], ...]] = dataclasses.field(default_factory=dict)  # see `caches_of`
    parts: frozenset[str] = frozenset()  # the modules of the model that its objectives use
    hardness: float = 1.0  # of the negatives that its matching head was trained on
    origin: Origin | None = None  # of a run that was opened: what it was trained on
    answers: tuple[str, ...] = ()  # names of the labels, where its model answers questions

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the encoder that asks in fusion, in whose words captions are written."""
        return self.tokenizers[self.config.fusion.pair[1]]

    @property
    def specs(self) -> Specs:
        """The input of each encoder."""
        encoders = self.config.encoders
        return {
            name: InputSpec(
                own.extent,
                self.tokenizers.get(name),
                own.reads == "tokens",
                own.languages,
                self.model.starts,
                own.input(self.facts.of(name))[0],
                form=own.form,
            )
            for name, own in encoders.items()
        }

    def example(self) -> dict[str, Array]:
        """Return a batch of one for each encoder, zeros, as `init` wants them."""
        return {name: self._example(name, own) for name, own in self.config.encoders.items()}

    def _example(self, name: str, own: EncoderConfig) -> Array:
        """Return a batch of one for an encoder."""
        shape, dtype = own.input(self.facts.of(name))
        zeros = jnp.zeros((1, *shape), dtype)
        return zeros.at[0, 0].set(self.tokenizers[name].cls_id) if own.reads == "words" else zeros

    def describe(self) -> dict[str, Any]:
        """Return the description that run.json keeps, so that the weights can be used without the training data."""
        return {
            "config": as_dict(self.config),
            "output_ids": list(self.model.output_ids),
            "classes": [list(own) for own in self.model.classes],
            "starts": list(self.model.starts),
            "tokens": {name: list(own.tokens) for name, own in self.facts.caches.items()},
            "caches": {field: list(own) for field, own in self.caches.items()},
            "parts": sorted(self.parts),
            "hardness": self.hardness,
            "answers": list(self.answers),
        }

    @property
    def own_tokenizers(self) -> dict[str, Tokenizer]:
        """Tokenizers of no installed package, by the names of their files in a run's folder: the weights need them."""
        return {
            tokenizer_file(name): own
            for name, own in self.tokenizers.items()
            if self.config.encoders[name].tokenizer != "minilm"
        }


def tokenizer_file(encoder: str) -> str:
    """Return the name of the file that a run keeps the tokenizer of an encoder in."""
    return f"tokenizer-{encoder}.json"


def words_of(config: Config) -> dict[str, WordConfig]:
    """Return the encoders of words."""
    return {name: own for name, own in config.encoders.items() if own.reads == "words"}


Vocabularies = dict[str, Vocabulary]  # of each encoder of words


def data_facts(config: Config, card: "Card | NamedCaches", vocabularies: Vocabularies, **more: Any) -> DataFacts:
    """Return the facts of a data set with this card that the program of `config` depends on."""
    fields = config.data.fields.items()
    return DataFacts(
        caches=cache_facts(config, card),
        vocabularies={name: vocabularies[own.encoder] for name, own in fields if own.encoder in vocabularies},
        **more,
    )


def cache_facts(config: Config, card: "Card | NamedCaches") -> dict[str, CacheFacts]:
    """Return what the feature caches give to each encoder that reads some.

    Raises UserError for caches of several widths, and for fields of one encoder whose caches differ in shape.
    """
    found, data = {}, config.data
    for encoder, own in config.encoders.items():
        fields = data.fields_of(encoder) if own.reads == "tokens" else ()
        told = {field: _joined(data.caches_of(data.fields[field]), card) for field in fields}
        for field, facts in told.items():
            if facts != found.setdefault(encoder, facts):
                raise UserError(
                    f"config.data.fields.{field}.features give {facts.tokens} tokens, and those of another field of "
                    f"config.encoders.{encoder} {found[encoder].tokens}; write an encoder for each"
                )
    return found


def _joined(names: tuple[str, ...], card: "Card | NamedCaches") -> CacheFacts:
    """Return what some caches give together; UserError if their widths differ."""
    caches = [OF_PICTURES | card.feature(name) for name in names]
    widths = sorted({cache["width"] for cache in caches})
    if len(widths) >= 2:
        raise UserError(
            f"the caches {', '.join(names)} have widths {widths}; name caches of one tower in config.data.features"
        )
    padded = any(is_padded(cache) for cache in caches)
    groups = [
        (cache["tokens"],) if is_padded(cache) else pooling_groups(cache["tower"], cache["tokens"]) for cache in caches
    ]
    return CacheFacts((sum(cache["tokens"] for cache in caches), widths[0]), sum(groups, ()), padded)


def caches_of(config: Config, card: Card) -> dict[str, tuple[dict[str, Any], ...]]:
    """Return what made each feature cache of each field that reads some, for queries that are not in it."""
    names = {
        field: config.data.caches_of(own)
        for field, own in config.data.fields.items()
        if config.encoders[own.encoder].reads == "tokens"
    }
    kept = ("tower", "size", *OF_PICTURES)
    return {
        field: tuple({key: value for key, value in card.feature(name).items() if key in kept} for name in own)
        for field, own in names.items()
    }


def facts_of(config: Config, card: Card, vocabularies: Vocabularies) -> DataFacts:
    """Return the facts of a data set that is there."""
    entry = card.split(config.data.split)
    records, spoken = entry["records"], set(config.data.unit_languages)
    own = sum(count for language, count in entry["languages"].items() if language in spoken)
    stored = card.embedding(config.data.embeddings) if config.data.embeddings else {"width": 0, "media": []}
    return data_facts(
        config,
        card,
        vocabularies,
        records=records,
        pairs=entry["captions"],
        labels=len(card.label_names),
        concepts=len(card.concept(config.data.concepts)["names"]) if config.data.concepts else 0,
        teacher=stored["width"],
        teacher_media=tuple(stored["media"]),
        steps_per_epoch=(own if config.data.unit == "pair" else records) / config.batch_size,
    )


def resolve(config: Config, facts: DataFacts) -> Config:
    """Return the config with what the tokenizer and the data card decide filled in; a contradiction is a UserError."""
    filled = {name: own.filled(name, config.data, facts.of(name)) for name, own in config.encoders.items()}
    return dataclasses.replace(config, encoders=filled)


def assemble(config: Config) -> Assembly:
    """Return everything that a training run of `config` needs besides batches."""
    if not config.data.path:
        raise UserError("config.data.path is empty; write the folder made by `xmodal data prepare`")
    card = Card.load(config.data.path)
    data = config.data
    tokenizers = {
        name: load_tokenizer(own.tokenizer, data.path, data.spoken(name) or data.languages)
        for name, own in words_of(config).items()
    }
    facts = facts_of(config, card, {name: vocabulary_of(own) for name, own in tokenizers.items()})
    config = with_pixel_statistics(resolve(config, facts))
    output: tuple[int, ...] = ()
    if not config.asking.necked and config.asking.output_vocab == "train":
        captions = split_captions(data.path, data.split, data.spoken(config.fusion.pair[1]))
        output = tuple(int(i) for i in used_ids(tokenizers[config.fusion.pair[1]], captions))
    return _assembly(config, tokenizers, output, facts, caches_of(config, card), tuple(card.label_names))


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Return the size and the special ids of a tokenizer."""
    return Vocabulary(tokenizer.vocab_size, tokenizer.cls_id, tokenizer.mask_id, tokenizer.bos_id)


BERT_VOCABULARY = 30522
PLANNED_LABELS = 32  # label names, where an objective reads them and no data set says how many there are
PLANNED_CONCEPTS = 300  # those of `xmodal data concepts` unless told otherwise


def assemble_without_data(config: Config) -> Assembly:
    """Return the assembly for planning: the same program as `assemble` gives, without a data set, tokenizer or weights.

    A data card that exists is used. Else the vocabulary is the encoder's `vocab_size`, or BERT's for "minilm", or the
    largest that "data" builds; the feature caches are those of the tower that their names tell. Language heads take the
    whole vocabulary, which is the most they can need.
    """
    path, sizes = pathlib.Path(config.data.path or ".") / CARD_FILE, {"minilm": BERT_VOCABULARY, "data": VOCABULARY}
    vocabularies = {
        name: Vocabulary(own.vocab_size or sizes.get(own.tokenizer, 0) or load_tokenizer(own.tokenizer).vocab_size)
        for name, own in words_of(config).items()
    }
    if config.data.path and path.is_file():
        facts = facts_of(config, Card.load(path.parent), vocabularies)
    else:
        labelled = any("labels" in item.reads for item in build_objectives(config.objectives).values())
        media = tuple({own.medium for own in config.data.fields.values()})
        counts = {"labels": PLANNED_LABELS if labelled else 0}
        counts["concepts"] = PLANNED_CONCEPTS if config.data.concepts else 0
        facts = data_facts(config, NamedCaches(), vocabularies, **counts, teacher_media=media)
    return _assembly(resolve(config, facts), vocabularies, (), facts, {})


REGIONS: dict[str, Any] = {"tower": "regions", "size": 0, "tokens": 36, "width": 2048}  # as published with SCAN
NAMED_CACHE = re.compile(r"lite0-(?P<size>\d+)(-(?P<medium>\w+)-(?P<parts>\d+))?")
SOUND_CACHE = re.compile(r"(?P<tower>whisper-tiny\.en|whisper-base|aisfx)-(?P<medium>\w+)-(?P<parts>\d+)")
SOUND_TOKENS = {"whisper-tiny.en": (60, 384), "whisper-base": (60, 512), "aisfx": (1, 512)}  # of a piece, and width


class NamedCaches:
    """Stands in for a data card: `xmodal data features` names a cache after its tower and input size.

    `xmodal data prepare scan` calls its one "regions".
    """

    def feature(self, name: str) -> dict[str, Any]:
        """Return the entry of a cache, such as "lite0-224", of clips "lite0-128-video-12", "aisfx-audio-12"."""
        if name == REGIONS["tower"]:
            return REGIONS
        if heard := SOUND_CACHE.fullmatch(name):
            (count, width), parts = SOUND_TOKENS[heard["tower"]], int(heard["parts"])
            return {**heard.groupdict(), "size": 0, "parts": parts, "tokens": count * parts, "width": width}
        found = NAMED_CACHE.fullmatch(name)
        if found is None:
            raise UserError(
                f"there is no data set to tell the shape of the features '{name}'; "
                "write config.data.path, or names such as 'lite0-224'"
            )
        if found["medium"]:
            parts = int(found["parts"])
            told = {"tower": "lite0", "medium": found["medium"], "parts": parts, "tokens": parts}
            return told | {"width": 2 * WIDTH}  # grid and summary
        return {"tower": "lite0", "tokens": math.ceil(int(found["size"]) / STRIDE) ** 2 + 1, "width": WIDTH}


def reassemble(description: dict[str, Any], workdir: pathlib.Path) -> Assembly:
    """Return the assembly of a finished run from its run.json (see `Assembly.describe`); it has no objectives.

    They may be a user's own, of a file that is gone: what is trained is used without them.
    """
    config = freeze(description["config"])
    tokenizers = {}
    for name, own in words_of(config).items():
        kept = workdir / tokenizer_file(name)
        tokenizers[name] = load_tokenizer("minilm" if own.tokenizer == "minilm" else str(kept))
        found = tokenizers[name].vocab_size
        if found != own.vocab_size:
            raise UserError(f"'{kept}' has {found} ids and the model {own.vocab_size}; restore the file")
    classes = tuple((target, count) for target, count in description.get("classes", ()))
    starts = tuple(description.get("starts", ()))
    model = CrossModal(config, tuple(description["output_ids"]), classes, starts)
    facts = _kept_facts(description["tokens"])
    used, hardness = frozenset(description["parts"]), description["hardness"]
    caches, answers = _kept_caches(config, description["caches"]), tuple(description.get("answers", ()))
    return Assembly(config, tokenizers, model, {}, facts, caches, used, hardness, answers=answers)


def _kept_facts(tokens: Any) -> DataFacts:
    """Return the facts in run.json: the tokens of each encoder of caches, or in an older run of the only one."""
    if isinstance(tokens, list):
        return DataFacts(tokens=tuple(tokens))
    return DataFacts(caches={name: CacheFacts(tuple(own)) for name, own in tokens.items()})


def _kept_caches(config: Config, caches: Any) -> dict[str, tuple[dict[str, Any], ...]]:
    """Return the caches in run.json by field; those of an older run are of all its fields of cached tokens."""
    if isinstance(caches, dict):
        return {field: tuple(own) for field, own in caches.items()}
    fields = config.data.fields.items()
    return {field: tuple(caches) for field, own in fields if config.encoders[own.encoder].reads == "tokens"}


def _assembly(
    config: Config,
    tokenizers: Mapping[str, Any],
    output: tuple[int, ...],
    facts: DataFacts,
    caches: Mapping[str, tuple[dict[str, Any], ...]],
    labels: tuple[str, ...] = (),
) -> Assembly:
    """Return the assembly of a resolved config; for planning `tokenizers` holds vocabularies."""
    objectives = build_objectives(config.objectives, config.batch_size)
    facts = dataclasses.replace(facts, starts=starts_of(parts(objectives), config))
    objectives = fit_objectives(objectives, config, facts)
    refuse_unbridged(config, {name: item.parts for name, item in objectives.items()})
    refuse_unserved(config, objectives)
    drawn = [item.hardness for item in objectives.values() if item.hardness is not None]
    hardness = drawn[0] if drawn and drawn[0] else 1.0
    used = parts(objectives)
    model = CrossModal(config, output, classes_of(used, facts), facts.starts)
    answers = labels if "answer" in used else ()
    return Assembly(config, tokenizers, model, objectives, facts, caches, used, hardness, answers=answers)


def classes_of(used: frozenset[str], facts: DataFacts) -> tuple[tuple[str, int], ...]:
    """Return (target, C) of each target that the classifiers among the parts of a model tell; answers are labels."""
    counts = {"labels": facts.labels, "concepts": facts.concepts}
    told = {target for target, _ in classified(used)} | ({"labels"} if "answer" in used else set())
    return tuple((target, counts[target]) for target in sorted(told))


def starts_of(used: frozenset[str], config: Config) -> tuple[str, ...]:
    """Return the languages that captions are begun in, those of the fields that the parts of a model name."""
    known = [field for field in started(used) if field in config.data.fields]
    return tuple(dict.fromkeys(language for field in known for language in config.data.languages_in(field)))


def document_frequencies(assembly: Assembly) -> dict[str, np.ndarray]:
    """Return {"text/tower/idf": float32 [V]} of the training captions where the text tower is TF-IDF; else {}."""
    config, found = assembly.config, {}
    for name, own in config.encoders.items():
        if own.kind == "tfidf":
            captions = split_captions(config.data.path, config.data.split, config.data.spoken(name))
            tokenizer = assembly.tokenizers[name]
            ids = tokenizer.encode(captions, own.length)
            found[f"{name}/tower/idf"] = inverse_document_frequency(ids, own.vocab_size, tokenizer.special_ids)
    return found


def start_params(
    assembly: Assembly, key: Array, found: dict[str, Any], rows: dict[str, tuple[Any, Any]] | None = None
) -> Params:
    """Make fresh parameters with the pretrained leaves in place; traceable, so it runs under jit with shardings.

    The decoder's self-attention starts as a copy of the text tower's when that is pretrained and the decoder is not.

    Args:
      assembly: what the parameters are for.
      key: random key of the leaves that start anew.
      found: {path: array} of pretrained leaves.
      rows: {path: (ids int32 [N], rows [N,D])} of rows that are set in leaves [V,D].
    """
    params = init_params(assembly.model, key, assembly.example(), assembly.parts)
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    blocks = f"{assembly.config.fusion.pair[1]}/tower/layers/attention/"
    copied = {
        f"decoder/text_attention/{path.removeprefix(blocks)}": leaf
        for path, leaf in found.items()
        if path.startswith(blocks)
    }
    for path, leaf in ({path: leaf for path, leaf in copied.items() if path in flat} | found).items():
        if path not in flat or flat[path].shape != leaf.shape:
            have = flat[path].shape if path in flat else "nothing"
            raise UserError(
                f"the pretrained weights have '{path}' {tuple(leaf.shape)} where the config makes {have}; "
                "set the tower's width, layers, depth, hidden, positions and tokenizer as the weights need"
            )
        flat[path] = jnp.asarray(leaf, jnp.float32)
    for path, (ids, own) in (rows or {}).items():
        flat[path] = flat[path].at[ids].set(own)
    return unflatten_dict(flat, sep="/")


def abstract_params(assembly: Assembly) -> Params:
    """Return the shapes of the parameters; nothing is allocated."""
    return jax.eval_shape(
        lambda key: init_params(assembly.model, key, assembly.example(), assembly.parts), jax.random.key(0)
    )


WEIGHTS = ("encoders", "fusion", "scorer", "bridge", "joint")  # sections of the config that say which weights there are


def weights_digest(assembly: Assembly) -> str:
    """Return a digest of what decides which parameters there are, and of their shapes."""
    told = assembly.describe()
    own = {name: told["config"][name] for name in WEIGHTS}
    own |= {name: told[name] for name in ("output_ids", "classes", "starts", "parts")}
    return hashlib.sha256(json.dumps([__version__, own], sort_keys=True).encode()).hexdigest()


def describe_weights(assembly: Assembly, params: Params) -> dict[str, Any]:
    """Return what run.json keeps of the shapes of parameters, so that opening a run needs no tracing (0.8 s)."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    shapes = {path: list(leaf.shape) for path, leaf in flat.items()}
    return {"digest": weights_digest(assembly), "shapes": shapes}


def known_shapes(assembly: Assembly, kept: Mapping[str, Any]) -> Params:
    """Return the shapes of the parameters: those of `describe_weights` where they are of this model, else traced."""
    if kept.get("digest") != weights_digest(assembly):
        return abstract_params(assembly)
    shapes = kept["shapes"].items()
    return unflatten_dict({path: jax.ShapeDtypeStruct(tuple(own), jnp.float32) for path, own in shapes}, sep="/")
