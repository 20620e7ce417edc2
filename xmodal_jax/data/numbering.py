"""Number texts, and keep sets of keys, by 128 bits of each text, in arrays.

Two of n texts share their 128 bits by chance with probability n^2 / 2^129: 1e-25 for ten million. Texts that get the
same number are compared all the same.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from xmodal_jax.data.captions import normal_caption
from xmodal_jax.data.columns import Texts
from xmodal_jax.errors import UserError

SIZE = 16  # bytes of a digest
EMPTY = bytes(SIZE)
AT_ONCE = 1 << 22  # digests sorted at a time: 200 MB with their order
COMPARED = 1 << 16  # texts kept in memory while equal digests are compared


def digest(text: str) -> bytes:
    """Return 128 bits of a text."""
    return hashlib.blake2b(text.encode(), digest_size=SIZE).digest()


class DigestSet:
    """A set of texts by their digests, in one table of 32 to 64 bytes a text (open addressing, at most half full)."""

    def __init__(self) -> None:
        self._table, self._count = bytearray(SIZE * 1024), 0

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> bool:
        """Add a text; return True if it is new."""
        own = digest(text)
        place = self._place(own)
        if self._table[place : place + SIZE] == own:
            return False
        self._table[place : place + SIZE] = own
        self._count += 1
        if 2 * SIZE * self._count > len(self._table):
            self._grow()
        return True

    def _place(self, own: bytes | bytearray) -> int:
        """Return the place of a digest in the table, or the free place where it belongs."""
        place = int.from_bytes(own[:8], "little") * SIZE % len(self._table)
        while (found := self._table[place : place + SIZE]) != EMPTY and found != own:
            place = (place + SIZE) % len(self._table)
        return place

    def _grow(self) -> None:
        """Double the table."""
        before, self._table = self._table, bytearray(2 * len(self._table))
        for start in range(0, len(before), SIZE):
            if (own := before[start : start + SIZE]) != EMPTY:
                place = self._place(own)
                self._table[place : place + SIZE] = own


def text_numbers(digests: Sequence[np.ndarray], texts: Sequence[Texts], at_once: int = AT_ONCE) -> list[np.ndarray]:
    """Number the texts of several splits: int32 [M] for each, equal numbers, across splits, for the same text only.

    The numbers are 0, 1, ... in the order of the digests. About `at_once` digests are sorted at a time, one range of
    their first word after the other. Raises `UserError` if two texts have the same digest.

    Args:
      digests: uint64 [M,2] of each split, the digests of `normal_caption` of each text.
      texts: the captions [M] of each split.
    """
    total = sum(map(len, digests))
    bits = max(0, (total - 1) // at_once).bit_length()
    numbers, given = [np.zeros(len(own), np.int32) for own in digests], 0
    for part in range(1 << bits):
        rows = [
            np.flatnonzero(own[:, 0] >> np.uint64(64 - bits) == part) if bits else np.arange(len(own))
            for own in digests
        ]
        first, second = (
            np.concatenate([own[mine, word] for own, mine in zip(digests, rows, strict=True)]) for word in (0, 1)
        )
        order = np.lexsort((second, first))
        again = np.zeros(len(order), bool)  # True where a digest, in this order, equals the one before
        again[1:] = (np.diff(first[order]) == 0) & (np.diff(second[order]) == 0)
        del first, second
        _refuse_collisions(texts, rows, order, again)
        found = np.empty(len(order), np.int64)
        found[order] = given + np.cumsum(~again) - 1
        given += len(order) - int(again.sum())
        for own, mine, ours in zip(numbers, rows, np.split(found, np.cumsum(list(map(len, rows)))[:-1]), strict=True):
            own[mine] = ours
    return numbers


def _refuse_collisions(
    texts: Sequence[Texts], rows: Sequence[np.ndarray], order: np.ndarray, again: np.ndarray
) -> None:
    """Raise `UserError` if a text, in this order, has the digest of the text before but differs from it."""
    split = np.repeat(np.arange(len(rows), dtype=np.int16), [len(mine) for mine in rows])[order]
    row = np.concatenate(rows)[order]
    for first in range(0, len(order) - 1, COMPARED):
        here = slice(first, first + COMPARED + 1)  # with the first of the next block
        same = again[here].copy()
        same[0] = False
        needed = same.copy()
        needed[:-1] |= same[1:]
        data = np.full(len(same), b"", object)
        for number, own in enumerate(texts):
            mine = np.flatnonzero(needed & (split[here] == number))
            data[mine] = list(own.encoded(row[here][mine]))
        for place in np.flatnonzero(same[1:] & (data[1:] != data[:-1])).tolist():
            one, other = data[place].decode(), data[place + 1].decode()
            if normal_caption(one) != normal_caption(other):
                raise UserError(
                    f"the captions {one!r} and {other!r} have the same 128 bits by chance; "
                    "change a letter of one of them"
                )
