"""The configuration: frozen dataclasses, a section each, and what a file of configs/ calls.

A file calls `defaults()`, changes what its method needs and returns the ConfigDict; `config_file.freeze` checks and freezes it.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from xmodal_jax.data.config import PAIR, DataConfig
from xmodal_jax.errors import UserError


@dataclass(frozen=True)
class FusionConfig:
    """Cross-attention layers: the tokens of one encoder ask, those of another are read.

    `pair`: the encoder that is read, and the one that asks (by default image and text, or those of the first of
    `eval.pairs`, words asking), whose tokens are `width` wide (0: filled in). The captioning decoder shares the blocks of the one that asks.
    """

    pair: tuple[str, ...] = ()
    width: int = 0
    layers: int = 2
    heads: int = 6
    hidden: int = 1536
    dropout: float = 0.1
    remat: str = "dots"
    head_dropout: float = 0.0
    """Dropout rate on what the matching head reads."""
    agreement: bool = True
    """The matching head also reads the product of the two embeddings."""
    aggregated: bool = False
    """Fusion reads the embeddings too: a token more of the image, added to the text's first."""


@dataclass(frozen=True)
class BridgeConfig:
    """The residual attention between student and teacher tokens (models/bridge.py); objectives ask for it by `bridge`.

    The captioner trains it through the tokens that fusion reads; keys that leave it are constants. `sides` says which
    encoders' keys cross it (by default the one that fusion reads); tokens of the other no objective trains by themselves.
    """

    kind: str = "cross"
    """Kind of layer: "cross" or "gate"."""
    sides: tuple[str, ...] = ()
    hidden: int = 768
    """Of its MLP; its attention has fusion's heads."""


@dataclass(frozen=True)
class JointConfig:
    """The joint space: width of the embeddings, bits of the codes, temperature."""

    embed: int = 256
    bits: int = 64
    nested: tuple[int, ...] = ()
    """Shorter codes that the first bits are to be as well, such as (16, 32); (): none."""
    temperature: float = 0.07
    temperature_min: float = 0.01
    temperature_max: float = 0.5
    start: str = "random"
    """Of the heads' linear paths: "random", or "cca" on the training split (train/cca.py)."""
    start_ridge: float = 1.0
    """CCA's regularisation, in units of the mean variance."""
    hash_kind: str = "tanh"
    """Of the hash heads: "tanh", "sign" (straight through) or "select" (models/heads.py)."""
    hash_hidden: int = 512
    """Units between embedding and code; 0: a single linear layer."""
    hash_variates: int = 0
    """First bits that start as the signs of the strongest canonical variates (train/cca.py)."""
    shared_layers: int = 2
    """Of the transformer that both sides go through where their pools end with "+shared"."""
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
    warmup: bool = False
    """A ramp for short runs: min(momentum, (1 + step) / (10 + step)) forgets the first steps quickly, and hides the
    momentum until it gets there: 0.98 at step 440, 0.995 at 1,790, 0.999 at 8,990. Off, as in MoCo, ALBEF and BLIP.
    """
    exclude: str = ""
    """Regex of modules that are not averaged: evaluation of the teacher takes the student's there."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with groups by regex over the parameter path ("image/layers/mlp/up/kernel")."""

    lr: float = 1e-3
    warmup: int = 100
    """Updates until the rate is `lr`; a run of fewer only climbs (train/optimizer.py)."""
    end_lr: float = 0.01
    """Share of `lr` at the last update, the end of the cosine."""
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.05
    decay: str = "kernel$"
    """Which parameters weight decay applies to."""
    groups: tuple[tuple[str, float], ...] = ()
    """(regex, factor on the learning rate); the first match counts."""
    freeze: str = ""
    """Regex of what is not trained ("" nothing)."""
    clip: float = 1.0
    """Global norm; 0: off."""
    sgd_after: int = 0
    """Updates by Adam before SGD with momentum 0.9 takes over; 0: Adam to the end."""
    sgd_lr: float = 0.01
    """Its learning rate, held; `groups` scale it too."""
    max_skips: int = 10
    """Non-finite steps in a row before the run stops."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; -1 once means "all that are left"."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class EvalConfig:
    """What `xmodal eval` computes."""

    pairs: tuple[tuple[str, str], ...] = (PAIR,)
    """Fields, each asking the other; the first has all the tables."""
    every: int = 0
    """Steps between quick evaluations while training, and one after the last step (0: none)."""
    batch_size: int = 256
    rerank: tuple[int, ...] = (16, 32)
    """Shortlist lengths for ITM re-ranking, cut to the gallery's; empty: none."""
    rerank_score: str = "add"
    """ITM's logits are l0 (no match) and l1: "add" orders by cosine + weight * (l1 - l0), where BLIP adds l1 itself;
    "replace" by l1 - l0 alone, where ALBEF takes l1.
    """
    weight: float = 0.0
    """Of the log-odds; 0: the learned temperature (eval/evaluate.py); -1: the best on training data."""
    params: str = "teacher"
    """Which weights to evaluate: "teacher" (EMA) or "student"."""
    views: tuple[str, ...] = ()
    """Of the pictures, in place of data.views; (): the same."""
    languages: tuple[str, ...] = ()
    """Of the captions, in place of data.languages; (): the same."""
    relevance: str = "same"
    """What counts: "same", any record whose captions hold the same text; "own", a record's own."""
    flip: bool = False
    """Embed a picture as the mean of itself and its mirror image (twice the encoding)."""
    folds: int = 0
    """5: COCO's "1K test", beside the whole split ("5K test") the mean over its first five groups of `fold_pictures`,
    each ranked by itself; 0: none.
    """
    fold_pictures: int = 1000
    gallery: tuple[str, ...] = ()
    """Splits that the codes of the split ask for a shared label; (): the split itself."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 500
    """Steps."""
    keep: int = 2


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    seed: int = 0
    batch_size: int = 128
    steps: int = 1000
    log_every: int = 10
    tensorboard: bool = False
    """Write the log as TensorBoard events too (workdir/tensorboard)."""
    dtype: str = "float32"
    """Compute dtype; parameters and losses stay float32."""
    chunk: int = (
        0  # rows an encoder pass takes at a time: a large contrastive batch in small memory; 0: all (forward.py)
    )
    data: DataConfig = DataConfig()
    encoders: dict[str, Any] = field(default_factory=dict)
    """Name -> {"kind": ..., fields}; see models/."""
    fusion: FusionConfig = FusionConfig()
    scorer: dict[str, Any] = field(default_factory=dict)
    """{"kind": ..., fields} of the pair score; see models/scorer.py."""
    bridge: BridgeConfig = BridgeConfig()
    joint: JointConfig = JointConfig()
    objectives: dict[str, Any] = field(default_factory=dict)
    """Name -> {"kind": ..., fields}; see objectives/."""
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    evals: dict[str, Any] = field(default_factory=dict)
    """Further evaluations, as objectives; see eval/evaluations.py."""
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def asking(self) -> Any:
        """The config of the encoder whose tokens ask in fusion."""
        return self.encoders[self.fusion.pair[1]]

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
    encoders = dict(zip(PAIR, ({"kind": "vit"}, {"kind": "bert"}), strict=True))
    return ConfigDict(as_dict(Config()) | {"encoders": encoders, "scorer": {"kind": "fusion"}})


def variant_of(variant: str, known: tuple[str, ...], name: str) -> str:
    """The variant of a config file, checked: `configs/name.py:variant`."""
    if variant not in known:
        raise UserError(f"'{variant}' is not a variant of {name}; write one of {', '.join(known)}")
    return variant
