"""The configuration: frozen dataclasses, a section each, and the functions that a file of configs/ calls.

A file calls `defaults()`, changes what its method needs and returns the ConfigDict; `config_file.freeze` checks and
freezes it.
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
    """Cross-attention layers: the tokens of one encoder ask, those of another are read."""

    pair: tuple[str, ...] = ()
    """Encoder that is read, and the one that asks; (): image and text, or the first of `eval.pairs`, words asking."""
    width: int = 0
    """Width of the asking tokens; 0: filled in from their encoder."""
    layers: int = 2
    """Cross-attention blocks; the captioning decoder shares those of the encoder that asks."""
    heads: int = 6
    """Attention heads of a block; they divide `width`."""
    hidden: int = 1536
    """Units of a block's MLP."""
    dropout: float = 0.1
    """Dropout rate in the blocks."""
    remat: str = "dots"
    """What the backward pass keeps in memory: a policy of rematerialisation (models/encoder.py)."""
    head_dropout: float = 0.0
    """Dropout rate on the inputs of the matching head."""
    agreement: bool = True
    """Let the matching head also read the product of the two embeddings."""
    aggregated: bool = False
    """Let fusion read the embeddings too: a token more of the image, added to the text's first."""


@dataclass(frozen=True)
class BridgeConfig:
    """The residual attention between student and teacher tokens (models/bridge.py); objectives ask for it by `bridge`.

    The captioner trains it through the tokens that fusion reads; keys that leave it are constants.
    """

    kind: str = "cross"
    """Kind of layer: "cross" or "gate"."""
    sides: tuple[str, ...] = ()
    """Encoders whose keys cross it; (): the one that fusion reads. No objective trains the tokens of another alone."""
    hidden: int = 768
    """Units of its MLP; its attention has fusion's heads."""


@dataclass(frozen=True)
class JointConfig:
    """The joint space: width of the embeddings, bits of the codes, temperature."""

    embed: int = 256
    """Width of the embeddings."""
    bits: int = 64
    """Bits of the codes, a multiple of 8."""
    nested: tuple[int, ...] = ()
    """Shorter codes that the first bits are to be as well, such as (16, 32); (): none."""
    temperature: float = 0.07
    """Temperature of the softmax at the start; it is learned."""
    temperature_min: float = 0.01
    """Least temperature."""
    temperature_max: float = 0.5
    """Greatest temperature."""
    start: str = "random"
    """Start of the heads' linear paths: "random", or "cca" on the training split (training/cca.py)."""
    start_ridge: float = 1.0
    """Regularisation of CCA, in units of the mean variance."""
    hash_kind: str = "tanh"
    """Kind of the hash heads: "tanh", "sign" (straight through) or "select" (models/heads.py)."""
    hash_hidden: int = 512
    """Units between embedding and code; 0: a single linear layer."""
    hash_variates: int = 0
    """First bits that start as the signs of the strongest canonical variates (training/cca.py)."""
    shared_layers: int = 2
    """Layers of the transformer that both sides go through where their pools end with "+shared"."""
    shared_heads: int = 4
    """Attention heads of that transformer; they divide `fusion.width`."""
    shared_hidden: int = 2048
    """Units of its MLPs."""
    shared_dropout: float = 0.1
    """Dropout rate in it."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths at which codes are trained and evaluated: those of `nested`, and always all bits."""
        return (*(bits for bits in self.nested if bits < self.bits), self.bits)


@dataclass(frozen=True)
class TeacherConfig:
    """The momentum teacher: a float32 EMA of the student (MoCo, ALBEF)."""

    momentum: float = 0.995
    """Share of the old average in the new one, each step."""
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
    """Learning rate after the warm-up; a cosine takes it down to `end_lr`."""
    warmup: int = 100
    """Updates until the rate is `lr`; a run of fewer only climbs (training/optimizer.py)."""
    end_lr: float = 0.01
    """Share of `lr` at the last update, the end of the cosine."""
    b1: float = 0.9
    """Decay of Adam's mean of gradients."""
    b2: float = 0.98
    """Decay of Adam's mean of squared gradients."""
    weight_decay: float = 0.05
    """Decoupled weight decay, in units of the learning rate."""
    decay: str = "kernel$"
    """Regex of the parameters that weight decay applies to."""
    groups: tuple[tuple[str, float], ...] = ()
    """(regex, factor on the learning rate) of groups of parameters; the first match counts."""
    freeze: str = ""
    """Regex of parameters that are not trained; "": none."""
    clip: float = 1.0
    """Global norm that gradients are clipped to; 0: off."""
    sgd_after: int = 0
    """Updates by Adam before SGD with momentum 0.9 takes over; 0: Adam to the end."""
    sgd_lr: float = 0.01
    """Learning rate of SGD, held; `groups` scale it too."""
    max_skips: int = 10
    """Non-finite steps in a row before the run stops."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; -1 once means "all that are left"."""

    data: int = -1
    """Devices that share the rows of a batch, each with all parameters."""
    fsdp: int = 1
    """Devices that share the rows of a batch and the parameters."""
    tensor: int = 1
    """Devices that share each layer's width."""


@dataclass(frozen=True)
class EvalConfig:
    """Numbers of `xmodal eval` and of the quick evaluations while training."""

    pairs: tuple[tuple[str, str], ...] = (PAIR,)
    """Fields, each asking the other; the first has all the tables."""
    every: int = 0
    """Steps between quick evaluations while training, and one after the last step; 0: none."""
    keep_best: str = ""
    """Number of the quick evaluation by which the best checkpoint is kept beside the last ones: its path in
    metrics.jsonl or the end of it, such as "rsum" or "itc/i2t/R@1"; with a "-" in front the lowest is best. "": off.
    """
    patience: int = 0
    """Quick evaluations without a better `keep_best` before the run stops early; 0: never."""
    step: str = ""
    """Checkpoint to use of a run: "last", "best" (see `keep_best`), or "": the best where one is kept, else last."""
    average: int = 0
    """Last checkpoints whose mean weights are used in place of one (at most `checkpoint.keep`); 0: off."""
    batch_size: int = 256
    """Rows encoded at a time."""
    rerank: tuple[int, ...] = (16, 32)
    """Shortlist lengths for re-ranking by the pair score, cut to the gallery's; empty: none."""
    rerank_score: str = "add"
    """"add" orders by cosine + weight * score, "replace" by the score alone. ITM's logits are l0 (no match) and l1, and
    its score l1 - l0, where BLIP adds and ALBEF takes l1 itself.
    """
    weight: float = 0.0
    """Weight of the pair score beside the cosine. 0: the scorer's own: for ITM's log-odds, and for kinds that name
    none, the learned temperature, which makes the sum a log-posterior (eval/evaluate.py); 1 for "sgr" and "graph",
    whose scores between 0 and 1 are as wide as cosines. -1: the best on training data.
    """
    params: str = "teacher"
    """Weights to use: "teacher" (EMA) or "student"."""
    views: tuple[str, ...] = ()
    """Views of the pictures, in place of data.views; (): the same."""
    languages: tuple[str, ...] = ()
    """Languages of the captions, in place of data.languages; (): the same."""
    relevance: str = "same"
    """Records that count as right: "same", any whose captions hold the same text; "own", a record's own."""
    flip: bool = False
    """Embed a picture as the mean of itself and its mirror image (twice the encoding)."""
    folds: int = 0
    """Folds of the split; 5: COCO's "1K test", beside the whole split ("5K test") the mean over its first five groups
    of `fold_pictures`, each ranked by itself; 0: none.
    """
    fold_pictures: int = 1000
    """Pictures of a fold."""
    gallery: tuple[str, ...] = ()
    """Splits that the codes of the split ask for a shared label; (): the split itself."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 500
    """Steps between saves; the last step is always saved."""
    keep: int = 2
    """Last checkpoints that stay on disk, 2 or more: a damaged one needs another to fall back to."""


@dataclass(frozen=True)
class LogConfig:
    """Where the numbers of a run go beside metrics.jsonl."""

    to: tuple[str, ...] = ()
    """Any of "tensorboard" (events in workdir/tensorboard) and "wandb" (Weights & Biases); each needs the package."""
    project: str = "xmodal"
    """Project at Weights & Biases; the run there has the config's `name`."""


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    """Name of the run in reports and logs."""
    seed: int = 0
    """Seed of the parameters, the order of the records and every other random choice."""
    init: str = ""
    """Work directory of another run to start from: its parameters are taken where path and shape agree, rows of word
    tables by word, acquirers by language; "": none.
    """
    init_paths: tuple[tuple[str, str], ...] = ()
    """Parameters read under other paths of the run `init`: ((start of the own path, start of its path), ...)."""
    batch_size: int = 128
    """Pairs a step, over all devices."""
    steps: int = 1000
    """Steps of the whole run."""
    log_every: int = 10
    """Steps between lines of the log."""
    log: LogConfig = LogConfig()
    """Where the log goes."""
    dtype: str = "float32"
    """Compute dtype, "float32" or "bfloat16"; parameters and losses stay float32."""
    chunk: int = 0
    """Rows that an encoder pass takes at a time: a large contrastive batch in small memory (forward.py); 0: all."""
    data: DataConfig = DataConfig()
    """What is read and how."""
    encoders: dict[str, Any] = field(default_factory=dict)
    """Encoders by name, each {"kind": ..., fields}; see models/."""
    fusion: FusionConfig = FusionConfig()
    """Cross-attention between two encoders."""
    scorer: dict[str, Any] = field(default_factory=dict)
    """Pair score, {"kind": ..., fields}; see models/scorer.py."""
    bridge: BridgeConfig = BridgeConfig()
    """Attention between student and teacher tokens."""
    joint: JointConfig = JointConfig()
    """Embeddings and codes."""
    objectives: dict[str, Any] = field(default_factory=dict)
    """Losses by name, each {"kind": ..., fields}; see objectives/."""
    teacher: TeacherConfig = TeacherConfig()
    """Average of the weights."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Updates of the weights."""
    mesh: MeshConfig = MeshConfig()
    """Devices and what they share."""
    eval: EvalConfig = EvalConfig()
    """Evaluation, and which weights of a run are used."""
    evals: dict[str, Any] = field(default_factory=dict)
    """Further evaluations by name, as objectives; see eval/evaluations.py."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saves."""

    @property
    def asking(self) -> Any:
        """The config of the encoder whose tokens ask in fusion."""
        return self.encoders[self.fusion.pair[1]]

    def languages_of(self, field: str) -> tuple[str, ...]:
        """Return the languages that a field of captions was trained on, is evaluated in, or has acquirers of."""
        own = self.data.fields[field]
        read = own.languages or (*self.eval_data.languages, *self.data.languages)
        return tuple(dict.fromkeys((*read, *self.encoders[own.encoder].languages)))

    @property
    def eval_data(self) -> DataConfig:
        """The data section as evaluation reads it: with the views and languages of `eval`, where it names some."""
        views, languages = self.eval.views or self.data.views, self.eval.languages or self.data.languages
        return dataclasses.replace(self.data, views=views, languages=languages)

    def __hash__(self) -> int:
        """Hash by content, so that a model can be a static argument of `jax.jit`."""
        return hash(json.dumps(as_dict(self), sort_keys=True))


def as_dict(value: Any) -> Any:
    """Return nested dataclasses as nested plain dicts (JSON-ready)."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_dict(item) for key, item in value.items()}
    return value


def defaults() -> ConfigDict:
    """Return a ConfigDict with every field at its default, for the files in configs/ to change."""
    encoders = dict(zip(PAIR, ({"kind": "vit"}, {"kind": "bert"}), strict=True))
    return ConfigDict(as_dict(Config()) | {"encoders": encoders, "scorer": {"kind": "fusion"}})


def variant_of(variant: str, known: tuple[str, ...], name: str) -> str:
    """Return the variant of a config file (`configs/name.py:variant`), which must be a known one."""
    if variant not in known:
        raise UserError(f"'{variant}' is not a variant of {name}; write one of {', '.join(known)}")
    return variant
