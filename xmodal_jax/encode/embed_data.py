"""Use a run, or the weights that a config starts from, as a teacher: store its embeddings of a data set's inputs."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import OF_PICTURES, Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.embeddings import FOLDER
from xmodal_jax.data.features import add_to_card, being_added, refuse_bad_name, refuse_other, start_partial
from xmodal_jax.data.image import CorruptImage
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.readers import Reader, Row, reader_classes, readers_of
from xmodal_jax.data.records import (
    PICTURES,
    WORDS,
    CorruptRecord,
    RecordWriter,
    open_records,
    pack,
    shard_files,
    split_names,
)
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.search.index import fingerprint
from xmodal_jax.types import Params

DTYPES = ("float32", "float16")


def encoders(assembly: Assembly, params: Params, name: str) -> "Encoders":
    """Return the encoders and heads of a run as plain functions, one for the first field of each medium."""
    embedder, config = Embedder(assembly.model, params), assembly.config
    fields = {
        own.medium: field
        for field, own in reversed(config.data.fields.items())
        if reader_classes(config.data.fields)[field].embedded
    }
    encode = {medium: encoder_of(embedder, config.data.fields[field].encoder) for medium, field in fields.items()}
    reads = [
        f"{medium} {' '.join(config.data.caches_of(config.data.fields[field])) if spec.cached else spec.size}"
        for medium, field in sorted(fields.items())
        for spec in (assembly.specs[config.data.fields[field].encoder],)
    ]
    return Encoders(name, fingerprint(params), ", ".join(reads), config.joint.embed, fields, encode)


def encoder_of(embedder: Embedder, encoder: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from inputs of an encoder [b,...] to embeddings [b,E]."""
    return lambda rows: embedder.rows(encoder, rows, keep_tokens=False).embed


def embed_data(
    assembly: Assembly,
    params: Params,
    teacher: str,
    data_dir: str | os.PathLike,
    name: str,
    batch: int = 64,
    dtype: str = "float32",
) -> Card:
    """Write the embeddings of the data set at `data_dir` under `name`: all its views, the config's languages.

    `teacher` describes in words whose they are. Raises UserError, besides the cases of `write_embeddings`, for a data
    set without the languages or the feature caches that the towers read.
    """
    data_dir = pathlib.Path(data_dir)
    data = dataclasses.replace(assembly.config.data, path=str(data_dir), views=(), embeddings="")
    refuse_other_caches(assembly, Card.load(data_dir))

    def opened(split: str) -> tuple[Split, dict[str, Reader]]:
        source = Split(data_dir, split, data)
        return source, readers_of(source, assembly.specs)

    return write_embeddings(data_dir, name, encoders(assembly, params, teacher), opened, batch, dtype)


def refuse_other_caches(assembly: Assembly, card: Card) -> None:
    """Refuse feature caches of another tower or picture size than those the image head was made for."""
    data = assembly.config.data
    named = [pair for field, own in assembly.caches.items() for pair in zip(_names(data, field), own, strict=False)]
    for name, cache in named:  # a run may not say which towers made its caches
        entry, other = OF_PICTURES | card.feature(name), OF_PICTURES | cache
        if any(entry[key] != other[key] for key in ("tower", "size", *OF_PICTURES)):
            raise UserError(
                f"features '{name}' of data set '{card.name}' are of {entry['tower']} at {entry['size']} px, and the "
                f"teacher reads {cache['tower']} at {cache['size']} px; write them with `xmodal data features` under "
                "another name and name that one in config.data.features"
            )


def _names(data: DataConfig, field: str) -> tuple[str, ...]:
    """Return the names of the feature caches of a field."""
    return data.caches_of(data.fields[field])


@dataclasses.dataclass(frozen=True)
class Encoders:
    """A frozen teacher: its name, and plain functions from blocks of one size to embeddings [b,E].

    `encode` maps each medium to a function of the inputs that the field's reader gives for evaluation, stacked: uint8
    [b,H,W,3], tokens float16 [b,N,D], ids int32 [b,L]. `fields` maps each medium to the field that reads it. `weights`
    changes when any weight does; `reads` describes the inputs of the towers.
    """

    name: str
    weights: str
    reads: str
    width: int
    fields: dict[str, str]
    encode: dict[str, Callable[[np.ndarray], np.ndarray]]


def write_embeddings(
    data_dir: os.PathLike | str,
    name: str,
    teacher: Encoders,
    open_split: Callable[[str], tuple[Split, dict[str, Reader]]],
    batch: int = 64,
    dtype: str = "float32",
) -> Card:
    """Encode every picture and, in the languages of the splits' config, every caption; return the new card.

    `open_split` opens the split of a name and its readers by the teacher's config. Pictures are encoded as evaluation
    reads them, whole and not mirrored. Splits finished before an interruption are kept and not encoded again. The card
    changes last, in one step.

    Raises `UserError` if the name is taken by another teacher, if a record cannot be read and if an embedding is
    not finite.
    """
    data_dir = pathlib.Path(data_dir)
    refuse_misfit(data_dir, name, batch, dtype)
    card = Card.load(data_dir)
    with contextlib.closing(open_split(min(card.splits))[0]) as first:
        words = first.cfg.fields.get(teacher.fields.get(WORDS, ""))
        plan = _plan(teacher, card.views, (words and words.languages) or first.cfg.languages, dtype)
    if name in card.embeddings:
        refuse_other(card.embeddings[name], plan, f"{data_dir} already has embeddings {name!r}")
        return card
    with being_added(data_dir / FOLDER, name, f"embeddings '{name}' to '{data_dir}'"):
        folder, partial = data_dir / FOLDER / name, data_dir / FOLDER / f".{name}.part"
        start_partial(folder, partial, plan)
        for split, entry in card.splits.items():
            if split not in split_names(partial):
                source, readers = open_split(split)
                with contextlib.closing(source), RecordWriter(partial, split) as writer:
                    blocks = _rows(source, readers, teacher, batch, dtype)
                    for rows in Progress(blocks, f"{name} {split}", "records", len(source), size=len):
                        _write(writer, rows)
            _check_count(partial, split, entry["records"])
        files = {split: [path.name for path in shard_files(partial, split)] for split in card.splits}
        os.replace(partial, folder)
        return add_to_card(data_dir, "embeddings", name, plan | {"files": files})


def refuse_misfit(data_dir: os.PathLike | str, name: str, batch: int, dtype: str = "float32") -> None:
    """Refuse a wrong data set, name, batch or dtype before a teacher is loaded."""
    Card.load(data_dir)
    if batch < 1:
        raise UserError(f"the batch is {batch}; write 1 or more")
    if dtype not in DTYPES:
        raise UserError(f"the dtype is '{dtype}'; write one of {', '.join(DTYPES)}")
    refuse_bad_name(name, "embeddings")


def _plan(teacher: Encoders, views: Sequence[str], languages: Sequence[str], dtype: str) -> dict[str, Any]:
    """Describe how the embeddings are made; others under the same name are refused."""
    own = {field: getattr(teacher, field) for field in ("name", "weights", "reads", "width")}
    said = {
        "views": list(views) if PICTURES in teacher.encode else [],
        "languages": list(languages) if WORDS in teacher.encode else [],
    }
    return {"teacher": own.pop("name"), **own, "media": sorted(teacher.encode), **said, "dtype": dtype}


def _write(writer: RecordWriter, rows: list[dict[str, Any]]) -> None:
    """Write rows to the records of a split."""
    for row in rows:
        writer.write(pack(row))


def _rows(
    source: Split, readers: dict[str, Reader], teacher: Encoders, batch: int, dtype: str
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a split, `batch` records at a time; a medium's inputs fill blocks of one compiled shape."""
    for first in range(0, len(source), batch):
        numbers = range(first, min(first + batch, len(source)))
        rows: list[dict[str, Any]] = [{"width": teacher.width} for _ in numbers]
        for medium, encode in teacher.encode.items():
            found = [_read(readers[teacher.fields[medium]], Row(source, number)) for number in numbers]
            inputs = [x for own in found for part in own.values() for x in part]
            made = iter(_encoded(inputs, encode, batch, teacher.width, dtype))
            for row, own in zip(rows, found, strict=True):
                row[medium] = {name: [next(made) for _ in part] for name, part in own.items()}
        yield rows


def _read(reader: Reader, row: Row) -> dict[str, list[np.ndarray]]:
    """Read the inputs of a record, by view or language."""
    try:
        return reader.stored_inputs(row)
    except (CorruptRecord, CorruptImage) as error:
        raise UserError(
            f"row {row.number} of split {row.split.name!r} cannot be read ({error}); "
            "copy or prepare the data set again."
        ) from error


def _encoded(
    items: list[np.ndarray], encode: Callable[[np.ndarray], np.ndarray], batch: int, width: int, dtype: str
) -> list[bytes]:
    """Return the bytes of each item's embedding; the last block is padded with copies of its last item."""
    done = []
    for start in range(0, len(items), batch):
        block = items[start : start + batch]
        found = np.asarray(encode(np.stack(block + block[-1:] * (batch - len(block)))))
        if found.shape != (batch, width):
            raise UserError(f"the teacher returned {found.shape} for {batch} rows, not [{batch},{width}].")
        if not np.isfinite(found).all():
            raise UserError("the teacher gave an embedding that is not finite.")
        done += [row.astype(dtype).tobytes() for row in found[: len(block)]]
    return done


def _check_count(folder: pathlib.Path, split: str, count: int) -> None:
    """Refuse a finished split of another length."""
    with open_records(folder, split) as rows:
        if len(rows) != count:
            raise UserError(f"{folder}: split {split!r} has {len(rows)} rows for {count}; remove the folder.")
