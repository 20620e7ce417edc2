"""Vision Transformer (Dosovitskiy et al. 2021): pre-norm blocks over non-overlapping patches and a [CLS] token.

Parity with Hugging Face's `ViTModel` is tested; `convert/huggingface.py` maps the names.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import REMAT
from xmodal_jax.models.grid import local_map
from xmodal_jax.models.layers import (
    BlockStyle,
    block_params,
    dense,
    dense_params,
    dropout,
    layer_norm,
    norm_params,
    scan_blocks,
    spread,
    stack_params,
)
from xmodal_jax.models.pixels import PixelConfig, Statistics
from xmodal_jax.types import Array

MEAN = STD = (0.5, 0.5, 0.5)  # the original code's; weights may come with other numbers (convert/described.py)
EPS = 1e-6  # the original code's; Hugging Face's configs have 1e-12, a relative 5e-7 where the variance is one


def patchify(image: Array, patch: int) -> Array:
    """Cut image [B,H,W,3] into patches [B,N,patch*patch*3], each flattened as (row, column, channel).

    Patches are in row-major order. Raises UserError when a side is no multiple of `patch`.
    """
    batch, height, width, channels = image.shape
    if height % patch or width % patch:
        raise UserError(f"image.size: {height} x {width} pixels do not divide into patches of {patch}; use a multiple.")
    rows, columns = height // patch, width // patch
    cells = image.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(batch, rows * columns, patch * patch * channels)


@dataclass(frozen=True)
class ViTConfig(PixelConfig):
    """A Vision Transformer encoder."""

    kind: str = "vit"
    """Kind of encoder: Vision Transformer."""
    patch: int = limited(16, least=1)
    """Pixels of a side of a patch; they must divide `size`."""
    width: int = limited(384, least=1)
    """Width D of the tokens."""
    layers: int = limited(12, least=1)
    """Number of transformer blocks."""
    heads: int = limited(6, least=1)
    """Attention heads of each block; they must divide `width`."""
    hidden: int = limited(1536, least=1)
    """Units of each block's MLP."""
    dropout: float = limited(0.0, least=0.0, most=0.99)
    """Dropout rate in every block and on the embeddings."""
    remat: str = limited("dots", among=REMAT)
    """What the backward pass recomputes: "none", "dots" (all but matrix products), "full", or "offload"."""
    neck_layers: int = limited(0, least=0)
    """Transformer blocks over the tokens before fusion reads them; 0: none."""

    standard: ClassVar[Statistics] = (MEAN, STD)

    def module(self, dtype: jnp.dtype) -> "ViT":
        """Build the tower."""
        shape = {
            name: getattr(self, name) for name in ("patch", "width", "layers", "heads", "hidden", "dropout", "remat")
        }
        return ViT(image_size=self.size, **shape, **self.pixels(dtype))

    def check(self, where: str) -> None:
        """Refuse pictures that do not divide into whole patches."""
        super().check(where)
        if self.size % self.patch:
            raise UserError(
                f"{where}.size is {self.size}, not a multiple of {where}.patch={self.patch}; write a multiple"
            )

    def local_map(self, tokens: int) -> np.ndarray:
        """Return the averages that make local features; patches are a grid, [CLS] is left out."""
        return local_map([("summary", 1), ("grid", tokens - 1)])


class ViT(nn.Module):
    """A ViT tower: uint8 image [B,H,W,3] -> tokens [B,N+1,D], [CLS] first, after the final norm.

    Pixels are read as (x / 255 - mean) / std, so the host sends bytes. `remat` names a policy of models/layers.py.
    """

    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    image_size: int = 224
    dropout: float = 0.0
    remat: str = "dots"
    dtype: jnp.dtype = jnp.float32
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    eps: float = EPS

    def setup(self) -> None:
        """Create the patch and position embeddings, the stack of blocks and the final norm."""
        width, hidden, patches = self.width, self.hidden, self.patches
        self.embed = self.param("patch", dense_params, self.patch**2 * 3, width)
        self.cls = self.param("cls", lambda key: 0.02 * jax.random.normal(key, (1, 1, width)))
        self.position = self.param("position", lambda key: 0.02 * jax.random.normal(key, (1, patches + 1, width)))
        self.stack = self.param("layers", stack_params, self.layers, lambda key: block_params(key, width, hidden))
        self.norm = self.param("norm", lambda _: norm_params(width))

    @property
    def patches(self) -> int:
        """Number of patches that the tower is built for."""
        return (self.image_size // self.patch) ** 2

    @property
    def style(self) -> BlockStyle:
        """Constants of this tower's blocks."""
        return BlockStyle(self.heads, pre_norm=True, eps=self.eps, dropout=self.dropout, remat=self.remat)

    def normalise(self, image: Array) -> Array:
        """Standardise uint8 pixels [B,H,W,3] by channel -> float32."""
        x = image.astype(jnp.float32) / 255.0
        return (x - spread(jnp.asarray(self.mean), x)) / spread(jnp.asarray(self.std), x)

    def embed_patches(self, image: Array, key: Array | None = None) -> Array:
        """Embed uint8 image [B,H,W,3] as [CLS] and patches with their positions [B,N+1,D]."""
        patches = dense(self.embed, patchify(self.normalise(image), self.patch).astype(self.dtype))
        expected = self.position.shape[1] - 1
        if patches.shape[1] != expected:
            raise UserError(
                f"image: {patches.shape[1]} patches, but the tower was built for {expected}; set image.size."
            )
        cls = jnp.broadcast_to(self.cls.astype(self.dtype), (patches.shape[0], 1, self.width))
        x = jnp.concatenate([cls, patches], axis=1) + self.position.astype(self.dtype)
        return dropout(x, self.dropout, key)

    def __call__(self, image: Array, key: Array | None = None) -> Array:
        """Encode image uint8 [B,H,W,3] as tokens [B,N+1,D]; `key` turns dropout on."""
        embed_key, stack_key = jax.random.split(key) if key is not None else (None, None)
        x = scan_blocks(self.style, self.stack, self.embed_patches(image, embed_key), None, key=stack_key)
        return layer_norm(self.norm, x, self.eps)
