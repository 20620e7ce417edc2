"""Embed the pictures or the captions of a split into a search index that can be shown without the data."""

import base64
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import Card
from xmodal_jax.data.evaluation import EvalSplit, eval_split
from xmodal_jax.data.image import limit_size
from xmodal_jax.data.pipeline import DataConfig, Split
from xmodal_jax.errors import refuse_unless
from xmodal_jax.eval.captioning import references
from xmodal_jax.eval.embed import Embedded, Embedder
from xmodal_jax.search import files, index, place, store
from xmodal_jax.train.texts import kept_texts
from xmodal_jax.types import Params

THUMBNAIL = 96  # px of the longer side
CAPTIONS = 3  # kept per picture
ROWS = {"image": "pictures", "text": "captions"}  # what the rows of an index are, by its side


@dataclasses.dataclass(frozen=True)
class How:
    """How rows are written. overwrite: replace the index at the folder; append: add to it; codes_only: leave the embeddings
    out; dtype: of the embeddings on disk, "float32" or "int8" ("": float32, or what the index has that is added to); side:
    what the rows are, pictures ("image") or captions ("text")."""

    overwrite: bool = False
    append: bool = False
    codes_only: bool = False
    dtype: str = ""
    side: str = "image"

    def refuse_bad(self, out: pathlib.Path, model: str, hashes: bool) -> None:
        """Raise `UserError` before minutes of encoding. model: the `fingerprint`; hashes: whether it makes codes."""
        refuse_unless(
            not (self.append and self.overwrite), "--append keeps what --overwrite replaces; write one of them"
        )
        refuse_unless(hashes or not self.codes_only, "the run has no hash codes; leave out --codes-only")
        if self.append:
            self._refuse_misfit(out, model, hashes)
        else:
            place.refuse_taken(out, self.overwrite)

    def _refuse_misfit(self, out: pathlib.Path, model: str, hashes: bool) -> None:
        header = files.read_header(out)
        store.refuse_other_model(out, header, model)
        store.refuse_damaged(out, header)
        self.refuse_other_side(out, header["extra"])
        refuse_unless(hashes or not header["bits"], f"{out} has hash codes and the run makes none; index again")
        refuse_unless(
            "items" in header["blocks"], f"{out} has no items and {ROWS[self.side]} have; write another folder name"
        )
        refuse_unless(
            not (self.codes_only and header["width"]),
            f"{out} has embeddings, and what is appended has them too; leave out --codes-only",
        )
        refuse_unless(
            self.dtype in ("", header["dtype"]),
            f"{out} keeps embeddings as {header['dtype']}, and so does what is appended; leave out --dtype {self.dtype}",
        )

    def refuse_other_side(self, out: pathlib.Path, extra: dict[str, Any]) -> None:
        """Raise `UserError` for pictures that are to go to captions, or captions to pictures."""
        there = side_of(extra)
        refuse_unless(
            there == self.side,
            f"{out} has {ROWS[there]}, and {ROWS[self.side]} cannot be appended to them; write --side {there}, or another "
            "folder name",
        )


def build_index(assembly: Assembly, params: Params, workdir: str, out: str, data: str = "", split: str = "",
                how: How = How()) -> tuple[pathlib.Path, int]:  # fmt: skip
    """Index every picture (all views) of a split, or every caption: a row each, with hash codes where the model has them.

    `data` and `split` default to the run's data set and its evaluation split. An item has "key", "view", "split", "row" (in
    the split), "captions" (the first few; of a caption's row itself alone) and "thumbnail" (base64 of a small PNG or JPEG,
    of its record's first view there is for a caption), and "data" where that is not the header's. The header remembers the work
    directory and the side. Rows are written as they are encoded, a block in memory at most.

    Returns:
      The folder and the number of rows it has now.

    Raises:
      UserError: `out` is taken, or (to append) no whole index of this model, or one of another form than `how` asks for; no
        such data set or split, features that the data set lacks.
    """
    config, path = assembly.config, pathlib.Path(out)
    embedder = Embedder(assembly.model, params, texts=kept_texts(assembly, params, False))
    model = index.fingerprint(params)
    how.refuse_bad(path, model, embedder.hashes)
    source, split = data_of(config.data, data), split or config.data.eval_split
    dense, hashed = not how.codes_only, embedder.hashes
    if how.append:
        first = files.read_header(path)
        dense, hashed = first["width"] > 0, first["bits"] > 0
        writer = store.appending(path, model)
    else:
        extra = {"workdir": str(workdir), "workdir_from_index": os.path.relpath(workdir, out)}
        extra |= {"data": source.path, "split": split, "side": how.side}
        writer = store.writing(path, model, overwrite=how.overwrite, extra=extra, dtype=how.dtype or "float32")
    with writer as rows:
        how.refuse_other_side(path, rows.extra)  # again: it may have been replaced while the lock was another's
        named = {} if source.path == rows.extra.get("data") else {"data": source.path}
        for coded, items in encoded(assembly, embedder, source, split, how.side):
            own = [item | named for item in items]
            rows.add(coded.embed if dense else None, own, coded.codes if hashed else None)
    return path, rows.count


def encoded(assembly: Assembly, embedder: Embedder, source: DataConfig, split: str,
            side: str = "image") -> Iterator[tuple[Embedded, list]]:  # fmt: skip
    """Embeddings, relaxed codes (None without a hash head) and items of a split, a block at a time: the pictures of all
    views, or the captions of all records, each where its first view is."""
    size, seen = assembly.config.eval.batch_size, set()
    for view in views_of(source, split):
        found = eval_split(source.path, split, assembly.tokenizer, source, view)
        if side == "image":
            blocks, items = embedder.images(found, size), picture_items(source, split, found)
        else:
            found = without(found, seen)
            seen |= set(found.rows.tolist())
            blocks, items = embedder.captions(found, size), caption_items(source, split, found)
        with contextlib.closing(items):
            for coded in blocks:
                yield coded, list(islice(items, len(coded.embed)))


def without(found: EvalSplit, rows: set[int]) -> EvalSplit:
    """The records of a split that are in none of its `rows`, and their captions; pictures cannot be read from it."""
    kept = np.array([row not in rows for row in found.rows.tolist()], bool)
    mine = kept[found.caption_owner]
    return dataclasses.replace(
        found,
        keys=[key for key, own in zip(found.keys, kept, strict=True) if own],
        rows=found.rows[kept],
        captions=[text for text, own in zip(found.captions, mine, strict=True) if own],
        caption_owner=(np.cumsum(kept) - 1)[found.caption_owner[mine]].astype(np.int32),
        text=found.text[mine],
        text_keys=found.text_keys[mine],
        labels=None if found.labels is None else found.labels[kept],
    )


def data_of(trained: DataConfig, path: str) -> DataConfig:
    """The run's data section for the data set at `path` ("": its own): all views there, and the languages it shares."""
    if not path or pathlib.Path(path).resolve() == pathlib.Path(trained.path).resolve():
        return trained
    card = Card.load(path)
    languages = tuple(code for code in trained.languages if code in card.languages) or tuple(card.languages)
    return dataclasses.replace(trained, path=str(path), views=(), languages=languages)


def views_of(data: DataConfig, split: str) -> tuple[str, ...]:
    """The views of a split, in order."""
    source = Split(data.path, split, data)
    source.close()
    return source.views


def picture_items(data: DataConfig, split: str, found: EvalSplit) -> Iterator[dict[str, Any]]:
    """What a hit shows of each picture of one opened view."""
    with contextlib.closing(Split(data.path, split, dataclasses.replace(data, features=()))) as source:
        for key, row, captions in zip(found.keys, found.rows, references(found), strict=True):
            small = limit_size(source.record(int(row))["images"][found.view], THUMBNAIL)
            thumbnail = base64.b64encode(small).decode("ascii")
            item = {"key": key, "view": found.view, "captions": captions[:CAPTIONS], "split": split, "row": int(row)}
            yield item | {"thumbnail": thumbnail}


def caption_items(data: DataConfig, split: str, found: EvalSplit) -> Iterator[dict[str, Any]]:
    """What a hit shows of each caption: itself, and its picture."""
    texts = iter(found.captions)
    counts = np.bincount(found.caption_owner, minlength=len(found.keys))
    for picture, count in zip(picture_items(data, split, found), counts, strict=True):
        yield from (picture | {"captions": [text]} for text in islice(texts, int(count)))


def side_of(extra: dict[str, Any]) -> str:
    """What the rows of an index are, "image" or "text", by its header's facts; older ones do not say and have pictures."""
    return extra.get("side", "image")


def workdir_of(opened: index.Index) -> pathlib.Path:
    """The work directory that an index remembers: as it was written then, or where it lies from the index.

    Raises UserError when neither is there.
    """
    refuse_unless(
        "workdir" in opened.extra, f"the index {opened.path} names no work directory; make it with `xmodal index`"
    )
    choices = pathlib.Path(opened.extra["workdir"]), opened.path / opened.extra["workdir_from_index"]
    found = [path for path in choices if path.is_dir()]
    refuse_unless(
        bool(found),
        f"the run '{choices[0]}' that made the index {opened.path} is gone; start where you indexed, or index again",
    )
    return found[0]
