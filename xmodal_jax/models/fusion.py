"""Fusion encoder: text tokens read image tokens by cross-attention in every layer (ALBEF, Li et al. 2021)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import (
    BlockStyle,
    block_looking,
    block_params,
    block_reading,
    dense,
    dense_params,
    pick_rows,
    project_heads,
    scan_blocks,
    stack_params,
)
from xmodal_jax.types import Array, Params


class Fusion(nn.Module):
    """Text tokens [b,L,D] and image tokens [B,N,D'] -> fused tokens [b,L,D]."""

    width: int
    layers: int
    heads: int
    hidden: int
    image_width: int
    dropout: float = 0.0
    remat: str = "dots"

    def setup(self) -> None:
        width, hidden, source = self.width, self.hidden, self.image_width
        self.stack = self.param(
            "layers", stack_params, self.layers, lambda key: block_params(key, width, hidden, source)
        )

    @property
    def style(self) -> BlockStyle:
        """The constants of the fusion blocks (the decoder runs the same blocks)."""
        return BlockStyle(self.heads, dropout=self.dropout, remat=self.remat)

    def reader(self, image: Array, rows: Array | None) -> Callable[[Params], Any]:
        """Keys and values of one layer: projected once per image, then gathered, so B images serve any number of pairs."""

        def read(cross: Params) -> Any:
            keys, values = (project_heads(cross[name], image, self.heads) for name in ("key", "value"))
            return (keys, values, None) if rows is None else (pick_rows(keys, rows), pick_rows(values, rows), None)

        return read

    def remember(self, image: Array) -> Params:
        """What all layers read of images [B,N,D']: keys and values [layers,B,N,heads,d]. Once per image, for any texts."""
        project = lambda cross, name: project_heads(cross[name], image, self.heads)
        return {name: jax.vmap(partial(project, name=name))(self.stack["cross"]) for name in ("key", "value")}

    def begin(self, text: Array, mask: Array) -> Array:
        """The first layer's self-attention of texts [M,L,D], mask [M,L]: once per text, for any images."""
        first = jax.tree.map(lambda leaf: leaf[0], self.stack)
        return block_looking(self.style, first, text, mask[:, None, None, :])

    def finish(self, read: Params, begun: Array, mask: Array) -> Array:
        """`self(image, text, mask)` [b,L,D] from `remember` (aligned rows [layers,b,N,heads,d]) and `begin` [b,L,D]."""
        memory = lambda cross: (cross["read"]["key"], cross["read"]["value"], None)
        stack = {**self.stack, "cross": {**self.stack["cross"], "read": read}}
        first, rest = (jax.tree.map(lambda leaf, cut=cut: leaf[cut], stack) for cut in (0, slice(1, None)))
        x = block_reading(self.style, first, begun, memory(first["cross"]))
        return scan_blocks(self.style, rest, x, mask[:, None, None, :], memory)

    def __call__(
        self, image: Array, text: Array, mask: Array, rows: Array | None = None, key: Array | None = None
    ) -> Array:
        """image [B,N,D'], text [b,L,D], mask [b,L], rows (which image each text reads, see `pick_rows`;
        default: its own)."""
        image = image.astype(text.dtype)
        return scan_blocks(self.style, self.stack, text, mask[:, None, None, :], self.reader(image, rows), key)


class EmbeddingToken(nn.Module):
    """A unit embedding [B,E] as one token of fusion [B,1,D]: a dense layer on the embedding scaled to order one.

    With it fusion works on the aggregated features of both sides, as in Wang et al. 2023 ("Adequate alignment and
    interaction for cross-modal retrieval"), and not on local tokens alone.
    """

    width: int

    @nn.compact
    def __call__(self, embed: Array) -> Array:
        """embed [B,E] -> [B,1,D], in the dtype of `embed`."""
        size = embed.shape[-1]
        return dense(self.param("project", dense_params, size, self.width), embed * size**0.5)[:, None]


def causal_mask(mask: Array) -> Array:
    """mask [b,L] of real tokens -> boolean [b,1,L,L]: position l may look at positions <= l that are real."""
    length = mask.shape[1]
    lower = jnp.tril(jnp.ones((length, length), bool))
    return lower[None, None] & mask[:, None, None, :]
