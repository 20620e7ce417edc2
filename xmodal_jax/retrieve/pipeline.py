"""Search in stages, each dearer and better than the last: Hamming shortlist -> cosine -> the matching head (ITM)."""

import dataclasses
import itertools
import logging
import numbers
import os
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.image import CorruptImage
from xmodal_jax.data.readers import Reader, Row, readers_of
from xmodal_jax.data.records import CorruptRecord
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedded, Embedder, PairScorer
from xmodal_jax.errors import UserError
from xmodal_jax.eval import rerank
from xmodal_jax.eval.evaluate import Evaluator, ensure_weight
from xmodal_jax.models.pair_score import ScorerConfig
from xmodal_jax.retrieve.build import data_of, kind_in
from xmodal_jax.retrieve.origin import open_set
from xmodal_jax.search.backend import Backend
from xmodal_jax.search.hits import Hit, Hits
from xmodal_jax.search.index import Index
from xmodal_jax.search.numpy_engine import refuse_unsearchable, unit_rows
from xmodal_jax.types import Params

log = logging.getLogger(__name__)

HITS = 10  # that a search gives where nobody says how many


@dataclasses.dataclass(frozen=True)
class SearchPipeline:
    """The stages of a search; 0 leaves one out.

    Rows are found by `kind`; with `shortlist` N the best N codes are ordered by cosine; with `rerank` K the matching
    head orders the best K of that.
    """

    kind: str = "dense"
    shortlist: int = 0
    rerank: int = 0

    def _usual(self, count: int) -> int:
        """Return how many hits a search of `count` rows gives where nobody says it: 10, or what its stages leave."""
        sizes = (count, self.rerank, self.shortlist)
        return min([HITS, *(size for size in sizes if isinstance(size, numbers.Integral) and size > 0)])

    def fitted(self, k: int | None, count: int, rows: str = "rows") -> tuple["SearchPipeline", int]:
        """Return the stages and `k` for `count` rows, with a warning where a stage takes more than there are.

        Without a `k` it is 10, or what there is. `rows` is their name in a sentence. Raises `UserError` unless every
        stage takes some of the rows that the one before gives, and the last at least `k`.
        """
        if self.shortlist != 0 and self.kind != "codes":
            raise UserError(
                f"shortlist {self.shortlist} takes the best by hash codes; write kind 'codes' with it, or leave it out"
            )
        k = self._usual(count) if k is None else k
        sizes = {"k": k, "rerank": self.rerank, "shortlist": self.shortlist}
        asked = [(name, size) for name, size in sizes.items() if name == "k" or size != 0]
        for name, size in asked:
            if not isinstance(size, numbers.Integral):
                raise UserError(f"{name} is {size!r}; write a whole number")
            if size < 1:
                raise UserError(f"{name} {size} takes nothing of the {count} {rows}; write 1 to {count}")
        for (name, size), (after, wider) in itertools.pairwise(asked):
            if min(size, count) > wider:
                raise UserError(f"{name} {size} is more than {after} {wider} leaves; write at most {wider}")
        for name, size in asked:
            if size > count:
                log.warning("%s %d is more than the %d %s: all are taken", name, size, count, rows)
        fitted = dataclasses.replace(self, shortlist=min(self.shortlist, count), rerank=min(self.rerank, count))
        return fitted, min(k, count)


def shortlisted(
    backend: Backend, index: Index, codes: np.ndarray, embed: np.ndarray, shortlist: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` best by cosine among the `shortlist` nearest codes.

    Args:
      backend: finds the codes; index: has the embeddings.
      codes: hash values [q,K]; embed: [q,E].

    Returns:
      Cosines float32 [q,k] (descending) and rows int64 [q,k]; equal ones by ascending row.
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


def staged(backend: Backend, index: Index, coded: Embedded, stages: SearchPipeline, k: int) -> list[Hits]:
    """Return the hits of each query before the matching head: `stages.rerank` of them if it will look, else `k`."""
    wanted = stages.rerank or k
    if stages.kind == "dense":
        return backend.search(coded.embed, wanted, "dense")
    if coded.codes is None:
        raise UserError(f"the queries have no hash codes for {index.path}; write kind 'dense'")
    if stages.shortlist:
        cosines, rows = shortlisted(backend, index, coded.codes, coded.embed, stages.shortlist, wanted)
    elif stages.rerank:  # the matching head is added to cosines, here in the order of the codes
        _, rows = backend.nearest(coded.codes, wanted, "codes")
        vectors = index.vectors_of(rows.reshape(-1)).reshape(*rows.shape, -1)
        cosines = np.einsum("qe,qke->qk", unit_rows(coded.embed), vectors)
    else:
        return backend.search(coded.codes, wanted, "codes")
    return [index.hits(*own, "dense") for own in zip(cosines, rows, strict=True)]


def refuse_unmatchable(index: Index, assembly: Assembly, params: Params, asked: str) -> None:
    """Raise `UserError` where the run's scorer cannot take inputs of the field `asked` with the rows of the index."""
    rows, scorer = kind_in(index.extra), scorer_of(assembly)
    if scorer.part not in params:
        raise UserError(f"the run behind {index.path} was not trained to score pairs (ITM); leave out 'rerank'")
    if not scored_order(assembly, rows["field"], asked):
        raise UserError(
            f"rerank scores words with pictures, or what config.scorer serves, and {index.path} has {rows['noun']}: "
            f"ask with {'a picture' if rows['words'] else 'words'}, or leave it out"
        )


def scorer_of(assembly: Assembly) -> ScorerConfig:
    """Return the config's pair scorer."""
    scorer: Any = assembly.config.scorer  # a dict only until the config is frozen
    return scorer


def scored_order(assembly: Assembly, one: str, two: str) -> tuple[str, str] | None:
    """Return the two fields in an order that `config.scorer` serves, an evaluated pair first; None for neither."""
    config, orders = assembly.config, ((one, two), (two, one))
    picture, words = config.fusion.pair

    def served_by(pair: tuple[str, str]) -> bool:
        first, second = (config.data.fields[field].encoder for field in pair)
        return scorer_of(assembly).serves((first, second), (picture, words))

    served = [pair for pair in orders if served_by(pair)]
    return min(served, key=lambda pair: pair not in config.eval.pairs, default=None)


def pair_weight(assembly: Assembly, params: Params) -> float:
    """Return the weight of the pair score beside the cosine, 1 where `config.eval.rerank_score` adds none."""
    if assembly.config.eval.rerank_score != "add":
        return 1.0
    return ensure_weight(Evaluator(assembly, params), Embedder(assembly.model, params), lambda said: None)


def matched(
    assembly: Assembly,
    params: Params,
    inputs: "RowInputs",
    asked: tuple[str, Embedded],
    hits: Hits,
    k: int,
    weight: float,
) -> Hits:
    """Return the best `k` of `hits` by the pair score as `config.eval` combines it with the cosine (kind "match").

    `asked`: the field of the query and its encoding. The rows' tokens are computed again from `inputs`.

    Raises:
      UserError: an index that does not say where its records are, records that are gone.
    """
    embedder, ours = Embedder(assembly.model, params), np.arange(len(hits), dtype=np.int32)
    field, query = inputs.field, asked[1]
    rows = embedder.rows(assembly.config.data.fields[field].encoder, inputs.of(hits))
    first = scored_order(assembly, field, asked[0]) == (field, asked[0])
    score = PairScorer(assembly.model, params, *((rows, query) if first else (query, rows)))
    pairs = (ours, np.zeros_like(ours))
    itm = np.asarray(score(*(pairs if first else pairs[::-1])), np.float32)
    cosines = np.array([[hit.score for hit in hits]], np.float32)
    scores = rerank.combined(cosines, itm[None], assembly.config.eval.rerank_score, weight)[0]
    best = np.argsort(-scores, kind="stable")[:k]
    return Hits(dataclasses.replace(hits[i], score=float(scores[i]), kind="match") for i in best.tolist())


class RowInputs:
    """The inputs of an index's rows, as their encoder takes them: captions from the index, others from its data set.

    `data`: the data set, if it has moved.
    """

    def __init__(self, assembly: Assembly, index: Index, data: str | os.PathLike = ""):
        self.assembly, self.index, self.data = assembly, index, data
        self.field = kind_in(index.extra)["field"]
        self._readers: dict[tuple[str, str], Reader] = {}  # of each split

    def of(self, hits: list[Hit]) -> np.ndarray:
        """Read the input of each hit, stacked."""
        spec = self.assembly.specs[self.assembly.config.data.fields[self.field].encoder]
        if kind_in(self.index.extra)["words"] and spec.tokenizer is not None:
            return spec.ids([hit.item["captions"][0] for hit in hits])
        try:
            return np.stack([self._one(hit) for hit in hits])
        finally:
            for reader in self._readers.values():
                reader.split.close()
            self._readers.clear()

    def _one(self, hit: Hit) -> np.ndarray:
        """Read the input of one hit."""
        if "row" not in hit.item or "data" not in self.index.extra:
            raise UserError(f"{self.index.path} does not say where its records are; index again to re-rank")
        data, name = hit.item.get("data", self.index.extra["data"]), hit.item["split"]
        if (data, name) not in self._readers:
            place = open_set(self.index, data, self.data)
            split = Split(place, name, data_of(self.assembly.config.data, place))
            self._readers[data, name] = readers_of(split, self.assembly.specs)[self.field]
        reader, row, view = self._readers[data, name], hit.item["row"], hit.item["view"]
        known = (
            row < len(reader.split) and reader.split.sidecar.keys[row] == hit.item["key"] and row in reader.rows(view)
        )
        if not known:
            raise UserError(f"split {name!r} of {data} no longer has {hit.item['key']!r} in row {row}; index it again")
        try:
            found = Row(reader.split, row)
            return reader.plain(found, reader.chosen(found, view))
        except (CorruptRecord, CorruptImage) as error:
            raise UserError(f"row {row} of {data} cannot be read ({error}); prepare the data set again") from error
