"""What the values of a config may be: ranges, choices, and sizes that must fit each other."""

import itertools
import re
from typing import TYPE_CHECKING, Any

from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.models import gru, reasoning, resnet, tfidf
from xmodal_jax.models.heads import HASH_KINDS
from xmodal_jax.models.pooling import POOL_CHOICES, parse_pool

if TYPE_CHECKING:
    from xmodal_jax.config import Config, JointConfig

TOWERS = ("image", "text")
HEADLESS = ("resnet", "gru", "tfidf")  # kinds of towers without attention
SIZES = tuple(f"{tower}.{name}" for tower in TOWERS for name in ("width", "heads", "hidden"))
LEAST = {  # what a whole number or a rate may be at least
    2: ("checkpoint.keep",),  # with 1 a damaged checkpoint has nothing to fall back to
    1: ("image.layers", "text.layers", "fusion.layers", "joint.shared_layers", "optimizer.max_skips"),
    0: ("seed", "chunk", "eval.every", "eval.folds", "image.neck_layers", "image.head_hidden", "text.head_hidden",
        "text.vocab_size", "image.token_hidden", "text.token_hidden", "optimizer.warmup", "optimizer.weight_decay", "optimizer.clip",
        "joint.start_ridge", "joint.hash_hidden", "joint.hash_variates", "optimizer.sgd_after"),
}  # fmt: skip
ABOVE_ZERO = (
    "batch_size", "steps", "log_every", "checkpoint.every", "eval.batch_size", "eval.fold_pictures", "joint.embed",
    "optimizer.lr", *SIZES, "image.patch", "text.positions", "fusion.heads", "fusion.hidden", "bridge.hidden", "joint.shared_heads",
    "joint.shared_hidden", "optimizer.sgd_lr",
)  # fmt: skip
RATES = (
    *(f"{part}.{name}" for part in (*TOWERS, "fusion") for name in ("dropout", "head_dropout")),
    "joint.shared_dropout",
)


def check_ranges(config: "Config") -> None:
    """Refuse numbers out of range."""
    for name in ABOVE_ZERO:
        value = field_of(config, name)
        refuse_unless(value > 0, f"config.{name} is {value}; write a number above 0")
    for least, names in LEAST.items():
        for name in names:
            value = field_of(config, name)
            refuse_unless(value >= least, f"config.{name} is {value}; write {least} or more")
    for name in RATES:
        value = field_of(config, name)
        refuse_unless(0.0 <= value <= 0.99, f"config.{name} is {value}; write a rate from 0 to 0.99")
    optimizer, rerank = config.optimizer, config.eval.rerank
    for name, value in (("b1", optimizer.b1), ("b2", optimizer.b2)):
        refuse_unless(0.0 <= value < 1.0, f"config.optimizer.{name} is {value}; write 0 to below 1, such as 0.9")
    refuse_unless(
        0.0 <= optimizer.end_lr <= 1.0,
        f"config.optimizer.end_lr is {optimizer.end_lr}; write a share of config.optimizer.lr, from 0 to 1",
    )
    refuse_unless(
        optimizer.sgd_after == 0 or optimizer.sgd_after < config.steps,
        f"config.optimizer.sgd_after is {optimizer.sgd_after}, but config.steps is {config.steps}: SGD would never take "
        "over; write fewer, or 0 for Adam to the end",
    )
    refuse_unless(
        all(count > 0 for count in rerank),
        f"config.eval.rerank is {rerank}; write lengths of 1 or more such as (16, 32), or () for no re-ranking",
    )


def check_fit(config: "Config") -> None:
    """Refuse sizes that do not fit each other, and a regex that is none."""
    refuse_unless(
        not config.chunk or config.batch_size % config.chunk == 0,
        f"config.chunk is {config.chunk}, which does not divide config.batch_size={config.batch_size}; write a divisor",
    )
    refuse_unless(
        config.data.length <= config.text.positions,
        f"config.data.length is {config.data.length}, but the text tower has {config.text.positions} positions; write fewer",
    )
    for tower, pool in (("image", config.image.pool), ("text", config.text.pool)):
        refuse_unless(
            config.joint.start != "cca" or parse_pool(pool)[0] != "",
            f"config.joint.start is 'cca', but config.{tower}.pool='{pool}' has no linear path to start; "
            f"write config.{tower}.pool='mean+{pool}', or config.joint.start='random'",
        )
    try:
        re.compile(config.teacher.exclude)
    except re.error as error:
        raise UserError(
            f"config.teacher.exclude '{config.teacher.exclude}' is not a regex ({error}); write one such as '^decoder'"
        )


def check_pixels(config: "Config") -> None:
    """Refuse statistics of pixels that are not those of three colours, and any where no pixels are read."""
    for name in ("pixel_mean", "pixel_std"):
        value = getattr(config.image, name)
        fits = len(value) in (0, 3) and all(abs(x) < 1e6 and (x > 0 or name == "pixel_mean") for x in value)
        refuse_unless(
            fits,
            f"config.image.{name} is {value}; write three numbers in units of 0..1 such as (0.5, 0.5, 0.5), or () for "
            "those of the weights",
        )
        refuse_unless(
            not value or config.image.kind != "features",
            f"config.image.{name} is {value}, but config.image.kind='features' reads no pixels; write ()",
        )


def check_codes(joint: "JointConfig") -> None:
    """Refuse lengths of codes that do not fill bytes, and nested ones that do not grow."""
    bits, nested = joint.bits, joint.nested
    refuse_unless(bits > 0 and bits % 8 == 0, f"config.joint.bits is {bits}; write a multiple of 8, such as 64")
    refuse_unless(
        all(length > 0 and length % 8 == 0 for length in nested)
        and all(short < long for short, long in itertools.pairwise(nested))
        and all(length <= bits for length in nested),
        f"config.joint.nested is {nested}; write ascending multiples of 8, at most config.joint.bits={bits}, "
        "such as (8, 16), or () for none",
    )


def check_variates(joint: "JointConfig") -> None:
    """Refuse bits that are to start from CCA where nothing does, or where a layer or a softmax lies between."""
    refuse_unless(
        joint.hash_variates == 0 or (joint.start == "cca" and joint.hash_hidden == 0 and joint.hash_kind != "select"),
        f"config.joint.hash_variates is {joint.hash_variates}, which wants joint.start='cca', joint.hash_hidden=0 and a "
        "joint.hash_kind other than 'select'; write these, or hash_variates=0",
    )


def field_of(config: Any, name: str) -> Any:
    """The value of a dotted field."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def check_choices(config: "Config") -> None:
    """Refuse words that are none of a field's."""
    image, text = config.image, config.text
    choices = {
        "image.kind": (image.kind, ("vit", "resnet", "efficientnet", "features")),
        "text.kind": (text.kind, ("bert", "gru", "tfidf")),
        "joint.hash_kind": (config.joint.hash_kind, HASH_KINDS),
        "image.pool": (image.pool, POOL_CHOICES),
        "text.pool": (text.pool, POOL_CHOICES),
        "text.output_vocab": (text.output_vocab, ("train", "all")),
        **{
            f"{name}.remat": (getattr(config, name).remat, ("none", "dots", "full", "offload"))
            for name in ("image", "text", "fusion")
        },
        "bridge.kind": (config.bridge.kind, ("cross", "gate")),
        "joint.start": (config.joint.start, ("random", "cca")),
        "eval.combine": (config.eval.combine, ("add", "replace")),
        "eval.right": (config.eval.right, ("text", "own")),
        "eval.params": (config.eval.params, ("teacher", "student")),
        "dtype": (config.dtype, ("float32", "bfloat16")),
    }
    for name, (value, allowed) in choices.items():
        refuse_unless(value in allowed, f"config.{name} is '{value}'; write one of {', '.join(allowed)}")


def check(config: "Config") -> None:
    """Refuse values that cannot work together; each sentence says what, where and what to write instead."""
    image, text, joint = config.image, config.text, config.joint
    check_ranges(config)
    check_fit(config)
    check_choices(config)
    check_pixels(config)
    check_codes(joint)
    check_variates(joint)
    for tower, section in (("image", image), ("text", text)):
        refuse_unless(
            section.width % section.heads == 0 or section.kind in HEADLESS,
            f"config.{tower}.heads is {section.heads}, which does not divide the width {section.width}; write a divisor",
        )
    refuse_unless(
        text.width % config.fusion.heads == 0,
        f"config.fusion.heads is {config.fusion.heads}, which does not divide config.text.width={text.width}; "
        "write a divisor",
    )
    sides = config.bridge.sides
    refuse_unless(
        bool(sides) and set(sides) <= set(TOWERS),
        f"config.bridge.sides is {sides}; write ('image',), ('text',) or ('image', 'text')",
    )
    refuse_unless(
        0.0 < joint.temperature_min <= joint.temperature <= joint.temperature_max,
        f"config.joint.temperature is {joint.temperature}, outside {joint.temperature_min} to {joint.temperature_max}; "
        "write a number between temperature_min and temperature_max, such as 0.07",
    )
    refuse_unless(
        0.0 <= config.teacher.momentum <= 1.0, f"config.teacher.momentum is {config.teacher.momentum}; write 0 to 1"
    )
    if image.kind == "features":
        refuse_unless(
            bool(config.data.features),
            "config.image.kind is 'features' but config.data.features is empty; name the caches made by `xmodal data features`",
        )
    if image.kind == "vit":
        refuse_unless(
            config.data.image_size % image.patch == 0,
            f"config.data.image_size is {config.data.image_size}, not a multiple of config.image.patch={image.patch}; "
            "write a multiple",
        )
    for fits in (resnet.refuse_unfit, reasoning.refuse_unfit, tfidf.refuse_unfit, gru.refuse_unfit):
        fits(config)
