"""Encode a split once: embeddings for ranking, tokens for re-ranking, relaxed codes for Hamming."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.evaluation import EvalSplit
from xmodal_jax.models.heads import l2_normalize
from xmodal_jax.parallel.mesh import beside, to_host
from xmodal_jax.types import Array, Params


@dataclass(frozen=True)
class Embedded:
    """One side of a split: embeddings float32 [n,E], tokens [n,N,D] and mask bool [n,N] (None unless asked for),
    relaxed codes float32 [n,K] (None without a hash head)."""

    embed: np.ndarray
    tokens: np.ndarray | None = None
    mask: np.ndarray | None = None
    codes: np.ndarray | None = None


class Embedder:
    """The encoders of a model on one tree of parameters, jitted once.

    `texts`: kept tokens of the text tower (encode/token_cache.py), which spare its pass. `poll` is called before every block; what it raises ends the work (a run that is told to stop).
    """

    def __init__(self, model: Any, params: Params, poll: Callable[[], None] = lambda: None, texts: Any = None) -> None:
        self.model, self.params, self.poll, self.texts = model, params, poll, texts
        self.hashes = all("hash" in params[name] for name in model.config.encoders)
        self._encode = {
            (name, method): jax.jit(partial(self._run, method, name))
            for name in model.config.encoders
            for method in ("encode", "encode_cached")
        }

    def _run(self, method: str, name: str, params: Params, *rows: Array) -> tuple[Array, Array, Array | None]:
        tokens, embed = self.model.apply({"params": params}, name, *rows, method=method)
        codes = self.model.apply({"params": params}, name, embed, method="codes") if self.hashes else None
        return tokens, embed, codes

    def rows(self, side: str, rows: np.ndarray, keep_tokens: bool = True) -> Embedded:
        """Encode one block [b,...] of what the encoder `side` takes, such as images or ids."""
        own = self.model.config.encoders[side]
        kept = self.texts.rows(rows) if own.cache_tokens and self.texts is not None else None
        run = self._encode[side, "encode" if kept is None else "encode_cached"]
        inputs = (rows,) if kept is None else (rows, kept)
        tokens, embed, codes = run(self.params, *(beside(self.params, x) for x in inputs))
        tokens = to_host(tokens) if keep_tokens else None
        return Embedded(to_host(embed), tokens, own.mask(rows), None if codes is None else to_host(codes))

    def split(self, split: EvalSplit, side: str, batch_size: int, keep_tokens: bool = False) -> Embedded:
        """Encode all images or all captions of a split, in blocks of `batch_size` of one compiled shape.

        With `config.eval.flip` embeddings and codes of images are the mean over the picture and its mirror image.
        """
        if side == "text":
            return _joined(self._blocks(split.texts(batch_size), side, keep_tokens))
        return _joined(self.images(split, batch_size, keep_tokens))

    def images(self, split: EvalSplit, batch_size: int, keep_tokens: bool = False) -> Iterator[Embedded]:
        """All images of a split as in `split`, a block of at most `batch_size` after the other."""
        plain = self._blocks(split.images(batch_size), "image", keep_tokens)
        if not self.model.config.eval.flip:
            yield from plain
            return
        mirrored = self._blocks(split.images(batch_size, flip=True), "image", False)
        for one, other in zip(plain, mirrored, strict=True):
            embed = np.asarray(l2_normalize(jnp.asarray(one.embed + other.embed)))
            codes = None if one.codes is None else (one.codes + other.codes) / 2
            yield dataclasses.replace(one, embed=embed, codes=codes)

    def captions(self, split: EvalSplit, batch_size: int) -> Iterator[Embedded]:
        """All captions of a split without their tokens, a block of at most `batch_size` after the other."""
        return self._blocks(split.texts(batch_size), "text", False)

    def _blocks(self, blocks: Iterable[dict[str, np.ndarray]], side: str, keep_tokens: bool) -> Iterator[Embedded]:
        """The real rows of each of `blocks`."""
        for block in blocks:
            self.poll()
            real, coded = int((block["id"] >= 0).sum()), self.rows(side, block[side], keep_tokens)
            yield Embedded(**jax.tree.map(lambda x, real=real: x[:real], vars(coded)))


def _joined(parts: Iterable[Embedded]) -> Embedded:
    """The rows of all parts, one after the other."""
    return Embedded(**jax.tree.map(lambda *rows: np.concatenate(rows), *map(vars, parts)))


LENGTH_STEP = 8  # texts are scored at their length rounded up to this, each length one compiled program
CACHE_BLOCK = 64
READ_BYTES = 4 << 30  # keys and values of all layers are 2 x layers the size of the tokens: more than this is not kept


class PairScorer:
    """ITM log-odds of pairs: (image_rows int [b], text_rows int [b]) -> float32 [b].

    Cached once: of each image the keys and values that all fusion layers read, of each text the first layer's
    self-attention. A block of pairs costs the rest of fusion over its longest text's tokens; `lengths` [M] are there for
    callers who put pairs of similar length together. Everything stays on the device. Where the keys and values would take
    more than `READ_BYTES`, the images' tokens are kept instead and projected for each block of pairs.
    """

    def __init__(self, model: Any, params: Params, image: Embedded, text: Embedded) -> None:
        self.model, self.params = model, params
        self.lengths = text.mask.shape[1] - np.argmax(text.mask[:, ::-1], axis=1).astype(np.int32)
        mask = jnp.asarray(text.mask)
        self.projected = self._bytes("remember", image.tokens) <= READ_BYTES
        read = self._cached("remember", image.tokens, axis=1) if self.projected else jnp.asarray(image.tokens)
        begun = self._cached("begin", text.tokens, text.mask)
        self.arrays = (read, begun, mask, jnp.asarray(image.embed), jnp.asarray(text.embed))
        self._score = jax.jit(self._run, static_argnums=4)

    def _cached(self, method: str, *arrays: np.ndarray, axis: int = 0) -> Any:
        """`method` of the model over rows in blocks."""
        run = jax.jit(lambda params, *rows: self.model.apply({"params": params}, *rows, method=method))
        blocks = [
            run(self.params, *(jnp.asarray(x[start : start + CACHE_BLOCK]) for x in arrays))
            for start in range(0, len(arrays[0]), CACHE_BLOCK)
        ]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=axis), *blocks)

    def _bytes(self, method: str, rows: np.ndarray) -> int:
        """What `method` of the model gives for all rows, in bytes."""
        run = lambda params, rows: self.model.apply({"params": params}, rows, method=method)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(run, self.params, rows)))

    def _run(self, params: Params, arrays: tuple, image_rows: Array, text_rows: Array, length: int) -> Array:
        read, begun, mask, image, text = arrays
        if self.projected:
            picked = jax.tree.map(lambda x: x[:, image_rows], read)
        else:
            picked = self.model.apply({"params": params}, read[image_rows], method="remember")
        texts = begun[text_rows, :length], mask[text_rows, :length]
        pair = image[image_rows], text[text_rows]
        return self.model.apply({"params": params}, picked, *texts, *pair, method="score_cached")

    def length_of(self, text_rows: np.ndarray) -> int:
        """The length at which these texts are scored."""
        longest = int(self.lengths[np.asarray(text_rows)].max())
        return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.arrays[2].shape[1])

    def __call__(self, image_rows: np.ndarray, text_rows: np.ndarray) -> Array:
        """Log-odds of one block of pairs."""
        length = self.length_of(text_rows)
        return self._score(self.params, self.arrays, jnp.asarray(image_rows), jnp.asarray(text_rows), length)
