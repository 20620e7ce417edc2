"""A split as evaluation reads it: all inputs of two fields, in the order of its rows."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xmodal_jax.data.columns import Texts
from xmodal_jax.data.config import PAIR, DataConfig
from xmodal_jax.data.image import CorruptImage
from xmodal_jax.data.readers import Reader, Row, Specs, has_views, readers_of
from xmodal_jax.data.records import CorruptRecord
from xmodal_jax.data.split import Arrays, Split, labels_of, refuse_unknown
from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Side:
    """One field of a split as evaluation reads it: m inputs, each once, those of a record one after the other."""

    field: str
    """Name of the field."""
    encoder: str
    """Encoder that takes it."""
    owner: np.ndarray
    """int32 [m]: the place in `EvalSplit.keys` of each input's record, never falling."""
    numbers: np.ndarray
    """int32 [m]: equal for equal texts, and for other media one number for each input."""
    read: Callable[[int, bool], np.ndarray]
    """Function (place, flip) -> the input of the encoder."""
    words: Texts | None = None
    """Captions [m], read from disk when they are asked for; None for other media."""
    language: np.ndarray | None = None
    """int16 [m]: the place of each caption's language in the card's list; None for other media."""
    ids: np.ndarray | None = None
    """int32 [m,L]: the token ids of the captions; None for other media."""
    mirrored: bool = False
    """Whether `read` with `flip` gives a mirror image."""

    def __len__(self) -> int:
        return len(self.owner)

    def part(self, places: np.ndarray, records: np.ndarray) -> "Side":
        """Return the side with some inputs int [p] only, of some records int [r] in increasing order."""

        def take(rows: np.ndarray | None) -> np.ndarray | None:
            return None if rows is None else rows[places]

        return dataclasses.replace(
            self,
            owner=np.searchsorted(records, self.owner[places]).astype(np.int32),
            numbers=self.numbers[places],
            read=lambda place, flip=False: self.read(int(places[place]), flip),
            words=None if self.words is None else self.words.take(places),
            language=take(self.language),
            ids=take(self.ids),
        )

    def blocks(self, batch: int, flip: bool = False) -> Iterator[Arrays]:
        """Yield batches {field: [batch, ...], "id": int32 [batch]}.

        The ids are the places of the inputs; the last batch is padded with zeros and the id -1.
        """
        for start in range(0, len(self), batch):
            places = np.arange(start, min(start + batch, len(self)), dtype=np.int32)
            rows = (
                self.ids[places]
                if self.ids is not None
                else np.stack([self.read(place, flip) for place in places.tolist()])
            )
            yield _padded({self.field: rows, "id": places}, batch)


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """The n records of a split that have both fields of a pair, and all inputs of these fields."""

    view: str
    """View of the pictures; "" without pictures."""
    keys: Texts
    """Keys [n] of the records."""
    rows: np.ndarray
    """int32 [n]: the records' rows in the split."""
    left: Side
    """First field of the pair."""
    right: Side
    """Second field of the pair."""
    labels: np.ndarray | None
    """float32 [n,C], how far each label is right (0 to 1); None without labels."""
    own: bool = False
    """Whether only inputs of the same record are right, even if their captions repeat in other records."""

    @property
    def pair(self) -> tuple[str, str]:
        """Names of the two fields."""
        return self.left.field, self.right.field

    def matches(self, side: Side) -> np.ndarray:
        """Return int32 [m], equal for inputs of a side that have the same right answers.

        These are the numbers, or one number for each input if `own`.
        """
        return np.arange(len(side), dtype=np.int32) if self.own else side.numbers

    def part(self, records: np.ndarray, left: np.ndarray, right: np.ndarray) -> "EvalSplit":
        """Return the split with some records int [r], in increasing order, and with some inputs of each side."""
        return dataclasses.replace(
            self,
            keys=self.keys.take(records),
            rows=self.rows[records],
            left=self.left.part(left, records),
            right=self.right.part(right, records),
            labels=None if self.labels is None else self.labels[records],
        )

    def of_records(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places on both sides of the inputs of some records int [r]."""
        left, right = (np.flatnonzero(np.isin(side.owner, records)) for side in (self.left, self.right))
        return left, right

    def words_of(self, number: int, language: int | None = None) -> list[str]:
        """Return the captions of the record at a place in `keys`, from the side that has captions; [] without any.

        With a `language`, by its place in the card's list, those in it alone.
        """
        side = self.right if self.right.words is not None else self.left
        own = slice(*np.searchsorted(side.owner, [number, number + 1]))
        words = [] if side.words is None else list(side.words[own])
        if language is None or side.language is None:
            return words
        return [text for text, code in zip(words, side.language[own], strict=True) if code == language]


def _padded(batch: Arrays, size: int) -> Arrays:
    """Pad a batch to `size` rows with zeros, its ids with -1."""
    missing = size - len(batch["id"])
    return {
        name: np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=-1 if name == "id" else 0)
        for name, rows in batch.items()
    }


def eval_split(
    data_dir: str | pathlib.Path,
    split: str,
    specs: Specs,
    cfg: DataConfig,
    view: str = "",
    pair: tuple[str, str] = PAIR,
) -> EvalSplit:
    """Open all inputs of two fields of a split, as the encoders of `specs` take them.

    Of the pictures one view is read, by default the first of the config, else of the card. Records that lack one of the
    fields are left out and counted in the log. No input is read before it is asked for. Raises `UserError` for a split,
    view or language that does not exist and, when it is read, for an input that cannot be: a score on part of a test
    set could not be compared.
    """
    source = Split(data_dir, split, cfg)
    readers = readers_of(source, specs)
    if any(has_views(cfg.fields, field) for field in pair):
        view = view or next(iter(source.views), "")
        refuse_unknown("config.data.views", (view,), source.card.views, data_dir)
    else:
        view = ""
    found = [readers[field].rows(view) for field in pair]
    rows = np.intersect1d(found[0], found[1])
    if len(rows) < len(source):
        log.warning(
            "%d of %d records of %s lack %s (view %r, languages %s)",
            len(source) - len(rows),
            len(source),
            split,
            " or ".join(pair),
            view,
            ", ".join(cfg.languages),
        )
    if len(rows) == 0:
        raise UserError(
            f"{data_dir}: split {split!r} has no record with {' and '.join(pair)} "
            f"(view {view!r}, languages {cfg.languages})."
        )
    left, right = (_side(readers[field], field, own, rows, view) for field, own in zip(pair, found, strict=True))
    labels = labels_of(source, rows.tolist()) if source.card.label_names else None
    return EvalSplit(view, source.sidecar.keys.take(rows), rows.astype(np.int32), left, right, labels)


def _side(reader: Reader, field: str, found: np.ndarray, rows: np.ndarray, view: str) -> Side:
    """Return one side: of the inputs, whose rows are `found`, those that belong to the records `rows`."""
    places = np.flatnonzero(np.isin(found, rows))
    owner, source = np.searchsorted(rows, found[places]).astype(np.int32), reader.split

    def read(place: int, flip: bool = False) -> np.ndarray:
        row = Row(source, int(rows[owner[place]]))
        choice = reader.chosen(row, view)
        return _readable(lambda: reader.plain(row, reader.flipped(choice) if flip else choice), f"row {row.number}")

    own = Side(field, reader.own.encoder, owner, np.arange(len(places), dtype=np.int32), read, mirrored=reader.mirrored)
    if not reader.worded:
        return dataclasses.replace(own, numbers=_numbers(reader, rows[owner], view)) if reader.keyed else own
    pairs = reader.all_pairs()[places]
    words = source.sidecar.texts.take(pairs)
    ids = reader.ids(pairs)
    numbers, language = source.sidecar.number[pairs], source.sidecar.language[pairs]
    return dataclasses.replace(own, numbers=numbers, words=words, language=language, ids=ids)


def _numbers(reader: Reader, rows: np.ndarray, view: str) -> np.ndarray:
    """Return int32 [m], equal for inputs of the rows int [m] with the same key."""
    found = [Row(reader.split, int(row)) for row in rows]
    keys = [reader.key(row, reader.chosen(row, view)) for row in found]
    return np.unique(keys, return_inverse=True)[1].astype(np.int32)


def _readable(read: Callable[[], Any], where: str) -> Any:
    """Call `read`, and name the row in the error if its data cannot be read."""
    try:
        return read()
    except (CorruptRecord, CorruptImage) as error:
        raise UserError(f"{where} cannot be read ({error}); copy or prepare the data set again.") from error
