"""A frozen teacher's embeddings of every picture and every caption of a data set, stored beside it.

They are `DIR/embeddings/<name>/<split>-*.arrayrecord`; row i belongs to record i. A row is {"width": E, "image":
{view: bytes}, "text": {language: [bytes, ...]}}, the bytes being [E] of the card's dtype, the texts in the record's order.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.card import Card
from xmodal_jax.data.features import add_to_card, being_added, refuse_bad_name, refuse_other, start_partial
from xmodal_jax.data.image import CorruptImage, eval_image
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.records import CorruptRecord, RecordWriter, open_records, pack, pictures, shard_files, split_names
from xmodal_jax.errors import UserError, refuse_unless

FOLDER = "embeddings"
DTYPES = ("float32", "float16")


Pick = Callable[[dict[str, Any], Any], bytes]


class Embeddings:
    """The embeddings `name` of one split, for batches.

    Raises `UserError` for a name that the card does not have, for a view or language that was not embedded, and for
    another number of rows than the split has records.
    """

    def __init__(self, folder: pathlib.Path, card: Card, name: str, split: str, views: Sequence[str],
                 languages: Sequence[str]):  # fmt: skip
        entry = card.embedding(name)
        for what, asked in (("views", views), ("languages", languages)):
            missing = [one for one in asked if one not in entry[what]]
            refuse_unless(
                not missing,
                f"config.data.embeddings: {name!r} of {folder} has no {missing[:1]}; write config.data.{what} with some "
                f"of {', '.join(entry[what])}, or embed the data set again under another name.",
            )
        self.name, self.width, self._dtype = name, entry["width"], entry["dtype"]
        self._rows = open_records(folder / FOLDER / name, split)
        count = card.split(split)["records"]
        refuse_unless(
            len(self._rows) == count,
            f"embeddings {name!r} of {folder} have {len(self._rows)} rows for {count} records; write them again.",
        )

    def vectors(self, row: int, picks: dict[str, tuple[Pick, Any]]) -> dict[str, np.ndarray]:
        """Unit embeddings float32 [E] of what was chosen of a row: {name: (reader's `stored`, choice)}; zeros for None.

        Raises `CorruptRecord`.
        """
        try:
            found = self._rows[row]
            return {name: self._unit(stored(found, choice)) if choice is not None else np.zeros(self.width, np.float32)
                    for name, (stored, choice) in picks.items()}  # fmt: skip
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            chosen = {name: choice for name, (_, choice) in picks.items()}
            raise CorruptRecord(f"row {row} of embeddings {self.name!r} has no vector of {chosen} ({error})") from error

    def _unit(self, data: bytes) -> np.ndarray:
        """Float16 rounds, and a distillation loss wants cosines."""
        vector = np.frombuffer(data, self._dtype).reshape(self.width).astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def close(self) -> None:
        """Close all files."""
        self._rows.close()


@dataclasses.dataclass(frozen=True)
class Encoders:
    """A frozen teacher: who it is, and plain functions from blocks of one size to embeddings [b,E].

    `image` takes what `Split` gives for a picture, stacked: uint8 [b,H,W,3] or tokens float16 [b,N,D]; `text` a list of
    b captions. `weights` changes when any weight does, `reads` says what the image tower is given.
    """

    name: str
    weights: str
    reads: str
    width: int
    image: Callable[[np.ndarray], np.ndarray]
    text: Callable[[Sequence[str]], np.ndarray]


def write_embeddings(
    data_dir: os.PathLike | str,
    name: str,
    teacher: Encoders,
    open_split: Callable[[str], Any],
    batch: int = 64,
    dtype: str = "float32",
) -> Card:
    """Encode every picture and, in the languages of the splits' config, every caption; returns the new card.

    `open_split` gives the `pipeline.Split` of a split's name: its config says which languages and feature caches.
    Pictures are encoded as evaluation reads them, whole and not mirrored. Finished splits are kept when it is
    interrupted and not encoded again. Raises `UserError` if the name is taken by another teacher, if a record cannot be
    read and if an embedding is not finite. The card changes last, in one step.
    """
    data_dir = pathlib.Path(data_dir)
    refuse_misfit(data_dir, name, batch, dtype)
    card = Card.load(data_dir)
    with contextlib.closing(open_split(min(card.splits))) as first:
        plan = _plan(teacher, card.views, first.cfg.languages, dtype)
    if name in card.embeddings:
        refuse_other(card.embeddings[name], plan, f"{data_dir} already has embeddings {name!r}")
        return card
    with being_added(data_dir / FOLDER, name, f"embeddings '{name}' to '{data_dir}'"):
        folder, partial = data_dir / FOLDER / name, data_dir / FOLDER / f".{name}.part"
        start_partial(folder, partial, plan)
        for split, entry in card.splits.items():
            if split not in split_names(partial):
                with contextlib.closing(open_split(split)) as source, RecordWriter(partial, split) as writer:
                    blocks = _rows(source, teacher, batch, dtype)
                    for rows in Progress(blocks, f"{name} {split}", "records", len(source), size=len):
                        _write(writer, rows)
            _check_count(partial, split, entry["records"])
        files = {split: [path.name for path in shard_files(partial, split)] for split in card.splits}
        os.replace(partial, folder)
        return add_to_card(data_dir, "embeddings", name, plan | {"files": files})


def refuse_misfit(data_dir: os.PathLike | str, name: str, batch: int, dtype: str = "float32") -> None:
    """Raise `UserError` for what can be seen to be wrong before a teacher is loaded: data set, name, batch, dtype."""
    Card.load(data_dir)
    refuse_unless(batch >= 1, f"the batch is {batch}; write 1 or more")
    refuse_unless(dtype in DTYPES, f"the dtype is '{dtype}'; write one of {', '.join(DTYPES)}")
    refuse_bad_name(name, "embeddings")


def _plan(teacher: Encoders, views: Sequence[str], languages: Sequence[str], dtype: str) -> dict[str, Any]:
    """What the embeddings are made of: anything else under the same name is refused."""
    own = {field: getattr(teacher, field) for field in ("name", "weights", "reads", "width")}
    return {"teacher": own.pop("name"), **own, "views": list(views), "languages": list(languages), "dtype": dtype}


def _write(writer: RecordWriter, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        writer.write(pack(row))


def _rows(source: Any, teacher: Encoders, batch: int, dtype: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a split, `batch` records at a time: their pictures and captions fill blocks of one compiled shape."""
    decode = eval_image(source.cfg.image_size)
    for first in range(0, len(source), batch):
        rows, pictures, captions = [], [], []
        for number in range(first, min(first + batch, len(source))):
            inputs, found = _read(source, number, decode), source.sidecar.captions(number)
            texts = {code: found[code] for code in source.cfg.languages if code in found}
            rows.append((list(inputs), {code: len(own) for code, own in texts.items()}))
            pictures += inputs.values()
            captions += [text for own in texts.values() for text in own]
        image = iter(_encoded(pictures, lambda block: teacher.image(np.stack(block)), batch, teacher.width, dtype))
        text = iter(_encoded(captions, teacher.text, batch, teacher.width, dtype))
        yield [
            {
                "width": teacher.width,
                "image": {view: next(image) for view in views},
                "text": {code: [next(text) for _ in range(count)] for code, count in counts.items()},
            }
            for views, counts in rows
        ]


def _read(source: Any, row: int, decode: Callable[[bytes], np.ndarray]) -> dict[str, np.ndarray]:
    """What the image tower takes of each view of a record."""
    try:
        if source.caches:
            return {view: source.tokens(row, view, False) for view in source.sidecar.views(row)}
        return {view: decode(data) for view, data in pictures(source.record(row)).items()}
    except (CorruptRecord, CorruptImage) as error:
        raise UserError(
            f"row {row} of split {source.name!r} cannot be read ({error}); copy or prepare the data set again."
        ) from error


def _encoded(items: list, encode: Callable[[list], np.ndarray], batch: int, width: int, dtype: str) -> list[bytes]:
    """The bytes of the embedding of each item; the last block is filled with copies of its last item."""
    done = []
    for start in range(0, len(items), batch):
        block = items[start : start + batch]
        found = np.asarray(encode(block + block[-1:] * (batch - len(block))))
        refuse_unless(
            found.shape == (batch, width),
            f"the teacher returned {found.shape} for {batch} rows, not [{batch},{width}].",
        )
        refuse_unless(bool(np.isfinite(found).all()), "the teacher gave an embedding that is not finite.")
        done += [row.astype(dtype).tobytes() for row in found[: len(block)]]
    return done


def _check_count(folder: pathlib.Path, split: str, count: int) -> None:
    """Refuse a finished split of another length."""
    with open_records(folder, split) as rows:
        refuse_unless(
            len(rows) == count, f"{folder}: split {split!r} has {len(rows)} rows for {count}; remove the folder."
        )
