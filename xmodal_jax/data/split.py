"""One split of a prepared data set, opened: its records and their sidecar, and feature caches."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.card import Card, is_padded
from xmodal_jax.data.columns import Texts
from xmodal_jax.data.concepts import Concepts
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.embeddings import Embeddings
from xmodal_jax.data.records import (
    PICTURES,
    WORDS,
    CorruptRecord,
    KeptRecords,
    Records,
    Room,
    check_record,
    open_records,
)
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.stall import Activity
from xmodal_jax.errors import UserError

Arrays = dict[str, np.ndarray]


class Split:
    """One split of a prepared data set: its records, their sidecar and the feature caches, checked against the card.

    Only `record` unpacks pictures; all else of a row is read from the sidecar. Raises `UserError` for a folder, split,
    language, view or cache that does not exist, and for a damaged sidecar.
    """

    def __init__(self, data_dir: str | pathlib.Path, split: str, cfg: DataConfig):
        self.card, self.name, self.cfg, self.activity = Card.load(data_dir), split, cfg, Activity()
        self.folder = pathlib.Path(data_dir)
        self.card.split(split)
        self.views = tuple(cfg.views) or tuple(self.card.views)
        refuse_unknown("config.data.views", self.views, self.card.views, data_dir)
        for name, own in cfg.fields.items():
            if own.medium == WORDS:
                asked = (f"config.data.fields.{name}.languages", own.languages)
                where, languages = asked if own.languages else ("config.data.languages", cfg.languages)
                refuse_unknown(where, languages, self.card.languages, data_dir)
        refuse_unlike(self.card, cfg)
        self.sidecar, self.labelled = Sidecar(data_dir, self.card, split), len(self.card.label_names) > 0
        if not cfg.labels:
            self.card = dataclasses.replace(self.card, label_names=[])
        self.records, self.languages = open_records(data_dir, split), tuple(dict.fromkeys(cfg.languages))
        if len(self.records) != len(self.sidecar):
            raise UserError(
                f"{data_dir}: split {split!r} has {len(self.records)} records and a sidecar of {len(self.sidecar)}; "
                f"prepare the data set again."
            )
        self._cached = {name: open_records(self.folder / "features" / name, split) for name in cfg.caches}
        self.caches: Mapping[str, Records | KeptRecords] = self._cached
        for name, cache in self._cached.items():
            if len(cache) != len(self.records):
                raise UserError(
                    f"cache {name!r} of {data_dir} has {len(cache)} rows for {len(self.records)} records; "
                    "write it again."
                )

    def __len__(self) -> int:
        return len(self.records)

    def record(self, row: int) -> dict[str, Any]:
        """Return the stored part of a row, {"key", "media": {medium: {view: bytes}}}.

        Raises `CorruptRecord`, also if its key or its views are not those of the sidecar.
        """
        self.activity.note("reading row", row, f"split {self.name!r}")
        record, own = check_record(self.records[row]), self.sidecar
        views = list(record["media"].get(PICTURES, {}))
        if record["key"] != own.keys[row] or views != own.views(row):
            found = f"{record['key']!r} with views {views}"
            raise CorruptRecord(f"row {row} is {found}, not that of the sidecar")
        return record

    def tokens(self, row: int, view: str, flip: bool, caches: Sequence[str] = ()) -> np.ndarray:
        """Return the cached tokens float16 [N,D] of one view: those of some caches, one after the other on N.

        The caches are those of `data.features` unless named. Raises `CorruptRecord`.
        """
        parts = []
        for name in caches or self.cfg.features:
            self.activity.note("reading row", row, f"cache {name!r}")
            cached = self.caches[name][row]
            try:
                sides = cached["tokens"][view]
                data = sides["flip" if flip and "flip" in sides else "plain"]
                parts.append(unpacked(data, cached["shape"], is_padded(self.card.features[name])))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise CorruptRecord(f"row {row} of cache {name!r} has no tokens of view {view!r} ({error})") from error
        return np.concatenate(parts)

    def keep_rows(self, room: Room) -> None:
        """Keep rows of the feature caches in memory once they are read, while `room` lasts."""
        self.caches = {name: KeptRecords(cache, room) for name, cache in self._cached.items()}

    def having(self, medium: str) -> np.ndarray:
        """Return bool [n], True for rows that have anything of a medium; of captions, in the config's languages."""
        if medium == PICTURES:
            return np.any([self.sidecar.having(view) for view in self.views] or [np.zeros(len(self), bool)], axis=0)
        if medium == WORDS:
            return np.isin(np.arange(len(self)), self.sidecar.owner[self.sidecar.all_pairs(self.languages)])
        return self.sidecar.having_medium(medium)

    def views_of(self, row: int) -> list[str]:
        """Return the views of a row that are among those of the config."""
        own = self.sidecar.views(row)
        return [view for view in self.views if view in own]

    def labels(self, row: int) -> list[int]:
        """Return the labels of a row, as places in the card's list."""
        return self.sidecar.labels(row)

    def label_scores(self, row: int) -> list[float]:
        """Return how far each of the `labels` of a row is right, above 0 to 1."""
        return self.sidecar.scores(row)

    def label_key(self, row: int) -> np.int32:
        """Return the number of a row's set of labels.

        A row without labels has a number of its own, below -1 (which marks an empty place of a queue).
        """
        return np.int32(self.sidecar.label_set[row] if self.labels(row) else -2 - row)

    def embeddings(self) -> Embeddings:
        """Return the teacher's embeddings that the config names. Raises `UserError` if they do not cover this split."""
        cfg = self.cfg
        return Embeddings(self.folder, self.card, cfg.embeddings, self.name, self.views, cfg.spoken())

    def concepts(self) -> Concepts:
        """Return the concepts that the config names. Raises `UserError` if the data set does not have them."""
        return Concepts(self.folder, self.card, self.cfg.concepts, self.sidecar)

    def close(self) -> None:
        """Close all files."""
        for records in [self.records, *self.caches.values()]:
            records.close()


def unpacked(data: bytes, shape: Sequence[int], padded: bool) -> np.ndarray:
    """Return stored tokens float16 [N,D]; where `padded`, the last of them may be missing, and are zeros.

    Raises `ValueError` if the bytes do not fit the shape.
    """
    found = np.frombuffer(data, np.float16)
    if not padded:
        return found.reshape(shape)
    found = found.reshape(-1, shape[1])
    return np.concatenate([found, np.zeros((shape[0] - len(found), shape[1]), np.float16)])


def refuse_unlike(card: Card, cfg: DataConfig) -> None:
    """Raise `UserError` for caches that the data set lacks, of another medium than their field's, or of two widths."""
    where = "config.data.features"
    named = [(where, cfg.features, PICTURES)] if cfg.features else []
    fields = cfg.fields.items()
    named += [(f"config.data.fields.{name}.features", own.features, own.medium) for name, own in fields if own.features]
    for where, names, medium in named:
        entries = {name: card.feature(name) for name in names}
        for name, entry in entries.items():
            if entry["medium"] != medium:
                there = ", ".join(key for key, own in card.features.items() if own["medium"] == medium)
                raise UserError(
                    f"{where} has '{name}', a cache of the medium '{entry['medium']}', and the field shows '{medium}'; "
                    f"write one of {there or 'those that `xmodal data features --medium ' + medium + '` makes'}"
                )
        widths = {name: entry["width"] for name, entry in entries.items()}
        if len(set(widths.values())) >= 2:
            raise UserError(f"{where}: widths {widths} differ; concatenate caches of one tower.")


def refuse_unknown(field: str, asked: Sequence[str], known: Sequence[str], data_dir: os.PathLike | str) -> None:
    """Raise `UserError` for views or languages of the config's `field` that the data set does not have."""
    unknown = [name for name in asked if name not in known]
    if unknown:
        none = "it has none at all, so leave out the fields that are of them"
        hint = f"write some of {', '.join(known)}" if known else none
        raise UserError(f"{field}: {data_dir} has no {unknown[:1]}; {hint}.")


def split_captions(data_dir: os.PathLike | str, split: str, languages: Sequence[str] = ("en",)) -> Texts:
    """Return all captions of a split in the given languages, in row order, read when they are asked for."""
    own = Sidecar(data_dir, Card.load(data_dir), split)
    return own.texts.take(own.all_pairs(tuple(dict.fromkeys(languages))))


def multi_hot(
    labels: Sequence[Sequence[int]], count: int, scores: Sequence[Sequence[float]] | None = None
) -> np.ndarray:
    """Return float32 [n,C] with a 1, or its score, for each label number of each row."""
    table = np.zeros((len(labels), count), np.float32)
    for row, own in enumerate(labels):
        table[row, list(own)] = 1 if scores is None else scores[row]
    return table


def labels_of(split: Split, rows: Iterable[int]) -> np.ndarray:
    """Return float32 [n,C], the scores of the labels of some rows of a split: 1 but for those of `Item.scores`."""
    rows, count = list(rows), len(split.card.label_names)
    return multi_hot([split.labels(row) for row in rows], count, [split.label_scores(row) for row in rows])
