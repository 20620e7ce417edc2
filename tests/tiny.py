"""The smallest model with every part, its batches and its objectives, for the tests of passes, losses and steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.assemble import classes_of, starts_of
from xmodal_jax.config_file import freeze
from xmodal_jax.data.readers import InputSpec
from xmodal_jax.models import ENCODERS
from xmodal_jax.models.crossmodal import CrossModal, init_params
from xmodal_jax.objectives import build_objectives, fit_objectives, parts
from xmodal_jax.settings import Config, defaults
from xmodal_jax.training.optimizer import make_optimizer
from xmodal_jax.training.step import Recipe
from xmodal_jax.types import DataFacts, Vocabulary

ROWS, LENGTH, TOKENS, WIDTH, VOCAB = 8, 8, 5, 16, 32
CLS, SEP, MASK, BOS = 2, 3, 4, 1
ALL = frozenset({"fusion", "match", "decoder", "vocabulary", "hash", "temperature"})
FIVE = {
    "itc": {"queue": 24, "alpha": 0.4},
    "itm": {"negatives": 2},
    "mlm": {"weight": 0.5, "rate": 0.3},
    "lm": {"weight": 0.5},
    "hash": {"weight": 0.1},
}
TINY = {
    "batch_size": ROWS,
    "steps": 10,
    "image": {"kind": "features", "neck_layers": 1},
    "text": {
        "kind": "bert",
        "length": LENGTH,
        "width": WIDTH,
        "layers": 2,
        "heads": 2,
        "hidden": 24,
        "positions": LENGTH,
        "vocab_size": VOCAB,
    },
    "fusion": {"layers": 1, "heads": 2, "hidden": 24, "dropout": 0.0},
    "joint": {"embed": 8, "bits": 8},
    "optimizer": {"lr": 0.01, "warmup": 0},
    "data": {"features": ("made",)},
    "objectives": FIVE,
}


def input_specs(tokenizer, size: int = 16, length: int = 8, cached: bool = False) -> dict[str, InputSpec]:
    """What an encoder of pictures (or of cached tokens) and one of words take."""
    return {"image": InputSpec(size, cached=cached), "text": InputSpec(length, tokenizer)}


def tiny_config(**sections: dict) -> Config:
    """The tiny config; a section given as a dict changes the fields it names, anything else replaces the value.

    `image` and `text` are the two encoders; of another kind they keep the fields that it has.
    """
    config = defaults()
    for source in (TINY, sections):
        for name, value in source.items():
            if name in config.encoders:
                own = config.encoders[name].to_dict() | value
                known = {field.name for field in dataclasses.fields(ENCODERS[own["kind"]])}
                config.encoders[name] = {key: x for key, x in own.items() if key in known or key in value}
            elif isinstance(value, dict) and name != "objectives":
                config[name].update(value)
            else:
                config[name] = value
    return freeze(config)


def tiny_batch(seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
    """A batch of features and ids [CLS] words [SEP] of several lengths; rows 0 and 1 share their caption's words."""
    draw = np.random.default_rng(seed)
    text = draw.integers(5, VOCAB, (rows, LENGTH), dtype=np.int32)
    text[:, 0] = CLS
    for row, end in enumerate(draw.integers(3, LENGTH, rows)):
        text[row, end], text[row, end + 1 :] = SEP, 0
    text[1] = text[0]
    keys = np.arange(rows, dtype=np.int32) + 100 * (seed + 1)
    keys[1] = keys[0]
    return {
        "image": draw.normal(size=(rows, TOKENS, 6)).astype(np.float16),
        "text": text,
        "id": np.arange(rows, dtype=np.int32) + 100 * (seed + 1),
        "text/key": keys,
        "index": np.arange(rows, dtype=np.int32),
    }


def tiny_model(config: Config, output_ids: tuple[int, ...] = ()) -> CrossModal:
    """The model of `config`, which may predict `output_ids`."""
    return CrossModal(config, output_ids)


def tiny_params(model: CrossModal, seed: int = 0, used: frozenset[str] = ALL) -> dict:
    """Fresh parameters with every part."""
    batch = tiny_batch()
    inputs = {name: jnp.asarray(batch[name][:1]) for name in ("image", "text")}
    return init_params(model, jax.random.key(seed), inputs, used)


FACTS = DataFacts(
    teacher_media=("image", "text"),
    records=64,
    pairs=64,
    labels=3,
    steps_per_epoch=8.0,
    tokens=(TOKENS, 6),
    teacher=8,
    vocabularies={"text": Vocabulary(VOCAB, CLS, MASK, BOS)},
)


def tiny_objectives(section: dict, config: Config | None = None) -> dict:
    """Objectives from a config section, fitted to a config with the tiny vocabulary's special ids."""
    built, config = build_objectives(section), config or tiny_config()
    return fit_objectives(built, config, dataclasses.replace(FACTS, starts=starts_of(parts(built), config)))


def tiny_recipe(config: Config, output_ids: tuple[int, ...] = ()) -> Recipe:
    """Everything a step of `config` needs."""
    objectives = tiny_objectives(config.objectives, config)
    used = parts(objectives)
    model = CrossModal(config, output_ids, classes_of(used, FACTS), starts_of(used, config))
    abstract = jax.eval_shape(lambda: tiny_params(model, 0, used))
    return Recipe(config, model, objectives, make_optimizer(config.optimizer, abstract, config.steps), facts=FACTS)


def changed(assembly, **sections):
    """The assembly with fields of its config's sections replaced."""
    config = assembly.config
    for name, own in sections.items():
        if name in config.encoders:
            encoders = config.encoders | {name: dataclasses.replace(config.encoders[name], **own)}
            config = dataclasses.replace(config, encoders=encoders)
        else:
            config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **own)})
    return dataclasses.replace(assembly, config=config)
