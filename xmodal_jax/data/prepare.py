"""Build the folder of a data set from a source: shards, card, and counts of everything that was left out."""

import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from xmodal_jax.data import making
from xmodal_jax.data.captions import count_words, quantiles
from xmodal_jax.data.card import Card, ceiling, duplicates
from xmodal_jax.data.changes import as_sentence, changed_files, kept_states
from xmodal_jax.data.copies import TRAIN, Copies
from xmodal_jax.data.decoding import CorruptImage, content_digest
from xmodal_jax.data.features import GivenFeatures
from xmodal_jax.data.fingerprint import Digests
from xmodal_jax.data.image import limit_size
from xmodal_jax.data.numbering import DigestSet
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.records import (
    PICTURES,
    SHARD_BYTES,
    WORDS,
    RecordWriter,
    encode_record,
    is_split_name,
    shard_files,
)
from xmodal_jax.data.sidecar import Sidecar, Sidecars
from xmodal_jax.data.source import Item, Skip, Source, mended_item
from xmodal_jax.data.textfile import mended
from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)

NAMED_SKIPS = 10
BAD_SHARE = 0.01
COPY = "copy of a held-out picture"  # left out on request, not for a fault


class Build(contextlib.AbstractContextManager):
    """A data set while its items stream by; as a context it closes unfinished shards if it fails."""

    def __init__(self, folder: pathlib.Path, shard_bytes: int):
        self.folder, self.shard_bytes = folder, shard_bytes
        self.writers: dict[str, RecordWriter] = {}
        self.sidecars = Sidecars(folder)
        self.features = GivenFeatures(folder, shard_bytes)
        self.copies = Copies()
        self.digests: dict[str, Digests] = collections.defaultdict(Digests)
        self.words: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
        self.skipped: collections.Counter[str] = collections.Counter()

    @property
    def records(self) -> int:
        """Number of items written."""
        return sum(writer.records for writer in self.writers.values())

    def add(self, item: Item) -> None:
        """Write one item to its split."""
        if item.split not in self.writers:
            self.writers[item.split] = RecordWriter(self.folder, item.split, self.shard_bytes)
        self.features.add(item, self.writers[item.split].records)
        self.writers[item.split].write(encode_record({"key": item.key, "media": item.stored}))
        self.sidecars.add(item)
        self.digests[item.split].add(item.key, item.captions, item.every_view)
        for language, own in item.captions.items():
            self.words[language].update(map(count_words, own))

    def skip(self, skip: Skip) -> None:
        """Count one thing that is left out, and name the first few in the log."""
        if self.skipped.total() < NAMED_SKIPS:
            log.warning("left out: %s: %s", skip.reason, mended(skip.where))
        self.skipped[skip.reason] += 1

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            for writer in self.writers.values():
                writer.abort()
            self.sidecars.abort()
            self.features.abort()

    def languages(self) -> list[str]:
        """Return all languages, the one of most records first ("en" before others of as many)."""
        found = self.sidecars.languages
        return sorted(found, key=lambda code: (-found[code], code != "en", code))

    def splits(self) -> dict[str, dict[str, Any]]:
        """Finish the shards and sidecars, and return the card's entry of each split."""
        told = self.sidecars.finish(self.languages())
        for split, writer in self.writers.items():
            told[split] |= {"files": writer.close(), "digest": self.digests[split].save(self.folder, split)}
        return told


def prepare(
    source: Source,
    out: os.PathLike | str,
    *,
    name: str = "",
    max_size: int = 0,
    allow_bad: bool = False,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    drop_copies: bool = False,
) -> Card:
    """Write the data set of `source` to the folder `out` and return its card.

    Pictures are stored as they come, and each is decoded once to check that it is complete. Whatever cannot be used is
    counted by reason in the card, and the first ten are named in the log. The data set appears complete or not at all.
    Called again with the same arguments, it returns the card that is there, if the source's files have not changed.

    Args:
      name: name of the data set (default: that of the folder).
      max_size: re-encode pictures with a longer side (px); 0: none.
      allow_bad: go on if more than 1 % of the source cannot be used.
      shard_bytes: size of a shard.
      force: make the data set anew, without the features and embeddings of the old one, which stays until the new one
        is complete.
      drop_copies: leave out train records with a picture that is in another split too; the source is read twice then.

    Raises:
      UserError: the source cannot be used, `out` cannot be written, or it holds something else.
    """
    out = pathlib.Path(out)
    if max_size < 0:
        raise UserError(f"max_size is {max_size}; write the longest side in pixels, or 0 to keep pictures as they are.")
    arguments = {"source": source.name, "max_size": max_size, "drop_copies": drop_copies, **source.arguments}
    making.refuse_foreign(out)
    if making.holds_set(out) and not force:
        return _prepared_before(out, arguments, source.licence)
    with making.being_made(out) as part:
        if (out / making.CARD_FILE).is_file() and not force:  # a killed process had made it, and not moved it
            return _prepared_before(out, arguments, source.licence)
        held_out = _held_out_pictures(source) if drop_copies else frozenset()
        with Build(part, shard_bytes) as build, kept_states(part) as keep:
            keep(source.files)
            items = _usable(source, max_size, build.copies, held_out)
            for item in Progress(items, f"prepare {source.name}", "records", source.total):
                build.skip(item) if isinstance(item, Skip) else build.add(item)
                keep(item.files)
            _refuse_bad(build, allow_bad, source)
            card = _card(build, source, name or out.resolve().name, arguments)
        if source.taxonomy:
            source.taxonomy.save(part)
        card.save(part)  # the last file, which makes the folder complete
        with making.changing_card(out):
            making.move_up(part, out)
    return card


def _prepared_before(out: pathlib.Path, arguments: dict[str, Any], licence: str) -> Card:
    """Return the card that is there.

    Raises `UserError` if it was made with other arguments, or is older than its source's files.
    """
    card = Card.load(out)
    asked = json.loads(mended(json.dumps(arguments | {"licence": licence}, ensure_ascii=False)))  # JSON, as in a card
    there = card.arguments | {"licence": card.licence} | ({"noise": card.noise} if card.noise else {})
    changed = sorted(key for key in {**there, **asked} if there.get(key) != asked.get(key))
    if changed:
        raise UserError(
            f"{out} holds a data set prepared with another {' and '.join(changed)}: choose another folder, or "
            "replace it (option 'force'); nothing was overwritten."
        )
    for split in card.splits:
        shard_files(out, split)  # raises if one is missing
        Sidecar(out, card, split)
    files = changed_files(out)
    if files:
        raise UserError(
            f"{out} is older than its source: {as_sentence(files)}; prepare it again from them (option 'force')."
        )
    log.info("%s is already prepared", out)
    return card


def _held_out_pictures(source: Source) -> frozenset[bytes]:
    """Return the digests of all pictures in other splits than train."""
    found: set[bytes] = set()
    for item in Progress(source.items(), "held-out pictures", "records", source.total):
        item = _sound(item, source.name)
        if isinstance(item, Item) and item.split != TRAIN:
            for data in item.images.values():
                with contextlib.suppress(CorruptImage):
                    found.add(content_digest(data))
    return frozenset(found)


def _usable(source: Source, max_size: int, copies: Copies, held_out: frozenset[bytes]) -> Iterator[Item | Skip]:
    """Yield the items of `source` with whole pictures and new keys, and a `Skip` for every other one.

    Train items with a picture in `held_out` are skipped too. The digests of the pictures go to `copies`.
    """
    keys = DigestSet()
    for item in source.items():
        item = _sound(item, source.name)
        if isinstance(item, Item) and not keys.add(item.key):
            item = Skip("key occurs twice", item.key, item.files)
        yield item if isinstance(item, Skip) else _with_whole_images(item, max_size, copies, held_out)


def _sound(item: Item | Skip, name: str) -> Item | Skip:
    """Return an item of the source `name` with its texts mended, or a `Skip` if it cannot be kept or has too little.

    Raises `UserError` for anything that is not an item, and for pictures or captions among the other media.
    """
    if isinstance(item, Skip):
        return item
    try:
        item = mended_item(item)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"source {name} gave {getattr(item, 'key', item)!r:.60}, which is no xmodal_jax.data.source.Item as that "
            f"says ({error})"
        ) from error
    for medium, place in ((PICTURES, "images"), (WORDS, "captions")):
        if medium in item.media:
            raise UserError(
                f"source {name}: {item.key!r} has '{medium}' among its media; give it as `{place}`, "
                "or call it otherwise"
            )
    without = [
        f"{medium}/{view}"
        for medium, own in item.media.items()
        for view, data in own.items()
        if not (data and isinstance(data, bytes))
    ]
    if not is_split_name(item.split):
        return Skip("split that is no plain name", f"{item.key}: {item.split!a}", item.files)
    if any("/" in medium or not medium for medium in item.media):
        return Skip("medium that has no name, or one with '/'", f"{item.key}: {', '.join(item.media)}", item.files)
    if without:
        return Skip("medium without bytes", f"{item.key} ({', '.join(without)})", item.files)
    if len(item.stored) + sum(map(bool, item.captions.values())) < 2:  # captions in two languages are a pair
        return Skip("no image or no caption", item.key, item.files)
    return item


def _with_whole_images(item: Item, max_size: int, copies: Copies, held_out: frozenset[bytes]) -> Item | Skip:
    """Return the item with its pictures limited to `max_size`, or a `Skip` if one is corrupt or a held-out copy."""
    images, digests = {}, []
    for view, data in item.images.items():
        try:
            digests.append(content_digest(data))
            images[view] = limit_size(data, max_size) if max_size else data
        except CorruptImage as error:
            return Skip("corrupt image", f"{item.key} ({view}): {error}", item.files)
    if item.split == TRAIN and not held_out.isdisjoint(digests):
        return Skip(COPY, item.key, item.files)
    copies.add(item.split, digests)
    return dataclasses.replace(item, images=images)


def _refuse_bad(build: Build, allow_bad: bool, source: Source) -> None:
    """Raise `UserError` if nothing was written, or too much left out."""
    reasons = ", ".join(f"{count} x {reason}" for reason, count in build.skipped.most_common())
    bad, good = build.skipped.total() - build.skipped[COPY], build.records
    if good <= 0:
        raise UserError(f"source {source.name} ({source.origin}) gave no usable pair: {reasons or 'it is empty'}.")
    if bad:
        log.warning("left out %d of %d: %s", bad, bad + good, reasons)
    if bad > BAD_SHARE * (bad + good) and not allow_bad:
        raise UserError(
            f"{bad} of {bad + good} pairs of {source.origin} cannot be used ({reasons}), more than 1 %: mend the "
            "source, or leave them out (option 'allow_bad'); nothing was written."
        )


def _card(build: Build, source: Source, name: str, arguments: dict[str, Any]) -> Card:
    """Return the card of a finished build."""
    languages = build.languages()
    card = Card(
        name=name,
        source=source.origin,
        licence=source.licence,
        languages=languages,
        views=list(build.sidecars.views),
        media=list(build.sidecars.media),
        label_names=list(build.sidecars.labels),
        splits=build.splits(),
        features=build.features.finish({split: writer.records for split, writer in build.writers.items()}),
        without_pixels=list(build.features.views),
        words={language: quantiles(build.words[language]) for language in languages if build.words[language]},
        skipped=dict(build.skipped),
        copies=build.copies.counts(),
        arguments=arguments,
    )
    return dataclasses.replace(card, **repeated(Sidecar(build.folder, card, split) for split in card.splits))


def repeated(sidecars: Iterable[Sidecar]) -> dict[str, dict[str, Any]]:
    """Return {"ceiling" | "duplicates": {split: numbers}} for a card, by the captions in the first language."""
    found: dict[str, dict[str, Any]] = {"ceiling": {}, "duplicates": {}}
    for own in sidecars:
        pairs = own.all_pairs(own.languages[:1])
        owner, number = own.owner[pairs], own.number[pairs]
        found["ceiling"][own.split] = ceiling(owner, number)
        found["duplicates"][own.split] = duplicates(owner, number, len(own))
    return found
