"""Retrieve in two stages: contrastive embeddings make a shortlist, and the matching head re-ranks it.

ALBEF (Li et al., 2021) lets the matching score replace the contrastive one, BLIP (Li et al., 2022) adds the two.
Their score is the logit l1 of "a match"; here it is the log-odds l1 - l0, and a weight scales it before it is added
to the cosine.

All cut-offs k come from one scoring pass at the largest: the candidates of k=16 are the first 16 columns of k=64. Items
outside the shortlist keep their contrastive order behind it. Of items that tie at its end those of the lower rows are
in it; later ties, inside or behind, are in random order as everywhere (`retrieval`).
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from xmodal_jax.data.progress import Progress
from xmodal_jax.errors import UserError
from xmodal_jax.eval import retrieval

COMBINE = ("add", "replace")
WEIGHTS = (0.0, 0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0)
Score = Callable[[np.ndarray, np.ndarray], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """The k best candidates of each query by contrastive score, and what is known about them.

    rows: int32 [n,k] gallery rows, best first; itc: float32 [n,k] their contrastive scores; relevant: bool [n,k];
    places: standing of the best positive in the whole gallery (contrastive); itm: float32 [n,k] matching logits once
    scored, and seconds: {k: wall time until the first k columns were scored}.
    """

    rows: np.ndarray
    itc: np.ndarray
    relevant: np.ndarray
    places: retrieval.Places
    itm: np.ndarray | None = None
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)


def shortlist(
    query: np.ndarray, gallery: np.ndarray, positives: np.ndarray, k: int, chunk: int | None = None
) -> Shortlist:
    """Rank by the first stage: the `k` best of [m,E] for each of [n,E]; positives int [n,P] as in `retrieval.recall`.

    Raises:
      UserError: k larger than the gallery, or as `retrieval.places`.
    """
    found = retrieval.places(query, gallery, positives, chunk)
    scores, rows = retrieval.topk(query, gallery, k)
    relevant = np.stack([np.isin(row, right) for row, right in zip(rows, positives, strict=True)])
    return Shortlist(rows, scores, relevant, found)


def _score_columns(score: Score, candidates: Shortlist, columns: slice, images_ask: bool, block: int) -> np.ndarray:
    """Score some columns of a shortlist in blocks of one shape: float32 [n,c]."""
    rows = candidates.rows[:, columns]
    asks = np.repeat(np.arange(len(rows), dtype=np.int32), rows.shape[1])
    image, text = (asks, rows.ravel()) if images_ask else (rows.ravel(), asks)
    title = f"pair score, {'first' if images_ask else 'second'} field asks, {columns.start + 1} to {columns.stop}"
    return score_pairs(score, image, text, block, title).reshape(rows.shape)


def score_pairs(score: Score, image: np.ndarray, text: np.ndarray, block: int = 256, title: str = "") -> np.ndarray:
    """Score the pairs (image [n], text [n]) in blocks of `block` pairs: float32 [n]; a `title` shows the progress.

    A scorer with `lengths` of the texts gets pairs of similar length together, because it pads a block to its
    longest text.
    """
    lengths = getattr(score, "lengths", None)
    order = np.arange(len(text)) if lengths is None else np.argsort(lengths[text], kind="stable")
    blocks = retrieval.query_blocks([image[order], text[order]], block)
    if title:
        blocks = Progress(blocks, title, "pairs", len(text), size=lambda own: own[0], late=True)
    # dispatch everything before reading anything back: the device never waits for the host
    parts = [(real, score(images, texts)) for real, (images, texts) in blocks]
    found = np.empty(len(text), np.float32)
    found[order] = np.concatenate([np.asarray(part, np.float32)[:real] for real, part in parts])
    return found


def compile_lengths(score: Score, image: int, texts: np.ndarray, block: int) -> None:
    """Score one block at each length of the texts int [n], so that no compilation is timed later."""
    lengths = getattr(score, "lengths", None)
    rows = texts[:1] if lengths is None else texts[np.unique(lengths[texts], return_index=True)[1]]
    seen = set()
    for row in rows:
        one = np.full(block, row, np.int32)
        length = None if lengths is None else score.length_of(one)
        if length not in seen:
            seen.add(length)
            np.asarray(score(np.full(block, image, np.int32), one))


def score_shortlist(
    score: Score, candidates: Shortlist, images_ask: bool, ks: Sequence[int] | None = None, block: int = 256
) -> Shortlist:
    """Score the second stage: the matching logits of every candidate, in blocks of `block` pairs of one compiled shape.

    Args:
      score: (image_rows int32 [b], text_rows int32 [b]) -> logits float32 [b], more = a better match. Jit it with the
        token arrays [rows,N,D] as arguments: closed over, they become constants of the program.
      candidates: from `shortlist`.
      images_ask: True when the queries are images and the gallery texts.
      ks: cut-offs at which to note the time; the columns between two of them are scored together.
      block: pairs per call.

    Returns:
      The shortlist with `itm` and `seconds` (compilation not counted).
    """
    count, width = candidates.rows.shape
    ks = sorted(set(ks or [width]) | {width})
    texts = np.unique(candidates.rows) if images_ask else np.arange(count)
    compile_lengths(score, 0, texts.astype(np.int32), block)
    begin, previous, columns, seconds = time.perf_counter(), 0, [], {}
    for k in ks:
        columns.append(_score_columns(score, candidates, slice(previous, k), images_ask, block))
        previous, seconds[k] = k, time.perf_counter() - begin
    return dataclasses.replace(candidates, itm=np.concatenate(columns, axis=1), seconds=seconds)


def combined(itc: np.ndarray, itm: np.ndarray, combine: str, weight: float) -> np.ndarray:
    """Combine the scores [n,k] of the second stage: `itm` ("replace") or itc + weight * itm ("add").

    Raises:
      UserError: another word, or logits that are not finite.
    """
    if combine not in COMBINE:
        raise UserError(f'combine = "{combine}" is not a way to re-rank; write "add" or "replace".')
    if not np.isfinite(itm).all():
        raise UserError("The matching logits are not finite: the model has diverged.")
    return itm if combine == "replace" else itc + np.float32(weight) * itm


def reranked(candidates: Shortlist, k: int, combine: str = "add", weight: float = 1.0) -> retrieval.Places:
    """Find where the best relevant item of each query stands after re-ranking the first `k` candidates.

    Raises:
      UserError: k larger than the shortlist, an unscored shortlist, or as `combined`.
    """
    width = candidates.rows.shape[1]
    if not 1 <= k <= width:
        raise UserError(f"k = {k} does not fit a shortlist of {width}; write k between 1 and {width}.")
    if candidates.itm is None:
        raise UserError("The shortlist has no matching scores; call score_shortlist first.")
    scores = combined(candidates.itc[:, :k], candidates.itm[:, :k], combine, weight)
    relevant = candidates.relevant[:, :k]
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    equal = scores == best
    inside = (scores > best).sum(1), equal.sum(1), (equal & relevant).sum(1)
    behind, got_in = _places_behind(candidates.places, k), relevant.any(axis=1)
    return retrieval.Places(*(np.where(got_in, *both) for both in zip(inside, behind, strict=True)))


def _places_behind(found: retrieval.Places, k: int) -> retrieval.Places:
    """Return the places of queries whose positives all missed the shortlist.

    Items that tie with the best positive and got into the shortlist stand before it.
    """
    got_in = np.clip(k - found.above, 0, found.tied - found.relevant)
    return retrieval.Places(found.above + got_in, found.tied - got_in, found.relevant)


def rerank(
    score: Score,
    image: np.ndarray,
    text: np.ndarray,
    image_to_text: np.ndarray,
    text_to_image: np.ndarray,
    ks: Sequence[int] = (16, 64),
    combine: str = "add",
    weight: float = 1.0,
    recall_ks: Sequence[int] = (1, 5, 10),
    block: int = 256,
) -> dict[int, dict[str, object]]:
    """Re-rank retrieval in both directions for several shortlist lengths, from one scoring pass per direction.

    Args:
      score: pair scorer as in `score_shortlist`.
      image: contrastive embeddings [n,E].
      text: contrastive embeddings [m,E].
      image_to_text: positives int [n,P], -1 padded.
      text_to_image: positives int [m,P'], -1 padded.
      ks: lengths of the shortlist; 0 is the contrastive result alone.
      combine: as in `combined`.
      weight: as in `combined`.
      recall_ks: the k of R@k.
      block: pairs per call of `score`.

    Returns:
      {k: `retrieval.summary` with "seconds" (both directions, scoring only) and "pairs" scored; with "add" also
        "alone", the summary of the matching score by itself}.

    Raises:
      UserError: a k larger than either gallery, or as `retrieval.recall` and `combined`.
    """
    smaller = min(len(image), len(text))
    retrieval.refuse_large_k(recall_ks, smaller)
    if not all(0 <= k <= smaller for k in ks):
        raise UserError(
            f"A shortlist of {', '.join(map(str, ks))} does not fit a gallery of {smaller}; write at most {smaller}."
        )
    longest = max(ks)
    sides = [shortlist(image, text, image_to_text, longest), shortlist(text, image, text_to_image, longest)]
    sides = [score_shortlist(score, side, i == 0, list(filter(None, ks)), block) for i, side in enumerate(sides)]
    return {k: _summary_at(sides, k, combine, weight, recall_ks) for k in ks}


def fitting(ks: Sequence[int], gallery: int) -> tuple[int, ...]:
    """Cut lengths of shortlists to a gallery of this many items, ascending, each once."""
    return tuple(sorted({min(k, gallery) for k in ks}))


def _summary_at(
    sides: list[Shortlist], k: int, combine: str, weight: float, recall_ks: Sequence[int]
) -> dict[str, object]:
    """Summarise both scored directions at one shortlist length."""

    def recalls(one: retrieval.Places, two: retrieval.Places) -> dict[str, object]:
        i2t, t2i = (retrieval.recall_of_places(own, recall_ks) for own in (one, two))
        return retrieval.summary(i2t, t2i)

    table = recalls(*(reranked(side, k, combine, weight) if k else side.places for side in sides))
    if k and combine == "add":
        table["alone"] = recalls(*(reranked(side, k, "replace") for side in sides))
    seconds = sum(side.seconds.get(k, 0.0) for side in sides)
    return {**table, "seconds": seconds, "pairs": k * sum(len(side.rows) for side in sides)}


def choose_weight(
    sides: Sequence[Shortlist], weights: Sequence[float] = WEIGHTS, recall_ks: Sequence[int] = (1, 5, 10)
) -> tuple[float, dict[float, float]]:
    """Choose the weight of "add" with the highest mean R@k over scored shortlists. Give it training data only.

    Equal recalls (a training set is often saturated) are settled by the mean reciprocal of the expected rank, then the
    smaller weight.

    Returns:
      The weight and {weight: mR} for the record.
    """
    table = {}
    for weight in weights:
        found = [reranked(side, side.rows.shape[1], "add", weight) for side in sides]
        recalls = [100.0 * np.mean(own.hits(k)) for own in found for k in recall_ks]
        table[weight] = (float(np.mean(recalls)), float(np.mean([np.mean(1 / own.ranks()) for own in found])))
    best = max(weights, key=lambda weight: (*table[weight], -weight))
    return best, {weight: value[0] for weight, value in table.items()}
