"""Training batches from a prepared data set.

A training example is a pure function of (seed, its number): rows are shuffled anew each epoch, a global batch is
`batch_size` consecutive examples of that endless sequence, and each process takes a contiguous part of it. So one
integer, the examples seen, is all that a checkpoint needs: any number of hosts sees the same global batches in the same
order, and a run that goes on with another batch size repeats and skips nothing.
"""

import logging
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.image import CorruptImage
from xmodal_jax.data.readers import CaptionReader, PictureReader, Row, Specs, has_views, readers_of
from xmodal_jax.data.records import CorruptRecord, Room
from xmodal_jax.data.split import Arrays, Split, labels_of
from xmodal_jax.data.text import cut
from xmodal_jax.errors import UserError
from xmodal_jax.types import NEVER

log = logging.getLogger(__name__)

BAD_SHARE = 0.01
NAMED_SKIPS = 10
SAMPLED = 2000  # records whose captions `TrainDataset.cut` measures


class BadRows:
    """Counter of the rows of a split that cannot be read; it stops the run when they are over 1 %."""

    def __init__(self, total: int, where: str):
        self.total, self.where = total, where
        self.rows: set[int] = set()
        self._lock = threading.Lock()

    def add(self, row: int, why: Exception) -> None:
        """Count one unreadable row; the first ten are named in the log. Raises `UserError` over the limit."""
        with self._lock:
            if row not in self.rows and len(self.rows) < NAMED_SKIPS:
                log.warning("unreadable row %d of %s replaced by the next one: %s", row, self.where, why)
            self.rows.add(row)
        if len(self.rows) > BAD_SHARE * self.total:
            raise UserError(
                f"{len(self.rows)} of {self.total} rows of {self.where} cannot be read (row {row}: {why}), "
                "more than 1 %: copy or prepare the data set again."
            )


class TrainDataset:
    """Endless training batches of one split by number; see `train_dataset`."""

    def __init__(
        self,
        split: Split,
        specs: Specs,
        seed: int,
        batch_size: int,
        complete: Callable[[Arrays], Arrays] = lambda batch: batch,
    ):
        import grain

        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: use 1 or more.")
        if len(split) == 0:
            raise UserError(f"{split.cfg.path}: split {split.name!r} is empty.")
        if split.cfg.positives != "record" and not split.labelled:
            raise UserError(f"config.data.positives is 'labels', and {split.folder} has none; write 'record'")
        self.split, self.batch_size, self.complete = split, batch_size, complete
        self.bad = BadRows(len(split), f"split {split.name!r}")
        split.keep_rows(Room(int(split.cfg.keep_gb * 1e9)))
        self.readers = readers_of(split, specs)
        self._teacher = split.embeddings() if split.cfg.embeddings else None
        self._concepts = split.concepts() if split.cfg.concepts else None
        by_pair = split.cfg.unit == "pair"
        self._pairs = split.sidecar.all_pairs(split.cfg.unit_languages) if by_pair else None
        self._seed, self._per_batch = seed, any(own.per == "batch" for own in split.cfg.fields.values())
        self.units = len(split) if self._pairs is None else len(self._pairs)
        self._able = self._able_units()
        rows = grain.MapDataset.range(self.units).seed(seed).shuffle().repeat(None)
        # An endless sequence of Arrays. Batches are numbered only where a field asks: that changes what grain draws.
        self.examples: Any = (
            rows.map_with_index(lambda place, row: (row, place // batch_size)).random_map(self._numbered)
            if self._per_batch
            else rows.random_map(self._example)
        )

    @property
    def steps_per_epoch(self) -> float:
        """Number of batches in which every record, or pair, comes once."""
        return self.units / self.batch_size

    def batch_at(self, number: int, process: int = 0, count: int = 1) -> Arrays:
        """Return the part of global batch `number` that belongs to `process` of `count`; fields as in `types.Batch`."""
        return self.batch_from(number * self.batch_size, process, count)

    def batch_from(self, first: int, process: int = 0, count: int = 1) -> Arrays:
        """Return the part, as in `batch_at`, of the global batch that begins with example `first`."""
        if self.batch_size % count != 0:
            raise UserError(f"batch_size {self.batch_size} must be a multiple of the {count} processes.")
        if self._per_batch and first % self.batch_size:
            raise UserError(
                f"the run goes on at example {first}, where no batch of config.batch_size={self.batch_size} begins, "
                "and a field has one language a batch; write a batch_size that divides it"
            )
        size = self.batch_size // count
        own = first + process * size
        try:
            examples = [self.examples[own + offset] for offset in range(size)]
            self.split.activity.note("stacking the batch from example", first)
            return self.complete({field: np.stack([example[field] for example in examples]) for field in examples[0]})
        finally:
            self.split.activity.done()

    def cut(self) -> dict[str, dict[str, float]]:
        """Measure how many captions each encoder of words cuts (`text.cut`), on up to 2,000 records of the split."""
        rows = np.linspace(0, len(self.split) - 1, min(len(self.split), SAMPLED)).astype(int)
        found = {}
        for reader in self.readers.values():
            if reader.worded and reader.spec.tokenizer is not None:
                pairs = reader.all_pairs()
                pairs = pairs[np.isin(self.split.sidecar.owner[pairs], rows)]
                captions = self.split.sidecar.texts.take(pairs)
                ids = reader.ids(pairs)[:, : reader.spec.size]
                found.setdefault(reader.own.encoder, cut(reader.spec.tokenizer, captions, ids))
        return found

    def close(self) -> None:
        """Close all files."""
        self.split.close()
        if self._teacher is not None:
            self._teacher.close()

    def _numbered(self, own: tuple[int, int], rng: np.random.Generator) -> Arrays:
        """Return one example of (row, number of the batch)."""
        return self._example(own[0], rng, own[1])

    def _example(self, row: int, rng: np.random.Generator, batch: int = 0) -> Arrays:
        """Return one example of a row, or of the next row that can be read; with `unit` "pair", of a pair."""
        first = int(np.searchsorted(self._able, row))
        for offset in range(len(self._able)):
            number, pair = self._unit(int(self._able[(first + offset) % len(self._able)]))
            try:
                fields = self._fields(Row(self.split, number, (self._seed, batch)), rng, pair)
            except (CorruptRecord, CorruptImage) as error:
                self.bad.add(number, error)
                continue
            if fields is not None:
                return fields
        required = ", ".join(name for name, own in self.split.cfg.fields.items() if own.required)
        raise UserError(
            f"{self.split.cfg.path}: no record of split {self.split.name!r} has all required fields ({required}; "
            f"views {self.split.views}, languages {self.split.cfg.languages}); write others in config.data."
        )

    def _able_units(self) -> np.ndarray:
        """Return int64 [m], the units whose records may have all required fields; it says how many records cannot.

        Pictures and captions are known from the sidecar; what another reader finds, `choose` tells when it is drawn.
        """
        able = np.ones(len(self.split), bool)
        for name, own in self.split.cfg.fields.items():
            if own.required and not own.of and type(self.readers[name]) in (PictureReader, CaptionReader):
                found = np.zeros(len(able), bool)
                for view in self.split.views if has_views(self.split.cfg.fields, name) else ("",):
                    found[self.readers[name].rows(view)] = True
                able &= found
        if not able.all():
            log.warning(
                "%d of %d records of split %r lack a required field, and the next that has all comes in their place; "
                "config.data.fields.NAME.required=False trains on them without the field",
                len(able) - able.sum(),
                len(able),
                self.split.name,
            )
        return np.flatnonzero(able if self._pairs is None else able[self.split.sidecar.owner[self._pairs]])

    def _unit(self, unit: int) -> tuple[int, int | None]:
        """Return the row of a unit, and the number of its pair where units are pairs."""
        if self._pairs is None:
            return unit, None
        pair = int(self._pairs[unit])
        return int(self.split.sidecar.owner[pair]), pair

    def _fields(self, row: Row, rng: np.random.Generator, pair: int | None = None) -> Arrays | None:
        """Return the fields of a row, None if it lacks one that is required; of its captions the one of the pair.

        Each field's choice is drawn first, then each is read, and fields that are views of others come last, so that
        adding a field changes the draws of none before it.
        """
        table = self.split.cfg.fields
        chosen = {name: self._choose(name, row, rng, pair) for name, own in table.items() if not own.of}
        if any(choice is None and table[name].required for name, choice in chosen.items()):
            return None
        fields = self._row(row.number) | ({} if pair is None else {"pair": np.asarray(pair, np.int32)})
        for name, choice in chosen.items():
            fields |= self._field(name, row, choice, rng)
        for name, own in table.items():
            if own.of:
                first = chosen[own.of]
                choice = None if first is None else self.readers[name].other(row, first, rng)
                if choice is None and own.required:
                    return None
                fields |= self._field(name, row, choice, rng)
        return fields | self._stored(row.number, chosen)

    def _choose(self, name: str, row: Row, rng: np.random.Generator, pair: int | None) -> Any:
        """Return the choice of a field: the pair's caption, where it is of the field's languages, or a drawn one."""
        reader = self.readers[name]
        if pair is not None and reader.worded and pair in reader.pairs(row):
            return pair
        return reader.choose(row, rng)

    def _row(self, number: int) -> Arrays:
        """Return the fields of a batch that belong to a whole row."""
        row = np.asarray(number, np.int32)
        key = row if self.split.cfg.positives == "record" else np.asarray(self.split.label_key(number))
        fields = {"id": key, "index": row} | (self._concepts.fields(number) if self._concepts is not None else {})
        named = bool(self.split.card.label_names)
        return fields | ({"labels": labels_of(self.split, [number])[0]} if named else {})

    def _field(self, name: str, row: Row, choice: Any, rng: np.random.Generator) -> Arrays:
        """Return one field of a row and its attributes (types.py); zeros if it is missing."""
        reader, own = self.readers[name], self.split.cfg.fields[name]
        there = choice is not None
        fields = {name: reader.read(row, choice, rng) if there else reader.empty()}
        if reader.keyed:
            fields[f"{name}/key"] = np.asarray(reader.key(row, choice) if there else NEVER, np.int32)
        if starts := reader.spec.starts if reader.worded else ():
            language = reader.language(choice) if there else ""
            fields[f"{name}/language"] = np.asarray(starts.index(language) if language in starts else NEVER, np.int32)
        return fields if own.required else fields | {f"{name}/valid": np.asarray(there)}

    def _stored(self, number: int, chosen: dict[str, Any]) -> Arrays:
        """Return the stored embeddings of the chosen inputs, zeros for a missing field."""
        if self._teacher is None:
            return {}
        self.split.activity.note("reading row", number, f"embeddings {self.split.cfg.embeddings!r}")
        stored = {name: self.readers[name] for name in chosen if self.readers[name].embedded}
        stored = {name: reader for name, reader in stored.items() if reader.own.medium in self._teacher.media}
        picks = {name: (reader.own.medium, reader.stored, chosen[name]) for name, reader in stored.items()}
        return {f"{name}/teacher": vector for name, vector in self._teacher.vectors(number, picks).items()}


def train_dataset(
    data_dir: str | pathlib.Path,
    split: str,
    specs: Specs,
    cfg: DataConfig,
    seed: int,
    batch_size: int,
    complete: Callable[[Arrays], Arrays] = lambda batch: batch,
) -> TrainDataset:
    """Open a split for training: batches are a pure function of their number.

    Each example is one record: of every field of `cfg.fields` a random view or caption, in the field's languages, as
    its reader reads it for training, with the attributes in the table of types.py. A record that lacks a required
    field is replaced by the next one. So is one that cannot be read; over 1 % of those raise `UserError`, as do the
    faults of `Split`. `id` is the row or, with `cfg.positives` "labels", the number of its set of labels.

    Args:
      specs: the inputs of the encoders, by encoder.
      complete: adds fields to a whole batch.
    """
    return TrainDataset(Split(data_dir, split, cfg), specs, seed, batch_size, complete)
