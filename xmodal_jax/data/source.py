"""What a source of pairs is: it yields `Item`s, and a `Skip` for everything it had to leave out.

A source is cheap to make and checks its input then; its items are produced by iterating, in a fixed order.
"""

import collections
import dataclasses
import hashlib
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

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
    """One thing: encoded pictures by view, captions by language, label names; `group` keeps relatives in one split.

    `media`: what it has of other media, {medium: {view: bytes}}, as their readers take it; their names have no "/".
    `files`: the state of the files that it was read from.
    """

    key: str
    images: dict[str, bytes]
    captions: Captions
    labels: tuple[str, ...] = ()
    group: str = ""
    split: str = "train"
    files: tuple[FileState, ...] = dataclasses.field(default=(), compare=False, repr=False)
    media: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)

    @property
    def stored(self) -> dict[str, dict[str, bytes]]:
        """All that its record keeps, pictures among it: {medium: {view: bytes}}."""
        return ({PICTURES: self.images} if self.images else {}) | self.media

    @property
    def every_view(self) -> dict[str, bytes]:
        """The same as one dict: pictures by view, others by "medium/view"."""
        return self.images | {
            f"{medium}/{view}": data for medium, own in self.media.items() for view, data in own.items()
        }


@dataclasses.dataclass(frozen=True)
class Skip:
    """What was left out: `reason` is counted in the card, `where` names the row or the file; `files` as of an item."""

    reason: str
    where: str
    files: tuple[FileState, ...] = dataclasses.field(default=(), compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Source:
    """A named stream of items, the same each time `items` is called.

    `arguments` is what it was made with, in JSON's types: other ones are another data set. `total` is the number of
    items, 0 if unknown; `taxonomy` what its labels belong to, if that is known; `files` the state of the files that it
    was made from, beside those of its items.
    """

    name: str
    origin: str
    licence: str
    items: Callable[[], Iterator[Item | Skip]]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    total: int = 0
    taxonomy: Taxonomy | None = None
    files: tuple[FileState, ...] = ()


def mended_item(item: Item) -> Item:
    """`item` with all its texts `mended`, and without media of which it has nothing.

    Raises `TypeError` or `AttributeError` for one that is not as `Item` says.
    """
    for own in (item.labels, *item.captions.values()):
        if not isinstance(own, (list, tuple)):
            raise TypeError(f"{own!r:.40} where a list of texts must be")
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
    )


def plain_text(value: Any) -> str:
    """A text, or a number as one (1.0 is "1"); "" for null and NaN, which is how tables write that nothing is there.

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
    """Split of each row, "train" or "test": whole groups in the order of their hash until `held_out` rows are test.

    Only rows that are `usable` count; it is called for rows of groups that are drawn and no others. A group that no
    longer fits is passed over, so the number is met exactly whenever enough small groups are left; a warning says so if
    it is not. Deterministic: it depends on the names of the groups and on what is usable.
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


def shared_out(groups: Sequence[str], held_out: int, what: str, items_of: Callable[[int, str], Iterable[Item | Skip]]):
    """The function `items` of a source with a row for each of `groups`: `split_groups` makes `held_out` of them "test".

    `items_of` gives what a row has, for its split; `what` are the rows, in the `UserError` for an impossible number.
    """
    if not 0 <= held_out < len(groups):
        raise UserError(f"--held-out is {held_out}, but there are {len(groups)} {what}; write fewer, and at least 0.")

    def items() -> Iterator[Item | Skip]:
        splits = split_groups(groups, held_out, lambda row: usable_item(items_of(row, "")))
        for row, split in enumerate(splits):
            yield from items_of(row, split)

    return items


def usable_item(found: Iterable[Item | Skip]) -> bool:
    """Whether there is an item among what a row gives, with pictures that can be decoded."""
    return any(isinstance(one, Item) and _whole(one) for one in found)


def _whole(item: Item) -> bool:
    try:
        for data in item.images.values():
            verify(data)
    except CorruptImage:
        return False
    return True


def clean_captions(captions: Any, key: str) -> tuple[Captions, list[Skip]]:
    """{language: [caption, ...]} from a string, a list or a dict of either; a `Skip` for each that is empty, or has
    combining marks and control codes alone."""
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


def file_item(key: str, paths: dict[str, os.PathLike | str], captions: Any, **fields) -> Iterator[Item | Skip]:
    """The item of a row whose pictures are files, or the reason why there is none."""
    kept, skips = clean_captions(captions, key)
    yield from skips
    paths = {view: find_file(path) for view, path in paths.items()}
    try:
        images = {view: read_file(path) for view, path in paths.items()}
    except UnreadableFile as error:
        why = "" if error.reason == MISSING else f": {error}"
        yield Skip(error.reason, f"{key}: {error.name}{why}", tuple(map(file_state, paths.values())))
        return
    files = tuple(file_state(path, images[view]) for view, path in paths.items())
    if kept:
        yield Item(key, images, kept, **fields, files=files)
    elif not skips:
        yield Skip("no caption", key, files)


def existing(path: os.PathLike | str, what: str, folder: bool = False) -> pathlib.Path:
    """`path`, if it is a file (or a folder); `what` names it in the `UserError` raised otherwise."""
    path, kinds = pathlib.Path(path), ("file", "folder")
    found = path.is_dir() if folder else path.is_file()
    there = "is a folder" if path.is_dir() else "is no folder" if folder else "is no file"
    if not found:
        raise UserError(
            f"{what} {path} {there if path.exists() else 'does not exist'}: give the path of an existing {kinds[folder]}."
        )
    return path


def digest(path: pathlib.Path) -> str:
    """Of the content, so that a changed file is not taken for one that is already prepared."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of_all(paths: Iterable[pathlib.Path]) -> str:
    """Of the content of several files, in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()


def memory_source(items: Iterable[Item | Skip], name: str = "memory", licence: str = "") -> Source:
    """A source of items that are already there; for tests and for one's own scripts."""
    items = list(items)
    return Source(name, "memory", licence, lambda: iter(items), {"content": hashed(repr(items))}, len(items))
