"""Embed a field of splits, such as pictures or captions, into a search index that can be shown without the data."""

import base64
import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Generator, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import EvalSplit, Side, eval_split
from xmodal_jax.data.image import CorruptImage, limit_size
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.readers import has_views, reader_classes
from xmodal_jax.data.records import pictures
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedded, Embedder
from xmodal_jax.encode.token_cache import token_caches
from xmodal_jax.errors import UserError
from xmodal_jax.retrieve.origin import model_of, remembered_run, remembered_set
from xmodal_jax.search import files, folder, keys, writer
from xmodal_jax.settings import Config
from xmodal_jax.types import Params

log = logging.getLogger(__name__)
THUMBNAIL = 96  # px of the longer side
CAPTIONS = 3  # kept per picture
PICTURES = "pictures"  # what rows with views are called


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """How rows are written.

    Attributes:
      overwrite: replace the index at the folder.
      append: add rows to it.
      codes_only: leave the embeddings out.
      dtype: of the embeddings on disk, "float32" or "int8" ("": float32, or the dtype of the index that grows).
      field: of the rows ("": the first of the first pair that the run evaluates).
      upsert: add rows to the index, and take out the rows there that are of the same things (`keys`).
      duplicates: append such rows and keep both.
    """

    overwrite: bool = False
    append: bool = False
    codes_only: bool = False
    dtype: str = ""
    field: str = ""
    upsert: bool = False
    duplicates: bool = False

    @property
    def adds(self) -> bool:
        """True if rows are added to an index that is there."""
        return self.append or self.upsert

    def refuse_bad(self, out: pathlib.Path, model: str, hashes: bool, kind: "Kind") -> None:
        """Raise `UserError` for options that do not fit, before minutes of encoding.

        Args:
          out: folder of the index.
          model: `fingerprint` of the weights.
          hashes: whether the model makes codes.
          kind: of the rows.
        """
        if self.adds and self.overwrite:
            raise UserError(
                f"'{'append' if self.append else 'upsert'}' keeps what 'overwrite' replaces; write one of them"
            )
        if self.upsert and self.duplicates:
            raise UserError("'upsert' replaces what is kept where duplicates are allowed; write one of them")
        if not hashes and self.codes_only:
            raise UserError("the run has no hash codes; leave out 'codes_only'")
        if self.adds:
            self._refuse_misfit(out, model, hashes, kind)
        else:
            folder.refuse_taken(out, self.overwrite)

    def _refuse_misfit(self, out: pathlib.Path, model: str, hashes: bool, kind: "Kind") -> None:
        """Raise `UserError` unless the index at `out` can take rows of this form."""
        header = files.read_header(out)
        writer.refuse_other_model(out, header, model)
        writer.refuse_damaged(out, header)
        if not hashes and header["bits"]:
            raise UserError(f"{out} has hash codes and the run makes none; index again")
        if "items" not in header["blocks"]:
            raise UserError(f"{out} has no items and {kind.noun} have; write another folder name")
        if self.codes_only and header["width"]:
            raise UserError(f"{out} has embeddings, and what is appended has them too; leave out 'codes_only'")
        if self.dtype not in ("", header["dtype"]):
            raise UserError(
                f"{out} keeps embeddings as {header['dtype']}, and so does what is appended; leave out dtype "
                f"'{self.dtype}'"
            )
        kind.refuse_other(out, header["extra"])


@dataclasses.dataclass(frozen=True)
class Kind:
    """The kind of an index's rows: inputs of a `field`, called `noun`, captions where they are `words`.

    `pair`: the fields that are read together.
    """

    field: str
    noun: str
    words: bool
    pair: tuple[str, str]

    def of(self, found: EvalSplit) -> Side:
        """Return the rows' side of a split."""
        return found.left if found.left.field == self.field else found.right

    def refuse_other(self, out: pathlib.Path, extra: dict[str, Any]) -> None:
        """Raise `UserError` if the index at `out` has rows of another field."""
        there = kind_in(extra)
        if there["field"] != self.field:
            raise UserError(
                f"{out} has {there['noun']}, and {self.noun} cannot be appended to them; write field "
                f"'{there['field']}', or another folder name"
            )

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that an index's header keeps."""
        return {"field": self.field, "noun": self.noun, "words": self.words}


def kind_of(config: Config, field: str) -> Kind:
    """Return the kind of rows that a field makes ("": the first of the first evaluated pair).

    Raises UserError for a field that no pair has.
    """
    field = field or config.eval.pairs[0][0]
    pairs = [pair for pair in config.eval.pairs if field in pair]
    if not pairs:
        raise UserError(
            f"field is '{field}', which is in none of config.eval.pairs {config.eval.pairs}; write one of "
            f"{', '.join(dict.fromkeys(chain(*config.eval.pairs)))}"
        )
    reader = reader_classes(config.data.fields)[field]
    noun = "captions" if reader.worded else PICTURES if has_views(config.data.fields, field) else f"rows of {field}"
    return Kind(field, noun, reader.worded, pairs[0])


def kind_in(extra: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of an index that say what its rows are: "field", "noun" and whether they are "words".

    Raises UserError where they are missing, as in an index that `xmodal index` did not make.
    """
    if not all(name in extra for name in ("field", "noun", "words")):
        raise UserError("the index does not say what its rows are; index again")
    return extra


def build_index(
    assembly: Assembly,
    params: Params,
    workdir: str,
    out: str,
    data: str = "",
    split: str | Sequence[str] = "",
    how: IndexOptions = IndexOptions(),
) -> tuple[pathlib.Path, int]:
    """Index the inputs of a field of splits, of pictures all views, with hash codes if the model has them.

    Records without one of the fields of the first pair of `eval.pairs` with the field are left out. An item has "key",
    "view", "split", "row" (in the split), "captions" (the first few; for a caption's row itself alone), "thumbnail"
    (base64 of a small PNG or JPEG; for a caption of its record's first view) and "data" if that is not the header's.
    The header remembers the work directory and the field. Rows are written as they are encoded, a block at a time.

    Args:
      assembly, params: the run.
      workdir: its folder, to be remembered.
      out: folder of the index.
      data: default: the run's data set.
      split: default: its evaluation split; several as in `splits_of`, whose rows follow one another.
      how: see `IndexOptions`.

    Returns:
      The folder and the number of rows it has now.

    Raises:
      UserError: `out` is taken, or (to append) no whole index of this model, or one of another form than `how` asks
        for; no such data set or split, a key in two of the splits, features that the data set lacks.
    """
    path, size = pathlib.Path(out), assembly.config.eval.batch_size
    model, dense = model_of(assembly, params), not how.codes_only
    hashed = all("hash" in params[name] for name in assembly.config.encoders)
    kind = kind_of(assembly.config, how.field)
    how.refuse_bad(path, model, hashed, kind)
    source = data_of(assembly.config.data, data)
    splits = splits_of(source, split)
    opened = {name: opened_views(assembly, source, name, kind) for name in splits}
    refuse_shared_keys(opened, source.path)
    names = names_of(list(chain(*opened.values())), kind)
    facts = remembered_run(workdir, out) | {"split": ",".join(splits)} | kind.facts
    if how.adds:
        first = files.read_header(path)
        dense, hashed = first["width"] > 0, first["bits"] > 0
    with opened_writer(path, model, how, names, facts) as rows:
        kind.refuse_other(path, rows.extra)  # again: it may have been replaced while the lock was another's
        if how.append and not how.upsert:
            keys.note_repeated(path, rows.extra, names, kind.words, how.duplicates)
        named = note_set(rows.extra, remembered_set(source.path, out))
        embedder = embedder_for(assembly, params, source, kind)
        for name, parts in opened.items():
            blocks = encoded(embedder, size, source, name, parts, kind)
            for coded, items in shown(blocks, name, parts, kind):
                own = [item | named for item in items]
                rows.add(coded.embed if dense else None, own, coded.codes if hashed else None)
    return path, rows.count


def splits_of(data: DataConfig, asked: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of splits: "train,test" or a list of them, "all" of the data set, "" for the evaluation split.

    Raises UserError for one that the data set lacks.
    """
    card = Card.load(data.path)
    names = asked.split(",") if isinstance(asked, str) else asked
    names = [name.strip() or data.eval_split for name in names]
    if names == ["all"] and "all" not in card.splits:
        return tuple(card.splits)
    for name in names:
        card.split(name)
    return tuple(dict.fromkeys(names))


def refuse_shared_keys(opened: dict[str, list[EvalSplit]], data: str) -> None:
    """Raise `UserError` for a key of two splits, since rows are told apart by keys. opened: the views of each split."""
    known: dict[str, str] = {}
    for split, parts in opened.items():
        for key in dict.fromkeys(key for found in parts for key in found.keys):
            if known.setdefault(key, split) != split:
                raise UserError(
                    f"splits '{known[key]}' and '{split}' of {data} both have the key '{key}', and an index tells its "
                    "rows by their keys; index one of them, or prepare the data set with keys of their own"
                )


def note_set(extra: dict[str, Any], told: dict[str, dict[str, str]]) -> dict[str, str]:
    """Add the data set of new rows to an index's facts; return what their items say of it, {} for the first one."""
    where = next(iter(told))
    extra["sets"] = extra.get("sets", {}) | told
    return {} if extra.setdefault("data", where) == where else {"data": where}


def shown(blocks: Iterator[tuple[Embedded, list]], split: str, parts: list[EvalSplit], kind: Kind) -> Progress:
    """Iterate over the blocks of a split, and show how many of its rows are done."""
    total = sum(len(kind.of(found)) for found in parts)
    return Progress(blocks, f"index split '{split}'", kind.noun, total, lambda block: len(block[0].embed), late=True)


def opened_writer(
    path: pathlib.Path, model: str, how: IndexOptions, names: keys.Names, extra: dict[str, Any]
) -> contextlib.AbstractContextManager[writer.Writer]:
    """Return the writer that `how` asks for. names: of the rows; extra: the facts of a new index."""
    if how.upsert:
        return keys.replacing(path, model, names, extra["words"])
    if how.append:
        return writer.appending(path, model)
    return writer.writing(path, model, overwrite=how.overwrite, extra=extra, dtype=how.dtype or "float32")


def embedder_for(assembly: Assembly, params: Params, source: DataConfig, kind: Kind) -> Embedder:
    """Return the encoders for the rows of a data set; only captions of the run's own set may have kept tokens."""
    own = kind.words and source.path == assembly.config.data.path
    return Embedder(assembly.model, params, texts=token_caches(assembly, params, False) if own else None)


def opened_views(assembly: Assembly, source: DataConfig, split: str, kind: Kind) -> list[EvalSplit]:
    """Open a split view by view; for rows without views each record in the first view that it has."""
    views = views_of(source, split) or ("",)
    found = [eval_split(source.path, split, assembly.specs, source, view, kind.pair) for view in views]
    if has_views(source.fields, kind.field):
        return found
    seen: set[int] = set()
    for i, view in enumerate(found):
        found[i] = without(view, seen)
        seen |= set(view.rows.tolist())
    return [view for view in found if view.keys]


def encoded(
    embedder: Embedder, size: int, source: DataConfig, split: str, parts: list[EvalSplit], kind: Kind
) -> Iterator[tuple[Embedded, list]]:
    """Yield embeddings, relaxed codes (None without a hash head) and items of opened views, `size` rows at a time."""
    for found in parts:
        items = items_of(source, split, found, kind)
        with contextlib.closing(items):
            for coded in embedder.blocks(kind.of(found), size):
                yield coded, list(islice(items, len(coded.embed)))


def without(found: EvalSplit, rows: set[int]) -> EvalSplit:
    """Return the records of a split that are not in `rows`, with their captions."""
    kept = np.flatnonzero(~np.isin(found.rows, list(rows)))
    return found.part(kept, *found.of_records(kept))


def data_of(trained: DataConfig, path: str) -> DataConfig:
    """Return the run's data section for the data set at `path` ("": its own): all views, shared languages."""
    if not path and not (pathlib.Path(trained.path) / CARD_FILE).is_file():
        raise UserError(
            f"the run's data set is not at '{trained.path}' (seen from here); write its folder now (option 'data')"
        )
    if not path or pathlib.Path(path).resolve() == pathlib.Path(trained.path).resolve():
        return trained
    card = Card.load(path)

    def shared(languages: Sequence[str]) -> tuple[str, ...]:
        return tuple(code for code in languages if code in card.languages)

    fields = {name: dataclasses.replace(own, languages=shared(own.languages)) for name, own in trained.fields.items()}
    languages = shared(trained.languages) or tuple(card.languages)
    return dataclasses.replace(trained, path=str(path), views=(), languages=languages, fields=fields)


def views_of(data: DataConfig, split: str) -> tuple[str, ...]:
    """Return the views of a split, in order."""
    source = Split(data.path, split, data)
    source.close()
    return source.views


def record_items(data: DataConfig, split: str, found: EvalSplit) -> Generator[dict[str, Any]]:
    """Yield the item of each record of one opened view, with a small picture if it has any."""
    with contextlib.closing(Split(data.path, split, dataclasses.replace(data, features=()))) as source:
        for number, (key, row) in enumerate(zip(found.keys, found.rows, strict=True)):
            captions = found.words_of(number)[:CAPTIONS]
            item = {"key": key, "view": found.view, "captions": captions, "split": split, "row": int(row)}
            shown = pictures(source.record(int(row)))
            picture = shown.get(found.view, next(iter(shown.values()), None))
            yield item | (thumbnail_of(picture, key) if picture is not None else {})


def thumbnail_of(picture: bytes, key: str) -> dict[str, str]:
    """Return {"thumbnail": base64 of a small picture}; warn and return {} where it cannot be read."""
    try:
        return {"thumbnail": base64.b64encode(limit_size(picture, THUMBNAIL)).decode("ascii")}
    except CorruptImage as error:
        log.warning("no thumbnail of %r: %s", key, error)
        return {}


def items_of(data: DataConfig, split: str, found: EvalSplit, kind: Kind) -> Generator[dict[str, Any]]:
    """Yield the item of each row: that of its record; a caption's item has itself alone as caption."""
    side = kind.of(found)
    counts = np.bincount(side.owner, minlength=len(found.keys))
    unseen = {} if side.words is not None or has_views(data.fields, kind.field) else {"view": ""}
    texts = iter(side.words) if side.words is not None else None
    for item, count in zip(record_items(data, split, found), counts, strict=True):
        own = ({"captions": [text]} for text in islice(texts, int(count))) if texts is not None else [{}] * int(count)
        yield from (item | unseen | more for more in own)


def names_of(parts: list[EvalSplit], kind: Kind) -> keys.Names:
    """Return the names of the rows of all opened views (`keys.names_of`): a caption's words, another row's view."""
    rows = []
    for found in parts:
        side = kind.of(found)
        what = side.words if side.words is not None else [found.view if kind.noun == PICTURES else ""] * len(side)
        rows += [(found.keys[owner], own) for owner, own in zip(side.owner, what, strict=True)]
    return keys.names_of(rows, kind.words, kind.noun)
