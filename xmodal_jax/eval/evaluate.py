"""Evaluate a run: retrieval by embeddings, re-ranked by the pair score, by codes, and MAP if there are labels."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.checks import refuse_few_pictures, refuse_unfit_evaluation
from xmodal_jax.data.card import Card, ceiling
from xmodal_jax.data.columns import Texts
from xmodal_jax.data.evaluation import EvalSplit, eval_split
from xmodal_jax.data.readers import has_views
from xmodal_jax.data.split import Split
from xmodal_jax.data.text import cut
from xmodal_jax.encode.apply import apply
from xmodal_jax.encode.embed import Embedded, Embedder, PairScorer, scorer_of
from xmodal_jax.encode.token_cache import token_caches
from xmodal_jax.errors import UserError
from xmodal_jax.eval import code_tables, folds, languages, rerank, retrieval
from xmodal_jax.eval.folds import mean_tables
from xmodal_jax.eval.hashing import Labelled
from xmodal_jax.origin import refuse_trained, trained_languages
from xmodal_jax.search.numpy_engine import unit_rows
from xmodal_jax.settings import EvalConfig, as_dict
from xmodal_jax.types import Params

TRAIN_RECORDS = 1000  # of the training split, to choose the weight of the ITM score on


@dataclass(frozen=True)
class Evaluator:
    """Weights of a run, and how to encode and open splits with them."""

    assembly: Assembly
    params: Params
    poll: Callable[[], None] = lambda: None

    @property
    def embedder(self) -> Embedder:
        """The encoders on these weights."""
        return Embedder(self.assembly.model, self.params, self.poll, token_caches(self.assembly, self.params, False))

    def views(self, name: str, pair: tuple[str, str] | None = None) -> tuple[str, ...]:
        """Return the views of a split that the config evaluates a pair of fields in; ("",) for a pair without views.

        `pair` defaults to the config's first, and the config's views to the first of the split.
        """
        data, pair = self.assembly.config.eval_data, pair or self.assembly.config.eval.pairs[0]
        refuse_unfit_evaluation(self.assembly.config, Card.load(data.path))
        if not any(has_views(data.fields, field) for field in pair):
            return ("",)
        split = Split(data.path, name, data)
        split.close()
        if not split.views:
            raise UserError(f"config.eval.pairs has {pair}, and the data set '{data.path}' has no pictures")
        return split.views

    def open(self, name: str, view: str, right: str = "", pair: tuple[str, str] | None = None) -> EvalSplit:
        """Open one view of a split for a pair of fields (default: the config's first).

        `right` overrides `config.eval.relevance`.
        """
        config = self.assembly.config
        pair = pair or config.eval.pairs[0]
        found = eval_split(config.data.path, name, self.assembly.specs, config.eval_data, view, pair)
        return dataclasses.replace(found, own=(right or config.eval.relevance) == "own")


def evaluate(
    assembly: Assembly,
    params: Params,
    split: str = "",
    quick: bool = False,
    say: Callable[[str], None] = lambda _: None,
    poll: Callable[[], None] = lambda: None,
    allow_trained: bool = False,
) -> dict[str, Any]:
    """Compute all tables of one split.

    Args:
      assembly: the run.
      params: its weights.
      split: name of the split (default: the config's).
      quick: leave out re-ranking, codes, labels and all pairs but the first (for use while training).
      say: hears what is under way.
      poll: called before each block that is encoded; an exception it raises aborts the evaluation.
      allow_trained: evaluate even records that the run was trained on (`origin.refuse_trained`).

    Returns:
      {"split", "data", "languages", "scorer": name of the pair score, "rerank_score", "weight", "relevance", "gallery",
        "rerank": the lengths asked for, "folds": (how many, of how many records)} and the tables of `pair_tables` of
        the first of `config.eval.pairs`; under "pairs" those of the others, {"depth-text": tables}.
    """
    config = assembly.config
    split = split or config.data.eval_split
    origin = refuse_trained(assembly.origin, config.data.path, split, allow_trained)
    work = _Work(Evaluator(assembly, params, poll), split, quick, say)
    result = {"split": split, "data": config.data.path, "languages": list(config.eval_data.languages)}
    result |= {"scorer": scorer_of(config).noun}
    result |= {"rerank_score": config.eval.rerank_score, "weight": work.weight, "relevance": config.eval.relevance}
    result |= {"gallery": list(config.eval.gallery), "rerank": list(work.ks)}
    result |= {"folds": [config.eval.folds, config.eval.fold_pictures]} | origin
    first, *others = config.eval.pairs
    result |= work.pair_tables(first)
    more = {"-".join(pair): work.pair_tables(pair) for pair in others if not quick}
    return result | ({"pairs": more} if more else {})


class _Work:
    """One evaluation: the encoders, the way pairs are scored, and the choice of tables."""

    def __init__(self, evaluator: Evaluator, split: str, quick: bool, say: Callable[[str], None]) -> None:
        self.evaluator, self.split, self.quick, self.say = evaluator, split, quick, say
        config, params = evaluator.assembly.config, evaluator.params
        self.embedder, origin = evaluator.embedder, evaluator.assembly.origin
        self.trained = origin.languages if origin else trained_languages(as_dict(config.data))
        one, two = config.eval.pairs[0]
        encoders = config.data.fields[one].encoder, config.data.fields[two].encoder
        scorer, (left, right) = scorer_of(config), config.fusion.pair
        scored = scorer.part in params and scorer.serves(encoders, (left, right))
        self.ks = tuple(config.eval.rerank) if scored and not quick else ()
        add = self.ks and config.eval.rerank_score == "add"
        self.weight = ensure_weight(evaluator, self.embedder, say) if add else 1.0

    def pair_tables(self, pair: tuple[str, str]) -> dict[str, Any]:
        """Compute the tables of one pair of fields.

        Returns:
          {"pair", "records", "captions": inputs of the second field, "cut" (`text.cut`, if it has words), "views":
            {view: `view_tables`}, "mean" and "spoken" (`languages.spoken`): the means over the views; with several
            views of the same records also "ensemble" (`averaged`), with captions in several languages "by_language"
            (`languages.by_language`)}.
        """
        config, embedder = self.evaluator.assembly.config, self.embedder
        size, first = config.eval.batch_size, pair == config.eval.pairs[0]
        ks = self.ks if first else ()
        asks_codes = first and embedder.hashes and not self.quick
        gallery = Gallery(self.evaluator, embedder, self.say) if asks_codes else None
        tables, lefts, right, keys, words, spoken = {}, [], None, [], None, []
        names = Card.load(config.data.path).languages
        for view in self.evaluator.views(self.split, pair):
            found = self.evaluator.open(self.split, view, pair=pair)
            if first and not self.quick:
                refuse_few_pictures(config.eval, self.split, len(found.keys))
            self.say(f"encoding {len(found.left)} x {pair[0]} ({view}) and {len(found.right)} x {pair[1]}")
            left = embedder.side(found.left, size, bool(ks))
            if right is None or words is None or words != found.right.words:  # a view leaves out records that lack it
                right, words = embedder.side(found.right, size, bool(ks)), found.right.words
            keys.append(found.keys)
            asked = gallery and gallery.of(view)
            rank = self._ranking(left, right, ks)
            own = self.evaluator.assembly, found, left, right
            tables[view or pair[0]] = view_tables(rank, *own, self.quick, asked, first)
            lefts.append(left.embed)
            spoken.append(languages.spoken(config.eval_data, found, names))
        result = {"pair": list(pair), "records": len(found.keys), "captions": len(found.right)}
        result |= {"views": tables, "mean": mean_tables(list(tables.values()))} | self._cut(found)
        result |= {"spoken": mean_tables(spoken)}
        if told := result["mean"].get("languages"):
            encoder = config.data.fields[languages.told_apart(result["spoken"])].encoder
            result["by_language"] = languages.by_language(told, self.trained.get(encoder, ()))
        if len(lefts) > 1 and has_views(config.data.fields, pair[0]) and all(own == keys[0] for own in keys):
            assert right is not None, "a split has a view"
            result["ensemble"] = code_tables.cosine_table(averaged(lefts), right.embed, found)
        return result

    def _ranking(self, left: Embedded, right: Embedded, ks: Sequence[int]) -> "Ranking":
        """Return the way to rank the inputs of one view."""
        own = self.evaluator
        score = PairScorer(own.assembly.model, own.params, left, right) if ks else None
        return Ranking(own.assembly.config.eval, score, ks, self.weight, self.say)

    def _cut(self, found: EvalSplit) -> dict[str, Any]:
        """Count the texts that lose their end."""
        side = found.right if found.right.words is not None else found.left
        if side.words is None or side.ids is None:
            return {}
        spec = self.evaluator.assembly.specs[side.encoder]
        assert spec.tokenizer is not None, "an encoder of words has one"
        return {"cut": cut(spec.tokenizer, side.words, side.ids[:, : spec.size]) | {"encoder": side.encoder}}


class Gallery:
    """Codes that queries rank by shared labels: all records of the splits `config.eval.gallery`, in their order."""

    def __init__(self, evaluator: Evaluator, embedder: Embedder, say: Callable[[str], None]) -> None:
        self.evaluator, self.embedder, self.say = evaluator, embedder, say
        self._texts: dict[str, tuple[Texts | None, Embedded]] = {}  # by split, as encoded for the last view

    def of(self, view: str) -> Labelled | None:
        """Return codes and labels with the pictures of one view; None without a gallery."""
        parts = [self._split(name, view) for name in self.evaluator.assembly.config.eval.gallery]
        return Labelled(*map(np.concatenate, zip(*parts, strict=True))) if parts else None

    def _split(self, name: str, view: str) -> Labelled:
        """Encode one split of the gallery, its texts once for all views that share them."""
        found, size = self.evaluator.open(name, view), self.evaluator.assembly.config.eval.batch_size
        sides = f"{len(found.left)} x {found.pair[0]} ({view}) and {len(found.right)} x {found.pair[1]}"
        self.say(f"encoding the gallery {name}: {sides}")
        words, text = self._texts.get(name, (None, None))
        if text is None or words is None or words != found.right.words:
            text = self.embedder.side(found.right, size)
            self._texts[name] = found.right.words, text
        return code_tables.labelled(self.embedder.side(found.left, size), text, found)


def averaged(views: Sequence[np.ndarray]) -> np.ndarray:
    """Average unit embeddings [n,E] over views, and normalise the mean.

    The mean of two that disagree is short: unnormalised, its picture would be further from every caption than others.
    """
    return unit_rows(np.mean(views, axis=0))


def best_possible(split: EvalSplit) -> dict[str, Any]:
    """Compute the best `retrieval.summary` that any model reaches if own captions alone are right (`card.ceiling`)."""
    best = ceiling(split.right.owner, split.right.numbers, code_tables.fitting_recall(split))
    return retrieval.summary(best["i2t"], best["t2i"])


def view_tables(
    rank: "Ranking",
    assembly: Assembly,
    split: EvalSplit,
    left: Embedded,
    right: Embedded,
    quick: bool,
    gallery: Labelled | None = None,
    first: bool = True,
) -> dict[str, Any]:
    """Compute the tables of one view.

    These are "itc", "rerank" {k: summary}, "ceiling" (see `Ranking.tables`), those of `code_tables.all_tables`,
    "folds", and "languages" (`language_tables`) if captions are in several. `gallery` holds the codes that queries
    rank by shared labels (`Gallery.of`). A pair that is not the `first` has neither codes nor folds.
    """
    config = assembly.config.eval
    tables = rank.tables(split, left, right, rank.score)
    if quick:
        return tables
    if not first:
        left, right = (dataclasses.replace(side, codes=None) for side in (left, right))
    if left.codes is not None:
        rank.say("codes")
        tables |= code_tables.all_tables(left, right, split, assembly.config.joint.lengths, gallery)
    if config.folds and first:
        rank.say(f"{config.folds} folds of {config.fold_pictures} images")
        parts = folds.folds_of(split, config.folds, config.fold_pictures)
        tables["folds"] = mean_tables([rank.fold_tables(fold, *fold.sides(left, right)) for fold in parts])
    own = language_tables(rank, Card.load(assembly.config.data.path).languages, split, left, right)
    return tables | ({"languages": own} if own else {})


def language_tables(
    rank: "Ranking", names: Sequence[str], split: EvalSplit, left: Embedded, right: Embedded
) -> dict[str, dict[str, Any]]:
    """Compute the tables of each language's fold by its code; none where all captions are of one. `names`: the card's.

    Beside those of a fold these are "records" and "captions" (inputs of the second field) of the fold, and "lacking",
    the records of the split that it leaves out because they have nothing in this language.
    """
    found = {}
    for code, fold in folds.languages_of(split).items():
        rank.say(f"captions in {names[code]}")
        records = len(fold.split.keys)
        counts = {"records": records, "captions": len(fold.right), "lacking": len(split.keys) - records}
        found[names[code]] = rank.fold_tables(fold, *fold.sides(left, right)) | counts
    return found


@dataclass(frozen=True)
class Ranking:
    """A way to rank pictures and captions: by embeddings, and the `ks` best again by the pairs' `score` (None: not)."""

    config: EvalConfig
    score: PairScorer | None
    ks: Sequence[int]
    weight: float
    say: Callable[[str], None]

    def tables(self, split: EvalSplit, image: Embedded, text: Embedded, score: rerank.Score | None) -> dict[str, Any]:
        """Compute "itc", "rerank" if pairs are scored, and "ceiling" if own captions alone are right."""
        tables: dict[str, Any] = {"itc": code_tables.cosine_table(image.embed, text.embed, split)}
        if split.own and split.right.words is not None:
            tables["ceiling"] = best_possible(split)
        if score is None:
            return tables
        ks = rerank.fitting(self.ks, min(len(split.left), len(split.right)))
        self.say(f"re-ranking the best {', '.join(map(str, ks))} by the pair score")
        positives = retrieval.positives(split)
        how = (self.config.rerank_score, self.weight, code_tables.fitting_recall(split))
        return tables | {"rerank": rerank.rerank(score, image.embed, text.embed, *positives, ks, *how)}

    def fold_tables(self, fold: folds.Fold, image: Embedded, text: Embedded) -> dict[str, Any]:
        """Compute the tables of one fold, with "codes" if there are any."""
        tables = self.tables(fold.split, image, text, self.score and folds.FoldScorer(self.score, fold))
        if image.codes is None or text.codes is None:
            return tables
        return tables | {"codes": code_tables.codes_table(image.codes, text.codes, fold.split)}


def ensure_weight(evaluator: Evaluator, embedder: Embedder, say: Callable[[str], None]) -> float:
    """Return the weight of the pair score beside the cosine.

    `config.eval.weight` above 0 is taken as it is. 0 stands for the scorer's own (`ScorerConfig.default_weight`); where
    it names none, for the learned temperature over the hardness of ITM's negatives, which makes the sum with log-odds a
    log-posterior (see objectives/matching.py). Below 0 it is the best on a grid, on the first records of the training
    split.
    """
    config = evaluator.assembly.config
    own = scorer_of(config).default_weight
    if config.eval.weight > 0:
        return config.eval.weight
    if config.eval.weight == 0 and own is not None:
        return own
    if config.eval.weight == 0:
        temperature = float(apply(evaluator.assembly.model, evaluator.params, method="temperature"))
        return temperature / evaluator.assembly.hardness
    origin, data = evaluator.assembly.origin, config.data  # not `eval_data`: views and languages as trained
    if origin is not None and not origin.is_own(data.path):
        raise UserError(
            f"config.eval.weight is {config.eval.weight:g}: it is chosen on the run's own training records, "
            f"and {data.path} is another data set; write a weight, or 0"
        )
    pair = config.eval.pairs[0]
    split = head(eval_split(data.path, data.split, evaluator.assembly.specs, data, pair=pair), TRAIN_RECORDS)
    say(f"choosing the weight of the pair score on {len(split.keys)} training records")
    left, right = (embedder.side(side, config.eval.batch_size, True) for side in (split.left, split.right))
    k = min([*config.eval.rerank, len(split.left), len(split.right)])
    if k <= 0:
        raise UserError(f"config.eval.rerank is {config.eval.rerank}; write shortlist lengths above 0")
    to_right, to_left = retrieval.positives(split)
    score = PairScorer(evaluator.assembly.model, evaluator.params, left, right)
    asks = ((left.embed, right.embed, to_right), (right.embed, left.embed, to_left))
    sides = [rerank.score_shortlist(score, rerank.shortlist(*ask, k), i == 0) for i, ask in enumerate(asks)]
    return rerank.choose_weight(sides)[0]


def head(split: EvalSplit, records: int) -> EvalSplit:
    """Take the first `records` of a split with one input each on both sides (the first)."""
    count = min(records, len(split.keys))
    first = [np.unique(side.owner, return_index=True)[1][:count] for side in (split.left, split.right)]
    return split.part(np.arange(count), *first)
