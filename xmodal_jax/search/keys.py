"""Rows of the same thing: a picture is its key and view, a caption its key and words, from whatever data set they come."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search import atomic_folder, files
from xmodal_jax.search.index import Index
from xmodal_jax.search.writer import BLOCK_ROWS, Writer, fresh, refuse_damaged, refuse_other_model

Names = dict[bytes, tuple[str, str]]  # {digest: (key, view or caption)}


def digest(key: str, what: str) -> bytes:
    """16 bytes that stand for a picture (its key and view) or a caption (its key and words)."""
    return hashlib.blake2b(json.dumps([key, what]).encode(), digest_size=16).digest()


def names_of(rows: list[tuple[str, str]], words: bool, noun: str) -> Names:
    """What new rows will be, from the key of each and its view, or its caption where they are `words`.

    A caption that a record has twice is two rows of one name. Raises UserError for two others of one key and view.
    """
    names = {digest(*row): row for row in rows}
    if not words and len(names) != len(rows):
        raise UserError(f"a key occurs twice in one view among the {len(rows)} {noun}; prepare the data set again")
    return names


def digests_in(opened: Index, words: bool) -> Iterator[bytes]:
    """What each row of an index is; items of the caller's own that have no key are like no other."""
    for row in range(opened.count):
        item = opened.item(row)
        what = next(iter(item.get("captions") or []), None) if words else item.get("view")
        yield digest(item["key"], what) if "key" in item else row.to_bytes(8, "little")


def note_repeated(path: str | os.PathLike, extra: dict, names: Names, words: bool, allowed: bool) -> None:
    """Count the new rows that an index has already in its facts. Raises `UserError` for any that are not `allowed`."""
    again = set(names).intersection(digests_in(Index.open(path, verify=False), words))
    key, what = names[min(again)] if again else ("", "")
    if not allowed and again:
        raise UserError(
            f"{len(again)} of the {len(names)} new rows are in {path} already (such as '{key}', '{what}'); write --upsert to "
            "replace them, --allow-duplicates to have them twice, or index other data"
        )
    if again:
        extra["repeated"] = extra.get("repeated", 0) + len(again)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, model: str, names: Names, words: bool) -> Iterator[Writer]:
    """A `Writer` of an index that takes the place of the one at `path` when the body has ended well.

    It begins with the rows there that are none of `names`, bit for bit and in their order. Rows have other numbers
    afterwards, so the index has another id.

    Raises:
      UserError: as `store.appending`; an index that was written by another process meanwhile.
    """
    path = atomic_folder.resolved(path)
    header = files.read_header(path)
    refuse_other_model(path, header, model)
    refuse_damaged(path, header)

    def unchanged() -> None:
        if files.read_header(path) != header:
            raise UserError(f"{path} was written by another process meanwhile; start again.")

    old = Index.open(path)  # with checksums: the copies get new ones
    sizes = ("dense", old.width), ("codes", old.bits)
    own = list(digests_in(old, words))
    kept = np.array([one not in names for one in own], bool)
    twice = int(kept.sum()) - len(set(own).difference(names))
    extra = {name: value for name, value in header["extra"].items() if name != "repeated"}
    extra |= {"repeated": twice} if twice and not words else {}
    with (
        atomic_folder.made(path, True, unchanged) as folder,
        contextlib.closing(Writer(folder, fresh(model, header["dtype"], extra), BLOCK_ROWS)) as out,
    ):
        for start in range(0, old.count, BLOCK_ROWS):
            rows = start + np.flatnonzero(kept[start : start + BLOCK_ROWS])
            if len(rows):
                dense, codes = (old.stored(rows, kind) if size else None for kind, size in sizes)
                out.add(dense, map(old.item, rows), codes, packed=old.bits > 0, stored=True)
        yield out
        out.finish()
