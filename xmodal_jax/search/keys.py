"""Find rows of the same thing, and replace them.

A picture is its key and view, a caption its key and words, from whatever data set they come.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search import files, folder, writer
from xmodal_jax.search.index import Index
from xmodal_jax.search.writer import BLOCK_ROWS, Writer

Names = dict[bytes, tuple[str, str]]  # {digest: (key, view or caption)}


def digest(key: str, what: str | None) -> bytes:
    """Return 16 bytes that stand for a picture (its key and view) or a caption (its key and words)."""
    return hashlib.blake2b(json.dumps([key, what]).encode(), digest_size=16).digest()


def names_of(rows: list[tuple[str, str]], words: bool, noun: str) -> Names:
    """Return the digests of new rows, given the key of each and its view, or its caption where they are `words`.

    A caption that a record has twice is two rows of one name. Raises UserError for two others of one key and view.
    """
    names = {digest(*row): row for row in rows}
    if not words and len(names) != len(rows):
        raise UserError(f"a key occurs twice in one view among the {len(rows)} {noun}; prepare the data set again")
    return names


def digests_in(opened: Index, words: bool) -> Iterator[bytes]:
    """Yield the digest of each row of an index; an item without a key is like no other."""
    for row in range(opened.count):
        item = opened.item(row)
        what = next(iter(item.get("captions") or []), None) if words else item.get("view")
        yield digest(item["key"], what) if "key" in item else row.to_bytes(8, "little")


def note_repeated(path: str | os.PathLike, extra: dict, names: Names, words: bool, allowed: bool) -> None:
    """Add to the facts of an index how many new rows it has already.

    Raises UserError for any unless they are `allowed`.
    """
    again = set(names).intersection(digests_in(Index.open(path, verify=False), words))
    if not again:
        return
    if not allowed:
        key, what = names[min(again)]
        raise UserError(
            f"{len(again)} of the {len(names)} new rows are in {path} already (such as '{key}', '{what}'); "
            "upsert to replace them, allow duplicates to have them twice, or index other data"
        )
    extra["repeated"] = extra.get("repeated", 0) + len(again)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, model: str, names: Names, words: bool) -> Iterator[Writer]:
    """Yield a `Writer` of an index that takes the place of the one at `path` when the body has ended well.

    It begins with the rows there that are none of `names`, bit for bit and in their order. Rows have other numbers
    afterwards, so the index has another id. Raises UserError as `writer.appending`.
    """
    path = folder.resolved(path)
    files.read_header(path)
    with folder.alone(path):
        header = files.read_header(path)
        writer.refuse_other_model(path, header, model)
        writer.refuse_damaged(path, header)
        old = Index.open(path)  # with checksums: the copies get new ones
        own = list(digests_in(old, words))
        kept = np.array([one not in names for one in own], bool)
        twice = int(kept.sum()) - len(set(own).difference(names))
        extra = {name: value for name, value in header["extra"].items() if name != "repeated"}
        extra |= {"repeated": twice} if twice and not words else {}
        with writer.replacing(path, writer.fresh(model, header["dtype"], extra), BLOCK_ROWS) as out:
            _copy(old, kept, out)
            yield out


def _copy(old: Index, kept: np.ndarray, out: Writer) -> None:
    """Copy the rows of an index that are `kept`, bool [n], as they are stored."""
    for start in range(0, old.count, BLOCK_ROWS):
        rows = start + np.flatnonzero(kept[start : start + BLOCK_ROWS])
        if len(rows):
            dense = old.stored(rows, "dense") if old.width else None
            codes = old.stored(rows, "codes") if old.bits else None
            items = (old.item(int(row)) for row in rows)
            out.add(dense, items, codes, packed=old.bits > 0, stored=True)
