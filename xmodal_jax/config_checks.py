"""What the values of a config may be: ranges, choices, and sizes that must fit each other."""

import itertools
import re
from typing import TYPE_CHECKING, Any

from xmodal_jax.data.config import PAIR
from xmodal_jax.data.readers import reader_classes
from xmodal_jax.data.records import PICTURES, WORDS
from xmodal_jax.errors import UserError
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.models.encoder import REMAT
from xmodal_jax.models.heads import HASH_KINDS
from xmodal_jax.models.pooling import parse_pool

if TYPE_CHECKING:
    from xmodal_jax.settings import BridgeConfig, Config, FusionConfig, JointConfig

LEAST = {  # what a whole number or a rate may be at least
    2: ("checkpoint.keep",),  # with 1 a damaged checkpoint has nothing to fall back to
    1: ("fusion.layers", "joint.shared_layers", "optimizer.max_skips"),
    0: (
        "seed",
        "chunk",
        "eval.every",
        "eval.folds",
        "eval.patience",
        "eval.average",
        "optimizer.warmup",
        "optimizer.weight_decay",
        "optimizer.clip",
        "joint.start_ridge",
        "joint.hash_hidden",
        "joint.hash_variates",
        "optimizer.sgd_after",
    ),
}
ABOVE_ZERO = (
    "batch_size",
    "steps",
    "log_every",
    "checkpoint.every",
    "eval.batch_size",
    "eval.fold_pictures",
    "joint.embed",
    "optimizer.lr",
    "fusion.heads",
    "fusion.hidden",
    "bridge.hidden",
    "joint.shared_heads",
    "joint.shared_hidden",
    "optimizer.sgd_lr",
)
PARTS = (  # of the model beside its encoders
    "fusion",
    "decoder",
    "match",
    "vocabulary",
    "scorer",
    "shared",
    "sigmoid",
    "classifier",
    "answer",
    "bridge",
    "fused_head",
    "joined_head",
    "log_temperature",
)
LOGS = ("tensorboard", "wandb")  # of `log.to`
RATES = ("fusion.dropout", "fusion.head_dropout", "joint.shared_dropout")


def check_ranges(config: "Config") -> None:
    """Refuse numbers out of range."""
    for name in ABOVE_ZERO:
        value = field_of(config, name)
        if not value > 0:
            raise UserError(f"config.{name} is {value}; write a number above 0")
    for least, names in LEAST.items():
        for name in names:
            value = field_of(config, name)
            if not value >= least:
                raise UserError(f"config.{name} is {value}; write {least} or more")
    for name in RATES:
        value = field_of(config, name)
        if not 0.0 <= value <= 0.99:
            raise UserError(f"config.{name} is {value}; write a rate from 0 to 0.99")
    optimizer, rerank = config.optimizer, config.eval.rerank
    for name, value in (("b1", optimizer.b1), ("b2", optimizer.b2)):
        if not 0.0 <= value < 1.0:
            raise UserError(f"config.optimizer.{name} is {value}; write 0 to below 1, such as 0.9")
    if not 0.0 <= optimizer.end_lr <= 1.0:
        raise UserError(
            f"config.optimizer.end_lr is {optimizer.end_lr}; write a share of config.optimizer.lr, from 0 to 1"
        )
    if optimizer.sgd_after != 0 and optimizer.sgd_after >= config.steps:
        raise UserError(
            f"config.optimizer.sgd_after is {optimizer.sgd_after}, but config.steps is {config.steps}: SGD would never "
            "take over; write fewer, or 0 for Adam to the end"
        )
    if any(count <= 0 for count in rerank):
        raise UserError(
            f"config.eval.rerank is {rerank}; write lengths of 1 or more such as (16, 32), or () for no re-ranking"
        )


def check_fit(config: "Config") -> None:
    """Refuse sizes that do not fit each other, and a regex that is none."""
    if config.chunk and config.batch_size % config.chunk != 0:
        raise UserError(
            f"config.chunk is {config.chunk}, which does not divide config.batch_size={config.batch_size}; write a "
            "divisor"
        )
    started = [config.data.fields[field].encoder for field in config.eval.pairs[0]]
    if config.joint.start == "cca" and started[0] == started[1]:
        raise UserError(
            f"config.joint.start is 'cca', but both fields of config.eval.pairs[0]={config.eval.pairs[0]} are of one "
            "encoder; write a first pair of two encoders, or config.joint.start='random'"
        )
    for name in started:
        own = config.encoders[name]
        if config.joint.start == "cca" and parse_pool(own.pool)[0] == "":
            raise UserError(
                f"config.joint.start is 'cca', but config.encoders.{name}.pool='{own.pool}' has no linear path to "
                f"start; write config.encoders.{name}.pool='mean+{own.pool}', or config.joint.start='random'"
            )
    try:
        re.compile(config.teacher.exclude)
    except re.error as error:
        raise UserError(
            f"config.teacher.exclude '{config.teacher.exclude}' is not a regex ({error}); write one such as '^decoder'"
        ) from error


def check_best(config: "Config") -> None:
    """Refuse a best checkpoint, a patience and an average that nothing serves, and a log to what is none."""
    own = config.eval
    if own.keep_best and own.every == 0:
        raise UserError(
            f"config.eval.keep_best is '{own.keep_best}', and config.eval.every=0 makes no quick evaluations; write "
            "the steps between them"
        )
    if own.patience and not own.keep_best:
        raise UserError(
            f"config.eval.patience is {own.patience}, and config.eval.keep_best names no number that could get better; "
            "write one such as rsum"
        )
    if own.average and own.step:
        raise UserError(
            f"config.eval.average is {own.average} and config.eval.step '{own.step}'; write one of them, as the "
            "average is of the last checkpoints"
        )
    if config.init_paths and not config.init:
        raise UserError("config.init_paths is set, and config.init is ''; write the run that they are paths of")
    if config.init and config.joint.start == "cca":
        raise UserError(
            f"config.init is '{config.init}' and config.joint.start 'cca', and both start the heads; write "
            "config.joint.start=random"
        )
    for name in config.log.to:
        if name not in LOGS:
            raise UserError(f"config.log.to has '{name}'; write some of {', '.join(LOGS)}, such as ('tensorboard',)")


def check_codes(joint: "JointConfig") -> None:
    """Refuse lengths of codes that do not fill bytes, and nested ones that do not grow."""
    bits, nested = joint.bits, joint.nested
    if bits <= 0 or bits % 8 != 0:
        raise UserError(f"config.joint.bits is {bits}; write a multiple of 8, such as 64")
    if (
        any(length <= 0 or length % 8 != 0 for length in nested)
        or any(short >= long for short, long in itertools.pairwise(nested))
        or any(length > bits for length in nested)
    ):
        raise UserError(
            f"config.joint.nested is {nested}; write ascending multiples of 8, at most config.joint.bits={bits}, "
            "such as (8, 16), or () for none"
        )


def check_variates(joint: "JointConfig") -> None:
    """Refuse bits that are to start from CCA where nothing does, or where a layer or a softmax lies between."""
    if joint.hash_variates != 0 and (joint.start != "cca" or joint.hash_hidden != 0 or joint.hash_kind == "select"):
        raise UserError(
            f"config.joint.hash_variates is {joint.hash_variates}, which wants joint.start='cca', joint.hash_hidden=0 "
            "and a joint.hash_kind other than 'select'; write these, or hash_variates=0"
        )


def field_of(config: Any, name: str) -> Any:
    """Return the value of a dotted field."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def check_choices(config: "Config") -> None:
    """Refuse words that are none of a field's."""
    choices = {
        "joint.hash_kind": (config.joint.hash_kind, HASH_KINDS),
        "fusion.remat": (config.fusion.remat, REMAT),
        "bridge.kind": (config.bridge.kind, ("cross", "gate")),
        "joint.start": (config.joint.start, ("random", "cca")),
        "eval.rerank_score": (config.eval.rerank_score, ("add", "replace")),
        "eval.relevance": (config.eval.relevance, ("same", "own")),
        "eval.params": (config.eval.params, ("teacher", "student")),
        "eval.step": (config.eval.step, ("", "last", "best")),
        "dtype": (config.dtype, ("float32", "bfloat16")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            known = ", ".join(one or "''" for one in allowed)
            raise UserError(f"config.{name} is '{value}'; write one of {known}")


def check_fields(config: "Config") -> None:
    """Refuse fields that no encoder takes, and encoders that no field is for."""
    fields = config.data.fields
    for name, own in fields.items():
        if own.encoder not in config.encoders:
            raise UserError(
                f"config.data.fields.{name}.encoder is '{own.encoder}', and config.encoders has none of that name; "
                f"write one of {', '.join(config.encoders)}"
            )
        if "/" in name:
            raise UserError(f"config.data.fields has '{name}'; write a name without '/'")
        if name in ("id", "index", "pair", "labels", "concepts"):
            raise UserError(f"config.data.fields has '{name}', which every batch has of its own; write another name")
    for name, own in config.encoders.items():
        if not name.isidentifier() or hasattr(CrossModal, name) or name in PARTS:
            raise UserError(
                f"config.encoders has '{name}', which is no name or that of another part of the model; write another "
                "name"
            )
        if own.cache_tokens is not False and own.reads != "words":
            raise UserError(
                f"config.encoders.{name}.cache_tokens is True, which encoders of words alone can have; write False"
            )
        if not config.data.fields_of(name):
            raise UserError(
                f"config.encoders.{name} is for no field; write config.data.fields.{name}={{}}, or leave the encoder "
                "out"
            )


def check_pairs(config: "Config") -> None:
    """Refuse pairs of evaluation that are not two fields of the batch."""
    fields = config.data.fields
    if not config.eval.pairs:
        raise UserError(f"config.eval.pairs is (); write one or more, such as {(PAIR,)}")
    for pair in config.eval.pairs:
        known = [name for name in pair if name in fields]
        if len(known) != 2 or pair[0] == pair[1]:
            raise UserError(
                f"config.eval.pairs has {pair}; write two different fields of config.data.fields: {', '.join(fields)}"
            )


def check_order(config: "Config") -> None:
    """Refuse a pair of evaluation whose fields `config.scorer` takes in the other order alone."""
    scorer: Any = config.scorer  # built from its section
    for pair in config.eval.pairs:
        order = tuple(config.data.fields[field].encoder for field in pair)

        def serves(order: tuple[str, ...]) -> bool:
            return scorer.serves(order, config.fusion.pair)

        if not serves(order) and serves(order[::-1]):
            raise UserError(
                f"config.eval.pairs has {pair}, and config.scorer takes {pair[::-1]}; write the fields in that order "
                "(each asks the other either way)"
            )


INPUTS = ("pixels", "words", "frames", "sound")  # what readers of the package give, and encoders read


def check_encoders(config: "Config") -> None:
    """Refuse encoders that do not fit the data, fusion or each other."""
    data, readers = config.data, reader_classes(config.data.fields)
    for name, own in config.encoders.items():
        where = f"config.encoders.{name}"
        for field in data.fields_of(name) if own.reads in INPUTS else ():
            if (given := readers[field].gives) and given != own.reads:
                raise UserError(
                    f"{where}.kind is '{own.kind}', which reads {own.reads}, and its field '{field}' gives {given}; "
                    f"write an encoder of {given} for it"
                )
        for field in data.fields_of(name) if own.reads == "tokens" else ():
            medium = data.fields[field].medium
            if medium == WORDS:
                raise UserError(
                    f"{where}.kind is '{own.kind}', which reads feature caches, and its field '{field}' shows "
                    "captions; write an encoder of words"
                )
            if not data.caches_of(data.fields[field]):
                usual = medium == PICTURES
                empty = "features" if usual else f"fields.{field}.features"
                maker = "`xmodal data features`" if usual else f"`xmodal data features --medium {medium}`"
                raise UserError(
                    f"{where}.kind is '{own.kind}' but config.data.{empty} is empty; name the caches made by {maker}"
                )
    check_shared(config)


def check_shared(config: "Config") -> None:
    """Refuse encoders that do not all go through the shared transformer, and heads that do not divide its width."""
    pools = {name: own.pool for name, own in config.encoders.items()}
    shared = [name for name, pool in pools.items() if parse_pool(pool)[1] == "shared"]
    for name in set(pools) - set(shared) if shared else ():
        raise UserError(
            f"config.encoders.{shared[0]}.pool is '{pools[shared[0]]}', but "
            f"config.encoders.{name}.pool='{pools[name]}' does not go through the shared transformer; write "
            f"config.encoders.{name}.pool='mean+shared'"
        )
    heads, width = config.joint.shared_heads, config.fusion.width
    if shared and width % heads:
        raise UserError(
            f"config.joint.shared_heads is {heads}, which does not divide config.fusion.width={width}; write a divisor"
        )


def check_fused(encoders: dict[str, Any], fusion: "FusionConfig", bridge: "BridgeConfig") -> None:
    """Refuse a pair of fusion that is none, encoders that are not there, and tokens of unknown width."""
    if len(fusion.pair) != 2:
        raise UserError(
            f"config.fusion.pair is {fusion.pair}; write two encoders, the one that is read and the one that asks"
        )
    for name in (*fusion.pair, *bridge.sides):
        if name not in encoders:
            raise UserError(
                f"config.fusion.pair is {fusion.pair} and config.bridge.sides {bridge.sides}, and config.encoders has "
                f"no '{name}'; write some of {', '.join(encoders)}"
            )
    if not fusion.width and not encoders[fusion.pair[1]].token_width:
        raise UserError(
            f"config.fusion.width is 0, and config.encoders.{fusion.pair[1]} does not tell one; write one such as 384"
        )


def check_fusion(config: "Config") -> None:
    """Refuse widths that do not fit the encoder that asks."""
    fusion, asks = config.fusion, config.asking
    pools = {parse_pool(own.pool)[1] for own in config.encoders.values()}
    if fusion.width % fusion.heads and ("fusion" not in asks.lacks or pools & {"attention", "shared"}):
        raise UserError(
            f"config.fusion.heads is {fusion.heads}, which does not divide config.fusion.width={fusion.width}; write a "
            "divisor"
        )
    if not asks.necked and "fusion" not in asks.lacks and asks.token_width != fusion.width:
        raise UserError(
            f"config.fusion.width is {fusion.width}, and config.encoders.{fusion.pair[1]}.width, whose tokens ask, is "
            f"{asks.token_width}; write config.fusion.width=0"
        )


def check(config: "Config") -> None:
    """Refuse values that cannot work together; each sentence says what, where and what to write instead."""
    joint = config.joint
    check_ranges(config)
    check_fit(config)
    check_choices(config)
    check_best(config)
    check_codes(joint)
    check_variates(joint)
    check_encoders(config)
    check_order(config)
    check_fusion(config)
    scorer: Any = config.scorer  # built from its section
    scorer.check_width("config.scorer", config.fusion.width)
    if not 0.0 < joint.temperature_min <= joint.temperature <= joint.temperature_max:
        raise UserError(
            f"config.joint.temperature is {joint.temperature}, outside {joint.temperature_min} to "
            f"{joint.temperature_max}; write a number between temperature_min and temperature_max, such as 0.07"
        )
    if not 0.0 <= config.teacher.momentum <= 1.0:
        raise UserError(f"config.teacher.momentum is {config.teacher.momentum}; write 0 to 1")
