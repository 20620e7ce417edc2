"""Digests of the records of a data set, by which a run knows its data and what it was trained on.

`DIR/digests/<split>.npy` uint64 [n] has the digest of each record's key and captions, in row order; the card has one of
each split, over these and the names of the views; of a split whose captions were changed (data/recaptioned.py), over
these and the digest that it had before.
"""

import array
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError

FOLDER = "digests"


def record_digest(key: str, captions: Mapping[str, Sequence[str]]) -> int:
    """Return 64 bits of a record's key and captions, which do not depend on its split and pictures."""
    words = json.dumps([key, captions], sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


class Digests:
    """The digests of one split, collected while its records stream by."""

    def __init__(self) -> None:
        self._own = array.array("Q")
        self._views = hashlib.blake2b(digest_size=16)

    def add(self, key: str, captions: Mapping[str, Sequence[str]], views: Iterable[str]) -> None:
        """Add one record."""
        self._own.append(record_digest(key, captions))
        self._views.update(json.dumps(sorted(views)).encode())

    def save(self, folder: os.PathLike | str, split: str) -> str:
        """Write the digests of the records beside the split, and return the digest of the whole split."""
        return save_digests(folder, split, np.frombuffer(self._own, np.uint64), self._views.digest())


def save_digests(folder: os.PathLike | str, split: str, own: np.ndarray, rest: bytes) -> str:
    """Write uint64 [n], the digests of a split's records; return that of the whole split, over these and `rest`."""
    place = pathlib.Path(folder) / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / f"{split}.npy", own)
    return hashlib.blake2b(own.astype("<u8").tobytes() + rest, digest_size=16).hexdigest()


def load_digests(folder: os.PathLike | str, split: str, records: int) -> np.ndarray:
    """Read uint64 [n], the digests of the `records` of a split. Raises `UserError` if they are missing or misfit."""
    path = pathlib.Path(folder) / FOLDER / f"{split}.npy"
    try:
        own = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); prepare the data set again") from error
    if own.dtype != np.uint64 or own.shape != (records,):
        raise UserError(f"'{path}' is not of the {records} records that the card names; prepare the data set again")
    return own


def fingerprint(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the digest of all splits of a card: 32 hex digits, equal for the same records in the same splits."""
    said = json.dumps({name: numbers["digest"] for name, numbers in splits.items()}, sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
