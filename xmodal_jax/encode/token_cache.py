"""Tokens of a frozen text tower, computed once for each caption of a data set and kept beside it (`config.encoders.text.cache_tokens`).

A folder `DATA/texts/<digest>` holds `ids.npy` int32 [U,L], the distinct captions of all splits, `tokens.npy` float16 [T,D],
their real tokens one after the other, and `starts.npy` int64 [U+1]. The digest is over the tower's weights and its shape, the
tokenizer's vocabulary, the data set's fingerprint, languages and length. On Flickr8k (36,000 captions) it is 0.4 GB, and a step
of ITC on cached pictures no longer runs a tower at all.
"""

import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.split import split_captions
from xmodal_jax.errors import refuse_unless
from xmodal_jax.parallel.mesh import beside, to_host
from xmodal_jax.parallel.rules import wholly_frozen
from xmodal_jax.types import Array, Params

log = logging.getLogger(__name__)

FOLDER = "texts"
LIMIT = 8 << 30  # bytes of tokens: a larger set of captions is read by the tower at every step
BLOCK, LENGTH_STEP = 256, 4  # captions encoded at once, at the length of the longest rounded up to this


@dataclass(frozen=True)
class KeptTexts:
    """ids int32 [U,L], tokens float16 [T,D] (in memory or mapped), starts int64 [U+1]; see the module."""

    ids: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray

    @cached_property
    def _row(self) -> dict[bytes, int]:
        return {row.tobytes(): number for number, row in enumerate(np.ascontiguousarray(self.ids))}

    def rows(self, ids: np.ndarray) -> np.ndarray | None:
        """Tokens float16 [B,L,D] of captions int32 [B,L], zero where they have none; None if one was not kept."""
        numbers = [self._row.get(row.tobytes()) for row in np.ascontiguousarray(ids, np.int32)]
        there = ids.any(axis=1)  # a row without a caption has no tokens
        if any(number is None for number in itertools.compress(numbers, there)):
            return None
        found = np.zeros((*ids.shape, self.tokens.shape[1]), np.float16)
        for place, number in itertools.compress(enumerate(numbers), there):
            own = self.tokens[self.starts[number] : self.starts[number + 1]]
            found[place, : len(own)] = own
        return found

    def add(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The training batch with the field `text/tokens`. Every training caption is kept."""
        found = self.rows(batch["text"])
        if found is None:
            raise KeyError("a training caption has no kept tokens; remove the folder 'texts' of the data set")
        return batch | {"text/tokens": found}


def kept_texts(assembly: Assembly, params: Params, make: bool = True) -> KeptTexts | None:
    """The kept tokens for this tower and data set, made now if there are none and `make`; None unless `config.encoders.text.cache_tokens`.

    More tokens than `LIMIT` are not kept either. With several processes each makes its own and keeps nothing on disk. Raises UserError for a tower that is trained.
    """
    config, text = assembly.config, assembly.config.encoders.get("text")
    if text is None or not text.cache_tokens or not (make or (pathlib.Path(config.data.path) / CARD_FILE).is_file()):
        return None
    refuse_unless(
        text.dropout == 0.0 and wholly_frozen(params, "text/tower", config.optimizer.freeze),
        "config.encoders.text.cache_tokens is True, but the text tower is trained or has dropout; write "
        "config.optimizer.freeze=^text/tower/ and config.encoders.text.dropout=0, or config.encoders.text.cache_tokens=False",
    )
    folder = pathlib.Path(config.data.path) / FOLDER / digest(assembly, params)
    if (folder / "starts.npy").is_file():
        return opened(folder)
    if not make:
        return None
    ids = distinct_captions(assembly)
    size = int(lengths(ids).sum()) * config.encoders["text"].width * 2
    if size > LIMIT:
        log.warning("the tokens of %d captions are %.0f GB and are not kept (config.encoders.text.cache_tokens)", len(ids), size / 1e9)
        return None
    made = encode_all(assembly, params, ids)
    if jax.process_count() == 1:
        keep(folder, made)
    return made


def opened(folder: pathlib.Path) -> KeptTexts:
    """The folder's arrays, tokens mapped into memory."""
    return KeptTexts(
        np.load(folder / "ids.npy"), np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "starts.npy")
    )


def keep(folder: pathlib.Path, made: KeptTexts) -> None:
    """Write in one step, or not at all: a folder that cannot be written only means that nothing is kept."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "tokens", "starts"):
            np.save(part / f"{name}.npy", getattr(made, name))
        os.replace(part, folder)
    except OSError as error:
        log.info("the captions' tokens are not kept: %s", error)
        shutil.rmtree(part, ignore_errors=True)


def digest(assembly: Assembly, params: Params) -> str:
    """A name for the tokens of this tower on this data set's captions."""
    config, tokenizer = assembly.config, assembly.tokenizer
    card = Card.load(config.data.path)
    said = {
        "data": card.fingerprint,
        "languages": languages(assembly),
        "length": config.data.length,
        "tower": [config.encoders["text"].heads, config.encoders["text"].positions, config.dtype],
        "words": tokenizer.encode(["a dog on a beach, 3 cats; été"], 16).tolist() + [tokenizer.vocab_size],
    }
    sha = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["text"]["tower"]):
        sha.update(jax.tree_util.keystr(path).encode())
        sha.update(np.ascontiguousarray(leaf))
    return sha.hexdigest()[:32]


def languages(assembly: Assembly) -> list[str]:
    """Those of training, then those that only evaluation reads."""
    return list(dict.fromkeys((*assembly.config.data.languages, *assembly.config.eval.languages)))


def distinct_captions(assembly: Assembly) -> np.ndarray:
    """The distinct captions of all splits as int32 [U,L], in order of length."""
    config, asked = assembly.config, languages(assembly)
    texts = (split_captions(config.data.path, name, asked) for name in Card.load(config.data.path).splits)
    ids = np.concatenate([np.unique(assembly.tokenizer.encode(own, config.data.length), axis=0) for own in texts])
    ids = np.unique(ids, axis=0).astype(np.int32)
    return ids[np.argsort(lengths(ids), kind="stable")]


def encode_all(assembly: Assembly, params: Params, ids: np.ndarray) -> KeptTexts:
    """Run the tower over captions from `distinct_captions`."""
    blocks = Progress(_encoded(assembly, params, ids), "captions", "captions", len(ids), size=lambda block: block[0])
    tokens = np.concatenate([block[1] for block in blocks])
    return KeptTexts(ids, tokens, np.concatenate([[0], np.cumsum(lengths(ids))]).astype(np.int64))


def lengths(ids: np.ndarray) -> np.ndarray:
    """Tokens of each caption [U], up to its last real one."""
    return ids.shape[1] - np.argmax(ids[:, ::-1] != 0, axis=1)


@partial(jax.jit, static_argnums=0)
def _raw(model: Any, params: Params, ids: Array) -> Array:
    """The tower's own tokens float16 [b,L,D] of captions int32 [b,L]."""
    return model.apply({"params": params}, "text", ids, method="raw").astype(jnp.float16)


def _encoded(assembly: Assembly, params: Params, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(captions, their real tokens float16 [t,D]) of consecutive blocks of captions in order of length."""
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        own = lengths(block)
        width = min(-(-int(own[-1]) // LENGTH_STEP) * LENGTH_STEP, ids.shape[1])
        padded = np.pad(block[:, :width], [(0, BLOCK - len(block)), (0, 0)], mode="edge")
        tokens = to_host(_raw(assembly.model, params, beside(params, padded)), len(block))
        refuse_unless(
            bool(np.isfinite(tokens).all()),
            "a token of the text tower is not finite in float16; write config.encoders.text.cache_tokens=False",
        )
        yield len(block), np.concatenate([row[:count] for row, count in zip(tokens, own, strict=True)])
