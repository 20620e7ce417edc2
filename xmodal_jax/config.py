"""The configuration: frozen dataclasses built once, at the door, from a ConfigDict.

A file in configs/ calls `defaults()`, changes what its method needs and returns the ConfigDict; the command line may
override any field (`--config.optimizer.lr=1e-4`); `build` then checks every key and value and freezes the result.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import itertools
import json
import os
import pathlib
import traceback
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from xmodal_jax.config_checks import check
from xmodal_jax.data.pipeline import DataConfig
from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.plugins import absolute


@dataclass(frozen=True)
class ImageConfig:
    """The image tower: "vit", "resnet", "efficientnet" or "features" (tokens already in the data)."""

    kind: str = "vit"
    init: str = ""  # "" from scratch, "lite0" the installed EfficientNet-Lite0, or a file or folder of weights
    pixel_mean: tuple[float, ...] = ()  # of red, green and blue in 0..1; (): the weights' own, or else the kind's
    pixel_std: tuple[float, ...] = ()
    patch: int = 16
    width: int = 384  # of the tokens; of a ResNet as published 2048
    depth: int = 50  # layers of a ResNet: 50, 101 or 152, or one of the small 14 and 26
    layers: int = 12
    heads: int = 6
    hidden: int = 1536
    dropout: float = 0.0
    remat: str = "dots"
    neck_layers: int = 0  # transformer blocks over the tokens before fusion and attention pooling
    pool: str = "mean"  # a base path, something beside it, or an aggregator: models/pooling.py
    token_hidden: int = 0  # width of an aggregator's MLP of each token (VSE-infinity: half of joint.embed); 0: none
    head_hidden: int = 0
    head_dropout: float = 0.0
    groups: tuple[int, ...] = ()  # token counts of the feature caches; filled in from the data card


@dataclass(frozen=True)
class TextConfig:
    """The text tower, and its tokenizer.

    "bert"; "gru" (models/gru.py; `hidden` is the width of its word vectors); "tfidf" (models/tfidf.py; `hidden` is its width).
    """

    kind: str = "bert"
    tokenizer: str = "data"  # "data" (built from the captions), "minilm", or a tokenizer.json
    init: str = ""  # "" from scratch, "minilm" the installed all-MiniLM-L6-v2, or a folder with model.safetensors
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    keep: bool = False  # a frozen tower's tokens of every caption are computed once and kept (train/texts.py)
    dropout: float = 0.0
    remat: str = "dots"
    pool: str = "mean"
    token_hidden: int = 0
    head_hidden: int = 0
    head_dropout: float = 0.0
    output_vocab: str = "train"  # what MLM and LM may predict: "train" (ids seen in training captions) or "all"
    vocab_size: int = 0  # filled in from the tokenizer


@dataclass(frozen=True)
class FusionConfig:
    """Cross-attention layers on top of the text tower."""

    layers: int = 2
    heads: int = 6
    hidden: int = 1536
    dropout: float = 0.1
    remat: str = "dots"
    head_dropout: float = 0.0  # on what the matching head reads
    agreement: bool = True  # the matching head also reads the product of the two embeddings
    aggregated: bool = False  # fusion reads the embeddings too: a token more of the image, added to the text's first


@dataclass(frozen=True)
class BridgeConfig:
    """The residual attention between student and teacher tokens (models/bridge.py); objectives ask for it by `bridge`.

    The captioner trains it through the picture's tokens; keys that leave it are constants. `sides` says whose keys
    cross it: with "text" the same parameters read the text's tokens, which no objective trains by themselves.
    """

    kind: str = "cross"  # "cross" or "gate"
    sides: tuple[str, ...] = ("image",)
    hidden: int = 768  # of its MLP; its attention has fusion's heads


@dataclass(frozen=True)
class JointConfig:
    """The joint space: width of the embeddings, bits of the codes, temperature."""

    embed: int = 256
    bits: int = 64
    nested: tuple[int, ...] = ()  # shorter codes that the first bits are to be as well, such as (16, 32); (): none
    temperature: float = 0.07
    temperature_min: float = 0.01
    temperature_max: float = 0.5
    start: str = "random"  # of the heads' linear paths: "random", or "cca" on the training split (train/warmstart.py)
    start_ridge: float = 1.0  # CCA's regularisation, in units of the mean variance
    hash_kind: str = "tanh"  # of the hash heads: "tanh", "sign" (straight through) or "select" (models/heads.py)
    hash_hidden: int = 512  # units between embedding and code; 0: a single linear layer
    hash_variates: int = (
        0  # first bits that start as the signs of the strongest canonical variates (train/warmstart.py)
    )
    shared_layers: int = 2  # of the transformer that both sides go through where their pools end with "+shared"
    shared_heads: int = 4
    shared_hidden: int = 2048
    shared_dropout: float = 0.1

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths at which codes are trained and evaluated: those of `nested`, and always all bits."""
        return (*(bits for bits in self.nested if bits < self.bits), self.bits)


@dataclass(frozen=True)
class TeacherConfig:
    """The momentum teacher: a float32 EMA of the student (MoCo, ALBEF)."""

    momentum: float = 0.995
    # A ramp for short runs: min(momentum, (1 + step) / (10 + step)) forgets the first steps quickly, and hides the momentum
    # until it gets there: 0.98 at step 440, 0.995 at 1,790, 0.999 at 8,990. Off, as in MoCo, ALBEF and BLIP.
    warmup: bool = False
    exclude: str = ""  # regex of modules that are not averaged: evaluation of the teacher takes the student's there


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with groups by regex over the parameter path ("image/layers/mlp/up/kernel")."""

    lr: float = 1e-3
    warmup: int = 100  # updates until the rate is `lr`; a run of fewer only climbs (train/optimizer.py)
    end_lr: float = 0.01  # share of `lr` at the last update, the end of the cosine
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.05
    decay: str = "kernel$"  # which parameters weight decay applies to
    groups: tuple[tuple[str, float], ...] = ()  # (regex, factor on the learning rate); the first match counts
    freeze: str = ""  # regex of what is not trained ("" nothing)
    clip: float = 1.0  # global norm; 0: off
    sgd_after: int = 0  # updates by Adam before SGD with momentum 0.9 takes over; 0: Adam to the end
    sgd_lr: float = 0.01  # its learning rate, held; `groups` scale it too
    max_skips: int = 10  # non-finite steps in a row before the run stops


@dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; -1 once means "all that are left"."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class EvalConfig:
    """What `xmodal eval` computes."""

    every: int = 0  # steps between quick evaluations while training, and one after the last step (0: none)
    batch_size: int = 256
    rerank: tuple[int, ...] = (16, 32)  # shortlist lengths for ITM re-ranking, cut to the gallery's; empty: none
    # ITM's logits are l0 (no match) and l1: "add" orders by cosine + weight * (l1 - l0), where BLIP adds l1 itself; "replace"
    # by l1 - l0 alone, where ALBEF takes l1
    combine: str = "add"
    weight: float = 0.0  # of the log-odds; 0: the learned temperature (eval/evaluate.py); -1: the best on training data
    params: str = "teacher"  # which weights to evaluate: "teacher" (EMA) or "student"
    views: tuple[str, ...] = ()  # of the pictures, in place of data.views; (): the same
    languages: tuple[str, ...] = ()  # of the captions, in place of data.languages; (): the same
    right: str = "text"  # what counts: "text", any picture whose captions hold the same text; "own", a picture's own
    flip: bool = False  # embed a picture as the mean of itself and its mirror image (twice the encoding)
    # 5: COCO's "1K test", beside the whole split ("5K test") the mean over its first five groups of `fold_pictures`, each
    # ranked by itself; 0: none
    folds: int = 0
    fold_pictures: int = 1000
    gallery: tuple[str, ...] = ()  # splits that the codes of the split ask for a shared label; (): the split itself


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 500  # steps
    keep: int = 2


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    seed: int = 0
    batch_size: int = 128
    steps: int = 1000
    log_every: int = 10
    tensorboard: bool = False  # write the log as TensorBoard events too (workdir/tensorboard)
    dtype: str = "float32"  # compute dtype; parameters and losses stay float32
    chunk: int = (
        0  # rows an encoder pass takes at a time: a large contrastive batch in small memory; 0: all (forward.py)
    )
    data: DataConfig = DataConfig()
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()
    bridge: BridgeConfig = BridgeConfig()
    joint: JointConfig = JointConfig()
    objectives: dict[str, Any] = field(default_factory=dict)  # name -> {"kind": ..., fields}; see objectives/
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def eval_data(self) -> DataConfig:
        """The data section as evaluation reads it: with the views and languages of `eval`, where it names some."""
        views, languages = self.eval.views or self.data.views, self.eval.languages or self.data.languages
        return dataclasses.replace(self.data, views=views, languages=languages)

    def __hash__(self) -> int:
        """Configs are compared and hashed by content, so that a model can be a static argument of `jax.jit`."""
        return hash(json.dumps(as_dict(self), sort_keys=True))


def as_dict(value: Any) -> Any:
    """Nested dataclasses as nested plain dicts (JSON-ready)."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_dict(item) for key, item in value.items()}
    return value


def defaults() -> ConfigDict:
    """A ConfigDict with every field at its default, for the files in configs/ to change."""
    return ConfigDict(as_dict(Config()))


def unknown_key(key: str, where: str, known: list[str]) -> UserError:
    """The error for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(sorted(known))
    return UserError(f"'{key}' is not a field of {where}; {hint}")


def _value(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind`, or a UserError that names the field."""
    if dataclasses.is_dataclass(kind):
        refuse_unless(hasattr(value, "items"), f"{where} is {value!r}; write a dict with its fields")
        return build(kind, dict(value.items()), where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _tuple(value, kind, where)
    if origin is dict:
        refuse_unless(hasattr(value, "items"), f"{where} is {value!r}; write a dict")
        return {k: {name: _tupled(x) for name, x in v.items()} if hasattr(v, "items") else v for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _schedule(value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    refuse_unless(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
        f"{where} is {value!r}; write a value of type {kind.__name__}",
    )
    return value


def _tupled(value: Any) -> Any:
    """Lists, as JSON gives them, as tuples, however deep: a config read from run.json equals the one that was written."""
    return tuple(map(_tupled, value)) if isinstance(value, (list, tuple)) else value


def _tuple(value: Any, kind: Any, where: str) -> tuple:
    """`value` as the tuple type `kind`; the sentence of a UserError shows a tuple of that type."""
    listed = lambda x: isinstance(x, (list, tuple))
    inner = typing.get_args(kind)
    nested = typing.get_origin(inner[0]) is tuple
    refuse_unless(
        listed(value) and (not nested or all(map(listed, value))),
        f"{where} is {value!r}; write a tuple such as {_example(kind)!r}",
    )
    fixed = inner if inner[-1] is not Ellipsis else (inner[0],) * len(value)
    refuse_unless(
        len(fixed) == len(value), f"{where} is {value!r}; it takes {len(fixed)} entries, such as {_example(kind)!r}"
    )
    return tuple(_value(item, part, where) for item, part in zip(value, fixed))


def _example(kind: Any) -> tuple:
    """A tuple of the type `kind`, to show in a sentence: (1, 2), ('a', 'b') or (('regex', 0.1),)."""
    inner = typing.get_args(kind)
    if inner[-1] is Ellipsis:
        listed = {int: (1, 2), str: ("a", "b"), float: (0.1, 0.2)}
        return listed[inner[0]] if inner[0] in listed else (_example(inner[0]),)
    return tuple({int: 1, str: "regex", float: 0.1}[part] for part in inner)


def _schedule(value: Any, where: str) -> float | tuple:
    """A number, or points ((step, value), ...) as tuples; anything else is a UserError that names the field."""
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    if number(value):
        return value
    points = isinstance(value, (list, tuple)) and len(value) > 0
    points = points and all(
        isinstance(point, (list, tuple)) and len(point) == 2 and all(map(number, point)) for point in value
    )
    refuse_unless(
        points, f"{where} is {value!r}; write a number, or ((step, value), ...) such as ((0, 0.0), (1000, 1.0))"
    )
    steps = [point[0] for point in value]
    refuse_unless(
        all(first < second for first, second in itertools.pairwise(steps)),
        f"{where} is {value!r}, whose steps do not ascend; write the points in the order of their steps, each step once",
    )
    return tuple(tuple(point) for point in value)


def build(cls: type, values: dict[str, Any], where: str) -> Any:
    """A frozen dataclass from a dict: unknown keys and wrong types are refused with what to write instead."""
    kinds = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in values:
        if key not in names:
            raise unknown_key(key, where, names)
    built = cls(**{key: _value(value, kinds[key], f"{where}.{key}") for key, value in values.items()})
    check = getattr(built, "check", None)
    if check is not None:
        check(where)
    return built


def freeze_value(value: Any) -> Any:
    """A ConfigDict value as plain Python."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def freeze(config: ConfigDict | dict[str, Any]) -> Config:
    """ConfigDict -> checked, frozen `Config`."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    built = build(Config, values, "config")
    check(built)
    return built


def load(spec: str, overrides: list[str] | None = None) -> ConfigDict:
    """`path/to/config.py[:variant]` plus `a.b=value` overrides -> ConfigDict.

    The file of an objective's own class is taken from the config file's folder.

    Raises UserError for a file that is missing, fails or has no such variant, or an override of a field that is not there.
    """
    path, _, variant = spec.partition(":")
    found = pathlib.Path(path).is_file() and path.endswith(".py")
    refuse_unless(
        found, f"there is no config file '{path}'; write a .py file with get_config, as in the folder configs/"
    )
    module_spec = importlib.util.spec_from_file_location("xmodal_config", path)
    module = importlib.util.module_from_spec(module_spec)
    _run_config(path, lambda: module_spec.loader.exec_module(module))
    function = getattr(module, "get_config", None)
    refuse_unless(callable(function), f"'{path}' has no function get_config; write one, as in the folder configs/")
    given = (variant,) if variant else ()
    _check_call(path, function, given)
    config = _run_config(path, lambda: function(*given))
    refuse_unless(
        isinstance(config, ConfigDict),
        f"get_config of '{path}' returns {type(config).__name__}; write `return config` with the ConfigDict of defaults()",
    )
    for item in overrides or ():
        override(config, item)
    for fields in config.objectives.values():
        if hasattr(fields, "items") and isinstance(fields.get("kind"), str):
            fields["kind"] = absolute(fields["kind"], pathlib.Path(path).parent)
    return config


def _check_call(path: str, function: Any, given: tuple[str, ...]) -> None:
    """Refuse a variant that `get_config` does not take, or none where it needs one."""
    try:
        inspect.signature(function).bind(*given)
    except TypeError:
        raise UserError(
            f"get_config of '{path}' takes no variant; write '{path}' without ':{given[0]}'"
            if given
            else f"get_config of '{path}' needs arguments; write '{path}:VARIANT', or a default in the file"
        ) from None


def _run_config(path: str, function: Callable[[], Any]) -> Any:
    """What `function` returns; an error of the config file is a UserError with the line and the error in one sentence."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        file = os.path.abspath(path)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines.append(error.lineno)
        at = f", line {lines[-1]}" if lines else ""
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        said = f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": .")
        raise UserError(f"the config file '{path}'{at}, fails with {said}; correct the file") from error


def override(config: ConfigDict, item: str) -> None:
    """Apply one `a.b.c=value`; the value is a Python literal, anything else is taken as a string.

    `objectives.NAME={}` adds an objective with its fields at their defaults, `objectives.NAME={"weight": 0.1}` with some set.
    """
    path, equals, text = item.partition("=")
    refuse_unless(bool(equals), f"'--config.{item}' has no value; write --config.{item}=VALUE")
    *parents, name = path.split(".")
    node, where = config, "config"
    for parent in parents:
        if parent not in node:
            raise unknown_key(parent, where, list(node.keys()))
        node, where = node[parent], f"{where}.{parent}"
        refuse_unless(hasattr(node, "keys"), f"'{where}' is a value, not a section; there is no '{path}'")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = text
    if name not in node and where == "config.objectives":
        fields = value if isinstance(value, dict) else {"": ""}
        plain = all(str(key).isidentifier() for key in fields) and isinstance(fields.get("kind", ""), str)
        refuse_unless(plain, f"{where} has no '{name}'; to add it write --{where}.{name}={{}} or ={{'weight': 0.1}}")
    elif name not in node and not where.startswith("config.objectives."):
        raise unknown_key(name, where, list(node.keys()))
    if name in node and isinstance(node[name], str):
        value = text
    with node.ignore_type(), node.unlocked():
        node[name] = value


def variant_of(variant: str, known: tuple[str, ...], name: str) -> str:
    """The variant of a config file, checked: `configs/name.py:variant`."""
    refuse_unless(variant in known, f"'{variant}' is not a variant of {name}; write one of {', '.join(known)}")
    return variant
