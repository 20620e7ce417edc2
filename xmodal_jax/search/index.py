"""Open a search index on disk, memory-mapped, and search it exactly, on the device or with NumPy alone."""

import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search import files, numpy_engine
from xmodal_jax.search.backend import Backend

ENGINES = ("jax", "numpy")
KEPT_BYTES = 8 << 30  # of blocks that stay on the device; later ones are put there again at each search
DENSE_BYTES = 1 << 28  # of embeddings in one program
CODE_ROWS = 1 << 22
TRIES = 20  # to open an index that others replace


def fingerprint(params: dict[str, Any]) -> str:
    """Return 16 hex digits that change when any parameter does: they tie an index to the model that can query it."""
    import jax  # here, so that an index opens without it

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


class Index(Backend):
    """An opened index. `Index.open(path)`, then `search` (hits with their items) or `nearest` (arrays).

    Rows and items stay those that were opened, whatever happens at `path` afterwards. Files are memory-mapped, at most
    4 for a block; the system limits mappings (65,530 in a process on Linux).

    Attributes: path, id (stays with the rows when others are appended, changes when the index is replaced), model
    (fingerprint), width (E), bits (K), dtype (of the embeddings on disk), count (n), total (rows in the header; more
    than `count` in a prefix), damage (the sentence about the first bad file, or ""), extra (as `write` got it).
    """

    def __init__(self, path: pathlib.Path, header: dict, count: int, damage: str = "", engine: str = "jax"):
        self.path, self.name, self.engine = path, str(path), engine
        self.id, self.model, self.dtype = (header[name] for name in ("id", "model", "dtype"))
        self.width, self.bits = header["width"], header["bits"]
        self.count, self.total, self.damage = count, header["count"], damage
        self.extra: dict = header["extra"]
        files.allow_open(len(files.named_files(header)), path)
        forms = {"dense": (self.width, self.dtype), "codes": (self.bits // 8, "uint8")}
        self._blocks = {kind: self._opened(header["blocks"].get(kind, []), *form) for kind, form in forms.items()}
        items = list(self._within(header["blocks"].get("items", [])))
        self._starts = [start for start, _, _ in items]
        self._lines = [files.Lines(path, entry) for _, _, entry in items]
        self._resident: dict[tuple[str, int], tuple] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        model: str | None = None,
        verify: bool = True,
        prefix: bool = False,
        engine: str = "jax",
        again: bool = False,
    ) -> "Index":
        """Open the folder at `path`, memory-mapped.

        Args:
          path: made by `writer.write`.
          model: the `fingerprint` of the model that will ask; another one than the index's is refused.
          verify: compare each file with its sha256 unless that was done before and the file was not touched since (see
            `files`). Without it only sizes are compared.
          prefix: open the rows before the first damaged file instead of refusing it.
          engine: "jax" searches on the device; "numpy" on the host, without jax.
          again: compare the files that were compared before, too.

        Raises:
          UserError: not an index, another version, a missing, torn or changed file (by name), another model.
        """
        path = pathlib.Path(path)
        if engine not in ENGINES:
            raise UserError(f'engine = "{engine}" does not search; write "jax" or "numpy".')
        for _ in range(TRIES):
            header, found, failure = files.read_header(path), None, None
            try:
                found = cls._open(path, header, verify, prefix, engine, again)
            except (UserError, FileNotFoundError) as error:
                failure = error
            if found is not None and not found.damage:
                break
            if files.read_header(path) == header:  # else a writer has deleted files: see the header that it wrote
                break
        else:
            raise UserError(f"{path} is replaced all the time; open it when that is over.")
        if found is None:
            raise failure or UserError(f"{path} cannot be opened; index again.")
        if model is not None:
            found.refuse_other_model(model)
        return found

    @classmethod
    def _open(cls, path: pathlib.Path, header: dict, verify: bool, prefix: bool, engine: str, again: bool) -> "Index":
        """Open the files that a header names."""
        count, damage = files.usable(path, header, verify, again)
        if damage and (not prefix or count <= 0):
            raise UserError(damage)
        return cls(path, header, count, damage, engine)

    def _within(self, entries: list[dict]) -> Iterator[tuple[int, int, dict]]:
        """Yield (first row, rows, entry) of the files that hold usable rows."""
        start = 0
        for entry in entries:
            if start >= self.count:
                return
            yield start, min(entry["rows"], self.count - start), entry
            start += entry["rows"]

    def _opened(self, entries: list[dict], width: int, dtype: str) -> list[np.ndarray]:
        """Map the blocks of a kind as far as their rows are usable."""
        return [files.open_array(self.path, entry, width, dtype)[:rows] for _, rows, entry in self._within(entries)]

    def refuse_other_model(self, model: str) -> None:
        """Raise `UserError` unless `model` is the `fingerprint` of the parameters that made the rows."""
        if model != self.model:
            raise UserError(
                f"The index {self.path} was made by model {self.model} and is asked by model {model}; "
                "index again with the checkpoint you search with."
            )

    def item(self, row: int) -> dict:
        """Return the item of record `row` as it was written; {} in an index without items.

        Raises UserError for a row that is not there.
        """
        if not 0 <= row < self.count:
            raise UserError(f"Row {row} is not one of the {self.count} rows of {self.name}.")
        if not self._lines:
            return {}
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._lines[number][row - self._starts[number]]

    def blocks(self, kind: str = "dense") -> list[np.ndarray]:
        """Return the memory-mapped blocks: [rows,E] as stored, or codes uint8 [rows,K/8]."""
        self.refuse_without(kind)
        return self._blocks[kind]

    def parts(self, kind: str = "dense") -> Iterator[np.ndarray]:
        """Iterate over the blocks: float32 [rows,E] of unit length, or codes uint8 [rows,K/8]."""
        return map(_floats, self.blocks(kind))

    def vectors(self, kind: str = "dense") -> np.ndarray:
        """Read all rows into memory: float32 [n,E], or codes uint8 [n,K/8]."""
        return np.concatenate(list(self.parts(kind)))

    def vectors_of(self, rows: np.ndarray, kind: str = "dense") -> np.ndarray:
        """Read some rows [m] into memory, in the order asked: float32 [m,E], or codes uint8 [m,K/8]."""
        return _floats(self.stored(rows, kind))

    def stored(self, rows: np.ndarray, kind: str = "dense") -> np.ndarray:
        """Read some rows [m] into memory, in the type that they have on disk."""
        blocks, rows = self.blocks(kind), np.asarray(rows)
        starts = np.cumsum([0, *(len(block) for block in blocks)])
        found = np.empty((len(rows), blocks[0].shape[1]), blocks[0].dtype)
        number = np.searchsorted(starts, rows, side="right") - 1
        for i in np.unique(number):
            found[number == i] = blocks[i][rows[number == i] - starts[i]]
        return found

    def _find(self, asked: np.ndarray, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        values, rows, start = [], [], 0
        engine = self._on_host if self.engine == "numpy" else self._on_device
        for number, group in enumerate(self._groups(kind)):
            size = sum(len(block) for block in group)
            value, row = engine(asked, min(k, size), kind, number, group)
            values.append(value if kind == "dense" else -value)
            rows.append(row.astype(np.int64) + start)
            start += size
        value, row = numpy_engine.merge_topk(values, rows, k)
        numpy_engine.refuse_spoiled(value, self.name)
        return (value, row) if kind == "dense" else (-value, row)

    def _groups(self, kind: str) -> Iterator[list[np.ndarray]]:
        """Yield groups of consecutive blocks, each searched by one program."""
        limit = CODE_ROWS if kind == "codes" else max(1, DENSE_BYTES // (4 * self.width))
        group, size = [], 0
        for block in self._blocks[kind]:
            if group and size + len(block) > limit:
                yield group
                group, size = [], 0
            group.append(block)
            size += len(block)
        yield group

    def _on_host(self, asked: np.ndarray, k: int, kind: str, _: int, group: list) -> tuple[np.ndarray, np.ndarray]:
        """Search one group of blocks with NumPy."""
        rows = group[0] if len(group) == 1 else np.concatenate(group)
        return (
            numpy_engine.dense_topk(asked, _floats(rows), k)
            if kind == "dense"
            else numpy_engine.hamming_topk(asked, rows, k)
        )

    def _on_device(
        self, asked: np.ndarray, k: int, kind: str, number: int, group: list
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search one group of blocks on the device, where it stays if there is room."""
        from xmodal_jax.search import dense, hamming

        engine = {"dense": dense, "codes": hamming}[kind]
        found = self._resident.get((kind, number))
        if found is None:
            found = engine.resident(_floats(np.concatenate(group)))
            if sum(kept[0].nbytes for kept in self._resident.values()) + found[0].nbytes <= KEPT_BYTES:
                self._resident[kind, number] = found
        return engine.resident_topk(asked, found, k)


class CopiedIndex(Backend):
    """The rows of an `Index` held elsewhere, such as on the devices of a mesh; sizes and items are the index's."""

    def __init__(self, index: Index):
        self.index, self.name = index, index.name
        self.width, self.bits, self.count = index.width, index.bits, index.count

    def item(self, row: int) -> dict:
        """Return the item of record `row`."""
        return self.index.item(row)


def _floats(rows: np.ndarray) -> np.ndarray:
    """Return stored rows as they are searched: an int8 row stands for itself divided by its length."""
    return numpy_engine.unit_rows(rows) if rows.dtype == np.int8 else rows
