"""Write a search index (its files: `files`), so that a crash at any point leaves the rows that were there.

New blocks are written beside the old ones, then the header is replaced in one step: until then the new files belong to
nothing, and `folder` deletes them. An append's new header names the old blocks and the new ones, that of an index which
replaces another the new ones alone. Rows are taken as they come and written a block at a time: `write` and `append` for
what is in memory or memory-mapped, `writing` and `appending` for what is made on the way.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO

import numpy as np

from xmodal_jax.data.textfile import mended
from xmodal_jax.errors import UserError
from xmodal_jax.search import codes as hash_codes
from xmodal_jax.search import files, folder
from xmodal_jax.search.files import HEADER, KINDS, VERSION
from xmodal_jax.search.header import DTYPES
from xmodal_jax.search.numpy_engine import unit_rows

BLOCK_ROWS = 1 << 16


def as_int8(rows: np.ndarray) -> np.ndarray:
    """Return unit rows [n,E] as int8, each scaled so that its largest value is 127.

    The scale is not kept: rows have length 1, so an int8 row divided by its own length is nearly the row.
    """
    largest = np.abs(rows).max(axis=1, keepdims=True)
    return np.rint(rows * (127 / np.maximum(largest, np.finfo(np.float32).tiny))).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one call: embeddings [n,E], codes [n,K] of hash values or bytes (`packed`) and items, each or None.

    `stored`: embeddings have length 1 and are of the index's dtype already.
    """

    embeddings: np.ndarray | None
    items: Iterable[dict] | None
    codes: np.ndarray | None
    packed: bool = False
    stored: bool = False

    def __len__(self) -> int:
        return next((len(rows) for rows in (self.embeddings, self.codes) if rows is not None), 0)

    @property
    def width(self) -> int:
        """E, 0 without embeddings."""
        return 0 if self.embeddings is None else self.embeddings.shape[1]

    @property
    def bits(self) -> int:
        """K, 0 without codes."""
        return 0 if self.codes is None else self.codes.shape[1] * (8 if self.packed else 1)

    def refuse_bad(self) -> None:
        """Raise `UserError` unless the rows fit together."""
        given = [rows for rows in (self.embeddings, self.codes) if rows is not None]
        if not given:
            raise UserError("There are neither embeddings nor codes to index; write at least one of them.")
        for rows, name, width in ((self.embeddings, "Embeddings", "E"), (self.codes, "Codes", "K")):
            if rows is not None and rows.ndim != 2:
                raise UserError(f"{name} have {rows.ndim} axes; write one row per record, [n, {width}].")
        if len(self) == 0:
            raise UserError("There are no records to index; prepare a data set that has some.")
        if len(given[0]) != len(given[-1]):
            raise UserError(
                f"There are {len(given[0])} embeddings and {len(given[-1])} codes; write one code per embedding."
            )
        if self.codes is not None:
            hash_codes.refuse_bad_bits(self.bits)
        if self.packed and getattr(self.codes, "dtype", None) != np.uint8:
            raise UserError(
                f"Packed codes are bytes and these are {getattr(self.codes, 'dtype', None)}; write uint8 [n, K/8]."
            )


def write(
    path: str | os.PathLike,
    embeddings: np.ndarray | None,
    items: Iterable[dict] | None,
    codes: np.ndarray | None = None,
    model: str = "",
    block_rows: int = BLOCK_ROWS,
    overwrite: bool = False,
    extra: dict | None = None,
    dtype: str = "float32",
    packed: bool = False,
) -> pathlib.Path:
    """Write an index in one piece: it appears whole or not at all. Waits while another process writes it.

    Args:
      path: the folder to make.
      embeddings: [n,E]; normalised here, a block at a time (a memory map is fine). None: an index of codes alone.
      items: n JSON objects, given back with the hits, or None.
      codes: hash values [n,K] (signs are taken), or None.
      model: `fingerprint` of the parameters that made the rows.
      block_rows: rows per file.
      overwrite: replace an index that is already at `path`.
      extra: facts of the caller's own to keep in the header (JSON), such as where the model lies.
      dtype: of the embeddings on disk, "float32" or "int8" (a quarter of the bytes).
      packed: codes are uint8 [n,K/8] from `codes.pack` already.

    Raises:
      UserError: no rows, rows that do not match, K not a multiple of 8, embeddings that are not finite, items that are
        no JSON, an unknown dtype, something else (or, without `overwrite`, an index) at `path`; with `overwrite`, files
        in the index folder that no index writes.
    """
    Rows(embeddings, items, codes, packed).refuse_bad()
    with writing(path, model, block_rows, overwrite, extra, dtype) as out:
        out.add(embeddings, items, codes, packed)
    return pathlib.Path(path)


def append(
    path: str | os.PathLike,
    embeddings: np.ndarray | None,
    items: Iterable[dict] | None,
    codes: np.ndarray | None = None,
    model: str = "",
    block_rows: int = BLOCK_ROWS,
    packed: bool = False,
) -> int:
    """Append rows to the index at `path`; its blocks stay as they are. Arguments as in `write`.

    Stopped at any point before the end, the index is what it was. Waits while another process writes it.

    Returns:
      The number of rows now.

    Raises:
      UserError: as `write`; rows of another width, number of bits or model, with or without codes, embeddings or items
        where the index is the other way; a missing or torn file; an index that is replaced meanwhile.
    """
    Rows(embeddings, items, codes, packed).refuse_bad()
    with appending(path, model, block_rows) as out:
        out.add(embeddings, items, codes, packed)
    return out.count


@contextlib.contextmanager
def writing(
    path: str | os.PathLike,
    model: str = "",
    block_rows: int = BLOCK_ROWS,
    overwrite: bool = False,
    extra: dict | None = None,
    dtype: str = "float32",
) -> Iterator["Writer"]:
    """Yield a `Writer` for rows that come in parts; the index is at `path` when the body has ended well.

    Arguments and errors as in `write`.
    """
    if dtype not in DTYPES:
        raise UserError(f'dtype = "{dtype}" is not a type of stored embeddings; write {" or ".join(DTYPES)}.')
    path = folder.resolved(path)
    folder.refuse_taken(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder.alone(path):
        folder.refuse_taken(path, overwrite)  # again: an index may have appeared while the lock was another's
        path.mkdir(exist_ok=True)
        with replacing(path, fresh(model, dtype, extra or {}), block_rows) as out:
            yield out


def fresh(model: str, dtype: str, extra: dict) -> dict:
    """Return the header of an index without rows."""
    header = {"version": VERSION, "id": secrets.token_hex(8), "model": model, "dtype": dtype, "count": 0}
    return header | {"extra": extra, "blocks": {}}


@contextlib.contextmanager
def appending(path: str | os.PathLike, model: str = "", block_rows: int = BLOCK_ROWS) -> Iterator["Writer"]:
    """Yield a `Writer` for more rows that come in parts; they are in the index when the body has ended well.

    Arguments and errors as in `append`.
    """
    path = folder.resolved(path)
    files.read_header(path)
    with folder.alone(path):
        header = files.read_header(path)  # again: it may have grown while the lock was another's
        refuse_other_model(path, header, model)
        refuse_damaged(path, header)
        with replacing(path, header, block_rows) as out:
            yield out


@contextlib.contextmanager
def replacing(path: pathlib.Path, header: dict, block_rows: int) -> Iterator["Writer"]:
    """Yield a `Writer` that goes on from `header` in the locked folder at `path`; its header replaces the one there.

    Files that are in no header are deleted before and after, whether the body ends well or not.
    """
    folder.tidy(path)
    with folder.opened(path) as handle:

        def check() -> None:
            if not folder.is_still(handle, path):
                raise UserError(f"{path} was moved or replaced while rows were appended to it; append them again.")

        try:
            with contextlib.closing(Writer(path, header, block_rows, check)) as out:
                yield out
                out.finish()
        finally:
            if folder.is_still(handle, path):
                folder.tidy(path)
                with contextlib.suppress(OSError):
                    path.rmdir()  # an index that was not finished, and nothing else in its folder


def refuse_other_model(path: pathlib.Path, header: dict, model: str) -> None:
    """Raise `UserError` unless new rows are of the model that made those of the index."""
    if model != header["model"]:
        raise UserError(
            f"The index {path} was made by model {header['model'] or '(none)'} and the new rows by "
            f"{model or '(none)'}; encode both with the same checkpoint."
        )


def refuse_damaged(path: pathlib.Path, header: dict) -> None:
    """Raise `UserError` if a file of the index is missing or has another size: rows behind it would be out of reach."""
    _, damage = files.usable(path, header, verify=False)
    if damage:
        raise UserError(damage.replace(", or open the rows before it with 'prefix'", " before you append"))


class Writer:
    """Rows on their way into an index folder; a block is written when it is full. Attribute count: rows so far.

    `check` is called before anything is written to the folder; it raises when that was moved or replaced.
    """

    def __init__(self, path: pathlib.Path, header: dict, block_rows: int, check: Callable[[], None]):
        if block_rows < 1:
            raise UserError(f"block_rows = {block_rows} makes no blocks; write 1 or more.")
        self.path, self.count, self._before = path, header["count"], header["count"]
        self._header, self._block_rows, self._given, self._check = header, block_rows, 0, check
        self._blocks = {kind: list(entries) for kind, entries in header["blocks"].items()}
        numbers = (re.search(r"-(\d{5,})\.", name) for name in os.listdir(path))
        self._number = 1 + max((int(found[1]) for found in numbers if found), default=-1)  # no file is written over
        self._form: tuple[int, int, bool] | None = None  # width, bits, whether there are items
        if "width" in header:
            self._form = header["width"], header["bits"], "items" in self._blocks
        self._arrays: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._items: _Items | None = None
        self._filled = 0

    @property
    def extra(self) -> dict:
        """The caller's facts in the header; when appending, as they were when the index was locked."""
        return self._header["extra"]

    def add(
        self,
        embeddings: np.ndarray | None,
        items: Iterable[dict] | None,
        codes: np.ndarray | None = None,
        packed: bool = False,
        stored: bool = False,
    ) -> None:
        """Add rows, in the form of those before. Arguments and errors as in `write`; `stored` as in `Rows`."""
        rows, start = Rows(embeddings, items, codes, packed, stored), 0
        rows.refuse_bad()
        self._refuse_misfit(rows)
        source = None if items is None else iter(items)
        while start < len(rows):
            stop = min(len(rows), start + self._block_rows - self._filled)
            self._take(rows, slice(start, stop), source)
            start = stop
        more = 0 if source is None else sum(1 for _ in source)
        if more:
            raise UserError(f"There are {start} embeddings and {start + more} items; write one item per embedding.")
        self._given += start

    def _refuse_misfit(self, rows: Rows) -> None:
        """Raise `UserError` unless rows have the width, bits and items of those before."""
        form = (rows.width, rows.bits, rows.items is not None)
        self._form = self._form or form
        for name, ours, theirs in zip(("wide", "bits long"), self._form[:2], form[:2], strict=True):
            if ours != theirs:
                raise UserError(
                    f"The rows of {self.path} are {ours} {name} and the new ones {theirs}; "
                    "encode both with the same model."
                )
        if self._form[2] != form[2]:
            raise UserError(
                f"{self.path} {'has' if self._form[2] else 'has no'} items; append rows that do as it does."
            )

    def _take(self, rows: Rows, cut: slice, source: Iterator[dict] | None) -> None:
        """Add the rows of `cut`, which go into one block."""
        size = cut.stop - cut.start
        if rows.embeddings is not None:
            self._arrays["dense"].append(self._stored(rows.embeddings, rows.stored, cut))
        if rows.codes is not None:
            self._arrays["codes"].append(rows.codes[cut] if rows.packed else hash_codes.pack(rows.codes[cut]))
        if source is not None:
            if self._items is None:
                self._check()
                self._items = _Items(self.path, self._number)
            wrote = self._items.take(islice(source, size), self._given + cut.start)
            if wrote != size:
                raise UserError(
                    f"There are {len(rows)} embeddings and {cut.start + wrote} items; write one item per embedding."
                )
        self._filled += size
        self.count += size
        if self._filled == self._block_rows:
            self._end_block()

    def _stored(self, embeddings: np.ndarray, stored: bool, cut: slice) -> np.ndarray:
        """Return the embeddings of `cut` as they are written."""
        if stored:
            return embeddings[cut]
        block = unit_rows(embeddings[cut], self._given + cut.start)
        return as_int8(block) if self._header["dtype"] == "int8" else block

    def _end_block(self) -> None:
        """Write the block that is being filled."""
        self._check()
        for kind, arrays in self._arrays.items():
            if arrays:
                block = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
                self._entries(kind).append(_write_array(self.path / f"{kind}-{self._number:05d}.npy", block))
                arrays.clear()
        if self._items is not None:
            self._entries("items").append(self._items.end())
            self._items = None
        self._number, self._filled = self._number + 1, 0

    def _entries(self, kind: str) -> list[dict]:
        """Return the header's list of files of a kind."""
        return self._blocks.setdefault(kind, [])

    def finish(self) -> None:
        """Write what is left and the header: from here on the rows belong to the index."""
        if self._filled:
            self._end_block()
        if self.count <= self._before or self._form is None:
            raise UserError("There are no records to index; prepare a data set that has some.")
        self._check()
        width, bits, _ = self._form
        order = [kind for kind in (*KINDS, "items") if kind in self._blocks]
        blocks = {"count": self.count, "blocks": {kind: self._blocks[kind] for kind in order}}
        _write_header(self.path, {**self._header, "version": VERSION, "width": width, "bits": bits, **blocks})

    def close(self) -> None:
        """Close the file of an unfinished block."""
        if self._items is not None:
            with contextlib.suppress(OSError):  # a full disk was reported where it was written to
                self._items.file.close()


class _Items:
    """The items of the block being filled, written as they come."""

    def __init__(self, path: pathlib.Path, number: int):
        self.lines = path / f"lines-{number:05d}.npy"
        self.file = open(path / f"items-{number:05d}.jsonl", "wb")
        self.ends: list[int] = []

    def take(self, items: Iterable[dict], first: int) -> int:
        """Write items, numbered from `first` in sentences; return how many there were."""
        before = len(self.ends)
        for number, item in enumerate(items, first):
            line = _line(item, number)
            with wrote(self.file.name):
                self.file.write(line)
            self.ends.append(len(line) + (self.ends[-1] if self.ends else 0))
        return len(self.ends) - before

    def end(self) -> dict:
        """Close the file and return its header entry."""
        with wrote(self.file.name):
            _to_disk(self.file)
            self.file.close()
        entry = _entry(pathlib.Path(self.file.name), len(self.ends))
        return entry | {"lines": _write_array(self.lines, np.array(self.ends, np.int64))}


def _line(item: dict, number: int) -> bytes:
    """Return an item as one line of JSON."""
    try:
        text = json.dumps(item, ensure_ascii=False)
        if mended(text) != text:
            text = json.dumps(item)  # with escapes, for half a surrogate pair
        return f"{text}\n".encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise UserError(f"Item {number} is not JSON ({error}); write numbers, text, lists and objects only.") from error


def _write_array(path: pathlib.Path, array: np.ndarray) -> dict:
    """Write a .npy file and return its header entry."""
    array = np.ascontiguousarray(array)
    with wrote(path), open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)  # `np.save` does not tell why it could not
        _to_disk(file)
    return _entry(path, len(array))


def _entry(path: pathlib.Path, rows: int) -> dict:
    """Return the header entry of a file."""
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": files.sha256(path)}


def _write_header(path: pathlib.Path, header: dict) -> None:
    """Replace the header in one step, when everything it names is on the disk."""
    new = path / f"{HEADER}.new"
    with wrote(new), open(new, "w", encoding="utf-8") as file:
        file.write(json.dumps({**header, "checksum": files.header_sum(header)}, indent=1))
        _to_disk(file)
    with wrote(new), folder.opened(path) as handle:
        os.fsync(handle)  # the names of the blocks too: a power cut must not leave a header without its files
        os.replace(new, path / HEADER)
        os.fsync(handle)


@contextlib.contextmanager
def wrote(path: str | os.PathLike) -> Iterator[None]:
    """Turn an `OSError` of the body, such as that of a full disk, into a `UserError` that names the written path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); the index is as it was: make room, or write "
            "another folder name."
        ) from error


def _to_disk(file: IO) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())
