"""Search in stages, each dearer and better than the one before: Hamming shortlist -> cosine -> the matching head (ITM)."""

import dataclasses
import itertools
import logging
import os
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.image import CorruptImage, eval_image
from xmodal_jax.data.records import CorruptRecord, pictures
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedded, Embedder, PairScorer
from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.eval import rerank
from xmodal_jax.eval.evaluate import Evaluator, ensure_weight
from xmodal_jax.retrieve.build import data_of, kind_in
from xmodal_jax.retrieve.origin import open_set
from xmodal_jax.search.backend import Backend, Hit
from xmodal_jax.search.host import refuse_unsearchable, unit_rows
from xmodal_jax.search.index import Index
from xmodal_jax.types import Params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stages:
    """What a search does: first by `kind`; with `shortlist` N the best N codes are ordered by cosine; with `rerank` K the
    best K of that by the matching head. 0 leaves a stage out."""

    kind: str = "dense"
    shortlist: int = 0
    rerank: int = 0

    def fitted(self, k: int, count: int, rows: str = "rows") -> tuple["Stages", int]:
        """These stages and `k` for `count` rows: no stage takes more than there are, and what is cut is said.

        rows: what a sentence calls them. Raises `UserError` unless every stage takes some of what the one before gives,
        and the last at least `k`.
        """
        refuse_unless(
            self.shortlist == 0 or self.kind == "codes",
            f"--shortlist {self.shortlist} takes the best by hash codes; write --kind codes with it, or leave it out",
        )
        sizes = {"-k": k, "--rerank": self.rerank, "--shortlist": self.shortlist}
        asked = [(name, size) for name, size in sizes.items() if name == "-k" or size != 0]
        for name, size in asked:
            refuse_unless(size >= 1, f"{name} {size} takes nothing of the {count} {rows}; write 1 to {count}")
        for (name, size), (after, wider) in itertools.pairwise(asked):
            refuse_unless(
                min(size, count) <= wider, f"{name} {size} is more than {after} {wider} leaves; write at most {wider}"
            )
        for name, size in asked:
            if size > count:
                log.warning("%s %d is more than the %d %s: all are taken", name, size, count, rows)
        fitted = dataclasses.replace(self, shortlist=min(self.shortlist, count), rerank=min(self.rerank, count))
        return fitted, min(k, count)


def shortlisted(backend: Backend, index: Index, codes: np.ndarray, embed: np.ndarray, shortlist: int,
                k: int) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The `k` best by cosine among the `shortlist` nearest codes.

    Args:
      backend: finds the codes; index: has the embeddings.
      codes: hash values [q,K]; embed: [q,E].

    Returns:
      cosines float32 [q,k] (descending) and rows int64 [q,k]; equal ones by ascending row.
    """
    index.refuse_without("dense")
    refuse_unsearchable(np.atleast_2d(embed), (index.count, index.width), k)
    _, rows = backend.nearest(codes, shortlist, "codes")
    rows = np.sort(rows, axis=1)
    unique, place = np.unique(rows, return_inverse=True)
    vectors = index.vectors_of(unique)[place.reshape(rows.shape)]
    cosine = np.einsum("qe,qse->qs", unit_rows(np.atleast_2d(embed)), vectors)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, order, axis=1), np.take_along_axis(rows, order, axis=1)


def staged(backend: Backend, index: Index, coded: Embedded, stages: Stages, k: int) -> list[Hit]:
    """The hits of one query before the matching head: `stages.rerank` of them where it will look, else `k`."""
    wanted = stages.rerank or k
    if stages.shortlist:
        cosine, rows = shortlisted(backend, index, coded.codes, coded.embed, stages.shortlist, wanted)
        return index.hits(cosine[0], rows[0], "dense")
    found = backend.search(coded.embed if stages.kind == "dense" else coded.codes, wanted, stages.kind)[0]
    if stages.rerank and stages.kind == "codes":  # the matching head is added to cosines
        rows = np.array([hit.row for hit in found])
        cosine = index.vectors_of(rows) @ unit_rows(coded.embed)[0]
        return index.hits(cosine, rows, "dense")
    return found


def refuse_unmatchable(index: Index, params: Params, by_picture: bool) -> None:
    """Raise `UserError` where the matching head cannot take the query with the rows: it takes a picture and a text."""
    refuse_unless("match" in params, f"the run behind {index.path} was not trained to match (ITM); leave out --rerank")
    rows = kind_in(index.extra)
    refuse_unless(
        by_picture == rows["words"] and rows["noun"] in ("pictures", "captions"),
        f"--rerank matches words with pictures, and {index.path} has {rows['noun']}: ask with "
        f"{'--image FILE' if rows['words'] else 'words'}, or leave it out",
    )


def matched(assembly: Assembly, params: Params, index: Index, asked: Embedded, hits: list[Hit], k: int,
            data: str | os.PathLike = "") -> list[Hit]:  # fmt: skip
    """The best `k` of `hits` by the matching head as `config.eval` combines it with the cosine (scores of kind "match").

    `asked` is a text where the rows are pictures, a picture where they are captions. The rows' tokens are computed again,
    those of pictures from the data set that was indexed, which is at `data` where it has moved.

    Raises:
      UserError: an index that does not say where its pictures are, pictures that are gone.
    """
    embedder, ours = Embedder(assembly.model, params), np.arange(len(hits), dtype=np.int32)
    if kind_in(index.extra)["words"]:
        texts = [hit.item["captions"][0] for hit in hits]
        text = embedder.rows("text", assembly.tokenizer.encode(texts, assembly.config.data.length))
        score = PairScorer(assembly.model, params, asked, text)
        itm = np.asarray(score(np.zeros_like(ours), ours), np.float32)
    else:
        image = embedder.rows("image", np.stack(Pictures(assembly, index, data).of(hits)))
        score = PairScorer(assembly.model, params, image, asked)
        itm = np.asarray(score(ours, np.zeros_like(ours)), np.float32)
    how = assembly.config.eval.combine
    weight = ensure_weight(Evaluator(assembly, params), embedder, lambda said: None) if how == "add" else 1.0
    scores = rerank.combined(np.array([[hit.score for hit in hits]], np.float32), itm[None], how, weight)[0]
    best = np.argsort(-scores, kind="stable")[:k]
    return [dataclasses.replace(hits[i], score=float(scores[i]), kind="match") for i in best]


class Pictures:
    """The pictures behind the rows of an index, as the image tower takes them."""

    def __init__(self, assembly: Assembly, index: Index, data: str | os.PathLike = ""):
        self.assembly, self.index, self.data = assembly, index, data
        self._splits: dict[tuple[str, str], Split] = {}

    def of(self, hits: list[Hit]) -> list[np.ndarray]:
        """The picture of each hit."""
        try:
            return [self._one(hit) for hit in hits]
        finally:
            for split in self._splits.values():
                split.close()

    def _one(self, hit: Hit) -> np.ndarray:
        refuse_unless(
            "row" in hit.item and "data" in self.index.extra,
            f"{self.index.path} does not say where its pictures are; make it again with `xmodal index` to use --rerank",
        )
        data, name = hit.item.get("data", self.index.extra["data"]), hit.item["split"]
        if (data, name) not in self._splits:
            place = open_set(self.index, data, self.data)
            self._splits[data, name] = Split(place, name, data_of(self.assembly.config.data, place))
        split, row, key = self._splits[data, name], hit.item["row"], hit.item["key"]
        changed = f"split {name!r} of {data} no longer has {key!r} in row {row}; index it again"
        refuse_unless(row < len(split), changed)
        try:
            record = split.record(row)
            refuse_unless(record["key"] == key and hit.item["view"] in pictures(record), changed)
            return self._as_taken(split, row, record, hit.item["view"])
        except (CorruptRecord, CorruptImage) as error:
            raise UserError(f"row {row} of {data} cannot be read ({error}); prepare the data set again") from error

    def _as_taken(self, split: Split, row: int, record: dict[str, Any], view: str) -> np.ndarray:
        if split.caches:
            return split.tokens(row, view, False)
        return eval_image(split.cfg.image_size)(pictures(record)[view])
