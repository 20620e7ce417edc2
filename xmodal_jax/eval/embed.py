"""Encode a split once: embeddings for ranking, tokens for re-ranking, relaxed codes for Hamming."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.pipeline import EvalSplit
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
    """The two encoders of a model on one tree of parameters, jitted once.

    `poll` is called before every block; what it raises ends the work (a run that is told to stop).
    """

    def __init__(self, model: Any, params: Params, poll: Callable[[], None] = lambda: None) -> None:
        self.model, self.params, self.poll = model, params, poll
        self.hashes = "hash_image" in params
        self._encode = {
            side: jax.jit(partial(self._run, method, head))
            for side, method, head in (
                ("image", "encode_image", "hash_image_codes"),
                ("text", "encode_text", "hash_text_codes"),
            )
        }

    def _run(self, method: str, head: str, params: Params, rows: Array) -> tuple[Array, Array, Array | None]:
        tokens, embed = self.model.apply({"params": params}, rows, method=method)
        codes = self.model.apply({"params": params}, embed, method=head) if self.hashes else None
        return tokens, embed, codes

    def rows(self, side: str, rows: np.ndarray, keep_tokens: bool = True) -> Embedded:
        """Encode one block of images (as the tower takes them) or ids [b,L]."""
        tokens, embed, codes = self._encode[side](self.params, beside(self.params, rows))
        mask = rows != 0 if side == "text" else None
        tokens = to_host(tokens) if keep_tokens else None
        return Embedded(to_host(embed), tokens, mask, None if codes is None else to_host(codes))

    def split(self, split: EvalSplit, side: str, batch_size: int, keep_tokens: bool = False) -> Embedded:
        """Encode all images or all captions of a split, in blocks of `batch_size` of one compiled shape.

        With `config.eval.flip` embeddings and codes of images are the mean over the picture and its mirror image.
        """
        if side == "text":
            return self._all(split.texts(batch_size), side, keep_tokens)
        plain = self._all(split.images(batch_size), side, keep_tokens)
        if not self.model.config.eval.flip:
            return plain
        mirrored = self._all(split.images(batch_size, flip=True), side, False)
        embed = np.asarray(l2_normalize(jnp.asarray(plain.embed + mirrored.embed)))
        codes = None if plain.codes is None else (plain.codes + mirrored.codes) / 2
        return dataclasses.replace(plain, embed=embed, codes=codes)

    def _all(self, blocks: Iterable[dict[str, np.ndarray]], side: str, keep_tokens: bool) -> Embedded:
        """The real rows of all `blocks`, one after the other."""
        parts = []
        for block in blocks:
            self.poll()
            real, coded = int((block["id"] >= 0).sum()), self.rows(side, block[side], keep_tokens)
            parts.append(jax.tree.map(lambda x, real=real: x[:real], vars(coded)))
        return Embedded(**jax.tree.map(lambda *rows: np.concatenate(rows), *parts))


def pair_scorer(model: Any, params: Params, image: Embedded, text: Embedded) -> Callable[[Array, Array], Array]:
    """(image_rows int [b], text_rows int [b]) -> ITM log-odds float32 [b], over token arrays that stay on the device."""
    arrays = tuple(jnp.asarray(x) for x in (image.tokens, image.embed, text.tokens, text.embed, text.mask))

    @jax.jit
    def score(params: Params, arrays: tuple, image_rows: Array, text_rows: Array) -> Array:
        image, text = (tuple(x[image_rows] for x in arrays[:2]), tuple(x[text_rows] for x in arrays[2:4]))
        picked = (image, text, arrays[4][text_rows])
        return model.apply({"params": params}, *picked, method="score")

    return lambda image_rows, text_rows: score(params, arrays, image_rows, text_rows)
