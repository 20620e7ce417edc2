"""Search by one interface: an index folder, the devices of a mesh, faiss or Milvus behind it."""

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search import codes
from xmodal_jax.search.files import KINDS
from xmodal_jax.search.hits import Hit, Hits
from xmodal_jax.search.numpy_engine import refuse_unsearchable, unit_rows


class Backend:
    """A searchable set of rows. Subclasses have the attributes and `_find`.

    Attributes: name (what a message calls it), width (E, 0 without embeddings), bits (K, 0 without codes), count (n).
    """

    name: str
    width: int
    bits: int
    count: int

    def __len__(self) -> int:
        return self.count

    def item(self, row: int) -> dict:
        """Return the item of record `row`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close connections; nothing by default."""

    def _find(self, asked: np.ndarray, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` best rows for checked queries: unit rows float32 [q,E], or packed codes uint8 [q,K/8]."""
        raise NotImplementedError

    def nearest(self, query: np.ndarray, k: int, kind: str = "dense") -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` best rows for each query.

        Args:
          query: "dense": embeddings [q,E] or [E]; "codes": hash values [q,K] or [K] of any real type (signs are taken).
          k: at most `count`.
          kind: "dense" or "codes".

        Returns:
          Cosines float32 [q,k] (descending) or distances int32 [q,k] (ascending), and rows int64 [q,k]. Equal values
          come by ascending row; two equal rows have equal distances everywhere and equal cosines with the NumPy engine
          (on a device a product's last bits may depend on where a row stands).

        Raises:
          UserError: an unknown kind, an index without it, a query of another width, k outside 1..count.
        """
        self.refuse_without(kind)
        query = np.atleast_2d(np.asarray(query))
        refuse_unsearchable(query, (self.count, self.width if kind == "dense" else self.bits), k)
        if len(query) == 0:
            return np.zeros((0, k), np.float32 if kind == "dense" else np.int32), np.zeros((0, k), np.int64)
        return self._find(unit_rows(query) if kind == "dense" else codes.pack(query), k, kind)

    def refuse_without(self, kind: str) -> None:
        """Raise `UserError` for an unknown kind, or one that the rows do not have."""
        if kind not in KINDS:
            raise UserError(f'kind = "{kind}" is not a kind of search; write "dense" or "codes".')
        has, other = (self.width, "codes") if kind == "dense" else (self.bits, "dense")
        what = "embeddings" if kind == "dense" else "hash codes"
        if has <= 0:
            raise UserError(f"The index {self.name} has no {what}; search kind={other}, or index again.")

    def search(self, query: np.ndarray, k: int = 10, kind: str = "dense") -> list[Hits]:
        """Find the `k` best rows as `nearest`; return one list of hits per query, best first."""
        values, rows = self.nearest(query, k, kind)
        return [self.hits(value, row, kind) for value, row in zip(values, rows, strict=True)]

    def hits(self, values: np.ndarray, rows: np.ndarray, kind: str) -> Hits:
        """Return one hit per score and row."""
        found = zip(values.tolist(), rows.tolist(), strict=True)
        return Hits(Hit(row, float(value), self.item(row), kind) for value, row in found)
