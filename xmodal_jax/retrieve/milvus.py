"""Search an index in Milvus, for more rows than one machine holds: on a server, or in a local file.

`fill` copies an `Index` into two collections, NAME_codes (BINARY_VECTOR, HAMMING, BIN_FLAT) and NAME_dense
(FLOAT_VECTOR, COSINE, FLAT); the primary key is the row. A fill that was stopped goes on where it stopped: rows are
upserted in order, so all rows from the number that are there are missing. A collection's description has the id of the
index, which stays when the index grows and changes when it is replaced; another index is refused.
"""

import contextlib
import logging
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.retrieve.faiss_backend import in_order
from xmodal_jax.search.files import KINDS
from xmodal_jax.search.index import CopiedIndex, Index

COLLECTION = "xmodal"
BATCH = 1000  # rows of one call
FIELD = "vector"
CONNECT_SECONDS = 60  # a local file starts a process, which takes its time on a busy machine
MOST_K = 16384  # the server's limit of one search
LOCAL_NAME = re.compile(r"[A-Za-z0-9._-]{1,33}\.db")  # what milvus-lite takes
NOT_OPENED = "Open local milvus failed"  # started at the same time as another process that has the file now
SQLITE = b"SQLite format 3\0"
STRONG = "Strong"  # a search sees everything written before it


def load_milvus() -> Any:
    """Import the pymilvus package. Raises `UserError` with the command that installs it."""
    try:
        import pymilvus  # pyright: ignore[reportMissingImports]  # the extra `index`
    except ImportError:
        raise UserError(
            "pymilvus is not installed; run pip install -e '.[index]' in the clone of xmodal_jax."
        ) from None
    return pymilvus


def refuse_bad_uri(uri: str) -> None:
    """Raise `UserError` for neither a server's address nor a file that milvus-lite can open."""
    if "://" in uri:
        _refuse_bad_address(uri)
        return
    path = pathlib.Path(uri).resolve()  # as milvus-lite opens it
    if LOCAL_NAME.fullmatch(path.name) is None:
        raise UserError(
            f"uri '{uri}' is no address and no name that milvus-lite takes; write http://HOST:19530, or a file name "
            "of at most 36 letters, digits and . _ - that ends in .db"
        )
    if not path.parent.is_dir():
        raise UserError(f"uri '{uri}': there is no folder '{path.parent}'; make it, or write another path")
    if path.is_dir():
        raise UserError(f"uri '{uri}' is a folder; write the path of a .db file")
    if path.exists():
        with open(path, "rb") as file:
            start = file.read(len(SQLITE))
        if start not in (b"", SQLITE):
            raise UserError(f"uri '{uri}' is a file that Milvus did not write; write another file name")
    holder = _holder(path.with_name(f".{path.name}.lock"))
    if holder not in (0, os.getpid()):
        raise UserError(_in_use(uri, f" ({holder})"))


def _refuse_bad_address(uri: str) -> None:
    """Raise `UserError` for an address that no server can have."""
    try:
        address = urllib.parse.urlsplit(uri)
        good = address.scheme in ("http", "https", "tcp", "unix") and (address.port or 1) > 0
    except ValueError:  # such as a port that is no number
        good = False
    if not good or not address.hostname and not address.path:
        raise UserError(f"uri '{uri}' is no address of a server; write http://HOST:19530, or a .db file")


def _in_use(uri: str, who: str = "") -> str:
    """Return the sentence about a file that another process holds."""
    return f"uri '{uri}' is open in another process{who}; wait until it ends, or write another .db file"


def _holder(lock: pathlib.Path) -> int:
    """Return the process that holds a lock on a file, 0 for none and on systems other than Linux.

    The file is not opened: to close it again would end a lock that this process has.
    """
    try:
        inode = lock.stat().st_ino
        held = [line.split() for line in pathlib.Path("/proc/locks").read_text("utf-8", "replace").splitlines()]
    except OSError:
        return 0
    return next((int(own[4]) for own in held if "->" not in own and own[5].split(":")[-1] == str(inode)), 0)


@contextlib.contextmanager
def _milvus_lite_quiet() -> Iterator[None]:
    """Drop the lines that milvus-lite writes to the root logger beside its exceptions."""
    root, other = logging.getLogger(), lambda record: "milvus_lite" not in record.pathname
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


class MilvusIndex(CopiedIndex):
    """The rows of `index` in Milvus.

    Args:
      index: has the items, and the rows that `fill` copies.
      uri: a server, as "http://localhost:19530", or a path that ends in .db (milvus-lite).
      name: starts the names of the collections; one for each index.
      token: "user:password" or an API key for a server that wants one.

    Equal distances come by ascending row within an answer; where a tie reaches over the k-th place, Milvus chooses.
    """

    def __init__(self, index: Index, uri: str, name: str = COLLECTION, token: str = ""):
        self.milvus = load_milvus()
        if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) is None:
            raise UserError(f"'{name}' cannot name a Milvus collection; write letters, digits and _ only.")
        super().__init__(index)
        self.uri, self.name, self.collection = uri, f"{name} at {uri}", name
        refuse_bad_uri(uri)
        also = (OSError, ValueError, RuntimeError)
        with _milvus_lite_quiet(), self._asking("cannot be reached", "write its address, or a .db file", also):
            self.client = self.milvus.MilvusClient(uri=uri, token=token, timeout=CONNECT_SECONDS)

    @contextlib.contextmanager
    def _asking(
        self, what: str = "did not answer", then: str = "see that it runs, and start again", also: tuple = ()
    ) -> Iterator[None]:
        """Turn an error of the server, or on the way to it, into one sentence with its address."""
        try:
            yield
        except (self.milvus.MilvusException, *also) as error:
            message = getattr(error, "message", "") or str(error)
            if message == NOT_OPENED:
                raise UserError(_in_use(self.uri, ", or cannot be read")) from error
            raise UserError(f"Milvus at {self.uri} {what} ({message}); {then}.") from error

    def close(self) -> None:
        """Close the connection."""
        with self._asking():
            self.client.close()

    def fill(self, batch: int = BATCH) -> dict[str, int]:
        """Copy the missing rows of the index, none twice; return {kind: rows written now}.

        Raises:
          UserError: a collection of that name holds rows of another index, or more rows than the index; the server
            does not answer.
        """
        with self._asking():
            return {kind: self._fill(kind, batch) for kind in KINDS if (self.width if kind == "dense" else self.bits)}

    def rows_in(self, kind: str) -> int:
        """Return the number of rows in the collection of a kind, 0 where there is none."""
        name = self._collection(kind)
        with self._asking():
            if not self.client.has_collection(name):
                return 0
            found = self.client.query(name, filter="", output_fields=["count(*)"], consistency_level=STRONG)
            return int(found[0]["count(*)"])

    def _collection(self, kind: str) -> str:
        """Return the name of the collection of a kind."""
        return f"{self.collection}_{kind}"

    def _fill(self, kind: str, batch: int) -> int:
        """Copy the missing rows of a kind; return how many."""
        name = self._collection(kind)
        self._ensure(name, kind)
        there = self.rows_in(kind)
        if there > self.count:
            raise UserError(
                f"{name} at {self.uri} has {there} rows and {self.index.name} {self.count}; write another collection "
                "name."
            )
        for start in range(there, self.count, batch):
            rows = np.arange(start, min(start + batch, self.count))
            vectors = self.index.vectors_of(rows, kind)
            values = vectors if kind == "dense" else [code.tobytes() for code in vectors]
            self.client.upsert(name, [{"id": int(i), FIELD: value} for i, value in zip(rows, values, strict=True)])
        if there < self.count:
            self.client.flush(name)
        return self.count - there

    def _ensure(self, name: str, kind: str) -> None:
        """Create the collection, or refuse one that holds something else."""
        told = f"xmodal {self.index.model} {kind} {self.width if kind == 'dense' else self.bits} {self.index.id}"
        if self.client.has_collection(name):
            found = self.client.describe_collection(name).get("description", "")
            if found != told:
                raise UserError(
                    f"{name} at {self.uri} holds '{found}' and the index is '{told}'; write another collection name "
                    "or drop it."
                )
            return
        types = self.milvus.DataType
        schema = self.milvus.MilvusClient.create_schema(description=told)
        schema.add_field("id", types.INT64, is_primary=True)
        dim = self.width if kind == "dense" else self.bits
        schema.add_field(FIELD, types.FLOAT_VECTOR if kind == "dense" else types.BINARY_VECTOR, dim=dim)
        params = self.milvus.MilvusClient.prepare_index_params()
        how = ("FLAT", "COSINE") if kind == "dense" else ("BIN_FLAT", "HAMMING")
        params.add_index(FIELD, index_type=how[0], metric_type=how[1])
        self.client.create_collection(name, schema=schema, index_params=params, consistency_level=STRONG)

    def _find(self, asked: np.ndarray, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        name, there = self._collection(kind), self.rows_in(kind)
        if there != self.count:
            raise UserError(f"{name} at {self.uri} has {there} of the {self.count} rows; call fill() first.")
        if k > MOST_K:
            raise UserError(f"k = {k} is more than Milvus gives; write at most {MOST_K}.")
        data = list(asked) if kind == "dense" else [code.tobytes() for code in asked]
        metric = "COSINE" if kind == "dense" else "HAMMING"
        with self._asking():
            found = self.client.search(
                name, data, anns_field=FIELD, limit=k, search_params={"metric_type": metric}, consistency_level=STRONG
            )
        value = np.array([[hit["distance"] for hit in hits] for hits in found], np.float32)
        row = np.array([[hit["id"] for hit in hits] for hits in found], np.int64)
        return in_order(value if kind == "dense" else value.astype(np.int32), row, kind)
