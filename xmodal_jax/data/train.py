"""Prepared data -> batches.

A training example is a pure function of (seed, its number): rows are shuffled anew each epoch, a global batch is
`batch_size` consecutive examples of that endless sequence, and each process takes a contiguous part of it. So one
integer, the examples seen, is all that a checkpoint needs: any number of hosts sees the same global batches in the same
order, and a run that goes on with another batch size repeats and skips nothing.
"""

import logging
import pathlib
import threading
from collections.abc import Callable

import numpy as np

from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.image import CorruptImage, train_image
from xmodal_jax.data.records import CorruptRecord, KeptRecords, Room
from xmodal_jax.data.split import Arrays, Split, multi_hot
from xmodal_jax.data.text import Tokenizer, cut
from xmodal_jax.errors import UserError, refuse_unless

log = logging.getLogger(__name__)

BAD_SHARE = 0.01
NAMED_SKIPS = 10
SAMPLED = 2000  # records whose captions say how many are cut


class BadRows:
    """Counts the rows of a split that cannot be read, and stops the run when they are over 1 %."""

    def __init__(self, total: int, where: str):
        self.total, self.where, self.rows = total, where, set()
        self._lock = threading.Lock()

    def add(self, row: int, why: Exception) -> None:
        """Note one unreadable row; the first ten are named in the log. Raises `UserError` over the limit."""
        with self._lock:
            if row not in self.rows and len(self.rows) < NAMED_SKIPS:
                log.warning("unreadable row %d of %s replaced by the next one: %s", row, self.where, why)
            self.rows.add(row)
        refuse_unless(
            len(self.rows) <= BAD_SHARE * self.total,
            f"{len(self.rows)} of {self.total} rows of {self.where} cannot be read (row {row}: {why}), more than 1 %: "
            f"copy or prepare the data set again.",
        )


class TrainDataset:
    """Endless training batches of one split by number; see `train_dataset`."""

    def __init__(self, split: Split, tokenizer: Tokenizer, seed: int, batch_size: int,
                 complete: Callable[[Arrays], Arrays] = lambda batch: batch):  # fmt: skip
        import grain

        refuse_unless(batch_size >= 1, f"batch_size is {batch_size}: use 1 or more.")
        refuse_unless(len(split) > 0, f"{split.cfg.path}: split {split.name!r} is empty.")
        refuse_unless(
            split.cfg.match == "record" or split.labelled,
            f"config.data.match is 'labels', and {split.folder} has none; write 'record'",
        )
        self.split, self.tokenizer, self.batch_size, self.complete = split, tokenizer, batch_size, complete
        self.bad = BadRows(len(split), f"split {split.name!r}")
        room = Room(int(split.cfg.keep_gb * 1e9))
        split.caches = [KeptRecords(cache, room) for cache in split.caches]
        self._image = None if split.caches else train_image(split.cfg.image_size, split.cfg.augment)
        self._teacher = split.embeddings() if split.cfg.embeddings else None
        rows = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat(None)
        self.examples = rows.random_map(self._example)

    @property
    def steps_per_epoch(self) -> float:
        """Batches in which every record comes once."""
        return len(self.split) / self.batch_size

    def batch_at(self, number: int, process: int = 0, count: int = 1) -> Arrays:
        """The part of global batch `number` that belongs to `process` of `count`; fields as in `types.Batch`."""
        return self.batch_from(number * self.batch_size, process, count)

    def batch_from(self, first: int, process: int = 0, count: int = 1) -> Arrays:
        """`batch_at` of the global batch that begins with example `first` of the endless sequence."""
        refuse_unless(
            self.batch_size % count == 0, f"batch_size {self.batch_size} must be a multiple of the {count} processes."
        )
        size = self.batch_size // count
        own = first + process * size
        try:
            examples = [self.examples[own + offset] for offset in range(size)]
            self.split.stages.note("stacking the batch from example", first)
            return self.complete({field: np.stack([example[field] for example in examples]) for field in examples[0]})
        finally:
            self.split.stages.done()

    def cut(self) -> dict[str, float]:
        """How many captions `config.data.length` cuts (`text.cut`), counted on up to 2,000 records all over the split."""
        captions = []
        for row in np.linspace(0, len(self.split) - 1, min(len(self.split), SAMPLED)).astype(int):
            captions += self.split.captions(int(row))
        return cut(self.tokenizer, captions, self.tokenizer.encode(captions, self.split.cfg.length))

    def close(self) -> None:
        """Close all files."""
        self.split.close()
        if self._teacher is not None:
            self._teacher.close()

    def _example(self, row: int, rng: np.random.Generator) -> Arrays:
        """One example of a row, or of the next one that can be read."""
        for offset in range(len(self.split)):
            number = (int(row) + offset) % len(self.split)
            try:
                fields = self._fields(number, rng)
            except (CorruptRecord, CorruptImage) as error:
                self.bad.add(number, error)
                continue
            if fields is not None:
                return fields
        raise UserError(
            f"{self.split.cfg.path}: no record of split {self.split.name!r} has a picture in views {self.split.views} and a "
            f"caption in {self.split.cfg.languages}; write others in config.data."
        )

    def _fields(self, row: int, rng: np.random.Generator) -> Arrays | None:
        """The fields of a row, None where it has no picture in the views or no caption in the languages asked for."""
        views, captions = self.split.views_of(row), self.split.captions(row)
        if not views or not captions:
            return None
        view, caption = views[rng.integers(len(views))], int(rng.integers(len(captions)))
        flip = self._flip(rng)
        images = {} if self.split.caches else self.split.record(row)["images"]
        image = self._picture(row, images, view, rng, flip)
        self.split.stages.note("tokenising a caption of row", row)
        text = self.tokenizer.encode([captions[caption]], self.split.cfg.length)[0]
        number = np.int32(row)
        same = number if self.split.cfg.match == "record" else self.split.label_key(row)
        key = np.int32(self.split.caption_numbers(row)[caption])
        fields = {"image": image, "text": text, "id": same, "text_key": key, "index": number}
        names = self.split.card.label_names
        fields |= {"labels": multi_hot([self.split.labels(row)], len(names))[0]} if names else {}
        return fields | self._asked(row, images, (view, flip), views, caption, rng)

    def _asked(self, row: int, images: dict[str, bytes], first: tuple[str, bool], views: list[str], caption: int,
               rng: np.random.Generator) -> Arrays:  # fmt: skip
        """The fields that only some configs ask for; what is drawn for them is drawn last, so the others stay."""
        fields: Arrays = {}
        if self.split.cfg.second_view:
            others = [other for other in views if other != first[0]] or views
            other = others[rng.integers(len(others))]
            flip = self._flip(rng) if other != first[0] else not first[1]
            fields["image2"] = self._picture(row, images, other, rng, flip)
        if self._teacher is not None:
            self.split.stages.note("reading row", row, f"embeddings {self.split.cfg.embeddings!r}")
            image, text = self._teacher.pair(row, first[0], caption)
            fields |= {"distill_image": image, "distill_text": text}
        return fields

    def _flip(self, rng: np.random.Generator) -> bool:
        """Whether cached tokens are those of the mirror image; pixels are mirrored by their augmentation."""
        return self._image is None and rng.random() < self.split.cfg.augment.flip

    def _picture(self, row: int, images: dict[str, bytes], view: str, rng: np.random.Generator,
                 flip: bool) -> np.ndarray:  # fmt: skip
        """One view as the tower takes it: augmented pixels, or cached tokens, those of the mirror image with `flip`."""
        if self._image is None:
            return self.split.tokens(row, view, flip)
        self.split.stages.note("decoding the picture of row", row)
        return self._image(images[view], rng)


def train_dataset(
    data_dir: str | pathlib.Path,
    split: str,
    tokenizer: Tokenizer,
    cfg: DataConfig,
    seed: int,
    batch_size: int,
    complete: Callable[[Arrays], Arrays] = lambda batch: batch,
) -> TrainDataset:
    """Training batches as a pure function of their number.

    Each example is a random view and a random
    caption (of `cfg.languages`) of one record, augmented. Fields: `image` uint8 [B,H,W,3], or with `cfg.features`
    float16 [B,N,D] of the cached tokens, flipped at random; `text` int32 [B,L];
    `index` int32 [B], the row in the split, and `id`, the same or with `cfg.match` "labels" what its labels make;
    `text_key` int32 [B], the number of the caption's text in the data set, whatever of it `text` can hold; `labels`
    float32 [B,C] where the card names labels. A record that cannot be read is replaced by the next; over 1 % of them raise
    `UserError`, as do the faults of `Split`.

    With `cfg.second_view` also `image2`, like `image`: another view of the record, augmented by itself; where the
    record has one view only, that one again: another augmentation of its pixels, or of cached tokens those of the mirror
    image (the same tokens twice in a cache made without). With
    `cfg.embeddings` also `distill_image` and `distill_text` float32 [B,E]: a teacher's unit embeddings of this view and
    this caption (of the plain picture, whatever augmentation did to it). Neither changes the other fields. `complete` adds
    fields to a whole batch.
    """
    return TrainDataset(Split(data_dir, split, cfg), tokenizer, seed, batch_size, complete)
