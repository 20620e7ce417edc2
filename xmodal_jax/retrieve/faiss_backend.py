"""Search an index with faiss on the CPU, exactly: IndexBinaryFlat for codes, IndexFlatIP for embeddings."""

from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search.index import CopiedIndex, Index


def load_faiss() -> Any:
    """Import the faiss package. Raises `UserError` with the command that installs it."""
    try:
        import faiss
    except ImportError:
        raise UserError("faiss is not installed; run pip install -e '.[index]' in the clone of xmodal_jax.") from None
    return faiss


class FaissIndex(CopiedIndex):
    """The rows of an `Index` in faiss, copied to memory at the first search of a kind, a block at a time.

    Distances and cosines are those of the index. Rows of equal distance come in ascending order within the answer, but
    where a tie reaches over the k-th place, which of the tied rows are in it is up to faiss.
    """

    def __init__(self, index: Index):
        super().__init__(index)
        self.faiss = load_faiss()
        self._made: dict[str, Any] = {}

    def _find(self, asked: np.ndarray, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        value, row = self._index(kind).search(np.ascontiguousarray(asked), k)
        return in_order(value if kind == "dense" else value.astype(np.int32), row.astype(np.int64), kind)

    def _index(self, kind: str) -> Any:
        """Return the faiss index of a kind, filled at the first call."""
        if kind not in self._made:
            made = self.faiss.IndexFlatIP(self.width) if kind == "dense" else self.faiss.IndexBinaryFlat(self.bits)
            for rows in self.index.parts(kind):
                made.add(np.ascontiguousarray(rows))
            self._made[kind] = made
        return self._made[kind]


def in_order(value: np.ndarray, row: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Sort answers [q,k] best first, equal values by ascending row."""
    order = np.lexsort((row, -value if kind == "dense" else value), axis=1)
    return np.take_along_axis(value, order, axis=1), np.take_along_axis(row, order, axis=1)
