"""The answers of a search, which a notebook shows as cards."""

import base64
import dataclasses
from html import escape
from typing import SupportsIndex, overload

FRAME = "width:9rem;margin:0;font:12px/1.35 system-ui,sans-serif;overflow-wrap:anywhere"
PICTURE = "width:100%;aspect-ratio:1;object-fit:contain;background:#fff;border:1px solid #8886;border-radius:4px"
ROW = "display:flex;flex-wrap:wrap;gap:.75rem"


@dataclasses.dataclass(frozen=True)
class Hit:
    """One answer.

    Its score is a cosine ("dense") or the pair score ("match"), where more is better, or a Hamming distance in bits
    ("codes"), where less is better.
    """

    row: int
    score: float
    item: dict
    kind: str = "dense"

    def __repr__(self) -> str:
        return f"<Hit {self.score_text} {self.key!r} {self.caption!r}>"

    @property
    def key(self) -> str:
        """The key of the record, "" in an index without keys."""
        return str(self.item.get("key", ""))

    @property
    def caption(self) -> str:
        """The first caption of the record, "" where it has none."""
        return str(next(iter(self.item.get("captions") or []), ""))

    @property
    def score_text(self) -> str:
        """The score for people: a cosine, a pair score, or a number of bits."""
        return f"{self.score:.0f} bits" if self.kind == "codes" else f"{self.score:.3f}"

    def _repr_html_(self) -> str:
        """Return a card with the thumbnail, the score, the key and the first caption."""
        url = _thumbnail_url(self.item.get("thumbnail"))
        picture = f'<img style="{PICTURE}" src="{url}" alt="{escape(self.caption)}">' if url else ""
        words = f"<b>{escape(self.score_text)}</b> {escape(self.key)}<br>{escape(self.caption)}"
        return f'<figure style="{FRAME}">{picture}<figcaption>{words}</figcaption></figure>'


class Hits(list[Hit]):
    """The answers to one query, best first; a slice of them is shown as all are."""

    def __repr__(self) -> str:
        return "\n".join(f"{rank}. {hit.score_text}  {hit.key}  {hit.caption}" for rank, hit in enumerate(self, 1))

    @overload
    def __getitem__(self, place: SupportsIndex) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> "Hits": ...

    def __getitem__(self, place: SupportsIndex | slice) -> "Hit | Hits":
        return Hits(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)

    def _repr_html_(self) -> str:
        """Return the cards of all hits, side by side."""
        return f'<div style="{ROW}">{"".join(hit._repr_html_() for hit in self)}</div>'


def _thumbnail_url(thumbnail: object) -> str:
    """Return a data: URI of a thumbnail in base64, "" where it is no picture."""
    from xmodal_jax.drawing import data_url

    try:
        return data_url(base64.b64decode(str(thumbnail), validate=True))
    except ValueError:  # no base64, or a picture that cannot be read
        return ""
