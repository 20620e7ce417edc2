"""A split as evaluation reads it: all its pictures of one view and all its captions, in the order of its rows."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xmodal_jax.data.columns import Texts
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.image import CorruptImage, eval_image
from xmodal_jax.data.records import CorruptRecord
from xmodal_jax.data.split import Arrays, Split, multi_hot, refuse_unknown
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.errors import UserError, refuse_unless

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """A split as evaluation reads it: every picture of one view once, every caption once.

    n records, M captions: `keys` and `rows` (row in the split) [n]; `captions` [M], read from disk when they are asked
    for; `caption_owner` int32 [M], the position of its record in `keys`, never falling; `text` int32 [M,L];
    `text_numbers` int32 [M], the same for the same text and no other; `text_keys` int32 [M], the same for captions that
    are right for the same pictures: the numbers, or one for each; `labels` float32 [n,C] or None.
    """

    view: str
    keys: Texts
    rows: np.ndarray
    captions: Texts
    caption_owner: np.ndarray
    text: np.ndarray
    text_numbers: np.ndarray
    text_keys: np.ndarray
    labels: np.ndarray | None
    picture: Callable[..., np.ndarray]  # (number, flip=False)

    def part(self, records: np.ndarray, texts: np.ndarray) -> "EvalSplit":
        """Some records int [r], in increasing order, and some of their captions int [m], by their places in these."""
        return dataclasses.replace(
            self,
            keys=self.keys.take(records),
            rows=self.rows[records],
            captions=self.captions.take(texts),
            caption_owner=np.searchsorted(records, self.caption_owner[texts]).astype(np.int32),
            text=self.text[texts],
            text_numbers=self.text_numbers[texts],
            text_keys=self.text_keys[texts],
            labels=None if self.labels is None else self.labels[records],
            picture=lambda number, flip=False: self.picture(int(records[number]), flip),
        )

    def captions_of(self, number: int) -> list[str]:
        """The captions of the record at a place in `keys`."""
        return list(self.captions[slice(*np.searchsorted(self.caption_owner, [number, number + 1]))])

    def images(self, batch: int, flip: bool = False) -> Iterator[Arrays]:
        """Batches {"image": [batch, ...], "id": int32 [batch]}; the last is padded with zeros and id -1.

        `flip` gives the mirror images; a feature cache made without them gives the plain ones again.
        """
        for start in range(0, len(self.keys), batch):
            ids = np.arange(start, min(start + batch, len(self.keys)), dtype=np.int32)
            yield _padded({"image": np.stack([self.picture(number, flip) for number in ids]), "id": ids}, batch)

    def texts(self, batch: int) -> Iterator[Arrays]:
        """Batches {"text": int32 [batch,L], "id": int32 [batch], the caption's number}; the last padded, id -1."""
        for start in range(0, len(self.text), batch):
            text = self.text[start : start + batch]
            ids = np.arange(start, start + len(text), dtype=np.int32)
            yield _padded({"text": text, "id": ids}, batch)


def _padded(batch: Arrays, size: int) -> Arrays:
    missing = size - len(batch["id"])
    return {
        name: np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=-1 if name == "id" else 0)
        for name, rows in batch.items()
    }


def eval_split(
    data_dir: str | pathlib.Path, split: str, tokenizer: Tokenizer, cfg: DataConfig, view: str = ""
) -> EvalSplit:
    """The pictures of one view (default: the first of the config, else of the card) and all captions of a split.

    Records without that view or without a caption in the languages are left out and counted in the log. Raises
    `UserError` for a split, view or language that does not exist, and, when it is asked for, for a picture that cannot
    be read: a score on part of a test set would not be comparable. No record is read before.
    """
    source = Split(data_dir, split, cfg)
    view = view or source.views[0]
    refuse_unknown("config.data.views", (view,), source.card.views, data_dir)
    own = source.sidecar
    pairs = own.all_pairs(source.languages)
    pairs = pairs[own.having(view)[own.owner[pairs]]]
    rows, owners = np.unique(own.owner[pairs], return_inverse=True)
    if len(rows) < len(source):
        log.warning(
            "%d of %d records of %s have no view %r or no caption", len(source) - len(rows), len(source), split, view
        )
    refuse_unless(len(rows) > 0, f"{data_dir}: split {split!r} has no record with view {view!r} in {cfg.languages}.")
    captions, names = own.texts.take(pairs), source.card.label_names
    return EvalSplit(
        view=view,
        keys=own.keys.take(rows),
        rows=rows.astype(np.int32),
        captions=captions,
        caption_owner=owners.astype(np.int32),
        text=tokenizer.encode(captions, cfg.length),
        text_numbers=own.number[pairs],
        text_keys=own.number[pairs],
        labels=multi_hot([source.labels(row) for row in rows], len(names)) if names else None,
        picture=_picture(source, view, rows.tolist()),
    )


def _picture(source: Split, view: str, rows: list[int]) -> Callable[..., np.ndarray]:
    """(number, flip=False) -> the eval-time picture, or cached tokens, of the n-th record that is evaluated."""
    if source.caches:
        return lambda number, flip=False: _readable(
            lambda: source.tokens(rows[number], view, flip), f"row {rows[number]} of the feature caches"
        )
    decode = eval_image(source.cfg.image_size)

    def picture(number: int, flip: bool = False) -> np.ndarray:
        found = _readable(lambda: decode(source.record(rows[number])["images"][view]), f"row {rows[number]}")
        return np.ascontiguousarray(found[:, ::-1]) if flip else found

    return picture


def _readable(read: Callable[[], Any], where: str) -> Any:
    try:
        return read()
    except (CorruptRecord, CorruptImage) as error:
        raise UserError(f"{where} cannot be read ({error}); copy or prepare the data set again.") from error
