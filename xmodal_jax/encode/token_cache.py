"""Keep the tokens of a frozen tower of words, computed once per caption (`cache_tokens` of the encoder).

A folder `DATA/texts/<digest>` holds `ids.npy` int32 [U,L], the distinct captions of all splits, `tokens.npy` float16
[T,D], their real tokens one after the other, and `starts.npy` int64 [U+1]. The digest covers the tower's weights and
shape, the tokenizer's vocabulary, and the data set's fingerprint, languages and length. On Flickr8k (36,000 captions)
the folder takes 0.4 GB, and a step of ITC on cached pictures no longer runs a tower at all.
"""

import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.readers import reader_classes
from xmodal_jax.data.split import split_captions
from xmodal_jax.encode.apply import apply
from xmodal_jax.errors import UserError
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.parallel.mesh import put_like, to_host
from xmodal_jax.parallel.rules import wholly_frozen
from xmodal_jax.types import Array, Params

log = logging.getLogger(__name__)

FOLDER = "texts"
LIMIT = 8 << 30  # bytes of tokens: for a larger set of captions the tower runs at every step
BLOCK, LENGTH_STEP = 256, 4  # captions encoded at once, at the length of the longest rounded up to this


@dataclass(frozen=True)
class TokenCache:
    """Captions ids int32 [U,L], tokens float16 [T,D] (in memory or mapped), starts int64 [U+1]; see the module."""

    ids: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray

    @cached_property
    def _row(self) -> dict[bytes, int]:
        """Places of the captions by the bytes of their ids."""
        return {row.tobytes(): number for number, row in enumerate(np.ascontiguousarray(self.ids))}

    def rows(self, ids: np.ndarray) -> np.ndarray | None:
        """Return tokens float16 [B,L,D] of captions int32 [B,L], zero after their end; None if one was not kept."""
        found = np.zeros((*ids.shape, self.tokens.shape[1]), np.float16)
        for place, row in enumerate(np.ascontiguousarray(ids, np.int32)):
            if not row.any():
                continue  # a row without a caption has no tokens
            number = self._row.get(row.tobytes())
            if number is None:
                return None
            own = self.tokens[self.starts[number] : self.starts[number + 1]]
            found[place, : len(own)] = own
        return found


TokenCaches = dict[str, TokenCache]  # by encoder, of those whose tokens are kept


def with_tokens(kept: TokenCaches, data: DataConfig, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add `FIELD/tokens` to a training batch, for the fields whose encoders keep tokens (of every training caption)."""
    found = dict(batch)
    for field, reader in reader_classes(data.fields).items():
        cache = kept.get(data.fields[field].encoder) if reader.worded else None
        if cache is not None:
            tokens = cache.rows(batch[field])
            if tokens is None:
                raise KeyError("a training caption has no kept tokens; remove the folder 'texts' of the data set")
            found[f"{field}/tokens"] = tokens
    return found


def token_caches(assembly: Assembly, params: Params, make: bool = True) -> TokenCaches:
    """Load the kept tokens of the encoders with `cache_tokens` for this data set, or compute them if `make`.

    More tokens of an encoder than `LIMIT` are not kept. With several processes each computes its own and writes nothing
    to disk. Raises UserError for a tower that is trained.
    """
    asked = [name for name, own in assembly.config.encoders.items() if own.cache_tokens]
    there = make or (pathlib.Path(assembly.config.data.path) / CARD_FILE).is_file()
    found = {name: _kept(assembly, params, name, make) for name in (asked if there else ())}
    return {name: own for name, own in found.items() if own is not None}


def _kept(assembly: Assembly, params: Params, name: str, make: bool) -> TokenCache | None:
    """Load or compute the kept tokens of one encoder; None if they are not kept."""
    config, own = assembly.config, assembly.config.encoders[name]
    where = f"config.encoders.{name}"
    if own.dropout != 0.0 or not wholly_frozen(params, f"{name}/tower", config.optimizer.freeze):
        raise UserError(
            f"{where}.cache_tokens is True, but the tower is trained or has dropout; "
            f"write config.optimizer.freeze=^{name}/tower/ and {where}.dropout=0, or {where}.cache_tokens=False"
        )
    folder = pathlib.Path(config.data.path) / FOLDER / digest(assembly, params, name)
    if (folder / "starts.npy").is_file():
        return opened(folder)
    if not make:
        return None
    ids = distinct_captions(assembly, name)
    size = int(lengths(ids).sum()) * own.token_width * 2
    if size > LIMIT:
        log.warning(
            "the tokens of %d captions are %.0f GB and are not kept (%s.cache_tokens)", len(ids), size / 1e9, where
        )
        return None
    made = encode_all(assembly, params, name, ids)
    if jax.process_count() == 1:
        keep(folder, made)
    return made


def opened(folder: pathlib.Path) -> TokenCache:
    """Open the folder's arrays, with the tokens mapped into memory."""
    return TokenCache(
        np.load(folder / "ids.npy"), np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "starts.npy")
    )


def keep(folder: pathlib.Path, made: TokenCache) -> None:
    """Write a cache in one step, or not at all: if the folder cannot be written, nothing is kept."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "tokens", "starts"):
            np.save(part / f"{name}.npy", getattr(made, name))
        os.replace(part, folder)
    except OSError as error:
        log.info("the captions' tokens are not kept: %s", error)
        shutil.rmtree(part, ignore_errors=True)


def digest(assembly: Assembly, params: Params, name: str) -> str:
    """Return a digest that names the tokens of an encoder's tower on this data set's captions."""
    config, tokenizer = assembly.config, assembly.tokenizers[name]
    own = config.encoders[name]
    card = Card.load(config.data.path)
    said = {
        "data": card.fingerprint,
        "languages": languages(assembly, name),
        "length": own.length,
        "tower": [own.kind, getattr(own, "heads", 0), getattr(own, "positions", 0), config.dtype],
        "words": tokenizer.encode(["a dog on a beach, 3 cats; été"], 16).tolist() + [tokenizer.vocab_size],
    }
    sha = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params[name]["tower"]):
        sha.update(jax.tree_util.keystr(path).encode())
        sha.update(np.ascontiguousarray(leaf).data)
    return sha.hexdigest()[:32]


def languages(assembly: Assembly, name: str) -> list[str]:
    """List the languages that an encoder reads in training, then those that it reads in evaluation alone."""
    config = assembly.config
    return list(dict.fromkeys((*config.data.spoken(name), *config.eval_data.spoken(name))))


def distinct_captions(assembly: Assembly, name: str) -> np.ndarray:
    """Collect the distinct captions of all splits as an encoder reads them, int32 [U,L], in order of length."""
    path, spec = assembly.config.data.path, assembly.specs[name]
    texts = (split_captions(path, split, languages(assembly, name)) for split in Card.load(path).splits)
    tokenizer = assembly.tokenizers[name]
    ids = np.concatenate([np.unique(tokenizer.encode(own, spec.size), axis=0) for own in texts])
    ids = np.unique(ids, axis=0).astype(np.int32)
    return ids[np.argsort(lengths(ids), kind="stable")]


def encode_all(assembly: Assembly, params: Params, name: str, ids: np.ndarray) -> TokenCache:
    """Run the tower over captions from `distinct_captions`."""
    blocks = Progress(
        _encoded(assembly, params, name, ids), "captions", "captions", len(ids), size=lambda block: block[0]
    )
    tokens = np.concatenate([block[1] for block in blocks])
    return TokenCache(ids, tokens, np.concatenate([[0], np.cumsum(lengths(ids))]).astype(np.int64))


def lengths(ids: np.ndarray) -> np.ndarray:
    """Count the tokens of each caption [U], up to its last real one."""
    return ids.shape[1] - np.argmax(ids[:, ::-1] != 0, axis=1)


@partial(jax.jit, static_argnums=(0, 1))
def _raw(model: CrossModal, name: str, params: Params, ids: Array) -> Array:
    """Compute the tower's own tokens float16 [b,L,D] of captions int32 [b,L]."""
    return apply(model, params, name, ids, method="raw").astype(jnp.float16)


def _encoded(assembly: Assembly, params: Params, name: str, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (captions, their real tokens float16 [t,D]) of consecutive blocks of captions in order of length."""
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        own = lengths(block)
        width = min(-(-int(own[-1]) // LENGTH_STEP) * LENGTH_STEP, ids.shape[1])
        padded = np.pad(block[:, :width], [(0, BLOCK - len(block)), (0, 0)], mode="edge")
        tokens = to_host(_raw(assembly.model, name, params, put_like(params, padded)), len(block))
        if not np.isfinite(tokens).all():
            raise UserError(
                f"a token of the tower is not finite in float16; write config.encoders.{name}.cache_tokens=False"
            )
        yield len(block), np.concatenate([row[:count] for row, count in zip(tokens, own, strict=True)])
