"""A search index: a folder of embeddings, hash codes and one JSON line per record; exact search over it.

    index.json            version, model fingerprint, width, bits, count, extra, and per block: file, rows, sha256
    dense-00000.npy       float32 [rows, E], unit length
    codes-00000.npy       uint8 [rows, K/8]; absent when the model has no hash head
    items.jsonl           row i describes record i: whatever the caller wants back with a hit

Written beside its final place and renamed, so a half-written index never has the right name; opened memory-mapped,
and every block is checked against its sha256 first.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.search import codes as hash_codes
from xmodal_jax.search import dense, hamming, topk

VERSION = 1
HEADER = "index.json"
ITEMS = "items.jsonl"
FIELDS = {"version", "model", "width", "bits", "count", "items", "blocks"}
KINDS = ("dense", "codes")
BLOCK_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Hit:
    """One answer. score: cosine ("dense", more is better) or Hamming distance in bits ("codes", less is better)."""

    row: int
    score: float
    item: dict
    kind: str = "dense"


def fingerprint(params) -> str:
    """16 hex digits that change when any parameter does: ties an index to the model that can query it."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_block(folder: pathlib.Path, kind: str, number: int, array: np.ndarray) -> dict:
    name = f"{kind}-{number:05d}.npy"
    np.save(folder / name, array)
    return {"file": name, "rows": len(array), "sha256": _sha256(folder / name)}


def _write_items(folder: pathlib.Path, items: Iterable[dict]) -> dict:
    rows = 0
    with open(folder / ITEMS, "w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
            rows += 1
    return {"file": ITEMS, "rows": rows, "sha256": _sha256(folder / ITEMS)}


def write(
    path: str | os.PathLike,
    embeddings: np.ndarray,
    items: Iterable[dict],
    codes: np.ndarray | None = None,
    model: str = "",
    block_rows: int = BLOCK_ROWS,
    overwrite: bool = False,
    extra: dict | None = None,
) -> pathlib.Path:
    """Write an index folder in one piece: it appears whole or not at all.

    Args:
      path: the folder to make.
      embeddings: [n,E]; normalised here, a block at a time (a memory map is fine).
      items: n JSON objects, given back with the hits.
      codes: hash values [n,K] (signs are taken), or None.
      model: `fingerprint` of the parameters that made the rows.
      block_rows: rows per file.
      overwrite: replace an index that is already at `path`.
      extra: facts of the caller's own to keep in the header (JSON), such as where the model lies.

    Raises:
      UserError: no rows, rows that do not match, K not a multiple of 8, embeddings that are not finite, something
        else (or, without `overwrite`, anything) at `path`.
    """
    path, count = pathlib.Path(path), len(embeddings)
    _refuse_bad_rows(embeddings, codes)
    refuse_taken(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        items_entry = _write_items(folder, items)
        refuse_unless(
            items_entry["rows"] == count,
            f"There are {count} embeddings and {items_entry['rows']} items; write one item per embedding.",
        )
        cuts = [slice(start, start + block_rows) for start in range(0, count, block_rows)]
        blocks = {
            "dense": [_write_block(folder, "dense", i, dense.unit_rows(embeddings[cut])) for i, cut in enumerate(cuts)]
        }
        if codes is not None:
            blocks["codes"] = [
                _write_block(folder, "codes", i, hash_codes.pack(codes[cut])) for i, cut in enumerate(cuts)
            ]
        bits = 0 if codes is None else codes.shape[1]
        header = {"version": VERSION, "model": model, "width": embeddings.shape[1], "bits": bits, "count": count}
        header["extra"] = extra or {}
        (folder / HEADER).write_text(json.dumps({**header, "items": items_entry, "blocks": blocks}, indent=1))
        folder.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def _refuse_bad_rows(embeddings: np.ndarray, codes: np.ndarray | None) -> None:
    refuse_unless(embeddings.ndim == 2, f"Embeddings have {embeddings.ndim} axes; write one row per record, [n, E].")
    refuse_unless(len(embeddings) > 0, "There are no records to index; prepare a data set that has some.")
    if codes is None:
        return
    refuse_unless(
        len(codes) == len(embeddings),
        f"There are {len(embeddings)} embeddings and {len(codes)} codes; write one code per embedding.",
    )
    hash_codes.refuse_bad_bits(codes.shape[1])


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


class Index:
    """An opened index. `Index.open(path)`, then `search` (hits with their items) or `nearest` (arrays).

    Attributes: path, model (fingerprint), width (E), bits (K, 0 without codes), count (n), extra (as `write` got it).
    """

    def __init__(self, path: pathlib.Path, header: dict):
        self.path = path
        self.model, self.width, self.bits, self.count = (header[name] for name in ("model", "width", "bits", "count"))
        self.extra: dict = header.get("extra", {})
        self._blocks = {kind: [_open_block(path, entry) for entry in header["blocks"].get(kind, [])] for kind in KINDS}
        self._resident: dict[str, list[topk.Resident]] = {}
        self._items = np.memmap(path / header["items"]["file"], np.uint8, "r")
        self._line_ends = np.flatnonzero(self._items == ord("\n"))

    @classmethod
    def open(cls, path: str | os.PathLike, model: str | None = None, verify: bool = True) -> "Index":
        """Open the folder at `path`, memory-mapped.

        Args:
          path: what `write` made.
          model: the `fingerprint` of the model that will ask; another one than the index's is refused.
          verify: compare every file with its sha256.

        Raises:
          UserError: not an index, another version, a missing, torn or changed file (by name), another model.
        """
        path = pathlib.Path(path)
        header = _read_header(path)
        entries = [header["items"], *(entry for block in header["blocks"].values() for entry in block)]
        for entry in entries:
            _refuse_damaged(path / entry["file"], entry["sha256"] if verify else None)
        opened = cls(path, header)
        if model is not None:
            opened.refuse_other_model(model)
        return opened

    def refuse_other_model(self, model: str) -> None:
        """Raise `UserError` unless `model` is the `fingerprint` of the parameters that made the rows."""
        refuse_unless(
            model == self.model,
            f"The index {self.path} was made by model {self.model} and is asked by model {model}; "
            "index again with the checkpoint you search with.",
        )

    def __len__(self) -> int:
        return self.count

    def item(self, row: int) -> dict:
        """What `write` was told about record `row`."""
        start = 0 if row == 0 else self._line_ends[row - 1] + 1
        return json.loads(self._items[start : self._line_ends[row]].tobytes())

    def vectors(self, kind: str = "dense") -> np.ndarray:
        """All rows in memory: float32 [n,E], or codes uint8 [n,K/8]."""
        return np.concatenate(self._blocks[kind])

    def nearest(self, query: np.ndarray, k: int, kind: str = "dense") -> tuple[np.ndarray, np.ndarray]:
        """The `k` best rows of each query.

        Args:
          query: "dense": embeddings [q,E] or [E]; "codes": hash values [q,K] or [K] of any real type (signs are taken).
          k: at most `count`.
          kind: "dense" or "codes".

        Returns:
          cosines float32 [q,k] (descending) or distances int32 [q,k] (ascending), and rows int32 [q,k]; ties by row.

        Raises:
          UserError: an unknown kind, an index without codes, a query of another width, k outside 1..count.
        """
        refuse_unless(kind in KINDS, f'kind = "{kind}" is not a kind of search; write "dense" or "codes".')
        refuse_unless(
            bool(self._blocks[kind]), f"The index {self.path} has no hash codes; search kind=dense, or index again."
        )
        query = np.atleast_2d(np.asarray(query))
        topk.refuse_unsearchable(query, (self.count, self.width if kind == "dense" else self.bits), k)
        asked = dense.unit_rows(query) if kind == "dense" else hash_codes.pack(query)
        return self._search_blocks(asked, k, kind)

    def _search_blocks(self, asked: np.ndarray, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        engine = {"dense": dense, "codes": hamming}[kind]
        values, rows, start = [], [], 0
        for block in self._on_device(kind):
            value, row = engine.resident_topk(asked, block, min(k, block.count))
            values.append(value if kind == "dense" else -value)
            rows.append(row + np.int32(start))
            start += block.count
        value, row = topk.merge_topk(values, rows, k)
        return (value, row) if kind == "dense" else (-value, row)

    def _on_device(self, kind: str) -> list[topk.Resident]:
        """Blocks stay on the device after the first search."""
        if kind not in self._resident:
            engine = {"dense": dense, "codes": hamming}[kind]
            self._resident[kind] = [engine.resident(block) for block in self._blocks[kind]]
        return self._resident[kind]

    def search(self, query: np.ndarray, k: int = 10, kind: str = "dense") -> list[list[Hit]]:
        """As `nearest`, as one list of hits per query, best first."""
        values, rows = self.nearest(query, k, kind)
        return [self._hits(value, row, kind) for value, row in zip(values, rows, strict=True)]

    def _hits(self, values: Sequence[float], rows: Sequence[int], kind: str) -> list[Hit]:
        return [Hit(int(row), float(value), self.item(int(row)), kind) for value, row in zip(values, rows, strict=True)]


def _read_header(path: pathlib.Path) -> dict:
    refuse_unless(
        (path / HEADER).exists(), f"{path} is not an index (no {HEADER} in it); make one with `xmodal index`."
    )
    try:
        header = json.loads((path / HEADER).read_text())
    except ValueError:
        header = None
    whole = isinstance(header, dict) and header.keys() >= FIELDS
    refuse_unless(whole, f"{path / HEADER} is damaged; index again.")
    version = header["version"]
    refuse_unless(
        version == VERSION, f"{path} is an index of version {version}, this program reads {VERSION}; index again."
    )
    return header


def _refuse_damaged(path: pathlib.Path, sha256: str | None) -> None:
    refuse_unless(path.exists(), f"{path} is missing from its index; index again.")
    refuse_unless(sha256 is None or _sha256(path) == sha256, f"{path} is torn or was changed; index again.")


def _open_block(path: pathlib.Path, entry: dict) -> np.ndarray:
    try:
        return np.load(path / entry["file"], mmap_mode="r")
    except ValueError:
        raise UserError(f"{path / entry['file']} is torn; index again.") from None
