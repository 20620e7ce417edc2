"""A FLOP model of the step: the matrix products (2 per multiply-add) of every call of the model that a step traces.

The calls are read off the trace itself, so the model knows what is shared. A trained call costs three times its forward
(one more product for each operand's gradient), a frozen one that gradients must cross twice, any other once. What
rematerialisation repeats is not counted: MFU counts useful work.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from xmodal_jax.config import Config
from xmodal_jax.models.pooling import AGGREGATORS, parse_pool
from xmodal_jax.models.resnet import STAGES
from xmodal_jax.parallel.rules import wholly_frozen
from xmodal_jax.train.step import Recipe, run_objectives
from xmodal_jax.types import Batch

# Multiply-adds of EfficientNet-Lite0 at 224 px (407 M, as published with the weights); they scale with the pixels.
LITE0_MACS, LITE0_PIXELS = 407e6, 224 * 224

Shapes = tuple[tuple[int, ...], ...]


def block_flops(length: int, width: int, hidden: int, context: int) -> float:
    """Forward of one transformer block on one sequence: projections, attention over `context` tokens, MLP."""
    return 2.0 * length * (4 * width * width + 2 * width * hidden) + 4.0 * length * context * width


def cross_flops(length: int, width: int, context: int) -> float:
    """Forward of one cross-attention on one sequence, its keys and values projected elsewhere."""
    return 2.0 * length * 2 * width * width + 4.0 * length * context * width


def image_tower(config: Config, shapes: Shapes) -> float:
    """Forward of the image tower on a batch of pixels [B,H,W,3]; nothing for features."""
    image, (rows, height, width, _) = config.image, (shapes[0] + (0, 0))[:4]
    if image.kind == "features":
        return 0.0
    if image.kind == "efficientnet":
        return 2.0 * rows * LITE0_MACS * height * width / LITE0_PIXELS
    if image.kind == "resnet":
        return rows * resnet_flops(config, height, width)
    patches = (height // image.patch) * (width // image.patch)
    block = block_flops(patches + 1, image.width, image.hidden, patches + 1)
    return rows * (2.0 * patches * image.patch**2 * 3 * image.width + image.layers * block)


def resnet_flops(config: Config, height: int, width: int) -> float:
    """Forward of a ResNet on one picture: the stem, and of each block its three convolutions and any shortcut."""
    full, cells = config.image.width, lambda stride: -(-height // stride) * -(-width // stride)
    total, inputs = 2.0 * cells(2) * 49 * 3 * (full // 32), full // 32
    for i, blocks in enumerate(STAGES[config.image.depth]):
        outputs, stride = full // 8 * 2**i, 4 * 2**i
        inner = outputs // 4
        same = 9 * inner * inner + inner * outputs  # the 3x3 convolution and the one after it
        total += 2.0 * (cells(max(stride // 2, 4)) * inputs * inner + cells(stride) * (same + inputs * outputs))
        total += 2.0 * (blocks - 1) * cells(stride) * (outputs * inner + same)
        inputs = outputs
    return total


def shared_flops(config: Config, section: Any, tokens: int) -> float:
    """Forward of the transformer that both sides share on one row's tokens and [CLS]; nothing where it is not asked."""
    joint, width = config.joint, config.text.width
    if parse_pool(section.pool)[1] != "shared":
        return 0.0
    return joint.shared_layers * block_flops(tokens + 1, width, joint.shared_hidden, tokens + 1)


def head_flops(inputs: int, hidden: int, embed: int) -> float:
    """Forward of a `Projection` on one row: the linear path and the MLP beside it."""
    return 2.0 * (inputs * embed + inputs * hidden + hidden * embed)


def token_flops(section: Any, tokens: int, inputs: int, embed: int) -> float:
    """Forward of an aggregator's map of each token on one row; nothing without one. Local features are the same products."""
    return (
        tokens * head_flops(inputs, section.token_hidden, embed) if parse_pool(section.pool)[1] in AGGREGATORS else 0.0
    )


def base_flops(section: Any, inputs: int, embed: int) -> float:
    """Forward of a head's linear path and its MLP on one row; nothing for an aggregator alone."""
    return head_flops(inputs, section.head_hidden, embed) if parse_pool(section.pool)[0] else 0.0


def image_joint(config: Config, shapes: Shapes) -> float:
    """Forward of neck and head on raw tokens [B,N,D']."""
    rows, tokens, raw = shapes[0]
    text, image = config.text, config.image
    neck = 2.0 * tokens * raw * text.width + image.neck_layers * block_flops(tokens, text.width, text.hidden, tokens)
    base = base_flops(image, raw * max(1, len(image.groups)), config.joint.embed)
    shared = shared_flops(config, image, tokens)
    return rows * (neck + base + shared + token_flops(image, tokens, raw, config.joint.embed))


def text_tower(config: Config, shapes: Shapes) -> float:
    """Forward of the text tower on ids [B,L]; of TF-IDF the rows that a caption picks."""
    (rows, length), text = shapes[0], config.text
    if text.kind == "tfidf":
        return 2.0 * rows * length * text.hidden
    if text.kind == "gru":  # three gates of an input and a state, both directions
        inputs = text.hidden + (text.layers - 1) * text.width
        return 12.0 * rows * length * text.width * (inputs + text.layers * text.width)
    return rows * text.layers * block_flops(length, text.width, text.hidden, length)


def text_joint(config: Config, shapes: Shapes) -> float:
    """Forward of the text head on tokens [B,L,D]."""
    (rows, length, width), embed = shapes[0], config.joint.embed
    shared = shared_flops(config, config.text, length)
    return rows * (base_flops(config.text, width, embed) + shared + token_flops(config.text, length, width, embed))


def fuse(config: Config, shapes: Shapes) -> float:
    """Forward of fusion: image tokens [B,N,D] (keys and values once each), text tokens [b,L,D]."""
    (images, tokens, source), (pairs, length, width) = shapes[:2]
    fusion = config.fusion
    pair = block_flops(length, width, fusion.hidden, length) + cross_flops(length, width, tokens)
    return fusion.layers * (pairs * pair + images * 4.0 * tokens * source * width)


def decode(config: Config, shapes: Shapes) -> float:
    """Forward of the decoder: the text layers and the fusion layers on ids [b,L] over image tokens [B,N,D]."""
    image, ids = shapes[:2]
    return text_tower(config, (ids,)) + fuse(config, (image, (*ids, config.text.width)))


def token_logits(config: Config, shapes: Shapes, outputs: int) -> float:
    """Forward of the vocabulary head on hidden states [...,D]."""
    *lead, width = shapes[0]
    return 2.0 * math.prod(lead) * width * (width + outputs)


def bridge_delta(config: Config, shapes: Shapes) -> float:
    """Forward of the residual attention on student and teacher tokens [B,N,D]."""
    (rows, tokens, width), hidden = shapes[0], config.bridge.hidden
    mlp = 4.0 * tokens * width * hidden
    if config.bridge.kind == "gate":
        return rows * mlp
    both = 2 * tokens  # it reads both token sequences
    attention = 2.0 * width * width * (2 * tokens + 2 * both) + 4.0 * tokens * both * width
    return rows * (attention + mlp)


COSTS: dict[str, Callable[[Config, Shapes], float]] = {
    "image_tower": image_tower,
    "image_joint": image_joint,
    "text_tower": text_tower,
    "text_joint": text_joint,
    "fuse": fuse,
    "decode": decode,
    "bridge_delta": bridge_delta,
}


def forward_flops(recipe: Recipe, method: str, shapes: Shapes) -> float:
    """Forward FLOPs of one call; heads that are not listed (matching, codes, temperature) are too small to count."""
    if method == "token_logits":
        return token_logits(recipe.config, shapes, len(recipe.model.output_ids) or recipe.config.text.vocab_size)
    return COSTS[method](recipe.config, shapes) if method in COSTS else 0.0


def multiple(recipe: Recipe, params: Any, method: str) -> float:
    """How many times its forward a student's call costs: 3 trained, 1 when its tower is frozen."""
    side = method.removesuffix("_tower")
    if method.endswith("_tower") and wholly_frozen(params.get(side, {}), side, recipe.config.optimizer.freeze):
        return 1.0
    return 3.0


def step_flops(recipe: Recipe, state: Any, batch: Batch) -> float:
    """FLOPs of one step on a batch (shapes are enough: nothing runs)."""
    seen: list[float] = []
    text_frozen = wholly_frozen(state.params["text"], "text", recipe.config.optimizer.freeze)

    def trace(state: Any, batch: Batch) -> None:
        _, student = run_objectives(recipe, state.params, state, batch, jax.random.key(0))
        for method, shapes, times in student.calls:
            seen.append(times * multiple(recipe, state.params, method) * forward_flops(recipe, method, shapes))
            if method == "decode" and text_frozen:  # the frozen layers' weights get no gradient
                seen.append(-times * text_tower(recipe.config, (shapes[1],)))
        seen.extend(times * forward_flops(recipe, method, shapes) for method, shapes, times in student.teacher.calls)

    jax.eval_shape(trace, state, batch)
    return sum(seen)
