"""Readers make the input of an encoder from what a record keeps of a medium. `READERS` alone names them.

A reader serves one field of the batch. For a row it first chooses what to take (a view, a caption), then reads it; its
choice decides which caption number and which stored embedding belong to the input.
"""

import abc
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xmodal_jax.data.config import FieldConfig
from xmodal_jax.data.image import CorruptImage, eval_image, train_image
from xmodal_jax.data.media import UnreadableFile, find_file, read_file
from xmodal_jax.data.records import PICTURES, WORDS, CorruptRecord, Record
from xmodal_jax.data.split import Split
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.plugins import find_class


class InputSpec(NamedTuple):
    """Description of the input that an encoder takes."""

    size: int = 0
    """Pixels of a side, or tokens of a text."""
    tokenizer: Tokenizer | None = None
    """Tokenizer, for encoders of words."""
    cached: bool = False
    """Whether the encoder takes the tokens of feature caches in place of the medium itself."""
    languages: tuple[str, ...] = ()
    """Languages that the encoder tells apart; (): it reads all alike."""
    starts: tuple[str, ...] = ()
    """Languages that captions are begun in (`DataFacts.starts`), whose places batches carry; (): none."""
    shape: tuple[int, ...] = ()
    """Shape of one input; () where nobody told, as a reader of pictures or words needs no more than `size`."""
    form: Any = None
    """What else the encoder's config tells the reader of its input (`EncoderConfig.form`); None: nothing."""

    def ids(self, texts: Sequence[str], languages: Sequence[str] = ()) -> np.ndarray:
        """Return token ids int32 [n,L] of texts; of an encoder that tells languages apart [n,L+1].

        The last column is then the place of each text's language among the encoder's, -1 for another or none.
        """
        assert self.tokenizer is not None, "an encoder of words has one"
        ids = self.tokenizer.encode(texts, self.size)
        if not self.languages:
            return ids
        known = {language: place for place, language in enumerate(self.languages)}
        places = [known.get(language, -1) for language in languages] or [-1] * len(texts)
        return np.concatenate([ids, np.array(places, np.int32)[:, None]], axis=1)


Specs = dict[str, InputSpec]  # by encoder


class Row:
    """One row of a split; its record is unpacked at most once, when a reader asks for it.

    `shared` are numbers that all rows of a training batch have: the seed of what is drawn once for all of them.
    """

    def __init__(self, split: Split, number: int, shared: tuple[int, ...] = (0,)):
        self.split, self.number, self.shared = split, number, shared
        self._record: Record | None = None

    def media(self, medium: str) -> dict[str, bytes]:
        """Return the record's part of a medium, {view: bytes}. Raises `CorruptRecord`."""
        if self._record is None:
            self._record = self.split.record(self.number)
        return self._record["media"].get(medium, {})


class Reader(abc.ABC):
    """Reader of one field. A user's own derives from it and writes `empty`, `choose` and `read`."""

    gives: ClassVar[str] = ""
    """What an encoder must read to take the inputs (`EncoderConfig.reads`), if it takes no cached tokens; "": any."""
    keyed: ClassVar[bool] = False
    """Whether inputs have a number that is equal for equal inputs: `key`."""
    worded: ClassVar[bool] = False
    """Whether the inputs are captions of the data set: `ids`."""
    viewed: ClassVar[bool] = False
    """Whether it takes views of pictures, which evaluation goes through one after the other."""
    mirrored: ClassVar[bool] = False
    """Whether `flipped` gives another input."""
    embedded: ClassVar[bool] = False
    """Whether `xmodal data embed` stores embeddings of the inputs: `stored_inputs`, `stored`."""

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        self.split, self.own, self.spec = split, own, spec

    @classmethod
    def of_file(cls, path: pathlib.Path, spec: InputSpec) -> np.ndarray:
        """Return the input made from a file of a user's own, for a query. Raises `UserError` if it cannot be read."""
        raise UserError(
            f"'{path}': {cls.__module__}.{cls.__name__} reads no files of its own; write its method of_file"
        )

    @classmethod
    def packed(cls, path: pathlib.Path) -> bytes:
        """Return what a record would keep of a user's own file. Raises `UserError` if it cannot be read.

        A frozen tower reads it so for a query, where the encoder takes cached tokens.
        """
        raise UserError(f"'{path}': {cls.__module__}.{cls.__name__} packs no files; write its method packed")

    @abc.abstractmethod
    def empty(self) -> np.ndarray:
        """Return the input of a row without the field: zeros."""

    @abc.abstractmethod
    def choose(self, row: Row, rng: np.random.Generator) -> Any:
        """Choose what to take of a row; None if it has nothing."""

    @abc.abstractmethod
    def read(self, row: Row, choice: Any, rng: np.random.Generator) -> np.ndarray:
        """Return the chosen input, for training. Raises `CorruptRecord` or `CorruptImage`."""

    def plain(self, row: Row, choice: Any) -> np.ndarray:
        """Return the chosen input, for evaluation: nothing is drawn."""
        return self.read(row, choice, np.random.default_rng(0))

    def rows(self, view: str) -> np.ndarray:
        """Return int [m], the row of each input that evaluation reads, from the sidecar alone.

        Of pictures, these are the rows that have the view.
        """
        viewed = view and self.own.medium == PICTURES
        return np.flatnonzero(self.split.sidecar.having(view) if viewed else self.split.having(self.own.medium))

    def chosen(self, row: Row, view: str) -> Any:
        """Return the choice of evaluation."""
        return self.choose(row, np.random.default_rng(0))

    def flipped(self, choice: Any) -> Any:
        """Return the choice of the mirror image; for readers that are `mirrored`."""
        raise NotImplementedError

    def other(self, row: Row, first: Any, rng: np.random.Generator) -> Any:
        """Return another choice than `first`, for a field that is another view of the same record."""
        return self.choose(row, rng)

    def key(self, row: Row, choice: Any) -> int:
        """Return the number of the chosen input; for readers that are `keyed`."""
        raise NotImplementedError

    def pairs(self, row: Row) -> list[int]:
        """Return the numbers in the split of the captions of a row that it reads; for readers that are `worded`."""
        raise NotImplementedError

    def all_pairs(self) -> np.ndarray:
        """Return int64 [m], `pairs` of all rows, one row after the other; for readers that are `worded`."""
        raise NotImplementedError

    def ids(self, pairs: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the token ids int32 [n,L] of captions by their numbers; for readers that are `worded`."""
        raise NotImplementedError

    def language(self, choice: Any) -> str:
        """Return the language of the chosen caption; for readers that are `worded`.

        Raises `UserError` in a class of one's own that does not say it.
        """
        raise UserError(f"{type(self).__name__} does not say a caption's language; write its method `language`")

    def stored_inputs(self, row: Row) -> dict[str, list[np.ndarray]]:
        """Return all inputs of a row by view or language, as evaluation reads them; for readers that are `embedded`."""
        raise NotImplementedError

    def stored(self, found: dict[str, list[bytes]], choice: Any) -> bytes:
        """Pick the chosen one among the embeddings of `stored_inputs`; for readers that are `embedded`."""
        raise NotImplementedError


class PictureReader(Reader):
    """Reader of pictures, augmented, or of the cached tokens of their views, flipped at random.

    A choice is [view, flip], flip being None until cached tokens are read for training; pixels draw their own flip.
    """

    gives: ClassVar[str] = "pixels"
    viewed: ClassVar[bool] = True
    mirrored: ClassVar[bool] = True
    embedded: ClassVar[bool] = True

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        super().__init__(split, own, spec)
        if own.medium == PICTURES and not spec.cached:
            refuse_without_pixels(split, own.encoder)
        self._train, self._eval = train_image(spec.size, split.cfg.augment), eval_image(spec.size)

    @classmethod
    def of_file(cls, path: pathlib.Path, spec: InputSpec) -> np.ndarray:
        """Return a picture file as evaluation reads it."""
        return picture_of_file(path, spec.size)

    def empty(self) -> np.ndarray:
        """Return black pixels, or tokens that are zero."""
        if self.spec.cached:
            entries = [self.split.card.feature(name) for name in self.caches]
            return np.zeros((sum(entry["tokens"] for entry in entries), entries[0]["width"]), np.float16)
        return np.zeros((self.spec.size, self.spec.size, 3), np.uint8)

    @property
    def caches(self) -> tuple[str, ...]:
        """The names of the feature caches that are read, if the encoder takes cached tokens."""
        return self.split.cfg.caches_of(self.own)

    def _views(self, row: Row) -> list[str]:
        """Return the views of a row: of pictures those in the config, of another medium all."""
        return self.split.views_of(row.number) if self.own.medium == PICTURES else list(row.media(self.own.medium))

    def choose(self, row: Row, rng: np.random.Generator) -> list | None:
        """Choose a view; the flip is drawn when it is read."""
        views = self._views(row)
        return [views[rng.integers(len(views))], None] if views else None

    def chosen(self, row: Row, view: str) -> list:
        """Return the view, not mirrored; of another medium than pictures, the first view."""
        return [view if self.own.medium == PICTURES else self._views(row)[0], False]

    def flipped(self, choice: list) -> list:
        """Return the same view, mirrored; a feature cache without mirror images gives the plain one again."""
        return [choice[0], True]

    def other(self, row: Row, first: list, rng: np.random.Generator) -> list | None:
        """Choose another view; if there is none, the same one flipped the other way (pixels are augmented anew)."""
        views = self._views(row)
        others = [view for view in views if view != first[0]] or views
        view = others[rng.integers(len(others))]
        return [view, None if view != first[0] else not first[1]]

    def read(self, row: Row, choice: list, rng: np.random.Generator) -> np.ndarray:
        """Return augmented pixels, or cached tokens, those of the mirror image if flipped."""
        view = choice[0]
        if self.spec.cached:
            if choice[1] is None:
                choice[1] = rng.random() < self.split.cfg.augment.flip
            return self.split.tokens(row.number, view, choice[1], self.caches)
        data = row.media(self.own.medium)
        self.split.activity.note("decoding the picture of row", row.number)
        return self._train(of_view(data, view, row), rng)

    def plain(self, row: Row, choice: list) -> np.ndarray:
        """Return the whole picture at its size, or its cached tokens; those of the mirror image if flipped."""
        view, flip = choice
        if self.spec.cached:
            return self.split.tokens(row.number, view, flip, self.caches)
        found = self._eval(of_view(row.media(self.own.medium), view, row))
        return np.ascontiguousarray(found[:, ::-1]) if flip else found

    def stored_inputs(self, row: Row) -> dict[str, list[np.ndarray]]:
        """Return each view, whole and not mirrored."""
        return {view: [self.plain(row, [view, False])] for view in self._views(row)}

    def stored(self, found: dict[str, list[bytes]], choice: list) -> bytes:
        """Return the embedding of the chosen view."""
        return found[choice[0]][0]


def refuse_without_pixels(split: Split, encoder: str) -> None:
    """Raise `UserError` if a view that the config reads has features alone, and `encoder` takes pixels."""
    lacking = [view for view in split.views if view in split.card.without_pixels]
    if lacking:
        caches = tuple(split.card.features)
        raise UserError(
            f"{split.folder} has no pictures of the view '{lacking[0]}', only features of them; write "
            f"config.encoders.{encoder}.kind='features' and config.data.features={caches}"
        )


def picture_of_file(path: pathlib.Path, size: int) -> np.ndarray:
    """Read a picture file as evaluation does, uint8 [S,S,3]. Raises `UserError` if it cannot be read."""
    try:
        return eval_image(size)(read_file(find_file(path)))
    except CorruptImage as error:
        raise UserError(f"'{path}' is no picture that can be read ({error}); write a whole PNG or JPEG file") from error
    except UnreadableFile as error:
        raise UserError(f"'{error.name}' cannot be opened ({error}); write the path of a picture file") from error


def of_view(data: dict[str, bytes], view: str, row: Row) -> bytes:
    """Return the bytes of a view, which the sidecar names."""
    if view not in data:
        raise CorruptRecord(f"row {row.number} has no view {view!r}, which its sidecar names")
    return data[view]


class CaptionReader(Reader):
    """Reader of captions as token ids.

    A choice is the number of a caption in the split. With `per` "batch" all rows of a batch get one language.
    """

    gives: ClassVar[str] = "words"
    keyed: ClassVar[bool] = True
    worded: ClassVar[bool] = True
    embedded: ClassVar[bool] = True

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        super().__init__(split, own, spec)
        self.languages = own.languages or split.languages
        counts = split.card.split(split.name)["languages"]
        self._counts = {name: counts[name] for name in self.languages if counts.get(name)}

    def empty(self) -> np.ndarray:
        """Return padding only."""
        return np.zeros(self.spec.size + bool(self.spec.languages), np.int32)

    def pairs(self, row: Row) -> list[int]:
        """Return the numbers of a row's captions in the field's languages."""
        return self.split.sidecar.pairs(row.number, self.languages)

    def all_pairs(self) -> np.ndarray:
        """Return int64 [m], the numbers of all captions in the field's languages, one record after the other."""
        return self.split.sidecar.all_pairs(self.languages)

    def ids(self, pairs: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the token ids int32 [n,L] of captions by their numbers."""
        own = self.split.sidecar
        names = [own.languages[code] for code in own.language[np.asarray(pairs, np.int64)].tolist()]
        return self.spec.ids(own.texts.take(np.asarray(pairs, np.int64)), names)

    def language(self, choice: int) -> str:
        """Return the language of a caption by its number."""
        own = self.split.sidecar
        return own.languages[own.language[choice]]

    def choose(self, row: Row, rng: np.random.Generator) -> int | None:
        """Choose a caption."""
        if self.own.per == "row":
            return self._one_of(self.pairs(row), rng)
        return self._one_of(self.split.sidecar.pairs(row.number, self._drawn(row.shared)), rng)

    def _drawn(self, shared: tuple[int, ...]) -> list[str]:
        """Return the language of a batch, by the numbers that its rows share; none where the split has no captions."""
        if not self._counts:
            return []
        chance = np.array(list(self._counts.values()), float) ** self.own.temperature
        return [np.random.default_rng(shared).choice(list(self._counts), p=chance / chance.sum())]

    def _one_of(self, pairs: list[int], rng: np.random.Generator) -> int | None:
        """Choose one of some captions of a record, so that languages come as `temperature` says."""
        if not pairs:
            return None
        if self.own.temperature == 1:
            return pairs[rng.integers(len(pairs))]
        own = self.split.sidecar
        counts = np.array([self._counts[own.languages[own.language[pair]]] for pair in pairs], float)
        chance = counts ** (self.own.temperature - 1)
        return int(rng.choice(pairs, p=chance / chance.sum()))

    def rows(self, view: str) -> np.ndarray:
        """Return the row of each caption: a row comes as often as it has captions in the field's languages."""
        return self.split.sidecar.owner[self.all_pairs()]

    def other(self, row: Row, first: int, rng: np.random.Generator) -> int | None:
        """Choose another caption, the same one if there is only one; or a translation, None if there is none."""
        pairs = self.pairs(row)
        if self.own.draw == "translation":
            return self._one_of([pair for pair in pairs if self._translates(row, pair, first)], rng)
        return self._one_of([pair for pair in pairs if pair != first] or pairs, rng)

    def _translates(self, row: Row, pair: int, first: int) -> bool:
        """Return True for a caption of another language at the place of `first` among its language's captions.

        The two languages must have as many captions in the record: else some lack one, and places tell nothing.
        """
        own = self.split.sidecar
        one, other = self._alike(row, pair), self._alike(row, first)
        apart = own.language[pair] != own.language[first] and len(one) == len(other)
        return bool(apart and one.index(pair) == other.index(first))

    def _alike(self, row: Row, pair: int) -> list[int]:
        """Return the numbers of the row's captions in the language of one."""
        own = self.split.sidecar
        return own.pairs(row.number, (own.languages[own.language[pair]],))

    def read(self, row: Row, choice: int, rng: np.random.Generator) -> np.ndarray:
        """Return the token ids of the caption."""
        self.split.activity.note("tokenising a caption of row", row.number)
        return self.ids([choice])[0]

    def key(self, row: Row, choice: int) -> int:
        """Return the number of the caption's text in the data set."""
        return int(self.split.sidecar.number[choice])

    def stored_inputs(self, row: Row) -> dict[str, list[np.ndarray]]:
        """Return the token ids of the captions in the field's languages."""
        own = self.split.sidecar
        found = {code: own.pairs(row.number, (code,)) for code in self.languages}
        return {code: list(self.ids(pairs)) for code, pairs in found.items() if pairs}

    def stored(self, found: dict[str, list[bytes]], choice: int) -> bytes:
        """Return the embedding of the chosen caption."""
        own = self.split.sidecar
        row = Row(self.split, int(own.owner[choice]))
        return found[own.languages[own.language[choice]]][self._alike(row, choice).index(choice)]


class ParallelReader(CaptionReader):
    """Reader of a caption and its translation as one row of token ids: [CLS] one [SEP] other [SEP].

    Masked words of such rows may be read from the other language (translation language modelling, Conneau and Lample
    2019). A choice is two numbers of captions; a record without a translation lacks the field. Each text has half of
    the encoder's length, and what the first leaves of it.
    """

    keyed: ClassVar[bool] = False
    worded: ClassVar[bool] = False
    embedded: ClassVar[bool] = False

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        super().__init__(split, own, spec)
        if spec.languages:
            raise UserError(
                f"a field with the reader 'parallel' is taken by config.encoders.{own.encoder}, which tells languages "
                "apart, and a row has two; write another encoder"
            )

    def rows(self, view: str) -> np.ndarray:
        """Return the rows that have a caption with a translation."""
        found = (self.chosen(Row(self.split, row), view) for row in range(len(self.split)))
        return np.array([row for row, choice in enumerate(found) if choice is not None], np.int64)

    def other(self, row: Row, first: Any, rng: np.random.Generator) -> tuple[int, int] | None:
        """Choose a caption and its translation anew."""
        return self.choose(row, rng)

    def choose(self, row: Row, rng: np.random.Generator) -> tuple[int, int] | None:
        """Choose a caption and its translation."""
        first = super().choose(row, rng)
        others = [] if first is None else [pair for pair in self.pairs(row) if self._translates(row, pair, first)]
        second = self._one_of(others, rng)
        return None if first is None or second is None else (first, second)

    def read(self, row: Row, choice: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return the token ids of both texts."""
        self.split.activity.note("tokenising a caption of row", row.number)
        texts = [self.split.sidecar.texts[pair] for pair in choice]
        return joined(self.spec, *texts)


def joined(spec: InputSpec, one: str, other: str) -> np.ndarray:
    """Return the token ids int32 [L] of two texts, [CLS] one [SEP] other [SEP]."""
    assert spec.tokenizer is not None, "an encoder of words has one"
    first = spec.tokenizer.encode([one], -(-spec.size // 2))[0]
    first = first[first != spec.tokenizer.pad_id]
    second = spec.tokenizer.encode([other], spec.size - len(first) + 1)[0, 1:]
    return np.concatenate([first, second])


READERS: dict[str, type[Reader]] = {PICTURES: PictureReader, WORDS: CaptionReader, "parallel": ParallelReader}
PLACES = {  # of readers that are loaded where a field asks for them
    "video": "xmodal_jax.data.clip_reader:ClipReader",
    "audio": "xmodal_jax.data.sound_reader:SoundReader",
}


def reader_classes(fields: dict[str, FieldConfig]) -> dict[str, type[Reader]]:
    """Return the class that reads each field. Raises `UserError` for a name that is no reader."""
    known = READERS | dict.fromkeys(PLACES, Reader)  # PLACES alone tells the classes of the latter
    return {
        name: find_class(PLACES.get(own.reader, own.reader), f"config.data.fields.{name}.reader", known, Reader)
        for name, own in fields.items()
    }


def readers_of(split: Split, specs: Specs) -> dict[str, Reader]:
    """Return a reader for each field of the config; `specs` are those of the encoders that take them."""
    fields = split.cfg.fields
    return {name: cls(split, fields[name], specs[fields[name].encoder]) for name, cls in reader_classes(fields).items()}


def has_views(fields: dict[str, FieldConfig], name: str) -> bool:
    """Return True if evaluation goes through the views of pictures for a field."""
    return reader_classes({name: fields[name]})[name].viewed and fields[name].medium == PICTURES
