"""Embed the pictures or the captions of a split into a search index that can be shown without the data."""

import base64
import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import EvalSplit, eval_split
from xmodal_jax.data.image import CorruptImage, limit_size
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedded, Embedder
from xmodal_jax.encode.token_cache import kept_texts
from xmodal_jax.errors import refuse_unless
from xmodal_jax.retrieve.origin import remembered_run, remembered_set
from xmodal_jax.search import files, index, keys, place, store
from xmodal_jax.types import Params

log = logging.getLogger(__name__)
THUMBNAIL = 96  # px of the longer side
CAPTIONS = 3  # kept per picture
ROWS = {"image": "pictures", "text": "captions"}  # what the rows of an index are, by its side


@dataclasses.dataclass(frozen=True)
class How:
    """How rows are written. overwrite: replace the index at the folder; append: add to it; codes_only: leave the embeddings
    out; dtype: of the embeddings on disk, "float32" or "int8" ("": float32, or what the index has that is added to); side:
    what the rows are, pictures ("image") or captions ("text"); upsert: add to the index, and take out the rows there that
    are of the same pictures or captions (`keys`); duplicates: append such rows and keep both."""

    overwrite: bool = False
    append: bool = False
    codes_only: bool = False
    dtype: str = ""
    side: str = "image"
    upsert: bool = False
    duplicates: bool = False

    @property
    def adds(self) -> bool:
        """Whether there is an index that rows are added to."""
        return self.append or self.upsert

    def refuse_bad(self, out: pathlib.Path, model: str, hashes: bool) -> None:
        """Raise `UserError` before minutes of encoding. model: the `fingerprint`; hashes: whether it makes codes."""
        refuse_unless(
            not (self.adds and self.overwrite),
            f"--{'append' if self.append else 'upsert'} keeps what --overwrite replaces; write one of them",
        )
        refuse_unless(
            not (self.upsert and self.duplicates),
            "--upsert replaces what --allow-duplicates keeps; write one of them",
        )
        refuse_unless(hashes or not self.codes_only, "the run has no hash codes; leave out --codes-only")
        if self.adds:
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
    path, size = pathlib.Path(out), assembly.config.eval.batch_size
    model, hashed, dense = index.fingerprint(params), all("hash" in params[name] for name in assembly.config.encoders), not how.codes_only
    how.refuse_bad(path, model, hashed)
    source, split = data_of(assembly.config.data, data), split or assembly.config.data.eval_split
    parts = opened_views(assembly, source, split, how.side)
    names = keys.names_of(parts, how.side)
    if how.adds:
        first = files.read_header(path)
        dense, hashed = first["width"] > 0, first["bits"] > 0
    with writer(path, model, how, names, remembered_run(workdir, out) | {"split": split, "side": how.side}) as rows:
        how.refuse_other_side(path, rows.extra)  # again: it may have been replaced while the lock was another's
        if how.append and not how.upsert:
            keys.note_repeated(path, rows.extra, names, how.side, how.duplicates)
        named = note_set(rows.extra, remembered_set(source.path, out))
        blocks = encoded(embedder_for(assembly, params, source, how.side), size, source, split, parts, how.side)
        for coded, items in shown(blocks, split, parts, how.side):
            own = [item | named for item in items]
            rows.add(coded.embed if dense else None, own, coded.codes if hashed else None)
    return path, rows.count


def note_set(extra: dict[str, Any], told: dict[str, dict[str, str]]) -> dict[str, str]:
    """Note the data set of new rows in an index's facts; returns what their items say of it, {} for the first one."""
    where = next(iter(told))
    extra["sets"] = extra.get("sets", {}) | told
    return {} if extra.setdefault("data", where) == where else {"data": where}


def shown(blocks: Iterator[tuple[Embedded, list]], split: str, parts: list[EvalSplit], side: str) -> Progress:
    """The blocks of a split, and on the way how many of its rows are there."""
    total = sum(len(found.keys if side == "image" else found.captions) for found in parts)
    return Progress(blocks, f"index split '{split}'", ROWS[side], total, lambda block: len(block[0].embed), late=True)


def writer(path: pathlib.Path, model: str, how: How, names: keys.Names,
           extra: dict[str, Any]) -> contextlib.AbstractContextManager[store.Writer]:  # fmt: skip
    """What takes the rows as `how` says. names: what they will be; extra: the facts of a new index."""
    if how.upsert:
        return keys.replacing(path, model, names, how.side)
    if how.append:
        return store.appending(path, model)
    return store.writing(path, model, overwrite=how.overwrite, extra=extra, dtype=how.dtype or "float32")


def embedder_for(assembly: Assembly, params: Params, source: DataConfig, side: str) -> Embedder:
    """The encoders for the rows of a data set. Only captions of the run's own set may have kept tokens there."""
    own = side == "text" and source.path == assembly.config.data.path
    return Embedder(assembly.model, params, texts=kept_texts(assembly, params, False) if own else None)


def opened_views(assembly: Assembly, source: DataConfig, split: str, side: str) -> list[EvalSplit]:
    """A split as `eval_split` opens it, view by view; for captions each record in the first view that it has."""
    found = [eval_split(source.path, split, assembly.tokenizer, source, view) for view in views_of(source, split)]
    if side == "image":
        return found
    seen: set[int] = set()
    for i, view in enumerate(found):
        found[i] = without(view, seen)
        seen |= set(view.rows.tolist())
    return [view for view in found if view.keys]


def encoded(embedder: Embedder, size: int, source: DataConfig, split: str, parts: list[EvalSplit],
            side: str = "image") -> Iterator[tuple[Embedded, list]]:  # fmt: skip
    """Embeddings, relaxed codes (None without a hash head) and items of opened views, `size` rows at a time: of their
    pictures, or of their captions."""
    for found in parts:
        if side == "image":
            blocks, items = embedder.images(found, size), picture_items(source, split, found)
        else:
            blocks, items = embedder.captions(found, size), caption_items(source, split, found)
        with contextlib.closing(items):
            for coded in blocks:
                yield coded, list(islice(items, len(coded.embed)))


def without(found: EvalSplit, rows: set[int]) -> EvalSplit:
    """The records of a split that are in none of its `rows`, and their captions."""
    kept = ~np.isin(found.rows, list(rows))
    return found.part(np.flatnonzero(kept), np.flatnonzero(kept[found.caption_owner]))


def data_of(trained: DataConfig, path: str) -> DataConfig:
    """The run's data section for the data set at `path` ("": its own): all views there, and the languages it shares."""
    refuse_unless(
        bool(path) or (pathlib.Path(trained.path) / CARD_FILE).is_file(),
        f"the run's data set is not at '{trained.path}' (seen from here); write --data FOLDER with its place now",
    )
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
        for number, (key, row) in enumerate(zip(found.keys, found.rows, strict=True)):
            captions = found.captions_of(number)[:CAPTIONS]
            item = {"key": key, "view": found.view, "captions": captions, "split": split, "row": int(row)}
            yield item | thumbnail_of(source.record(int(row))["images"][found.view], key)


def thumbnail_of(picture: bytes, key: str) -> dict[str, str]:
    """{"thumbnail": base64 of a small picture}; {} and a warning where it cannot be read, as behind cached features."""
    try:
        return {"thumbnail": base64.b64encode(limit_size(picture, THUMBNAIL)).decode("ascii")}
    except CorruptImage as error:
        log.warning("no thumbnail of %r: %s", key, error)
        return {}


def caption_items(data: DataConfig, split: str, found: EvalSplit) -> Iterator[dict[str, Any]]:
    """What a hit shows of each caption: itself, and its picture."""
    texts = iter(found.captions)
    counts = np.bincount(found.caption_owner, minlength=len(found.keys))
    for picture, count in zip(picture_items(data, split, found), counts, strict=True):
        yield from (picture | {"captions": [text]} for text in islice(texts, int(count)))


def side_of(extra: dict[str, Any]) -> str:
    """What the rows of an index are, "image" or "text", by its header's facts; older ones do not say and have pictures."""
    side = extra.get("side", "image")
    refuse_unless(side in ROWS, f"an index of side '{side}' is of another program; index again")
    return side
