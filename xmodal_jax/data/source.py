"""Sources of pairs: a source yields `Item`s, and a `Skip` for everything it had to leave out.

A source is cheap to make and checks its input then; its items are produced by iterating, in a fixed order.
"""

import collections
import dataclasses
import hashlib
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.captions import says_something
from xmodal_jax.data.image import CorruptImage, verify
from xmodal_jax.data.media import MISSING, FileState, UnreadableFile, file_state, find_file, read_file
from xmodal_jax.data.records import PICTURES
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.data.textfile import hashed, mended
from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)

Captions = dict[str, list[str]]
TERMS = "see the data set's own terms"


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing with its pictures and captions.

    Examples:
      >>> cat = Item("cat-7", {"front": b"(a PNG file)"}, {"en": ["A cat."], "de": ["Eine Katze."]}, labels=("cat",))
      >>> cat.split, list(cat.every_view)
      ('train', ['front'])
    """

    key: str
    """Name that no other item has."""
    images: dict[str, bytes]
    """Encoded pictures by view, {view: bytes}."""
    captions: Captions
    """Captions by language, {language: [text, ...]}."""
    labels: tuple[str, ...] = ()
    """Names of its labels."""
    group: str = ""
    """Name shared by relatives, such as drawings of one thing, which belong in the same split."""
    split: str = "train"
    """Split that it belongs to."""
    files: tuple[FileState, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """States of the files that it was read from; `prepare` notices if they change."""
    media: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    """Its other media, {medium: {view: bytes}}, as their readers take them; a medium's name has no "/"."""

    features: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """Tokens of its pictures that the source has instead of them or beside them, {cache: {view: float [N,D]}}."""
    scores: tuple[float, ...] = ()
    """How far each label is right, above 0 to 1, such as an answer that some annotators gave; (): each wholly."""

    @property
    def pictures(self) -> dict[str, bytes]:
        """Its pictures by view, without bytes for the views that there are features of alone."""
        told = (view for own in self.features.values() for view in own)
        return self.images | {view: b"" for view in told if view not in self.images}

    @property
    def stored(self) -> dict[str, dict[str, bytes]]:
        """Everything that its record keeps, pictures included: {medium: {view: bytes}}."""
        return ({PICTURES: self.pictures} if self.pictures else {}) | self.media

    @property
    def every_view(self) -> dict[str, bytes]:
        """The same as one dict: pictures by view, others by "medium/view"."""
        return self.pictures | {
            f"{medium}/{view}": data for medium, own in self.media.items() for view, data in own.items()
        }


@dataclasses.dataclass(frozen=True)
class Skip:
    """One thing that a source leaves out."""

    reason: str
    """Short reason, counted in the card."""
    where: str
    """Name of the row or the file."""
    files: tuple[FileState, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """States of the files that it was read from."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A named stream of items, the same each time `items` is called.

    Examples:
      >>> def items():
      ...     for number, word in enumerate(["cat", "dog"]):
      ...         picture = {"front": b"(a PNG file)"}
      ...         yield Item(word, picture, {"en": [f"A {word}."]}, split="test" if number == 0 else "train")
      ...     yield Skip("no caption", "row 2")
      >>> source = Source("pets", "my own photographs", "CC0", items, total=3)
      >>> [item.split for item in source.items() if isinstance(item, Item)]
      ['test', 'train']
    """

    name: str
    """Name of the source."""
    origin: str
    """Where the data comes from, in words."""
    licence: str
    """Licence of the data, in words."""
    items: Callable[[], Iterator[Item | Skip]]
    """Function that returns an iterator over the items."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments it was made with, as JSON; other arguments make another data set."""
    total: int = 0
    """Number of items; 0 if unknown."""
    taxonomy: Taxonomy | None = None
    """Taxonomy of the labels, if it is known."""
    files: tuple[FileState, ...] = ()
    """States of the files that it was made from, beside those of its items."""


def mended_item(item: Item) -> Item:
    """Return `item` with all its texts `mended`, and without media that are empty.

    Raises `TypeError` or `AttributeError` if it is not as `Item` says.
    """
    for own in (item.labels, *item.captions.values()):
        if not isinstance(own, (list, tuple)):
            raise TypeError(f"{own!r:.40} where a list of texts must be")
    if item.scores and not (len(item.scores) == len(item.labels) and all(0 < score <= 1 for score in item.scores)):
        raise TypeError(f"{item.scores!r:.40} where a number above 0 to 1 for each label must be")
    return dataclasses.replace(
        item,
        key=mended(item.key),
        images={mended(view): data for view, data in item.images.items()},
        captions={mended(code): [mended(text) for text in own] for code, own in item.captions.items()},
        labels=tuple(mended(label) for label in item.labels),
        group=mended(item.group),
        split=mended(item.split),
        media={
            mended(name): {mended(view): data for view, data in own.items()} for name, own in item.media.items() if own
        },
        features={
            name: {mended(view): np.asarray(tokens) for view, tokens in own.items()}
            for name, own in item.features.items()
        },
    )


def plain_text(value: Any) -> str:
    """Return a text, or a number as one (1.0 is "1"); "" for null and NaN, which tables write for nothing.

    Raises `TypeError` for anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value) if value.is_integer() else value)
    if value is None or isinstance(value, float):
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{type(value).__name__} where a text must be")


def split_groups(groups: Sequence[str], held_out: int, usable: Callable[[int], bool] = lambda row: True) -> list[str]:
    """Return the split of each row, "train" or "test", putting whole groups into "test" until it has `held_out` rows.

    Groups are drawn in the order of their hash. Only rows that are `usable` count; it is called for the rows of
    groups that are drawn, and no others. A group that no longer fits is passed over, so the number is met exactly as
    long as enough small groups are left; otherwise a warning says so. The result depends on the names of the groups
    and on what is usable, nothing else.
    """
    members = collections.defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    held, room = set(), held_out
    for group in sorted(members, key=hashed):
        if len(members[group]) <= room and (found := sum(map(usable, members[group]))):
            held.add(group)
            room -= found
    if room:
        log.warning(
            "drew %d of the %d records asked for: the others cannot be read, or are of larger groups",
            held_out - room,
            held_out,
        )
    return ["test" if group in held else "train" for group in groups]


def shared_out(
    groups: Sequence[str], held_out: int, what: str, items_of: Callable[[int, str], Iterable[Item | Skip]]
) -> Callable[[], Iterator[Item | Skip]]:
    """Return the function `items` of a source with a row for each of `groups`.

    `split_groups` puts `held_out` of the rows into "test"; `items_of` returns what a row has, for its split; `what`
    names the rows in the `UserError` for an impossible number.
    """
    if not 0 <= held_out < len(groups):
        raise UserError(
            f"held_out is {held_out}, but there are {len(groups)} {what}; write fewer (0: none), or leave it out."
        )

    def items() -> Iterator[Item | Skip]:
        splits = split_groups(groups, held_out, lambda row: usable_item(items_of(row, "")))
        for row, split in enumerate(splits):
            yield from items_of(row, split)

    return items


def usable_item(found: Iterable[Item | Skip]) -> bool:
    """Return True if a row gives an item whose pictures can all be decoded."""
    return any(isinstance(one, Item) and _whole(one) for one in found)


def _whole(item: Item) -> bool:
    """Return True if all pictures of an item can be decoded."""
    try:
        for data in item.images.values():
            verify(data)
    except CorruptImage:
        return False
    return True


def clean_captions(captions: Any, key: str) -> tuple[Captions, list[Skip]]:
    """Return captions by language from a string, a list or a dict of either, and a `Skip` for each one left out.

    A caption is left out if it is empty, or has only combining marks and control codes.
    """
    by_language = captions if isinstance(captions, dict) else {"en": captions}
    kept, skips = {}, []
    for language, texts in by_language.items():
        for text in texts if isinstance(texts, (list, tuple)) else [texts]:
            text = " ".join(text.split()) if isinstance(text, str) else ""
            if says_something(text):
                kept.setdefault(language, []).append(text)
            else:
                skips.append(Skip("empty caption", f"{key} ({language})"))
    return kept, skips


def file_item(key: str, paths: Mapping[str, os.PathLike | str], captions: Any, **fields) -> Iterator[Item | Skip]:
    """Yield the item of a row whose pictures are files, or the reason why there is none."""
    kept, skips = clean_captions(captions, key)
    yield from skips
    found = {view: find_file(path) for view, path in paths.items()}
    try:
        images = {view: read_file(path) for view, path in found.items()}
    except UnreadableFile as error:
        why = "" if error.reason == MISSING else f": {error}"
        yield Skip(error.reason, f"{key}: {error.name}{why}", tuple(map(file_state, found.values())))
        return
    files = tuple(file_state(path, images[view]) for view, path in found.items())
    if kept:
        yield Item(key, images, kept, **fields, files=files)
    elif not skips:
        yield Skip("no caption", key, files)


def existing(path: os.PathLike | str, what: str, folder: bool = False) -> pathlib.Path:
    """Return `path`, if it is a file (or a folder). Raises `UserError`, calling it `what`, otherwise."""
    path = pathlib.Path(path)
    if path.is_dir() if folder else path.is_file():
        return path
    if not path.exists():
        there = "does not exist"
    elif path.is_dir():
        there = "is a folder"
    else:
        there = "is no folder" if folder else "is no file"
    raise UserError(f"{what} {path} {there}: give the path of an existing {'folder' if folder else 'file'}.")


def digest(path: pathlib.Path) -> str:
    """Return a digest of a file, so that a changed file is not taken for one that is already prepared."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of_all(paths: Iterable[pathlib.Path]) -> str:
    """Return a digest of several files, in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()


def memory_source(items: Iterable[Item | Skip], name: str = "memory", licence: str = "") -> Source:
    """Return a source of items that are already in memory, for tests and scripts of one's own."""
    items = list(items)
    return Source(name, "memory", licence, lambda: iter(items), {"content": hashed(repr(items))}, len(items))
