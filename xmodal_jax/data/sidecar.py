"""The sidecar of a split: all of its records but their pictures, so that nobody unpacks pictures for captions.

`DIR/sidecar/<split>/NAME.bin` are the columns `COLUMNS`, little-endian. Those of the n records of a split, in row
order, are their keys, groups, views, other media, labels and the number of their set of labels. Those of its M
captions, the captions of a record one after the other, are the texts, the record that owns each, its language, and the
number of its text, which two captions of the data set share if and only if they are the same text
(`captions.normal_caption`). Views, languages and labels are places in the card's lists. The row of a caption in these
columns is the number of its pair. A split with noise (data/noise.py) has one more column, `changed`, and one whose
labels are not all wholly right has their `scores`.
"""

import collections
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.captions import Numbers, normal_caption
from xmodal_jax.data.card import Card
from xmodal_jax.data.columns import ColumnWriter, Texts, open_column
from xmodal_jax.data.numbering import SIZE, DigestSet, digest, text_numbers
from xmodal_jax.data.source import Item
from xmodal_jax.errors import UserError

FOLDER = "sidecar"
LISTS = {  # columns that come with a column of starts each
    "keys": "u1",
    "groups": "u1",
    "views": "<i2",
    "media": "<i2",
    "labels": "<i4",
    "texts": "u1",
}
COLUMNS = LISTS | {f"{name}_starts": "<i8" for name in (*LISTS, "captions")}
COLUMNS |= {"label_set": "<i4", "owner": "<i4", "language": "<i2", "number": "<i4"}
OPTIONAL = {"changed": "u1", "scores": "<f4"}
LATE = {"language": "<i2", "digest": "u1"}  # kept in files of their own until all items are known
REMAPPED = 1 << 20  # captions whose languages are rewritten at once


class Sidecars:
    """Writer of the sidecars of a data set while its items stream by.

    All that grows is on disk, but for 64 bytes of each group.
    """

    def __init__(self, folder: os.PathLike | str):
        self.languages: collections.Counter[str] = collections.Counter()  # records that have captions in each
        self.views, self.media, self.labels = Numbers(), Numbers(), Numbers()
        self._codes, self._label_sets = Numbers(), Numbers()
        self._folder = pathlib.Path(folder) / FOLDER
        self._writers: dict[str, SplitWriter] = {}

    def add(self, item: Item) -> None:
        """Write the next record of its split."""
        if item.split not in self._writers:
            self._writers[item.split] = SplitWriter(self._folder / item.split)
        labels = [self.labels[name] for name in item.labels]
        captions = [(self._codes[code], text) for code, own in item.captions.items() for text in own]
        views, media = [self.views[view] for view in item.pictures], [self.media[name] for name in item.media]
        self.languages.update(item.captions.keys())
        label_set = self._label_sets[frozenset(labels)]
        scores = item.scores or (1.0,) * len(labels)
        self._writers[item.split].add(item.key, item.group, views, media, labels, scores, label_set, captions)

    def finish(self, languages: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Number the texts and return the card's entry of each split.

        It has the numbers of records, captions and groups, the captions of each language, and the columns. `languages`
        are those of the card, in its order.
        """
        splits = sorted(self._writers)
        found = {split: self._writers[split].close() for split in splits}
        digests = [self._writers[split].digests() for split in splits]
        texts = [self._writers[split].texts(found[split]["columns"]) for split in splits]
        code = np.array([languages.index(name) for name in self._codes], np.int16)
        for split, numbers in zip(splits, text_numbers(digests, texts), strict=True):
            counts = self._writers[split].finish(numbers, code, found[split]["columns"])
            found[split]["languages"] = {languages[place]: count for place, count in sorted(counts.items())}
        return found

    def abort(self) -> None:
        """Close the files, which are no sidecars then."""
        for writer in self._writers.values():
            writer.abort()


class SplitWriter:
    """Writer of the columns of one split."""

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._groups = folder, DigestSet()
        self._out = {
            name: ColumnWriter(self._path(name), dtype)
            for name, dtype in COLUMNS.items()
            if name not in ("language", "number")
        }
        self._scores, self._plain = ColumnWriter(self._path("scores"), OPTIONAL["scores"]), True
        self._late = {name: ColumnWriter(self._path(f"{name}.late"), dtype) for name, dtype in LATE.items()}
        for name in (*LISTS, "captions"):
            self._out[f"{name}_starts"].put(0)

    def add(
        self,
        key: str,
        group: str,
        views: Sequence[int],
        media: Sequence[int],
        labels: Sequence[int],
        scores: Sequence[float],
        label_set: int,
        captions: Iterable[tuple[int, str]],
    ) -> None:
        """Write one record; captions are (code of the language, text), `scores` those of its labels."""
        record = self._out["label_set"].count
        self._groups.add(group)
        self._text("keys", key)
        self._text("groups", group)
        for name, values in (("views", views), ("media", media), ("labels", labels)):
            for value in values:
                self._out[name].put(value)
            self._out[f"{name}_starts"].put(self._out[name].count)
        for score in scores:
            self._scores.put(score)
            self._plain = self._plain and score == 1
        self._out["label_set"].put(label_set)
        for code, text in captions:
            self._text("texts", text)
            self._out["owner"].put(record)
            self._late["language"].put(code)
            self._late["digest"].write(digest(normal_caption(text)))
        self._out["captions_starts"].put(self._out["owner"].count)

    def _text(self, name: str, text: str) -> None:
        """Append a text to a column of texts."""
        self._out[name].write(text.encode())
        self._out[f"{name}_starts"].put(self._out[name].count)

    def close(self) -> dict[str, Any]:
        """Finish the columns that are known by now; return the numbers of records, captions, groups, and `columns`."""
        counts = {"records": self._out["label_set"].count, "captions": self._out["owner"].count}
        columns = {name: column.close() for name, column in self._out.items()}
        scores = self._scores.close()
        if self._plain:
            self._path("scores").unlink()
        else:
            columns["scores"] = scores
        for column in self._late.values():
            column.close()
        return counts | {"groups": len(self._groups), "columns": columns}

    def abort(self) -> None:
        """Close the files."""
        for column in (*self._out.values(), *self._late.values(), self._scores):
            column.abort()

    def digests(self) -> np.ndarray:
        """Return uint64 [M,2], the digest of the normal form of each text."""
        return self._column("digest.late", "<u8").reshape(-1, SIZE // 8)

    def texts(self, columns: dict[str, dict[str, int]]) -> Texts:
        """Return the captions [M], from closed columns."""
        names = ("texts", "texts_starts")
        return Texts(*(open_column(self._path(name), COLUMNS[name], columns[name]) for name in names))

    def finish(self, numbers: np.ndarray, code: np.ndarray, columns: dict[str, dict[str, int]]) -> dict[int, int]:
        """Write the last two columns, add their facts to `columns`, and return the captions of each language.

        Args:
          numbers: int32 [M], the number of each text.
          code: int16 [languages], the place of each language in the card, by its code.
          columns: the card's facts on the columns so far.
        """
        out = {name: ColumnWriter(self._path(name), COLUMNS[name]) for name in ("language", "number")}
        codes, counts = self._column("language.late", LATE["language"]), collections.Counter()
        for first in range(0, len(codes), REMAPPED):
            here = code[codes[first : first + REMAPPED]]
            out["language"].write(here.tobytes())
            counts.update(dict(enumerate(np.bincount(here).tolist())))
        out["number"].write(numbers.tobytes())
        columns |= {name: column.close() for name, column in out.items()}
        for name in LATE:
            self._path(f"{name}.late").unlink()
        return {place: count for place, count in counts.items() if count}

    def _column(self, name: str, dtype: str) -> np.ndarray:
        """Map a closed column that this process wrote."""
        path = self._path(name)
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)

    def _path(self, name: str) -> pathlib.Path:
        """Return the file of a column."""
        return column_path(self._folder, name)


def column_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the file of a column of the sidecar in `folder`."""
    return folder / f"{name}.bin"


class Sidecar:
    """The sidecar of one `split`, opened.

    Raises `UserError` if a column is missing, or the columns are not those that the card describes.

    Attributes:
      keys, groups: texts [n] of the records.
      label_set: int32 [n], the number of each record's set of labels.
      texts: the captions [M].
      owner: int32 [M], the record of each caption.
      language: int16 [M], the place of its language in `languages`.
      number: int32 [M], the number of its text.
      changed: uint8 [M], 1 for captions made wrong on purpose (data/noise.py); None for a split without noise. It is
        for scoring: training never reads it.
    """

    def __init__(self, folder: os.PathLike | str, card: Card, split: str):
        entry, place = card.split(split), pathlib.Path(folder) / FOLDER / split
        columns = COLUMNS | {name: dtype for name, dtype in OPTIONAL.items() if name in entry["columns"]}
        found = {
            name: open_column(column_path(place, name), dtype, entry["columns"].get(name))
            for name, dtype in columns.items()
        }
        self.split, self.languages, self._views, self._media = split, card.languages, card.views, card.media
        _refuse_misfit(found, card, entry, place)
        self.keys, self.groups, self.texts = (
            Texts(found[name], found[f"{name}_starts"]) for name in ("keys", "groups", "texts")
        )
        self.owner, self.language, self.number = (found[name] for name in ("owner", "language", "number"))
        self.label_set, self.changed = found["label_set"], found.get("changed")
        self._found = found

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.label_set)

    @property
    def pictures(self) -> int:
        """Number of pictures of all records."""
        return len(self._found["views"])

    def views(self, row: int) -> list[str]:
        """Return the views of a record's pictures."""
        return [self._views[code] for code in self._list("views", row)]

    def labels(self, row: int) -> list[int]:
        """Return a record's labels, as places in the card's list."""
        return self._list("labels", row)

    def scores(self, row: int) -> list[float]:
        """Return how far each of a record's `labels` is right, above 0 to 1."""
        start, stop = self._span("labels", row)
        return self._found["scores"][start:stop].tolist() if "scores" in self._found else [1.0] * (stop - start)

    def captions(self, row: int) -> dict[str, list[str]]:
        """Return a record's captions by language."""
        found: dict[str, list[str]] = {}
        for pair in range(*self._span("captions", row)):
            found.setdefault(self.languages[self.language[pair]], []).append(self.texts[pair])
        return found

    def pairs(self, row: int, languages: Sequence[str]) -> list[int]:
        """Return the numbers of a record's captions in some languages, one language after the other."""
        start, stop = self._span("captions", row)
        own = self.language[start:stop].tolist()
        codes = [self.languages.index(name) for name in languages if name in self.languages]
        return [start + place for code in codes for place, other in enumerate(own) if other == code]

    def all_pairs(self, languages: Sequence[str]) -> np.ndarray:
        """Return int64 [m]: `pairs` of all records, one record after the other."""
        rank = np.full(len(self.languages), -1, np.int16)
        for place, name in enumerate(name for name in languages if name in self.languages):
            rank[self.languages.index(name)] = place
        rows = np.flatnonzero(rank[self.language] >= 0)
        return rows[np.lexsort((rank[self.language[rows]], self.owner[rows]))] if len(languages) > 1 else rows

    def having(self, view: str) -> np.ndarray:
        """Return bool [n], True for records that have a picture of a view."""
        return self._listing("views", self._views.index(view))

    def having_medium(self, medium: str) -> np.ndarray:
        """Return bool [n], True for records that have anything of a medium other than pictures and captions."""
        return self._listing("media", self._media.index(medium)) if medium in self._media else np.zeros(len(self), bool)

    def _listing(self, name: str, code: int) -> np.ndarray:
        """Return bool [n], True for records that have `code` in their lists in a column."""
        has = np.zeros(len(self), bool)
        owners = np.repeat(np.arange(len(self)), np.diff(self._found[f"{name}_starts"]))
        has[owners[self._found[name] == code]] = True
        return has

    def _span(self, name: str, row: int) -> tuple[int, int]:
        """Return the first and the last row, exclusive, of a record's entries in a column."""
        starts = self._found[f"{name}_starts"]
        return int(starts[row]), int(starts[row + 1])

    def _list(self, name: str, row: int) -> list[int]:
        """Return a record's entries in a column."""
        return self._found[name][slice(*self._span(name, row))].tolist()


def _refuse_misfit(found: dict[str, np.ndarray], card: Card, entry: dict[str, Any], place: pathlib.Path) -> None:
    """Raise `UserError` unless the numbers of records, captions and names fit the card."""
    records, captions = entry["records"], entry["captions"]
    wanted = {"label_set": records, "texts_starts": captions + 1}
    wanted |= dict.fromkeys(("owner", "language", "number", *(["changed"] if "changed" in found else [])), captions)
    wanted |= {"scores": len(found["labels"])} if "scores" in found else {}
    wanted |= {f"{name}_starts": records + 1 for name in ("keys", "groups", "views", "media", "labels", "captions")}
    names = {"language": card.languages, "views": card.views, "media": card.media, "labels": card.label_names}
    fits = all(len(found[name]) == count for name, count in wanted.items())
    fits = fits and sum(entry["languages"].values()) == captions
    fits = fits and all(len(found[name]) == 0 or found[name].max() < len(own) for name, own in names.items())
    if not fits:
        raise UserError(
            f"'{place}' does not have the {records} records and {captions} captions, languages, views and labels "
            "that the card says; prepare the data set again (option 'force')"
        )
