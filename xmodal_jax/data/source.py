"""What a source of pairs is: it yields `Item`s, and a `Skip` for everything it had to leave out.

A source is cheap to make and checks its input then; its items are produced by iterating, in a fixed order.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.errors import refuse_unless

Captions = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing: encoded pictures by view, captions by language, label names; `group` keeps relatives in one split."""

    key: str
    images: dict[str, bytes]
    captions: Captions
    labels: tuple[str, ...] = ()
    group: str = ""
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class Skip:
    """What was left out: `reason` is counted in the card, `where` names the row or the file."""

    reason: str
    where: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A named stream of items. `arguments` is what it was made with; `total` the number of items, 0 if unknown;
    `taxonomy` what its labels belong to, if that is known."""

    name: str
    origin: str
    licence: str
    items: Callable[[], Iterator[Item | Skip]]
    arguments: dict[str, Any]
    total: int = 0
    taxonomy: Taxonomy | None = None


def split_groups(groups: Sequence[str], held_out: int) -> list[str]:
    """Split of each row, "train" or "test": whole groups in the order of their hash until `held_out` rows are test.

    A group that no longer fits is passed over, so the number is met exactly whenever enough small groups are left.
    Deterministic: it depends on the names of the groups alone.
    """
    sizes = collections.Counter(groups)
    held, room = set(), held_out
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    return ["test" if group in held else "train" for group in groups]


def clean_captions(captions: Any, key: str) -> tuple[Captions, list[Skip]]:
    """{language: [caption, ...]} from a string, a list or a dict of either; empty captions become a `Skip` each."""
    by_language = captions if isinstance(captions, dict) else {"en": captions}
    kept, skips = {}, []
    for language, texts in by_language.items():
        for text in texts if isinstance(texts, (list, tuple)) else [texts]:
            text = " ".join(text.split()) if isinstance(text, str) else ""
            if text:
                kept.setdefault(language, []).append(text)
            else:
                skips.append(Skip("empty caption", f"{key} ({language})"))
    return kept, skips


def _read_images(paths: dict[str, pathlib.Path], key: str) -> dict[str, bytes] | Skip:
    images = {}
    for view, path in paths.items():
        try:
            images[view] = path.read_bytes()
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return Skip("missing image", f"{key}: {path}")
    return images


def file_item(key: str, paths: dict[str, pathlib.Path], captions: Any, **fields) -> Iterator[Item | Skip]:
    """The item of a row whose pictures are files, or the reason why there is none."""
    kept, skips = clean_captions(captions, key)
    yield from skips
    images = _read_images(paths, key)
    if isinstance(images, Skip):
        yield images
    elif kept:
        yield Item(key, images, kept, **fields)
    elif not skips:
        yield Skip("no caption", key)


def existing(path: os.PathLike | str, what: str, folder: bool = False) -> pathlib.Path:
    """`path`, if it is a file (or a folder); `what` names it in the `UserError` raised otherwise."""
    path = pathlib.Path(path)
    found = path.is_dir() if folder else path.is_file()
    refuse_unless(
        found, f"{what} {path} does not exist: give the path of an existing {'folder' if folder else 'file'}."
    )
    return path


def digest(path: pathlib.Path) -> str:
    """Of the content, so that a changed file is not taken for one that is already prepared."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def memory_source(items: Iterable[Item | Skip], name: str = "memory", licence: str = "") -> Source:
    """A source of items that are already there; for tests and for one's own scripts."""
    items = list(items)
    digest = hashlib.sha256(repr(items).encode()).hexdigest()
    return Source(name, "memory", licence, lambda: iter(items), {"content": digest}, len(items))
