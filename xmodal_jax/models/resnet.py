"""ResNet with bottleneck blocks (He et al. 2016), in PyTorch's convention: "v1.5", the stride on the 3x3 convolution.

Batch norm is folded into the convolutions when weights are loaded (`convert/resnet.py`) and does not exist in
training: its statistics stay those of the checkpoint. With statistics of the batch, an embedding would depend on the
other rows, the tower would be no pure function, and eight devices would not give the numbers of one. Training changes
a kernel and a bias.

The blocks of a stage that follow its first have one shape, so they are one stacked dict that `lax.scan` walks: 152
layers compile as fast as 50.

    stem:   {kernel [7,7,3,C], bias}
    stageN: {first: block with shortcut, rest: the other blocks stacked (not where a stage has one block)}
    block:  {reduce: {kernel [D,F], bias}, spatial: {kernel [3,3,F,F], bias}, expand: {kernel [F,D], bias}, shortcut}
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import REMAT
from xmodal_jax.models.grid import local_map
from xmodal_jax.models.layers import POLICIES, dense, spread, stack_params
from xmodal_jax.models.pixels import PixelConfig, Statistics
from xmodal_jax.types import Array, Params

STAGES = {  # depth: blocks of each stage; 14 and 26 are for few pictures and for tests
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# ImageNet's statistics, which torchvision's and Hugging Face's weights expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv_params(key: Array, shape: tuple[int, ...], gain: float = 2.0) -> Params:
    """Draw a kernel [...,C,D] with standard deviation sqrt(gain / fan in), and a zero bias."""
    scale = math.sqrt(gain / math.prod(shape[:-1]))
    return {"kernel": scale * jax.random.normal(key, shape), "bias": jnp.zeros(shape[-1])}


def bottleneck_params(key: Array, inputs: int, outputs: int, shortcut: bool) -> Params:
    """Draw one block of `outputs` channels, a quarter of them inside; its last convolution starts at zero.

    Without norms a sum over sixteen random branches would grow from block to block.
    """
    keys, inner = jax.random.split(key, 3), outputs // 4
    params = {
        "reduce": conv_params(keys[0], (inputs, inner)),
        "spatial": conv_params(keys[1], (3, 3, inner, inner)),
        "expand": conv_params(keys[2], (inner, outputs), 0.0),
    }
    if shortcut:
        params["shortcut"] = conv_params(jax.random.fold_in(key, 3), (inputs, outputs), 1.0)
    return params


def stage_params(key: Array, inputs: int, outputs: int, blocks: int) -> Params:
    """Draw a stage: its first block, and the others stacked."""
    first, rest = jax.random.split(key)
    params = {"first": bottleneck_params(first, inputs, outputs, True)}
    if blocks > 1:
        params["rest"] = stack_params(rest, blocks - 1, lambda own: bottleneck_params(own, outputs, outputs, False))
    return params


def conv(params: Params, x: Array, stride: int) -> Array:
    """Convolve x [B,H,W,C] with kernel [k,k,C,D], k // 2 pixels of padding on every side as in PyTorch -> [B,h,w,D]."""
    kernel = params["kernel"].astype(x.dtype)
    pad = (kernel.shape[0] // 2,) * 2
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + spread(params["bias"], y)


def max_pool(x: Array) -> Array:
    """Take the maximum over 3x3 pixels, stride 2, one pixel of padding: x [B,H,W,D] -> [B,h,w,D]."""
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)


def bottleneck(params: Params, x: Array, stride: int = 1) -> Array:
    """Apply 1x1, 3x3 with the stride, 1x1, and add x or its shortcut: [B,H,W,C] -> [B,h,w,D]."""
    y = jax.nn.relu(dense(params["reduce"], x))
    y = jax.nn.relu(conv(params["spatial"], y, stride))
    y = dense(params["expand"], y)
    beside = dense(params["shortcut"], x[:, ::stride, ::stride]) if "shortcut" in params else x
    return jax.nn.relu(beside + y)


def run_stage(params: Params, x: Array, stride: int, remat: str) -> Array:
    """Run all blocks of a stage under the remat policy `remat`; the first has the stride."""
    policy = POLICIES[remat]
    keep = (lambda f: f) if policy is None else partial(jax.checkpoint, policy=policy, prevent_cse=False)
    x = keep(partial(bottleneck, stride=stride))(params["first"], x)
    if "rest" not in params:
        return x
    step = keep(lambda carry, own: (bottleneck(own, carry), None))
    return jax.lax.scan(step, x, params["rest"])[0]


@dataclass(frozen=True)
class ResNetConfig(PixelConfig):
    """A ResNet encoder of 50, 101 or 152 layers, or one of the small 14 and 26."""

    kind: str = "resnet"
    """Kind of encoder: ResNet."""
    depth: int = limited(50, among=tuple(STAGES))
    """Number of layers: 50, 101 or 152 as published, or 14 and 26 for few pictures."""
    width: int = limited(2048, least=1)
    """Width D of the tokens, a multiple of 32; 2048 as published."""
    remat: str = limited("dots", among=REMAT)
    """What the backward pass recomputes: "none", "dots" (all but matrix products), "full", or "offload"."""
    neck_layers: int = limited(0, least=0)
    """Transformer blocks over the tokens before fusion reads them; 0: none."""

    standard: ClassVar[Statistics] = (MEAN, STD)

    def module(self, dtype: jnp.dtype) -> "ResNet":
        """Build the tower."""
        return ResNet(self.depth, self.width, remat=self.remat, **self.pixels(dtype))

    def local_map(self, tokens: int) -> np.ndarray:
        """Return the averages that make local features; all tokens are one grid."""
        return local_map([("grid", tokens)])

    def check(self, where: str) -> None:
        """Refuse a width that no ResNet has."""
        super().check(where)
        if self.width % 32:
            raise UserError(f"{where}.width is {self.width}; a ResNet takes multiples of 32, such as 2048")


class ResNet(nn.Module):
    """A ResNet tower: uint8 image [B,H,W,3] -> grid tokens [B,ceil(H/32)*ceil(W/32),D] before global pooling.

    Tokens are in row-major order. `depth` is a key of `STAGES`; `width` D is 2048 as published, and the stages have
    D/8, D/4, D/2 and D channels. `remat` names a policy of models/layers.py.
    """

    depth: int = 50
    width: int = 2048
    remat: str = "dots"
    dtype: jnp.dtype = jnp.float32
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def setup(self) -> None:
        """Create the parameters of the stem and the stages."""
        inputs = self.width // 32
        self.stem = self.param("stem", conv_params, (7, 7, 3, inputs))
        stages = []
        for i, blocks in enumerate(STAGES[self.depth]):
            outputs = self.width // 8 * 2**i
            stages.append(self.param(f"stage{i}", stage_params, inputs, outputs, blocks))
            inputs = outputs
        self.stages = stages

    def __call__(self, image: Array, key: Array | None = None) -> Array:
        """Encode image uint8 [B,H,W,3] as tokens [B,N,D]; `key` is unused (no dropout)."""
        del key
        x = image.astype(jnp.float32) / 255.0
        x = (x - spread(jnp.asarray(self.mean), x)) / spread(jnp.asarray(self.std), x)
        x = max_pool(jax.nn.relu(conv(self.stem, x.astype(self.dtype), 2)))
        for i, params in enumerate(self.stages):
            x = run_stage(params, x, 1 if i == 0 else 2, self.remat)
        return x.reshape(x.shape[0], -1, x.shape[-1])
