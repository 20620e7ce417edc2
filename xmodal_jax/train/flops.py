"""A FLOP model of the step: matrix products only (2 per multiply-add), pass by pass.

A trained pass costs three times its forward (one for each operand's gradient), with remat about one more forward of what
is recomputed, which is not counted: MFU counts useful work. A teacher's pass costs one forward.
"""

import math

from xmodal_jax.assemble import Assembly
from xmodal_jax.config import Config

# Multiply-adds of EfficientNet-Lite0 at 224 px (Tan, Liu 2020, model card: 407 M); they scale with the pixels.
LITE0_MACS, LITE0_PIXELS = 407e6, 224 * 224


def block_flops(length: int, width: int, hidden: int, context: int) -> float:
    """Forward of one transformer block on one sequence: projections, attention over `context` tokens, MLP."""
    return 2.0 * length * (4 * width * width + 2 * width * hidden) + 4.0 * length * context * width


def cross_flops(length: int, width: int, context: int) -> float:
    """Forward of one cross-attention on one sequence, its keys and values projected elsewhere."""
    return 2.0 * length * 2 * width * width + 4.0 * length * context * width


def image_flops(config: Config, image_shape: tuple[int, ...]) -> tuple[float, int, int]:
    """Forward FLOPs of the image tower on one image, its number of tokens and their width."""
    image = config.image
    if image.kind == "features":
        return 0.0, image_shape[0], image_shape[1]
    if image.kind == "efficientnet":
        side = math.ceil(config.data.image_size / 32)
        return 2.0 * LITE0_MACS * config.data.image_size**2 / LITE0_PIXELS, side * side + 1, 1280
    tokens = (config.data.image_size // image.patch) ** 2 + 1
    patches = 2.0 * (tokens - 1) * image.patch**2 * 3 * image.width
    return patches + image.layers * block_flops(tokens, image.width, image.hidden, tokens), tokens, image.width


def forward_flops(config: Config, image_shape: tuple[int, ...], outputs: int) -> dict[str, float]:
    """Forward FLOPs of each kind of pass for one row (one image, one text, one fused pair)."""
    text, fusion, joint, length = config.text, config.fusion, config.joint, config.data.length
    tower, tokens, raw = image_flops(config, image_shape)
    neck = 2.0 * tokens * raw * text.width + config.image.neck_layers * block_flops(tokens, text.width, text.hidden, tokens)
    pooled = raw * max(1, len(config.image.groups))
    head = lambda width, hidden: 2.0 * (width * joint.embed + width * hidden + hidden * joint.embed)
    words = text.layers * block_flops(length, text.width, text.hidden, length)
    pair = fusion.layers * (block_flops(length, text.width, fusion.hidden, length) + cross_flops(length, text.width, tokens))
    memory = fusion.layers * 2.0 * tokens * 2 * text.width * text.width
    vocabulary = 2.0 * (text.width * text.width + text.width * outputs)
    return {
        "tower": tower,
        "image": tower + neck + head(pooled, config.image.head_hidden),
        "text": words + head(text.width, config.text.head_hidden),
        "pair": pair,
        "memory": memory,
        "token": vocabulary,
    }


def step_flops(assembly: Assembly, used: frozenset[str]) -> dict[str, float]:
    """FLOPs of one step, by objective's share: {"towers", "itm", "mlm", "lm"}; passes shared by several count once."""
    config, size = assembly.config, assembly.config.batch_size
    outputs = len(assembly.model.output_ids) or config.text.vocab_size
    row = forward_flops(config, assembly.image_shape, outputs)
    length, shares = config.data.length, {"towers": 0.0}
    kinds = {type(item).__name__: item for item in assembly.objectives.values()}
    teacher = 1.0 if "ITC" in kinds else 0.0
    shares["towers"] = size * (3.0 + teacher) * (row["image"] + row["text"])
    if "ITM" in kinds:
        pairs = 1 + 2 * kinds["ITM"].negatives
        shares["itm"] = size * 3.0 * (pairs * row["pair"] + row["memory"])
    if "MLM" in kinds:
        slots = max(1, math.ceil(kinds["MLM"].rate * (length - 1)))
        soft = 1.0 if kinds["MLM"].alpha else 0.0
        shares["mlm"] = size * (3.0 + soft) * (row["text"] + row["pair"] + row["memory"] + slots * row["token"])
    if "LM" in kinds:
        words = row["text"] + row["pair"] + row["memory"] + (length - 1) * row["token"]
        shares["lm"] = size * 3.0 * words
    return shares
