"""A frozen teacher's embeddings of all inputs of a data set, such as pictures and captions, stored beside it.

They are `DIR/embeddings/<name>/<split>-*.arrayrecord`; row i belongs to record i. A row is {"width": E, medium: {view
or language: [bytes, ...]}}, the bytes being [E] of the card's dtype, captions in the record's order.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.card import Card
from xmodal_jax.data.records import PICTURES, WORDS, CorruptRecord, open_records
from xmodal_jax.errors import UserError

FOLDER = "embeddings"
Stored = Callable[[dict[str, list[bytes]], Any], bytes]  # the method `stored` of a reader
Pick = tuple[str, Stored, Any]  # medium, how its reader finds a choice, the choice


class Embeddings:
    """The embeddings `name` of one split, for batches.

    Raises `UserError` for a name that the card does not have, for a view or language that was not embedded, and if the
    number of rows is not the split's number of records.
    """

    def __init__(
        self, folder: pathlib.Path, card: Card, name: str, split: str, views: Sequence[str], languages: Sequence[str]
    ):
        entry = card.embedding(name)
        self.media = tuple(entry["media"])
        for what, medium, asked in (("views", PICTURES, views), ("languages", WORDS, languages)):
            missing = [one for one in asked if one not in entry[what] and medium in self.media]
            if missing:
                raise UserError(
                    f"config.data.embeddings: {name!r} of {folder} has no {missing[:1]}; write config.data.{what} with "
                    f"some of {', '.join(entry[what])}, or embed the data set again under another name."
                )
        self.name, self.width, self._dtype = name, entry["width"], entry["dtype"]
        self._rows = open_records(folder / FOLDER / name, split)
        count = card.split(split)["records"]
        if len(self._rows) != count:
            raise UserError(
                f"embeddings {name!r} of {folder} have {len(self._rows)} rows for {count} records; write them again."
            )

    def vectors(self, row: int, picks: dict[str, Pick]) -> dict[str, np.ndarray]:
        """Return unit embeddings float32 [E] of a row, by the names of `picks`; zeros if nothing was chosen.

        Raises `CorruptRecord`.
        """
        try:
            found = self._rows[row]
            return {
                name: np.zeros(self.width, np.float32) if choice is None else self._unit(stored(found[medium], choice))
                for name, (medium, stored, choice) in picks.items()
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            chosen = {name: choice for name, (*_, choice) in picks.items()}
            raise CorruptRecord(f"row {row} of embeddings {self.name!r} has no vector of {chosen} ({error})") from error

    def _unit(self, data: bytes) -> np.ndarray:
        """Decode a stored vector and normalise it: float16 rounds, and a distillation loss needs cosines."""
        vector = np.frombuffer(data, self._dtype).reshape(self.width).astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def close(self) -> None:
        """Close all files."""
        self._rows.close()
