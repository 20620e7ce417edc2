"""Readers: what a record keeps of one medium, as an encoder takes it. `READERS` is the one place where a medium gets its name.

A reader serves one field of the batch. For a row it first chooses what to take (a view, a caption), then reads it; what it
chooses says which caption number and which stored embedding belong to it.
"""

import abc
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xmodal_jax.data.config import FieldConfig
from xmodal_jax.data.image import CorruptImage, eval_image, train_image
from xmodal_jax.data.media import UnreadableFile, find_file, read_file
from xmodal_jax.data.records import PICTURES, WORDS, CorruptRecord
from xmodal_jax.data.split import Split
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.plugins import find_class


class InputSpec(NamedTuple):
    """What an encoder takes: `size`, pixels of a side or tokens of a text; `tokenizer`, of encoders of words; `cached`: the
    tokens of feature caches in place of the medium itself."""

    size: int = 0
    tokenizer: Tokenizer | None = None
    cached: bool = False


Specs = dict[str, InputSpec]  # of each encoder


class Row:
    """One row of a split; its record is unpacked when a reader asks for it, at most once."""

    def __init__(self, split: Split, number: int):
        self.split, self.number, self._record = split, number, None

    def media(self, medium: str) -> dict[str, bytes]:
        """What the record keeps of a medium, {view: bytes}. Raises `CorruptRecord`."""
        if self._record is None:
            self._record = self.split.record(self.number)
        return self._record["media"].get(medium, {})


class Reader(abc.ABC):
    """What a reader of one field does. A user's own derives from it and writes `empty`, `choose` and `read`."""

    keyed: ClassVar[bool] = False  # whether what it reads has a number, equal for equal inputs: `key`
    worded: ClassVar[bool] = False  # whether its inputs are the captions of the data set
    viewed: ClassVar[bool] = (
        False  # whether it takes views of pictures, which evaluation goes through one after the other
    )
    mirrored: ClassVar[bool] = False  # whether `flipped` gives another input
    embedded: ClassVar[bool] = False  # whether `xmodal data embed` stores embeddings of it: `stored_inputs`, `stored`

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        self.split, self.own, self.spec = split, own, spec

    @classmethod
    def of_file(cls, path: pathlib.Path, spec: InputSpec) -> np.ndarray:
        """The input that a file of a user's own makes, for a query. Raises `UserError` for one that cannot be read."""
        raise UserError(
            f"'{path}': {cls.__module__}.{cls.__name__} reads no files of its own; write its method of_file"
        )

    @abc.abstractmethod
    def empty(self) -> np.ndarray:
        """What stands in a batch for a row without it: zeros."""

    @abc.abstractmethod
    def choose(self, row: Row, rng: np.random.Generator) -> Any:
        """What to take of a row, None where it has nothing."""

    @abc.abstractmethod
    def read(self, row: Row, choice: Any, rng: np.random.Generator) -> np.ndarray:
        """The input that was chosen, for training. Raises `CorruptRecord` or `CorruptImage`."""

    def plain(self, row: Row, choice: Any) -> np.ndarray:
        """The input that was chosen, for evaluation: nothing is drawn."""
        return self.read(row, choice, np.random.default_rng(0))

    def rows(self, view: str) -> np.ndarray:
        """int [m]: the rows that have it (in a view, of pictures), for evaluation, from the sidecar alone."""
        viewed = view and self.own.medium == PICTURES
        return np.flatnonzero(self.split.sidecar.having(view) if viewed else self.split.having(self.own.medium))

    def chosen(self, row: Row, view: str) -> Any:
        """What evaluation takes of a row."""
        return self.choose(row, np.random.default_rng(0))

    def flipped(self, choice: Any) -> Any:
        """The choice of the mirror image; of readers that are `mirrored`."""
        raise NotImplementedError

    def other(self, row: Row, first: Any, rng: np.random.Generator) -> Any:
        """Another choice than `first`, for a field that is another view of the same thing."""
        return self.choose(row, rng)

    def key(self, row: Row, choice: Any) -> int:
        """The number of what was chosen; of readers that are `keyed`."""
        raise NotImplementedError

    def stored_inputs(self, row: Row) -> dict[str, list[np.ndarray]]:
        """All inputs of a row by view or language, as evaluation reads them; of readers that are `embedded`."""
        raise NotImplementedError

    def stored(self, found: dict[str, list[bytes]], choice: Any) -> bytes:
        """The one of what was chosen, of the embeddings of `stored_inputs`; of readers that are `embedded`."""
        raise NotImplementedError


class PictureReader(Reader):
    """Pictures, augmented, or the cached tokens of their views, flipped at random. It chooses [view, flip]."""

    viewed: ClassVar[bool] = True
    mirrored: ClassVar[bool] = True
    embedded: ClassVar[bool] = True

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        super().__init__(split, own, spec)
        self._train, self._eval = train_image(spec.size, split.cfg.augment), eval_image(spec.size)

    @classmethod
    def of_file(cls, path: pathlib.Path, spec: InputSpec) -> np.ndarray:
        """A picture file as evaluation reads it."""
        return picture_of_file(path, spec.size)

    def empty(self) -> np.ndarray:
        """Black, or tokens that are zero."""
        if self.spec.cached:
            entries = [self.split.card.feature(name) for name in self.split.cfg.features]
            return np.zeros((sum(entry["tokens"] for entry in entries), entries[0]["width"]), np.float16)
        return np.zeros((self.spec.size, self.spec.size, 3), np.uint8)

    def _views(self, row: Row) -> list[str]:
        """The views that a row has: of pictures those of the config, of another medium all."""
        return self.split.views_of(row.number) if self.own.medium == PICTURES else list(row.media(self.own.medium))

    def choose(self, row: Row, rng: np.random.Generator) -> list | None:
        """A view; whether it is flipped is drawn when it is read."""
        views = self._views(row)
        return [views[rng.integers(len(views))], None] if views else None

    def chosen(self, row: Row, view: str) -> list:
        """The view, or the first of another medium's, not mirrored."""
        return [view if self.own.medium == PICTURES else self._views(row)[0], False]

    def flipped(self, choice: list) -> list:
        """The same view, mirrored; a feature cache made without mirror images gives the plain one again."""
        return [choice[0], True]

    def other(self, row: Row, first: list, rng: np.random.Generator) -> list | None:
        """Another view; of a row that has one only, the same flipped the other way (pixels are augmented anew)."""
        views = self._views(row)
        others = [view for view in views if view != first[0]] or views
        view = others[rng.integers(len(others))]
        return [view, None if view != first[0] else not first[1]]

    def read(self, row: Row, choice: list, rng: np.random.Generator) -> np.ndarray:
        """Augmented pixels, or cached tokens, those of the mirror image where it is flipped."""
        view = choice[0]
        if self.spec.cached:
            if choice[1] is None:
                choice[1] = rng.random() < self.split.cfg.augment.flip
            return self.split.tokens(row.number, view, choice[1])
        data = row.media(self.own.medium)
        self.split.activity.note("decoding the picture of row", row.number)
        return self._train(_of_view(data, view, row), rng)

    def plain(self, row: Row, choice: list) -> np.ndarray:
        """The whole picture at its size, or its cached tokens; its mirror image where it is flipped."""
        view, flip = choice
        if self.spec.cached:
            return self.split.tokens(row.number, view, flip)
        found = self._eval(_of_view(row.media(self.own.medium), view, row))
        return np.ascontiguousarray(found[:, ::-1]) if flip else found

    def stored_inputs(self, row: Row) -> dict[str, list[np.ndarray]]:
        """Each view, whole and not mirrored."""
        return {view: [self.plain(row, [view, False])] for view in self._views(row)}

    def stored(self, found: dict[str, list[bytes]], choice: list) -> bytes:
        """That of the view."""
        return found[choice[0]][0]


def picture_of_file(path: pathlib.Path, size: int) -> np.ndarray:
    """A picture file as evaluation reads it, uint8 [S,S,3]. Raises `UserError` for one that cannot be read."""
    try:
        return eval_image(size)(read_file(find_file(path)))
    except CorruptImage as error:
        raise UserError(f"'{path}' is no picture that can be read ({error}); write a whole PNG or JPEG file") from error
    except UnreadableFile as error:
        raise UserError(f"'{error.name}' cannot be opened ({error}); write the path of a picture file") from error


def _of_view(data: dict[str, bytes], view: str, row: Row) -> bytes:
    if view not in data:
        raise CorruptRecord(f"row {row.number} has no view {view!r}, which its sidecar names")
    return data[view]


class CaptionReader(Reader):
    """Captions as token ids. It chooses the place of a caption among those of the row in the config's languages."""

    keyed: ClassVar[bool] = True
    worded: ClassVar[bool] = True
    embedded: ClassVar[bool] = True

    def empty(self) -> np.ndarray:
        """Padding alone."""
        return np.zeros(self.spec.size, np.int32)

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> token ids int32 [n,L]."""
        return self.spec.tokenizer.encode(captions, self.spec.size)

    def choose(self, row: Row, rng: np.random.Generator) -> int | None:
        """A caption."""
        count = len(self.split.pairs(row.number))
        return int(rng.integers(count)) if count else None

    def rows(self, view: str) -> np.ndarray:
        """One for each caption: a row comes as often as it has captions in the config's languages."""
        own = self.split.sidecar
        return own.owner[own.all_pairs(self.split.languages)]

    def other(self, row: Row, first: int, rng: np.random.Generator) -> int | None:
        """Another caption; of a row that has one only, that one."""
        places = range(len(self.split.pairs(row.number)))
        others = [place for place in places if place != first] or places
        return others[rng.integers(len(others))] if others else None

    def read(self, row: Row, choice: int, rng: np.random.Generator) -> np.ndarray:
        """Its token ids."""
        self.split.activity.note("tokenising a caption of row", row.number)
        return self.ids([self.split.captions(row.number)[choice]])[0]

    def key(self, row: Row, choice: int) -> int:
        """The number of its text in the data set."""
        return self.split.caption_numbers(row.number)[choice]

    def stored_inputs(self, row: Row) -> dict[str, list[np.ndarray]]:
        """The captions in the config's languages."""
        found = self.split.sidecar.captions(row.number)
        return {code: list(self.ids(found[code])) for code in self.split.languages if code in found}

    def stored(self, found: dict[str, list[bytes]], choice: int) -> bytes:
        """That of the caption."""
        return [data for language in self.split.languages for data in found.get(language, [])][choice]


READERS: dict[str, type[Reader]] = {PICTURES: PictureReader, WORDS: CaptionReader}


def reader_classes(fields: dict[str, FieldConfig]) -> dict[str, type[Reader]]:
    """The class that reads each field. Raises UserError for a reader that is none."""
    where = "config.data.fields.{}.reader"
    return {name: find_class(own.reader, where.format(name), READERS, Reader) for name, own in fields.items()}


def readers_of(split: Split, specs: Specs) -> dict[str, Reader]:
    """A reader for each field of the config; `specs` of the encoders that take them."""
    fields = split.cfg.fields
    return {name: cls(split, fields[name], specs[fields[name].encoder]) for name, cls in reader_classes(fields).items()}


def has_views(fields: dict[str, FieldConfig], name: str) -> bool:
    """Whether evaluation goes through the views of pictures for a field."""
    return reader_classes({name: fields[name]})[name].viewed and fields[name].medium == PICTURES
