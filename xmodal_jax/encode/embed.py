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
from xmodal_jax.models.pair_score import ScorerConfig
from xmodal_jax.models.pair_score import Side as PairSide
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

    def take(self, rows: Any) -> "Embedded":
        """Return some rows: a slice, or int or bool [m]."""
        return Embedded(**jax.tree.map(lambda x: x[rows], vars(self)))


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
        return Embedded(to_host(embed, len(rows)), tokens, _widened(own.mask(rows), tokens), codes)

    def side(self, side: Side, batch_size: int, keep_tokens: bool = False) -> Embedded:
        """Encode one side of a split, in blocks of `batch_size` of one compiled shape."""
        return join_rows(self.blocks(side, batch_size, keep_tokens))

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
            real = int((block["id"] >= 0).sum())
            yield self.rows(side.encoder, block[side.field], keep_tokens).take(slice(real))


def _widened(mask: Any, tokens: np.ndarray | None) -> Any:
    """Extend the mask [b,N] of a tower's tokens to `tokens` [b,M,D], which may have an embedding behind them."""
    if mask is None or tokens is None or mask.shape[1] == tokens.shape[1]:
        return mask
    return np.pad(np.asarray(mask), ((0, 0), (0, tokens.shape[1] - mask.shape[1])), constant_values=True)


def join_rows(parts: Iterable[Embedded]) -> Embedded:
    """Concatenate the rows of all parts, at least one."""
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

    What a split scorer computes of a side alone is computed once and kept (`CrossModal.prepare_side`): of fusion, the
    keys and values of all layers for the left side, and the first layer's self-attention for the right one. A block of
    pairs then costs the rest, over the tokens of its longest text; `lengths` [M] let callers put pairs of similar
    length together. Both sides are prepared in parts and then kept whole on each device, so that the pairs of a block,
    split over the mesh of the parameters, move nothing between devices. If the prepared left side would take more than
    `READ_BYTES`, its tokens are kept instead and prepared for each block of pairs. Scorers that are not split read both
    sides as they are.
    """

    def __init__(self, model: CrossModal, params: Params, left: Embedded, right: Embedded) -> None:
        assert left.tokens is not None and right.tokens is not None, "pairs are scored by their tokens"
        self.model, self.params, self._mesh = model, params, mesh_of(params)
        self.longest, self.split = right.tokens.shape[1], scorer_of(model.config).split
        one, two = map(pair_side, (left, right))
        self.lengths = np.full(len(right.tokens), self.longest, np.int32)
        if self.split and right.mask is not None:
            self.lengths -= np.argmax(right.mask[:, ::-1], axis=1).astype(np.int32)
        self.projected = self.split and self._bytes(one) <= READ_BYTES
        put = partial(jax.device_put, device=replicated(self._mesh))
        read = self._prepared(one, True) if self.projected else put(one)
        self.arrays = (read, self._prepared(two, False) if self.split else put(two))

    def _prepared(self, side: PairSide, first: bool) -> Any:
        """Prepare all rows of a side, in blocks."""
        count = len(side.embed)
        size, blocks = min(CACHE_BLOCK, count), []
        for start in range(0, count, size):
            rows = jax.tree.map(lambda x, s=start: split_rows(self._mesh, filled(x[s : s + size], size)), side)
            made = jax.device_put(prepare_rows(self.model, first, self.params, rows), replicated(self._mesh))
            real = min(size, count - start)
            blocks.append(jax.tree.map(lambda x, real=real: x[:real], made))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)

    def _bytes(self, side: PairSide) -> int:
        """Return the size in bytes of the prepared left side, without computing it."""
        made = jax.eval_shape(partial(prepare_rows, self.model, True), self.params, side)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made))

    def length_of(self, right_rows: np.ndarray) -> int:
        """Return the length at which these texts are scored."""
        longest = int(self.lengths[np.asarray(right_rows)].max())
        return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.longest)

    def __call__(self, left_rows: np.ndarray, right_rows: np.ndarray) -> Array:
        """Score one block of pairs."""
        count, length = len(right_rows), self.length_of(right_rows)
        rows = tuple(split_rows(self._mesh, x) for x in (left_rows, right_rows))
        found = score_rows(self.model, self.projected, length, self.params, self.arrays, *rows)
        return found if len(found) == count else found[:count]


def pair_side(own: Embedded) -> PairSide:
    """Return an encoded side as scorers take it."""
    rows: Any = (own.tokens, own.embed, own.mask)
    return PairSide(*rows)


@partial(jax.jit, static_argnums=(0, 1))
def prepare_rows(model: CrossModal, first: bool, params: Params, side: PairSide) -> Any:
    """Prepare rows of one side of pairs."""
    return model.apply({"params": params}, side, first, method="prepare_side")


@partial(jax.jit, static_argnums=(0, 1, 2))
def score_rows(
    model: CrossModal, projected: bool, length: int, params: Params, arrays: tuple, left_rows: Array, right_rows: Array
) -> Array:
    """Score pairs [b] of rows of a `PairScorer`'s arrays, of the right side the first `length` tokens.

    `projected` says that the left side is prepared already.
    """
    one, two = arrays
    left = jax.tree.map(lambda x: x[left_rows], one)
    if scorer_of(model.config).split:
        left = left if projected else model.apply({"params": params}, left, True, method="prepare_side")
        right = two.pick(right_rows, length)
    else:
        right = jax.tree.map(lambda x: x[right_rows], two)
    return apply(model, params, left, right, method="score_prepared")
