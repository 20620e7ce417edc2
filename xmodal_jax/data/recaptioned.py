"""Write a data set that differs from a prepared one by the captions of one split, and shares all else with it.

Pictures, cached features of pictures and the other splits are the same files under a second name (hard links), or
copies where the file system refuses those. What was computed from captions is left out: kept tokens (`texts`), starts
of heads (`starts`), vocabularies and embeddings of captions; they are made again when they are asked for.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from xmodal_jax.data import embeddings, fingerprint, sidecar
from xmodal_jax.data.captions import Numbers, count_words, normal_caption, quantiles
from xmodal_jax.data.card import Card
from xmodal_jax.data.columns import BLOCK, ColumnWriter
from xmodal_jax.data.prepare import repeated
from xmodal_jax.data.records import WORDS
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.taxonomy import TAXONOMY_FILE
from xmodal_jax.errors import UserError

WRITTEN = ("texts", "texts_starts", "number", "changed")  # columns of the split that are written anew


@dataclasses.dataclass(frozen=True)
class NewCaptions:
    """Captions of a split in place of those it has, each in the language of the one that it replaces."""

    took: np.ndarray
    """int64 [M], the row whose caption each row takes; its own where nothing changes."""
    texts: dict[int, str]
    """{row: text} of the rows that take a new text instead."""
    changed: np.ndarray
    """bool [M], True for rows that count as wrong."""


def write_recaptioned(data: pathlib.Path, part: pathlib.Path, card: Card, split: str, new: NewCaptions) -> Card:
    """Write the data set at `data`, whose card is `card`, with new captions in one split to the folder `part`.

    Returns its card, which is not written yet.
    """
    kept = {name: entry for name, entry in card.embeddings.items() if WORDS not in entry["media"]}
    card = dataclasses.replace(card, embeddings=kept, concepts={})  # mined from the captions that are no more
    for name in shared_files(data, card, split):
        link_or_copy(data / name, part / name)
    columns = card.splits[split]["columns"] | _write_columns(data, part, card, split, new)
    card = _with_split(card, split, columns=columns)
    card = _with_split(card, split, digest=_digest(data, part, card, split, new))
    sidecars = [Sidecar(part, card, name) for name in card.splits]
    return dataclasses.replace(card, **repeated(sidecars), words=_word_counts(sidecars))


def shared_files(data: pathlib.Path, card: Card, split: str) -> Iterator[str]:
    """Yield the files, relative to the folder, that a data set with other captions in `split` has in common."""
    for name, entry in card.splits.items():
        yield from entry["files"]
        own = (column for column in entry["columns"] if name != split or column not in WRITTEN)
        yield from (str(sidecar.column_path(pathlib.Path(sidecar.FOLDER, name), column)) for column in own)
        if name != split:
            yield f"{fingerprint.FOLDER}/{name}.npy"
    for folder, made in (("features", card.features), (embeddings.FOLDER, card.embeddings)):
        for name, entry in made.items():
            files = itertools.chain.from_iterable(entry["files"].values())
            yield from (f"{folder}/{name}/{file}" for file in files)
    if (data / TAXONOMY_FILE).is_file():
        yield TAXONOMY_FILE


def link_or_copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Give a file a second name, or copy it where the file system refuses that. Raises `UserError` if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = os.path.realpath(source)  # a link to a link would lead nowhere
    try:
        os.link(file, target)
    except FileNotFoundError as error:
        raise UserError(
            f"'{source}' is missing; copy it there, or prepare the data set again (option 'force')"
        ) from error
    except OSError:
        shutil.copy2(file, target)


def _with_split(card: Card, split: str, **facts: Any) -> Card:
    """Return a card with other facts on one split."""
    return dataclasses.replace(card, splits=card.splits | {split: card.splits[split] | facts})


def _write_columns(
    data: pathlib.Path, part: pathlib.Path, card: Card, split: str, new: NewCaptions
) -> dict[str, dict[str, int]]:
    """Write the columns `WRITTEN`, and return the card's facts on them."""
    own, place = Sidecar(data, card, split), part / sidecar.FOLDER / split
    dtypes = sidecar.COLUMNS | sidecar.OPTIONAL
    out = {name: ColumnWriter(sidecar.column_path(place, name), dtypes[name]) for name in WRITTEN}
    try:
        out["texts_starts"].put(0)
        for text in encoded(own, new):
            out["texts"].write(text)
            out["texts_starts"].put(out["texts"].count)
        out["number"].write(_numbers(data, card, own, new).astype(dtypes["number"]).tobytes())
        out["changed"].write(new.changed.astype(np.uint8).tobytes())
        return {name: column.close() for name, column in out.items()}
    finally:
        for column in out.values():
            column.abort()


def encoded(own: Sidecar, new: NewCaptions) -> Iterator[bytes]:
    """Yield the UTF-8 bytes of the new captions [M] of the split `own`."""
    for first in range(0, len(new.took), BLOCK):
        texts = own.texts.encoded(new.took[first : first + BLOCK])
        for row, text in enumerate(texts, first):
            yield new.texts[row].encode() if row in new.texts else text


def _numbers(data: pathlib.Path, card: Card, own: Sidecar, new: NewCaptions) -> np.ndarray:
    """Return the numbers [M] of the new captions; those of other splits stay as they are.

    A text that no caption of the data set had gets a number that none had.
    """
    numbers = own.number[new.took]
    if not new.texts:
        return numbers
    wanted = dict.fromkeys(map(normal_caption, new.texts.values()), -1)
    highest = -1
    for split in card.splits:
        other = Sidecar(data, card, split)
        highest = max(highest, int(other.number.max(initial=-1)))
        for text, number in zip(map(normal_caption, other.texts), other.number.tolist(), strict=True):
            if text in wanted:
                wanted[text] = number
    fresh = Numbers()
    for row, text in new.texts.items():
        known = wanted[normal_caption(text)]
        numbers[row] = known if known >= 0 else highest + 1 + fresh[normal_caption(text)]
    return numbers


def _digest(data: pathlib.Path, part: pathlib.Path, card: Card, split: str, new: NewCaptions) -> str:
    """Write the digests of the split's records, and return the one of the split."""
    own, before = Sidecar(part, card, split), card.split(split)
    digests = fingerprint.load_digests(data, split, before["records"]).copy()
    rows = np.flatnonzero(new.took != np.arange(len(new.took)))
    for record in np.unique(own.owner[np.union1d(rows, np.fromiter(new.texts, np.int64))]).tolist():
        digests[record] = fingerprint.record_digest(own.keys[record], own.captions(record))
    return fingerprint.save_digests(part, split, digests, before["digest"].encode())


def _word_counts(sidecars: list[Sidecar]) -> dict[str, dict[str, int]]:
    """Return the card's facts on the lengths of captions, by language."""
    counts: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for own in sidecars:
        for text, code in zip(own.texts, own.language.tolist(), strict=True):
            counts[code][count_words(text)] += 1
    names = sidecars[0].languages
    return {name: quantiles(counts[code]) for code, name in enumerate(names) if counts[code]}
