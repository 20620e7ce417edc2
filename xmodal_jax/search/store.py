"""The files of a search index: a folder of embeddings, hash codes and one JSON line per record, written so that a crash
at any point leaves the rows that were there.

    index.json            version, model fingerprint, width, bits, dtype, count, extra, blocks, checksum of all that
    dense-00000.npy       float32 [rows, E] of unit length, or int8 (see `as_int8`); absent in an index of codes alone
    codes-00000.npy       uint8 [rows, K/8]; absent when the model has no hash head
    items-00000.jsonl     line i describes the block's record i; absent when nobody wants anything back with a hit

Blocks of all kinds are cut at the same rows; the header has the rows and the sha256 of each. A new index is written
beside its final place and renamed. `append` writes new blocks and then replaces the header in one step: until then the
new files belong to nothing, and the next append writes over them.

Version 1 had one items.jsonl, no dtype and no checksum of the header; it is still read, and an append makes it 2.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.search import codes as hash_codes
from xmodal_jax.search.host import unit_rows

VERSION = 2
READS = (1, 2)
HEADER = "index.json"
FIELDS = {"version", "model", "width", "bits", "count", "blocks"}
KINDS = ("dense", "codes")
DTYPES = ("float32", "int8")
BLOCK_ROWS = 1 << 16


def as_int8(rows: np.ndarray) -> np.ndarray:
    """Unit rows [n,E] as int8, each scaled so that its largest value is 127.

    The scale is not kept: rows have length 1, so what an int8 row stands for is that row over its own length.
    """
    largest = np.abs(rows).max(axis=1, keepdims=True)
    return np.rint(rows * (127 / np.maximum(largest, np.finfo(np.float32).tiny))).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What one call writes. embeddings [n,E] or None, codes hash values [n,K] or bytes (`packed`) or None, items or None."""

    embeddings: np.ndarray | None
    items: Iterable[dict] | None
    codes: np.ndarray | None
    packed: bool = False

    def __len__(self) -> int:
        return len(self.codes if self.embeddings is None else self.embeddings)

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
        refuse_unless(bool(given), "There are neither embeddings nor codes to index; write at least one of them.")
        for rows, name, width in ((self.embeddings, "Embeddings", "E"), (self.codes, "Codes", "K")):
            refuse_unless(
                rows is None or rows.ndim == 2,
                f"{name} have {0 if rows is None else rows.ndim} axes; write one row per record, [n, {width}].",
            )
        refuse_unless(len(self) > 0, "There are no records to index; prepare a data set that has some.")
        refuse_unless(
            len(given[0]) == len(given[-1]),
            f"There are {len(given[0])} embeddings and {len(given[-1])} codes; write one code per embedding.",
        )
        if self.codes is not None:
            hash_codes.refuse_bad_bits(self.bits)
        refuse_unless(
            not self.packed or self.codes.dtype == np.uint8,
            f"Packed codes are bytes and these are {getattr(self.codes, 'dtype', None)}; write uint8 [n, K/8].",
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
    """Write an index folder in one piece: it appears whole or not at all.

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
      UserError: no rows, rows that do not match, K not a multiple of 8, embeddings that are not finite, an unknown
        dtype, something else (or, without `overwrite`, anything) at `path`.
    """
    path, rows = pathlib.Path(path), Rows(embeddings, items, codes, packed)
    rows.refuse_bad()
    refuse_unless(
        dtype in DTYPES, f'dtype = "{dtype}" is not a type of stored embeddings; write {" or ".join(DTYPES)}.'
    )
    refuse_taken(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        header = {"version": VERSION, "model": model, "width": rows.width, "bits": rows.bits, "dtype": dtype}
        blocks = _write_blocks(folder, rows, dtype, block_rows)
        _write_header(folder, {**header, "count": len(rows), "extra": extra or {}, "blocks": blocks})
        folder.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def append(
    path: str | os.PathLike,
    embeddings: np.ndarray | None,
    items: Iterable[dict] | None,
    codes: np.ndarray | None = None,
    model: str = "",
    block_rows: int = BLOCK_ROWS,
    packed: bool = False,
) -> int:
    """Add rows behind those of the index at `path`; its blocks stay as they are. Arguments as in `write`.

    Stopped at any point before the end, the index is what it was.

    Returns:
      The number of rows now.

    Raises:
      UserError: as `write`; rows of another width, number of bits or model, with or without codes, embeddings or items
        where the index is the other way; somebody else is appending.
    """
    path, rows = pathlib.Path(path), Rows(embeddings, items, codes, packed)
    rows.refuse_bad()
    header = read_header(path)
    with _alone(path):
        header = read_header(path)  # again: it may have grown while the lock was another's
        _refuse_misfit(path, header, rows, model)
        blocks = _write_blocks(path, rows, header["dtype"], block_rows, _next_number(header))
        joined = {kind: header["blocks"].get(kind, []) + blocks.get(kind, []) for kind in (*KINDS, "items")}
        blocks = {kind: entries for kind, entries in joined.items() if entries}
        count = header["count"] + len(rows)
        _write_header(path, {**header, "version": VERSION, "count": count, "blocks": blocks})
    return count


def _refuse_misfit(path: pathlib.Path, header: dict, rows: Rows, model: str) -> None:
    for name, ours, theirs in (("wide", header["width"], rows.width), ("bits long", header["bits"], rows.bits)):
        refuse_unless(
            ours == theirs,
            f"The rows of {path} are {ours} {name} and the new ones {theirs}; encode both with the same model.",
        )
    refuse_unless(
        model == header["model"],
        f"The index {path} was made by model {header['model'] or '(none)'} and the new rows by {model or '(none)'}; "
        "encode both with the same checkpoint.",
    )
    kept = "items" in header["blocks"]
    refuse_unless(
        kept == (rows.items is not None), f"{path} {'has' if kept else 'has no'} items; append rows that do as it does."
    )


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """One writer at a time: a lock on the folder, which ends with the process."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{path} is being appended to by another process; wait until it is done.") from None
    finally:
        os.close(handle)


def _next_number(header: dict) -> int:
    return max(len(header["blocks"].get(kind, [])) for kind in (*KINDS, "items"))


def _write_blocks(folder: pathlib.Path, rows: Rows, dtype: str, block_rows: int, number: int = 0) -> dict[str, list]:
    """The files of all blocks, numbered from `number`: their header entries by kind."""
    blocks: dict[str, list] = {kind: [] for kind in (*KINDS, "items")}
    items = None if rows.items is None else iter(rows.items)
    count = len(rows)
    for start in range(0, count, block_rows):
        cut = slice(start, min(start + block_rows, count))
        if rows.embeddings is not None:
            block = unit_rows(rows.embeddings[cut])
            block = as_int8(block) if dtype == "int8" else block
            blocks["dense"].append(_write_array(folder / f"dense-{number:05d}.npy", block))
        if rows.codes is not None:
            block = np.ascontiguousarray(rows.codes[cut]) if rows.packed else hash_codes.pack(rows.codes[cut])
            blocks["codes"].append(_write_array(folder / f"codes-{number:05d}.npy", block))
        if items is not None:
            blocks["items"].append(_write_items(folder / f"items-{number:05d}.jsonl", items, cut.stop - cut.start))
            refuse_unless(
                blocks["items"][-1]["rows"] == cut.stop - cut.start,
                f"There are {count} embeddings and {start + blocks['items'][-1]['rows']} items; "
                "write one item per embedding.",
            )
        number += 1
    more = 0 if items is None else sum(1 for _ in items)
    refuse_unless(more == 0, f"There are {count} embeddings and {count + more} items; write one item per embedding.")
    return {kind: entries for kind, entries in blocks.items() if entries}


def _write_array(path: pathlib.Path, array: np.ndarray) -> dict:
    with open(path, "wb") as file:
        np.save(file, array)
        _to_disk(file)
    return {"file": path.name, "rows": len(array), "sha256": _sha256(path)}


def _write_items(path: pathlib.Path, items: Iterator[dict], count: int) -> dict:
    rows = 0
    with open(path, "w", encoding="utf-8") as file:
        for item in islice(items, count):
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
            rows += 1
        _to_disk(file)
    return {"file": path.name, "rows": rows, "sha256": _sha256(path)}


def _write_header(folder: pathlib.Path, header: dict) -> None:
    """Replace the header in one step, when everything it names is on the disk."""
    header = {name: value for name, value in header.items() if name != "checksum"}
    new = folder / f"{HEADER}.new"
    with open(new, "w", encoding="utf-8") as file:
        file.write(json.dumps({**header, "checksum": _header_sum(header)}, indent=1))
        _to_disk(file)
    os.replace(new, folder / HEADER)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _header_sum(header: dict) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_taken(path: pathlib.Path, overwrite: bool) -> None:
    """Raise `UserError` when `path` is not free: something else is there, or an index and no `overwrite`."""
    if not path.exists():
        return
    refuse_unless((path / HEADER).exists(), f"{path} exists and is not an index; write another folder name.")
    refuse_unless(overwrite, f"{path} already holds an index; write another folder name, or pass --overwrite.")


def _move_into_place(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Rename `folder` to `path`; an index already there steps aside first and is deleted afterwards."""
    aside = folder.with_name(folder.name + ".old")
    if path.exists():
        path.rename(aside)
    folder.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def read_header(path: pathlib.Path) -> dict:
    """The header of the index at `path`, as version 2 has it.

    Raises:
      UserError: not an index, a damaged header, another version.
    """
    refuse_unless(
        (path / HEADER).exists(), f"{path} is not an index (no {HEADER} in it); make one with `xmodal index`."
    )
    try:
        header = json.loads((path / HEADER).read_text())
    except ValueError:
        header = None
    damaged = f"{path / HEADER} is damaged; index again."
    refuse_unless(isinstance(header, dict) and header.keys() >= FIELDS, damaged)
    version = header["version"]
    refuse_unless(
        version in READS, f"{path} is an index of version {version}, this program reads 1 and 2; index again."
    )
    if version == 1:
        refuse_unless("items" in header, damaged)
        blocks = {**header["blocks"], "items": [header["items"]]}
        return (
            {"dtype": "float32", "extra": {}} | {k: v for k, v in header.items() if k != "items"} | {"blocks": blocks}
        )
    told = header.pop("checksum", None)
    refuse_unless(told == _header_sum(header), damaged)
    return header


def damage(path: pathlib.Path, entry: dict, verify: bool) -> str:
    """What is wrong with one file of an index: a sentence, "" when nothing is. `verify` compares its sha256."""
    file = path / entry["file"]
    if not file.exists():
        return f"{file} is missing from its index; index again, or open the rows before it with --prefix."
    if verify and _sha256(file) != entry["sha256"]:
        return f"{file} is torn or was changed; index again, or open the rows before it with --prefix."
    return ""


def usable(path: pathlib.Path, header: dict, verify: bool = True) -> tuple[int, str]:
    """Rows before the first damaged file of any kind, and the sentence about that file ("" when all are whole)."""
    count, said = header["count"], ""
    for entries in header["blocks"].values():
        start = 0
        for entry in entries:
            if start >= count:
                break
            found = damage(path, entry, verify)
            if found:
                count, said = start, found
            start += entry["rows"]
    return count, said


def open_array(path: pathlib.Path, entry: dict) -> np.ndarray:
    """One block, memory-mapped. Raises `UserError` where it is torn."""
    try:
        array = np.load(path / entry["file"], mmap_mode="r")
    except (ValueError, EOFError, OSError):
        array = None
    whole = array is not None and len(array) == entry["rows"]
    refuse_unless(whole, f"{path / entry['file']} is torn; index again, or open the rows before it with --prefix.")
    return array
