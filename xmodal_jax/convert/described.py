"""Compare the files beside a checkpoint with the config: config.json (architecture), preprocessor_config.json (pixels).

Both are Hugging Face's files. A tower with the wrong number of heads, or one that reads pixels by other statistics,
runs without an error and gives wrong numbers, so the config is compared with these files before weights are used.
"""

import json
import math
import pathlib
from typing import Any, NamedTuple

from xmodal_jax.errors import UserError
from xmodal_jax.models.resnet import STAGES

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the names that Hugging Face gives, first choice first
EPS_LIMIT = 1e-6  # a smaller epsilon of LayerNorm changes a token by at most its half, if the variance is one

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Described(NamedTuple):
    """The description of one kind of tower: its model types, our field of each key of config.json, and fixed values."""

    types: tuple[str, ...]
    fields: dict[str, str]  # key of config.json -> field of the encoder's config
    fixed: dict[str, Any]  # key of config.json -> the only value that the tower of this package has


_TRANSFORMER = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
}
KINDS = {
    "vit": Described(
        ("vit", "vit_mae", "vit_msn"),  # one architecture, trained in three ways
        _TRANSFORMER | {"patch_size": "patch", "image_size": "size"},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "num_channels": 3},
    ),
    "bert": Described(
        ("bert",),
        _TRANSFORMER | {"max_position_embeddings": "positions", "vocab_size": "vocab_size", "layer_norm_eps": "eps"},
        {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False},
    ),
    "resnet": Described(
        ("resnet",),
        {},
        {
            "hidden_act": "relu",
            "layer_type": "bottleneck",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
            "num_channels": 3,
        },
    ),
}


def read_description(weights: str | pathlib.Path, name: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """Read the JSON file `name` beside `weights` (a file or a folder): its path and content, {} if there is none.

    Beside a weights file with a name of its own nothing is read: other weights may lie there too. Raises UserError for
    a file that holds no JSON object.
    """
    weights = pathlib.Path(weights)
    path = (weights if weights.is_dir() else weights.parent) / name
    if not path.is_file() or (weights.is_file() and weights.name not in WEIGHTS):
        return path, {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}); download it again") from error
    kind = type(found).__name__
    if not isinstance(found, dict):
        raise UserError(f"'{path}' holds a {kind}, not a JSON object; download it again")
    return path, found


def _number(value: Any) -> bool:
    """Return True for a finite number that is no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_statistics(weights: str | pathlib.Path, standard: Statistics) -> Statistics | None:
    """Read the mean and standard deviation of pixels in 0..1 used in training; None if no file tells.

    A picture is read as (value * rescale_factor - image_mean) / image_std, value in 0..255; a part that do_rescale or
    do_normalize turns off is left out. `standard` (mean, std) is used if the file names neither. Raises UserError for
    values that are no statistics.
    """
    path, found = read_description(weights, "preprocessor_config.json")
    if not found:
        return None
    mean, std = (
        tuple(value) if isinstance(value := found.get(key) or usual, (list, tuple)) else (value,) * 3
        for key, usual in zip(("image_mean", "image_std"), standard, strict=True)
    )
    factor = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    for name, values in (("image_mean", mean), ("image_std", std), ("rescale_factor", (factor,) * 3)):
        least = -math.inf if name == "image_mean" else 0.0
        if len(values) != 3 or not all(_number(value) and value > least for value in values):
            raise UserError(
                f"'{path}' has {name} {values[0] if name == 'rescale_factor' else list(values)!r}; this is no "
                "statistic of three colours, so restore the file, "
                "or delete it and write the encoder's pixel_mean and pixel_std"
            )
    if not found.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    unit = 255 * factor
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def refuse_contradiction(where: str, own: Any, weights: str | pathlib.Path) -> bool:
    """Compare config.json beside `weights` with the encoder `own`, at the config's `where`.

    Returns True if there is a config.json. Raises UserError with the key, its value and what to write.
    """
    path, found = read_description(weights, "config.json")
    described = KINDS[own.kind]
    model = found.get("model_type", described.types[0])
    if model not in described.types:
        raise UserError(
            f"'{path}' says that the weights are of a '{model}' model, and {where}.kind='{own.kind}' takes those of a "
            f"'{described.types[0]}'; name other weights in {where}.init"
        )
    for key, field in described.fields.items():
        theirs = found.get(key)
        if theirs is not None and theirs != getattr(own, field):
            raise UserError(
                f"{where}.{field} is {getattr(own, field)!r}, and {key} of '{path}' is {theirs!r}; "
                f"{_write(where, field, theirs, path)}"
            )
    for key, ours in described.fixed.items():
        theirs = found.get(key)
        small = key.endswith("_eps") and _number(theirs) and max(theirs, ours) <= EPS_LIMIT
        if theirs is not None and theirs != ours and not small:
            raise UserError(
                f"{key} of '{path}' is {theirs!r}, and the tower '{own.kind}' has {ours!r}, which no field of the "
                f"config changes; name other weights in {where}.init"
            )
    if own.kind == "resnet":
        _refuse_other_stages(where, path, found, own.depth, own.width)
    return bool(found)


def _write(where: str, field: str, theirs: Any, path: pathlib.Path) -> str:
    """Return the advice for a field that contradicts the checkpoint."""
    if field == "vocab_size":
        return f"write {where}.tokenizer={path.parent / 'tokenizer.json'}"
    return f"write {where}.{field}={theirs}"


def _refuse_other_stages(where: str, path: pathlib.Path, found: dict[str, Any], depth: int, width: int) -> None:
    """Compare a ResNet's depth and width with the lists of a checkpoint: blocks and channels of the stages."""
    blocks, sizes = found.get("depths"), found.get("hidden_sizes")
    known = next((number for number, value in STAGES.items() if list(value) == blocks), None)
    hint = "no depth of this package has these" if known is None else f"write {where}.depth={known}"
    if blocks is not None and blocks != list(STAGES[depth]):
        raise UserError(
            f"{where}.depth is {depth}, stages of {list(STAGES[depth])} blocks, and depths of '{path}' is {blocks!r}; "
            f"{hint}"
        )
    wanted = [width // 8 * 2**stage for stage in range(4)]
    last = sizes[-1] if isinstance(sizes, list) and sizes else sizes
    if sizes is not None and sizes != wanted:
        raise UserError(
            f"{where}.width is {width}, stages of {wanted} channels, and hidden_sizes of '{path}' is {sizes!r}; "
            f"write {where}.width={last}"
        )


def descriptions(own: Any) -> dict[str, dict[str, Any]]:
    """Return {file: JSON object} that Hugging Face needs beside the weights of a ViT or a BERT, by its config."""
    described = KINDS[own.kind]
    fields = {key: getattr(own, field) for key, field in described.fields.items()}
    name = {"vit": "ViTModel", "bert": "BertModel"}[own.kind]
    found = {"config.json": {"model_type": described.types[0], "architectures": [name], **described.fixed, **fields}}
    if own.kind == "vit":
        mean, std = own.statistics
        found["preprocessor_config.json"] = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": own.size, "width": own.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(mean),
            "image_std": list(std),
        }
    return found
