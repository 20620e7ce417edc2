"""Encode a split once: embeddings for ranking, tokens for re-ranking, relaxed codes for Hamming distances."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.evaluation import Side
from xmodal_jax.encode.apply import apply
from xmodal_jax.encode.token_cache import TokenCaches
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.models.heads import l2_normalize
from xmodal_jax.models.scorer import ScorerConfig
from xmodal_jax.parallel.mesh import filled, mesh_of, replicated, split_rows, to_host
from xmodal_jax.settings import Config
from xmodal_jax.types import Array, Params


@dataclass(frozen=True)
class Embedded:
    """One side of a split, encoded.

    Embeddings float32 [n,E], tokens [n,N,D] and mask bool [n,N] (None unless asked for), relaxed codes float32 [n,K]
    (None without a hash head).
    """

    embed: np.ndarray
    tokens: np.ndarray | None = None
    mask: np.ndarray | None = None
    codes: np.ndarray | None = None


class Embedder:
    """The encoders of a model on one tree of parameters, over the mesh that these lie on.

    Each block of rows is split over the mesh. Compiled programs serve all embedders of the same model, such as those of
    all evaluations of a run.

    Args:
      model: the model.
      params: its parameters.
      poll: called before each block; an exception it raises aborts the pass (a run that is told to stop).
      texts: kept tokens of frozen towers by encoder (encode/token_cache.py), which save the towers' passes.
    """

    def __init__(
        self,
        model: CrossModal,
        params: Params,
        poll: Callable[[], None] = lambda: None,
        texts: TokenCaches | None = None,
    ) -> None:
        self.model, self.params, self.poll, self.texts = model, params, poll, texts or {}
        self.hashes = all("hash" in params[name] for name in model.config.encoders)
        self._mesh = mesh_of(params)

    def rows(self, side: str, rows: np.ndarray, keep_tokens: bool = True) -> Embedded:
        """Encode one block [b,...] of inputs of the encoder `side`, such as images or ids."""
        own = self.model.config.encoders[side]
        kept = self.texts[side].rows(rows) if side in self.texts else None
        method, inputs = ("encode", (rows,)) if kept is None else ("encode_cached", (rows, kept))
        placed = (split_rows(self._mesh, x) for x in inputs)
        tokens, embed, codes = encode_rows(self.model, method, side, self.hashes, self.params, *placed)
        tokens = to_host(tokens, len(rows)) if keep_tokens else None
        codes = None if codes is None else to_host(codes, len(rows))
        return Embedded(to_host(embed, len(rows)), tokens, own.mask(rows), codes)

    def side(self, side: Side, batch_size: int, keep_tokens: bool = False) -> Embedded:
        """Encode one side of a split, in blocks of `batch_size` of one compiled shape."""
        return _joined(self.blocks(side, batch_size, keep_tokens))

    def blocks(self, side: Side, batch_size: int, keep_tokens: bool = False) -> Iterator[Embedded]:
        """Yield one side of a split in blocks of at most `batch_size` inputs.

        With `config.eval.flip` embeddings and codes of pictures are the mean over the picture and its mirror image.
        """
        plain = self._real(side.blocks(batch_size), side, keep_tokens)
        if not (self.model.config.eval.flip and side.mirrored):
            yield from plain
            return
        mirrored = self._real(side.blocks(batch_size, flip=True), side, False)
        for one, other in zip(plain, mirrored, strict=True):
            embed = np.asarray(l2_normalize(jnp.asarray(one.embed + other.embed)))
            codes = None if one.codes is None else (one.codes + other.codes) / 2
            yield dataclasses.replace(one, embed=embed, codes=codes)

    def _real(self, blocks: Iterable[dict[str, np.ndarray]], side: Side, keep_tokens: bool) -> Iterator[Embedded]:
        """Encode blocks and yield their real rows, without padding."""
        for block in blocks:
            self.poll()
            real, coded = int((block["id"] >= 0).sum()), self.rows(side.encoder, block[side.field], keep_tokens)
            yield Embedded(**jax.tree.map(lambda x, real=real: x[:real], vars(coded)))


def _joined(parts: Iterable[Embedded]) -> Embedded:
    """Concatenate the rows of all parts."""
    return Embedded(**jax.tree.map(lambda *rows: np.concatenate(rows), *map(vars, parts)))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def encode_rows(
    model: CrossModal, method: str, name: str, hashes: bool, params: Params, *rows: Array
) -> tuple[Array, Array, Array | None]:
    """Encode rows [b,...] with the encoder `name`: tokens, embeddings and, if the model `hashes`, relaxed codes."""
    tokens, embed = apply(model, params, name, *rows, method=method)
    return tokens, embed, apply(model, params, name, embed, method="codes") if hashes else None


LENGTH_STEP = 8  # texts are scored at their length rounded up to this; each length compiles one program
CACHE_BLOCK = 64
READ_BYTES = 4 << 30  # limit of cached keys and values, which are 2 x layers the size of the tokens


def scorer_of(config: Config) -> ScorerConfig:
    """Return the pair score of a resolved config."""
    assert isinstance(config.scorer, ScorerConfig), "a resolved config has its scorer built"
    return config.scorer


class PairScorer:
    """A scorer of pairs by `config.scorer`: (left_rows int [b], right_rows int [b]) -> float32 [b]; log-odds for ITM.

    Of fusion it caches the inputs that do not depend on the pair: of the left side the keys and values of all layers,
    of the right side the first layer's self-attention. A block of pairs then costs the rest of fusion over its longest
    text's tokens; `lengths` [M] let callers put pairs of similar length together. Both caches are made in parts and
    then kept whole on each device, so that the pairs of a block, split over the mesh of the parameters, move nothing
    between devices. If the keys and values would take more than `READ_BYTES`, the left tokens are kept instead and
    projected for each block of pairs. Other scorers read both sides' tokens as they are.
    """

    def __init__(self, model: CrossModal, params: Params, left: Embedded, right: Embedded) -> None:
        assert left.tokens is not None and right.tokens is not None, "pairs are scored by their tokens"
        self.model, self.params, self._mesh = model, params, mesh_of(params)
        self.longest = right.tokens.shape[1]
        put = partial(jax.device_put, device=replicated(self._mesh))
        if not scorer_of(model.config).cached:
            self.lengths = np.full(len(right.tokens), self.longest, np.int32)
            self.arrays = tuple(put((side.tokens, side.embed, side.mask)) for side in (left, right))
            return
        assert right.mask is not None, "the right side asks with words"
        self.lengths = self.longest - np.argmax(right.mask[:, ::-1], axis=1).astype(np.int32)
        self.projected = self._bytes("cache_memory", left.tokens) <= READ_BYTES
        read = self._cached("cache_memory", 1, left.tokens) if self.projected else put(left.tokens)
        begun = self._cached("cache_query", 0, right.tokens, right.mask)
        self.arrays = (read, begun, put(right.mask), put(left.embed), put(right.embed), put(left.mask))

    def _cached(self, method: str, axis: int, *arrays: np.ndarray) -> Any:
        """Apply `method` of the model to rows in blocks and join the results along `axis`."""
        count = len(arrays[0])
        size, blocks = min(CACHE_BLOCK, count), []
        for start in range(0, count, size):
            rows = (split_rows(self._mesh, filled(x[start : start + size], size)) for x in arrays)
            made = jax.device_put(apply_rows(self.model, method, self.params, *rows), replicated(self._mesh))
            real = min(size, count - start)
            blocks.append(jax.tree.map(lambda x, real=real: jax.lax.slice_in_dim(x, 0, real, axis=axis), made))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=axis), *blocks)

    def _bytes(self, method: str, rows: np.ndarray) -> int:
        """Return the size in bytes of the result of `method` of the model for all rows, without computing it."""
        made = jax.eval_shape(partial(apply_rows, self.model, method), self.params, rows)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made))

    def length_of(self, right_rows: np.ndarray) -> int:
        """Return the length at which these texts are scored."""
        longest = int(self.lengths[np.asarray(right_rows)].max())
        return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.longest)

    def __call__(self, left_rows: np.ndarray, right_rows: np.ndarray) -> Array:
        """Score one block of pairs."""
        count = len(right_rows)
        rows = tuple(split_rows(self._mesh, x) for x in (left_rows, right_rows))
        if scorer_of(self.model.config).cached:
            length = self.length_of(right_rows)
            found = score_rows(self.model, self.projected, length, self.params, self.arrays, *rows)
        else:
            found = score_sides(self.model, self.params, self.arrays, *rows)
        return found if len(found) == count else found[:count]


@partial(jax.jit, static_argnums=(0, 1))
def apply_rows(model: CrossModal, method: str, params: Params, *rows: Array) -> Any:
    """Apply `method` of the model to rows."""
    return apply(model, params, *rows, method=method)


@partial(jax.jit, static_argnums=0)
def score_sides(model: CrossModal, params: Params, sides: tuple, left_rows: Array, right_rows: Array) -> Array:
    """Score pairs [b] of rows of two sides (tokens, embeddings, mask)."""
    picked = (
        jax.tree.map(lambda x, rows=rows: x[rows], side)
        for side, rows in zip(sides, (left_rows, right_rows), strict=True)
    )
    return apply(model, params, *picked, method="score")


@partial(jax.jit, static_argnums=(0, 1, 2))
def score_rows(
    model: CrossModal, projected: bool, length: int, params: Params, arrays: tuple, left_rows: Array, right_rows: Array
) -> Array:
    """Score pairs [b] of rows of a `PairScorer`'s cached arrays by their log-odds.

    `projected` says that the left side is cached as keys and values.
    """
    read, begun, mask, left, right, read_mask = arrays
    if projected:
        picked = jax.tree.map(lambda x: x[:, left_rows], read)
    else:
        picked = apply(model, params, read[left_rows], method="cache_memory")
    texts, pair = (begun[right_rows, :length], mask[right_rows, :length]), (left[left_rows], right[right_rows])
    seen = None if read_mask is None else read_mask[left_rows]
    return apply(model, params, picked, *texts, *pair, seen, method="score_cached")
