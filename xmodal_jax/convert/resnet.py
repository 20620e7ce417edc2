"""Convert ResNet weights of Hugging Face (`ResNetModel`) and torchvision to ours, batch norm folded."""

import pathlib
import re

import jax
import numpy as np

from xmodal_jax.convert.huggingface import State, fold_batch_norm, read_weights, take
from xmodal_jax.errors import UserError
from xmodal_jax.types import Params

EPS = 1e-5  # PyTorch's default
NAMES = (  # torchvision's -> Hugging Face's
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", r"encoder.stages.\1.layers.\2.layer.\3.convolution."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", r"encoder.stages.\1.layers.\2.layer.\3.normalization."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"encoder.stages.\1.layers.\2.shortcut.convolution."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"encoder.stages.\1.layers.\2.shortcut.normalization."),
)
PARTS = (("reduce", "layer.0"), ("spatial", "layer.1"), ("expand", "layer.2"))


def from_torchvision_names(state: State) -> State:
    """Rename torchvision's arrays to Hugging Face's names; torchvision counts stages and convolutions from 1, not 0."""
    renamed = {}
    for name, array in state.items():
        for pattern, place in NAMES:
            name, found = re.subn(pattern, place, name)
            if found:
                name = re.sub(r"(stages|\.layer)\.(\d+)", lambda m: f"{m[1]}.{int(m[2]) - 1}", name)
                break
        renamed[name] = array
    return renamed


def conv(state: State, at: str, where: str) -> Params:
    """Convert a convolution and its norm to one kernel and bias; theirs [D,C,k,k], ours [k,k,C,D], of 1x1 [C,D]."""
    kernel = take(state, f"{at}.convolution.weight", where).transpose(2, 3, 1, 0)
    kernel = kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel
    folded = fold_batch_norm(state, kernel, f"{at}.normalization", where, EPS)
    return {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in folded.items()}


def block(state: State, at: str, where: str) -> Params:
    """Convert one bottleneck block."""
    params = {ours: conv(state, f"{at}.{theirs}", where) for ours, theirs in PARTS}
    if f"{at}.shortcut.convolution.weight" in state:
        params["shortcut"] = conv(state, f"{at}.shortcut", where)
    return params


def resnet_from_torch(state: State, where: str = "checkpoint") -> Params:
    """Convert the weights of a ResNet with bottleneck blocks, by either library's names; the classifier is dropped."""
    state = {name.removeprefix("resnet."): array for name, array in state.items()}
    state = from_torchvision_names(state)
    found = [
        (int(m[1]), int(m[2])) for name in state if (m := re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", name))
    ]
    if not found:
        raise UserError(f"{where}: has neither 'layer1.0...' nor 'encoder.stages.0...' weights; it is no ResNet.")
    if "encoder.stages.0.layers.0.layer.2.convolution.weight" not in state:
        raise UserError(
            f"{where}: its blocks have two convolutions, as in ResNet-18 and 34; take ResNet-50, 101 or 152."
        )
    params: Params = {"stem": conv(state, "embedder.embedder", where)}
    for stage in sorted({stage for stage, _ in found}):
        count = 1 + max(number for own, number in found if own == stage)
        blocks = [block(state, f"encoder.stages.{stage}.layers.{i}", where) for i in range(count)]
        params[f"stage{stage}"] = {"first": blocks[0]}
        if count > 1:
            params[f"stage{stage}"]["rest"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks[1:])
    return params


def load_resnet(path: str | pathlib.Path) -> Params:
    """Load a ResNet from a .pth or .pt file, a .safetensors file, or a folder with model.safetensors; float32."""
    return resnet_from_torch(read_weights(path), str(path))
