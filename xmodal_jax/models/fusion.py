"""Fusion: in every layer one encoder's tokens, the query, read another's, the memory (ALBEF, Li et al. 2021)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import (
    BlockStyle,
    Reading,
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
    """Cross-attention blocks: query tokens [b,L,D] and memory tokens [B,N,D'] -> fused tokens [b,L,D]."""

    width: int
    layers: int
    heads: int
    hidden: int
    memory_width: int
    dropout: float = 0.0
    remat: str = "dots"

    def setup(self) -> None:
        """Create the stack of blocks."""
        width, hidden, source = self.width, self.hidden, self.memory_width
        self.stack = self.param(
            "layers", stack_params, self.layers, lambda key: block_params(key, width, hidden, source)
        )

    @property
    def style(self) -> BlockStyle:
        """Constants of the fusion blocks, which the decoder runs too."""
        return BlockStyle(self.heads, dropout=self.dropout, remat=self.remat)

    def reader(self, memory: Array, rows: Array | None, mask: Array | None = None) -> Callable[[Params], Reading]:
        """Return a function from one layer's parameters to its keys, values and mask.

        They are projected once per row of the memory, then gathered for any number of pairs.
        """
        seen = None if mask is None else mask[:, None, None, :]

        def read(cross: Params) -> Reading:
            keys, values = (project_heads(cross[name], memory, self.heads) for name in ("key", "value"))
            if rows is None:
                return keys, values, seen
            return pick_rows(keys, rows), pick_rows(values, rows), None if seen is None else pick_rows(seen, rows)

        return read

    def cache_memory(self, memory: Array) -> Params:
        """Project memory tokens [B,N,D'] for all layers: keys and values [layers,B,N,heads,d], for any query."""

        def project(layer: Params) -> Array:
            return project_heads(layer, memory, self.heads)

        return {name: jax.vmap(project)(self.stack["cross"][name]) for name in ("key", "value")}

    def cache_query(self, query: Array, mask: Array) -> Array:
        """Run the first layer's self-attention on the query [M,L,D] with mask [M,L], once per row for any memory."""
        first = jax.tree.map(lambda leaf: leaf[0], self.stack)
        return block_looking(self.style, first, query, mask[:, None, None, :])

    def fuse_cached(self, read: Params, begun: Array, mask: Array, memory_mask: Array | None = None) -> Array:
        """Compute `self(memory, query, mask)` [b,L,D] from the two caches.

        `read` is from `cache_memory`, aligned rows [layers,b,N,heads,d]; `begun` [b,L,D] is from `cache_query`.
        """
        seen = None if memory_mask is None else memory_mask[:, None, None, :]

        def memory(cross: Params) -> Reading:
            return (cross["read"]["key"], cross["read"]["value"], seen)

        stack = {**self.stack, "cross": {**self.stack["cross"], "read": read}}
        first, rest = (jax.tree.map(lambda leaf, cut=cut: leaf[cut], stack) for cut in (0, slice(1, None)))
        x = block_reading(self.style, first, begun, memory(first["cross"]))
        return scan_blocks(self.style, rest, x, mask[:, None, None, :], memory)

    def __call__(
        self,
        memory: Array,
        query: Array,
        mask: Array,
        rows: Array | None = None,
        key: Array | None = None,
        memory_mask: Array | None = None,
    ) -> Array:
        """Fuse query tokens [b,L,D] with memory tokens [B,N,D'] -> [b,L,D].

        Args:
            memory: Tokens that are read [B,N,D'].
            query: Tokens that read [b,L,D].
            mask: True for real tokens of the query [b,L].
            rows: Row of the memory that each row of the query reads (see `pick_rows`; default: its own).
            key: Turns dropout on.
            memory_mask: True for real tokens of the memory [B,N].
        """
        read = self.reader(memory.astype(query.dtype), rows, memory_mask)
        return scan_blocks(self.style, self.stack, query, mask[:, None, None, :], read, key)


class EmbeddingToken(nn.Module):
    """A unit embedding [B,E] as one token of fusion [B,1,D]: a dense layer on the embedding scaled to order one.

    It lets fusion work on the aggregated features of both sides, as in Wang et al. 2023 ("Adequate alignment and
    interaction for cross-modal retrieval"), and not on local tokens alone.
    """

    width: int

    @nn.compact
    def __call__(self, embed: Array) -> Array:
        """Map embed [B,E] to a token [B,1,D] in the dtype of `embed`."""
        size = embed.shape[-1]
        return dense(self.param("project", dense_params, size, self.width), embed * size**0.5)[:, None]


def causal_mask(mask: Array) -> Array:
    """Return bool [b,1,L,L] from the mask [b,L] of real tokens: position l may look at real positions <= l."""
    length = mask.shape[1]
    lower = jnp.tril(jnp.ones((length, length), bool))
    return lower[None, None] & mask[:, None, None, :]
