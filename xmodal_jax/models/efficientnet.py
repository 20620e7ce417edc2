"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-excitation, ReLU6 for swish): a small convolutional tower.

Batch norm is folded into the convolutions when weights are loaded (`convert/huggingface.py`), so every layer here is a
kernel and a bias and can be fine-tuned, and a batch of one gives what a batch of a thousand gives.

Written for XLA on CPU, where grouped convolutions are slow: 1x1 convolutions are matrix products, depthwise ones are
shifted multiply-adds with a gradient of their own, and the batch is walked in chunks that stay in the cache, with each
block recomputed in the backward pass. Accelerators take the whole batch at once.

Parameters are one entry per layer group, so a freeze pattern can stop the gradient below any block:

    stem:    {kernel [3,3,3,32], bias}
    blockNN: {expand: {kernel [C,F], bias} (not in block00), depthwise: {kernel [k,k,F], bias},
              project: {kernel [F,D], bias}}
    head:    {kernel [320,1280], bias}
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.data.config import DataConfig
from xmodal_jax.models.grid import group_parts, local_map, pooling_groups
from xmodal_jax.models.layers import dense, spread
from xmodal_jax.models.lowlevel import summary
from xmodal_jax.models.pixels import PixelConfig, Statistics
from xmodal_jax.types import Array, DataFacts, Params

WIDTH = 1280
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of pixels in 0..1
STRIDE = 32  # input pixels per output cell
INNER = (4, 10)  # blocks whose pooled output goes into the summary token
CPU_CHUNK = 4  # images run at a time on CPU: their activations stay in the cache


class BlockShape(NamedTuple):
    """The shape of one inverted-residual block: kernel size, stride, channels in, expanded, out."""

    kernel: int
    stride: int
    inputs: int
    hidden: int
    outputs: int


def block_shapes() -> tuple[BlockShape, ...]:
    """Return the 16 blocks of Lite0, from (repeats, kernel, stride, expansion, channels) of its seven stages."""
    first = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80))
    last = ((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
    shapes, inputs = [], 32
    for repeats, kernel, stride, expansion, outputs in (*first, *last):
        for i in range(repeats):
            shapes.append(BlockShape(kernel, stride if i == 0 else 1, inputs, inputs * expansion, outputs))
            inputs = outputs
    return tuple(shapes)


BLOCKS = block_shapes()


def conv_params(key: Array, shape: tuple[int, ...], fan_in: int) -> Params:
    """Draw a kernel with He's standard deviation sqrt(2 / fan_in), and a zero bias."""
    return {"kernel": math.sqrt(2.0 / fan_in) * jax.random.normal(key, shape), "bias": jnp.zeros(shape[-1])}


def mobile_params(key: Array, shape: BlockShape) -> Params:
    """Draw the parameters of one inverted-residual block."""
    keys = jax.random.split(key, 3)
    size = shape.kernel
    params = {
        "depthwise": conv_params(keys[1], (size, size, shape.hidden), size * size),
        "project": conv_params(keys[2], (shape.hidden, shape.outputs), shape.hidden),
    }
    if shape.hidden != shape.inputs:
        params["expand"] = conv_params(keys[0], (shape.inputs, shape.hidden), shape.inputs)
    return params


def relu6(x: Array) -> Array:
    """Clip x to [0, 6]."""
    return jnp.clip(x, 0.0, 6.0)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """Return output size, padding before and padding after of TensorFlow's "SAME" (the odd pixel goes after)."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return outputs, total // 2, total - total // 2


def _window(x: Array, row: int, column: int, rows: int, columns: int, stride: int) -> Array:
    """Take every `stride`-th pixel of x [b,H,W,D] from (row, column) on -> [b,rows,columns,D]."""
    stop = (x.shape[0], row + (rows - 1) * stride + 1, column + (columns - 1) * stride + 1, x.shape[3])
    return jax.lax.slice(x, (0, row, column, 0), stop, (1, stride, stride, 1))


def _shifted_sum(x: Array, kernel: Array, rows: int, columns: int, stride: int) -> Array:
    """Sum the taps of a padded x [b,H,W,D] times kernel [k,k,D] -> [b,rows,columns,D], in one fused loop."""
    windows = ((_window(x, i, j, rows, columns, stride), kernel[i, j]) for i, j in _taps(kernel.shape[0]))
    return reduce(add, (window * tap[None, None, None] for window, tap in windows))


def _pad(x: Array, size: int, stride: int) -> tuple[Array, int, int]:
    """Pad x [b,H,W,D] for a kernel of `size`; return it with the rows and columns of the output."""
    rows, top, bottom = same_padding(x.shape[1], size, stride)
    columns, left, right = same_padding(x.shape[2], size, stride)
    return jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))), rows, columns


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve x [b,H,W,D] by channel with kernel [k,k,D], "SAME" padding -> [b,ceil(H/stride),ceil(W/stride),D]."""
    padded, rows, columns = _pad(x, kernel.shape[0], stride)
    return _shifted_sum(padded, kernel, rows, columns, stride)


def _depthwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    """Return the convolution and what its gradient needs."""
    return depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Return the gradients to x and kernel.

    The gradient to x is again a shifted sum (flipped kernel over the dilated gradient); XLA's own is a sum of pads.
    """
    x, kernel = saved
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    padded, rows, columns = _pad(x, size, stride)
    edges = []
    for length, outputs in ((height, rows), (width, columns)):
        before = size - 1 - same_padding(length, size, stride)[1]
        edges.append((before, length + size - 1 - before - ((outputs - 1) * stride + 1), stride - 1))
    dilated = jax.lax.pad(grad, jnp.zeros((), grad.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    to_x = _shifted_sum(dilated, kernel[::-1, ::-1], height, width, 1)
    taps = [_pixel_sum(_window(padded, i, j, rows, columns, stride) * grad) for i, j in _taps(size)]
    return to_x, jnp.stack(taps).reshape(kernel.shape)


def _pixel_sum(x: Array) -> Array:
    """Sum x [b,h,w,D] to [D] as a product with ones: two to three times as fast on CPU as XLA's reduction."""
    flat = x.reshape(-1, x.shape[-1])
    return jnp.matmul(jnp.ones((flat.shape[0],), x.dtype), flat, precision=jax.lax.Precision.HIGHEST)


def _taps(size: int) -> list[tuple[int, int]]:
    """Return the (row, column) offsets of a square kernel in order."""
    return [(i, j) for i in range(size) for j in range(size)]


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def stem(params: Params, x: Array) -> Array:
    """Apply the first convolution, 3x3 with stride 2, as a product with patches: x [b,H,W,3] -> [b,H/2,W/2,32]."""
    padded, rows, columns = _pad(x, 3, 2)
    patches = jnp.concatenate([_window(padded, i, j, rows, columns, 2) for i, j in _taps(3)], axis=-1)
    kernel = params["kernel"]
    return relu6(dense({**params, "kernel": kernel.reshape(-1, kernel.shape[-1])}, patches))


def mobile_block(shape: BlockShape, params: Params, x: Array) -> Array:
    """Expand, convolve by channel and project x [b,H,W,C] -> [b,h,w,D]; add the input where shapes allow."""
    y = relu6(dense(params["expand"], x)) if "expand" in params else x
    spatial = params["depthwise"]
    y = depthwise(y, spatial["kernel"].astype(y.dtype), shape.stride)
    y = relu6(y + spatial["bias"].astype(x.dtype)[None, None, None])
    y = dense(params["project"], y)
    return x + y if shape.stride == 1 and shape.inputs == shape.outputs else y


def features(params: Params, x: Array, blocks: tuple[BlockShape, ...] = BLOCKS) -> tuple[Array, list[Array]]:
    """Run all blocks on normalised x [b,H,W,3]; return the grid tokens [b,h*w,1280] before pooling, and inner stages.

    The stages are the mean and the maximum over pixels after each block of `INNER`, [b,C] each.
    """
    stages: list[Array] = []
    x = stem(params["stem"], x)
    for i, shape in enumerate(blocks):
        x = jax.checkpoint(partial(mobile_block, shape), prevent_cse=False)(params[f"block{i:02d}"], x)
        if i in INNER:
            stages += [x.mean((1, 2)), x.max((1, 2))]
    x = relu6(dense(params["head"], x))
    return x.reshape(x.shape[0], -1, x.shape[-1]), stages


def map_chunks(function: Callable[[Array], Array], image: Array, chunk: int) -> Array:
    """Apply `function` to row chunks of image [B,...] in a loop.

    Chunks interleave rows, so that a sharded batch stays in place.
    """
    rows = math.gcd(image.shape[0], chunk)
    split = image.reshape(rows, image.shape[0] // rows, *image.shape[1:]).swapaxes(0, 1)
    result = jax.lax.map(function, split).swapaxes(0, 1)
    return result.reshape(image.shape[0], *result.shape[2:])


@dataclass(frozen=True)
class EfficientNetConfig(PixelConfig):
    """An EfficientNet-Lite0 encoder. Its `init` "lite0" takes the installed weights."""

    kind: str = "efficientnet"
    """Kind of encoder: EfficientNet-Lite0."""
    neck_layers: int = limited(0, least=0)
    """Transformer blocks over the tokens before fusion reads them; 0: none."""
    groups: tuple[int, ...] = ()
    """Token counts of the grid and of the summary; filled in from `size`."""

    standard: ClassVar[Statistics] = (MEAN, STD)

    @property
    def token_width(self) -> int:
        """Width of the tokens, which is fixed."""
        return WIDTH

    def module(self, dtype: jnp.dtype) -> "EfficientNetLite0":
        """Build the tower."""
        return EfficientNetLite0(summarize=True, **self.pixels(dtype))

    def filled(self, name: str, data: DataConfig, facts: DataFacts) -> "EfficientNetConfig":
        """Return the config with the token counts of a picture of this size: the grid and the summary."""
        return replace(self, groups=pooling_groups("lite0", math.ceil(self.size / STRIDE) ** 2 + 1))

    def local_map(self, tokens: int) -> np.ndarray:
        """Return the averages that make local features of the grid, without the summary."""
        return local_map(group_parts(self.groups, tokens))


class EfficientNetLite0(nn.Module):
    """An EfficientNet-Lite0 tower: uint8 image [B,H,W,3] -> tokens [B,ceil(H/32)*ceil(W/32),1280], not pooled.

    Tokens are in row-major order. Pixels are read as (x - 255 mean) / (255 std), by default (x - 127) / 128 as
    the published weights expect. `chunk` is the number of images run at a time (0: all; None: `CPU_CHUNK` on CPU,
    all elsewhere); the gradient is the same. `summarize` appends one token of colour, layout, edges and inner
    stages (lowlevel.py).
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    chunk: int | None = None
    summarize: bool = False
    blocks: tuple[BlockShape, ...] = BLOCKS
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Create the parameters of the stem, the blocks and the head convolution."""
        inputs, outputs = self.blocks[0].inputs, self.blocks[-1].outputs
        self.stem = self.param("stem", conv_params, (3, 3, 3, inputs), 27)
        self.stack = {
            (name := f"block{i:02d}"): self.param(name, mobile_params, shape) for i, shape in enumerate(self.blocks)
        }
        self.head = self.param("head", conv_params, (outputs, WIDTH), outputs)

    def __call__(self, image: Array, key: Array | None = None) -> Array:
        """Encode image uint8 [B,H,W,3] as tokens [B,N,1280]; `key` is unused (no dropout)."""
        del key
        chunk = self.chunk
        if chunk is None:
            chunk = CPU_CHUNK if jax.default_backend() == "cpu" else 0
        return map_chunks(self.tokens, image, chunk) if 0 < chunk < image.shape[0] else self.tokens(image)

    def tokens(self, image: Array) -> Array:
        """Encode all rows of image [b,H,W,3] at once -> [b,N,1280]."""
        x = image.astype(jnp.float32)
        mean, std = (spread(255.0 * jnp.asarray(part), x) for part in (self.mean, self.std))
        x = ((x - mean) / std).astype(self.dtype)
        tokens, stages = features({"stem": self.stem, "head": self.head, **self.stack}, x, self.blocks)
        if not self.summarize:
            return tokens
        return jnp.concatenate([tokens, summary(image, stages, tokens.shape[-1]).astype(tokens.dtype)], axis=1)
