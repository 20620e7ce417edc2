"""ArrayRecord shards: write records in order, read any row.

A data set split is `DIR/<split>-00000-of-0000N.arrayrecord`; the rows of a split are the records of its shards one
after the other, in the order they were written. The bytes of a row are msgpack. Records and cached features share this
layout (features lie in `DIR/features/<name>/`), so that row i of one belongs to row i of the other, and to row i of the
sidecar (data/sidecar.py), which has everything of a record but its pictures.

A picture without bytes is one that the data set does not have, but features of it (SCAN's regions): the record names
its view, and the card lists such views as `without_pixels`.
"""

import contextlib
import logging
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

from xmodal_jax.errors import UserError
from xmodal_jax.terminal import handlers_kept

log = logging.getLogger(__name__)

Record = dict[str, Any]

SHARD_BYTES = 256 * 2**20
SUFFIX = ".arrayrecord"
FIELDS = {"key": str, "media": dict}
PICTURES = "image"  # medium of pictures, which nearly every record has
WORDS = "text"  # medium of captions, which are in the sidecar
SPLIT_NAME = re.compile(r"\w[\w.-]*")
SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.arrayrecord")


def is_split_name(text: str) -> bool:
    """Return True if a split may have this name: a plain file name of at most 100 bytes, which any system takes."""
    return bool(SPLIT_NAME.fullmatch(text)) and len(text.encode()) <= 100


class CorruptRecord(ValueError):
    """A row whose bytes do not follow the format; `prepare` never writes one, but disks and copies may."""


def pack(value: Any) -> bytes:
    """Return the msgpack bytes of a plain tree of dicts, lists, strings, bytes and numbers.

    Raises `CorruptRecord` for a text that UTF-8 cannot hold (half a surrogate pair).
    """
    import msgpack

    try:
        packed = msgpack.packb(value, use_bin_type=True)
    except UnicodeEncodeError as error:
        raise CorruptRecord(f"a text has half a surrogate pair: {error.object[:40]!a}") from error
    assert packed is not None  # only a packer that keeps its buffer returns None
    return packed


def unpack(data: bytes) -> Any:
    """Return the tree that `pack` wrote. Raises `CorruptRecord`."""
    import msgpack

    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise CorruptRecord(f"not msgpack: {error}") from error


def check_record(record: Any) -> Record:
    """Return `record` if it is the stored part of one, a key and {medium: {view: bytes}}; the rest is in the sidecar.

    Raises `CorruptRecord` naming the first field that is missing or of the wrong type.
    """
    if not isinstance(record, dict):
        raise CorruptRecord(f"a record is a dict, not {type(record).__name__}")
    for name, kind in FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise CorruptRecord(f"field {name!r} must be a {kind.__name__}")
    for medium, views in record["media"].items():
        if not isinstance(views, dict):
            raise CorruptRecord(f"medium {medium!r} of record {record['key']!r} must be a dict")
    return record


def pictures(record: Record) -> dict[str, bytes]:
    """Return the encoded pictures of a record by view, without those that it has only features of."""
    return {view: data for view, data in record["media"].get(PICTURES, {}).items() if data}


def encode_record(record: Record) -> bytes:
    """Return the stored bytes of one record. Raises `CorruptRecord` for a record that could not be read back."""
    return pack(check_record(record))


class RecordWriter(contextlib.AbstractContextManager):
    """Writer of the rows of one split, a new shard every `shard_bytes`; a context manager.

    The shards get their final names only in `close`, when their number is known, so a run that dies leaves no file that
    a reader would take for a split. Leaving the `with` block by an exception removes what was written. Raises
    `UserError` for a split name that is no plain file name, and when a shard cannot be written (a full disk).
    """

    def __init__(self, folder: os.PathLike | str, split: str, shard_bytes: int = SHARD_BYTES):
        if not is_split_name(split):
            raise UserError(f"split {split!r}: write a name of letters, digits, '.', '_', '-'.")
        self.folder, self.split, self.shard_bytes = pathlib.Path(folder), split, shard_bytes
        self.records = 0
        self.files: list[str] = []
        self._parts: list[pathlib.Path] = []
        self._shard: Any = None
        self._room = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes) -> None:
        """Append one row."""
        shard = self._shard
        if shard is None or self._room < len(data):
            shard = self._next_shard()
        with self._errors_named():
            shard.write(data)
        self._room -= len(data)
        self.records += 1

    def close(self) -> list[str]:
        """Finish the shards and return their file names, in row order."""
        if self._shard is None and not self._parts:
            self._next_shard()  # an empty split is a file without rows, not a missing split
        self._finish_shard()
        for number, part in enumerate(self._parts):
            name = f"{self.split}-{number:05d}-of-{len(self._parts):05d}{SUFFIX}"
            os.replace(part, self.folder / name)
            self.files.append(name)
        self._parts = []
        return self.files

    def abort(self) -> None:
        """Remove the unfinished shards."""
        with contextlib.suppress(UserError):  # a shard that cannot be finished is removed all the same
            self._finish_shard()
        for part in self._parts:
            part.unlink(missing_ok=True)
        self._parts = []

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()  # removes shards that close() could not finish, if any

    def _next_shard(self) -> Any:
        """Open the next shard under a temporary name, and return its writer."""
        from array_record.python.array_record_module import ArrayRecordWriter

        self._finish_shard()
        self._parts.append(self.folder / f".{self.split}-{len(self._parts):05d}.part")
        with self._errors_named():
            self._shard = ArrayRecordWriter(str(self._parts[-1]), "group_size:1,uncompressed")
        self._room = self.shard_bytes
        return self._shard

    def _finish_shard(self) -> None:
        """Close the shard that is open."""
        shard, self._shard = self._shard, None  # before closing, which would fail again
        if shard is not None:
            with self._errors_named():
                shard.close()

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Raise an error of the shard writer as a `UserError` that names the folder and the split."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:  # "write() failed: No space left on device; writing ..."
            why = str(error).split(";")[0].removeprefix("write() failed: ")
            raise UserError(
                f"'{self.folder}': split {self.split!r} cannot be written ({why}); make room there"
            ) from error


class Records(contextlib.AbstractContextManager):
    """The rows of one split as a sequence of decoded msgpack trees; safe to index from many threads.

    A shard stays open once a row of it was read. If it is deleted after that, nothing is lost: the system keeps an open
    file, so the run goes on, and the next start refuses by the shard's name (`shard_files`).
    """

    def __init__(self, files: list[pathlib.Path]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.files = files
        self._source = ArrayRecordDataSource([str(path) for path in files])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> Any:
        """Return the tree of a row. Raises `IndexError` outside the split and `CorruptRecord` for damaged bytes."""
        return self.sized(row)[0]

    def sized(self, row: int) -> tuple[Any, int]:
        """Return the tree of a row and its bytes in the file."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a split of {len(self)} records")
        try:
            data = self._source[row]
        except (RuntimeError, ValueError, OSError) as error:  # the reader's own checksum, or a file that is gone
            raise CorruptRecord(f"row {row} in {self.files[0].parent}: {error}") from error
        if not data:  # the reader returns this for a row behind the end of a file that was cut while it was open
            raise CorruptRecord(f"row {row} in {self.files[0].parent}: its shard was cut short")
        return unpack(data), len(data)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def close(self) -> None:
        """Close the shard files; faults of a damaged one were reported when it was read."""
        try:
            with handlers_kept():
                self._source.__exit__(None, None, None)
        except (RuntimeError, ValueError, OSError) as error:
            log.debug("closing %s: %s", self.files[0].parent, error)

    def __exit__(self, *error: object) -> None:
        self.close()


class Room:
    """Bytes of memory that several sequences of rows may still keep; shared between threads."""

    def __init__(self, size: int):
        self.left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take `size` bytes and return True, if so many are left."""
        with self._lock:
            fits = size <= self.left
            self.left -= size if fits else 0
        return fits


class KeptRecords:
    """`Records` whose rows, once read, stay in memory while `room` lasts; others are read from the file each time."""

    def __init__(self, records: Records, room: Room):
        self.records, self.room = records, room
        self._rows: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Any:
        """Return the tree of a row, as `Records` does; it must not be changed."""
        found = self._rows.get(row)
        if found is None:
            found, size = self.records.sized(row)
            if row not in self._rows and self.room.take(size):
                self._rows[row] = found
        return found

    def close(self) -> None:
        """Close the files and forget the rows."""
        self.records.close()
        self._rows.clear()


def split_names(folder: os.PathLike | str) -> list[str]:
    """Return the splits that have shards in `folder`, sorted."""
    found = (SHARD_NAME.fullmatch(path.name) for path in pathlib.Path(folder).glob(f"*{SUFFIX}"))
    return sorted({match["split"] for match in found if match})


def shard_files(folder: os.PathLike | str, split: str) -> list[pathlib.Path]:
    """Return the shards of a split in row order.

    Raises `UserError` when the folder or the split does not exist or a shard of it is missing.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"no data set at {folder}: write one with xmodal.prepare, or `xmodal data prepare ... --out {folder}`."
        )
    names = split_names(folder)
    if split not in names:
        raise UserError(
            f"{folder} has no split {split!r}: use one of {', '.join(names) or '(it has no shards at all)'}."
        )
    found: dict[int, dict[int, pathlib.Path]] = {}
    for path in folder.glob(f"{split}-*{SUFFIX}"):
        match = SHARD_NAME.fullmatch(path.name)
        if match and match["split"] == split:
            found.setdefault(int(match["count"]), {})[int(match["number"])] = path
    if len(found) != 1:
        raise UserError(f"{folder}: split {split!r} mixes shards of two data sets; prepare it again.")
    ((count, shards),) = found.items()
    missing = sorted(set(range(count)) - set(shards))
    if missing:
        raise UserError(f"{folder}: split {split!r} lacks shard {missing[:1]} of {count}; copy or prepare it again.")
    return [shards[number] for number in range(count)]


def open_records(folder: os.PathLike | str, split: str) -> Records:
    """Open the rows of a split for random access. Raises `UserError` as `shard_files`, and for unreadable shards."""
    files = shard_files(folder, split)
    try:
        return Records(files)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{files[0]} cannot be read as ArrayRecord ({error}); copy or prepare it again.") from error
