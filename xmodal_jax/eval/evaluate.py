"""The evaluation of a run: retrieval by embeddings, re-ranked by ITM, by codes, and MAP where there are labels."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.checks import refuse_few_pictures, refuse_unfit_evaluation
from xmodal_jax.config import EvalConfig
from xmodal_jax.data.card import Card, ceiling
from xmodal_jax.data.evaluation import EvalSplit, eval_split
from xmodal_jax.data.split import Split
from xmodal_jax.data.text import cut
from xmodal_jax.encode.embed import Embedded, Embedder, PairScorer
from xmodal_jax.encode.token_cache import kept_texts
from xmodal_jax.errors import refuse_unless
from xmodal_jax.eval import code_tables, folds, rerank, retrieval
from xmodal_jax.eval.hashing import Labelled
from xmodal_jax.origin import refuse_trained
from xmodal_jax.search.host import unit_rows
from xmodal_jax.types import Params

TRAIN_RECORDS = 1000  # of the training split, for choosing the weight of the ITM score


@dataclass(frozen=True)
class Evaluator:
    """Weights of a run and how to encode with them."""

    assembly: Assembly
    params: Params
    poll: Callable[[], None] = lambda: None

    @property
    def embedder(self) -> Embedder:
        """Both encoders."""
        return Embedder(self.assembly.model, self.params, self.poll, kept_texts(self.assembly, self.params, False))

    def views(self, name: str) -> tuple[str, ...]:
        """The views of a split that the config evaluates."""
        data = self.assembly.config.eval_data
        refuse_unfit_evaluation(self.assembly.config, Card.load(data.path))
        split = Split(data.path, name, data)
        split.close()
        return split.views

    def open(self, name: str, view: str, right: str = "") -> EvalSplit:
        """One view of a split; where only own captions are `right` (default: the config's), every caption is a text of its own."""
        config = self.assembly.config
        found = eval_split(config.data.path, name, self.assembly.tokenizer, config.eval_data, view)
        alone = np.arange(len(found.captions), dtype=np.int32)
        return dataclasses.replace(found, text_keys=alone) if (right or config.eval.right) == "own" else found


def evaluate(assembly: Assembly, params: Params, split: str = "", quick: bool = False,
             say: Callable[[str], None] = lambda _: None, poll: Callable[[], None] = lambda: None,
             allow_trained: bool = False) -> dict[str, Any]:  # fmt: skip
    """All tables of one split.

    `quick` leaves re-ranking, codes and labels out (for use while training). `say` hears what is under way; `poll` is
    called before every block that is encoded, and what it raises ends the evaluation. Records that the run was trained on
    are refused unless `allow_trained` (`origin.refuse_trained`).

    Returns:
      {"split", "records", "captions", "data", "languages", "cut" (see `text.cut`), "views": {view: tables}, "mean": the mean over the views, "combine", "weight", "right",
      "gallery", "rerank": the lengths asked for, "folds": (how many, of how many pictures)};
      a view's tables are "itc", "rerank" {k: summary}, those of `code_tables.all_tables`, and where only own captions are right "ceiling"
      (`best_possible`); with several views also "ensemble" (`averaged`).
    """
    evaluator, config = Evaluator(assembly, params, poll), assembly.config
    split = split or config.data.eval_split
    origin = refuse_trained(assembly.origin, config.data.path, split, allow_trained)
    embedder, found = evaluator.embedder, {}
    ks = () if quick or "match" not in params else tuple(config.eval.rerank)
    weight = ensure_weight(evaluator, embedder, say) if ks and config.eval.combine == "add" else 1.0
    tables, images, text, captions, keys = {}, [], None, None, []
    gallery = None if quick or not embedder.hashes else Gallery(evaluator, embedder, say)
    for view in evaluator.views(split):
        found = evaluator.open(split, view)
        if not quick:
            refuse_few_pictures(config.eval, split, len(found.keys))
        say(f"encoding {len(found.keys)} images ({view}) and {len(found.captions)} captions")
        image = embedder.split(found, "image", config.eval.batch_size, bool(ks))
        if captions != found.captions:  # records without a view are left out, and their captions with them
            text, captions = embedder.split(found, "text", config.eval.batch_size, bool(ks)), found.captions
        keys.append(found.keys)
        asked = gallery and gallery.of(view)
        tables[view] = view_tables(assembly, params, found, image, text, ks, weight, quick, say, asked)
        images.append(image.embed)
    result = {"split": split, "records": len(found.keys), "captions": len(found.captions)}
    result |= {"data": config.data.path, "languages": list(config.eval_data.languages)}
    result |= {"cut": cut(assembly.tokenizer, found.captions, found.text)}
    result |= {"combine": config.eval.combine, "weight": weight, "right": config.eval.right}
    result |= {"gallery": list(config.eval.gallery), "rerank": list(ks)}
    result |= {"folds": [config.eval.folds, config.eval.fold_pictures]} | origin
    result |= {"views": tables, "mean": mean_tables(list(tables.values()))}
    if len(images) > 1 and all(own == keys[0] for own in keys):
        result["ensemble"] = code_tables.cosine_table(averaged(images), text.embed, found)
    return result


class Gallery:
    """What codes are asked for a shared label: all records of the splits `config.eval.gallery`, one after the other."""

    def __init__(self, evaluator: Evaluator, embedder: Embedder, say: Callable[[str], None]):
        self.evaluator, self.embedder, self.say = evaluator, embedder, say
        self._texts: dict[str, tuple[Sequence[str], Embedded]] = {}  # of each split, encoded for the view before

    def of(self, view: str) -> Labelled | None:
        """Codes and labels with the pictures of one view; None without a gallery."""
        parts = [self._split(name, view) for name in self.evaluator.assembly.config.eval.gallery]
        return Labelled(*map(np.concatenate, zip(*parts))) if parts else None

    def _split(self, name: str, view: str) -> Labelled:
        found, size = self.evaluator.open(name, view), self.evaluator.assembly.config.eval.batch_size
        self.say(f"encoding the gallery {name}: {len(found.keys)} images ({view}) and {len(found.captions)} captions")
        captions, text = self._texts.get(name, (None, None))
        if captions != found.captions:
            text = self.embedder.split(found, "text", size)
            self._texts[name] = found.captions, text
        return code_tables.labelled(self.embedder.split(found, "image", size), text, found)


def averaged(views: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over views of unit embeddings [n,E], of unit length as each of them is.

    The mean of two that disagree is short: its picture would be further from every caption than the others.
    """
    return unit_rows(np.mean(views, axis=0))


def best_possible(split: EvalSplit) -> dict[str, Any]:
    """The best `retrieval.summary` that any model can reach where own captions alone are right (`card.ceiling`)."""
    best = ceiling(split.caption_owner, split.text_numbers, code_tables.fitting_recall(split))
    return retrieval.summary(best["i2t"], best["t2i"])


def view_tables(assembly: Assembly, params: Params, split: EvalSplit, image: Embedded, text: Embedded,
                ks: Sequence[int], weight: float, quick: bool, say: Callable[[str], None],
                gallery: Labelled | None = None) -> dict[str, Any]:  # fmt: skip
    """The tables of one view; see `evaluate`. `gallery`: what codes are asked for a shared label (`Gallery.of`)."""
    config = assembly.config.eval
    rank = Ranking(config, PairScorer(assembly.model, params, image, text) if ks else None, ks, weight, say)
    tables = rank.tables(split, image, text, rank.score)
    if image.codes is not None and not quick:
        say("codes")
        tables |= code_tables.all_tables(image, text, split, assembly.config.joint.lengths, gallery)
    if config.folds and not quick:
        say(f"{config.folds} folds of {config.fold_pictures} images")
        tables["folds"] = mean_tables([
            rank.fold_tables(fold, fold.image(image), fold.text(text))
            for fold in folds.folds_of(split, config.folds, config.fold_pictures)
        ])  # fmt: skip
    return tables


@dataclass(frozen=True)
class Ranking:
    """How pictures and captions are ranked: by embeddings, and the `ks` best again by the pairs' `score` (None: not)."""

    config: EvalConfig
    score: PairScorer | None
    ks: Sequence[int]
    weight: float
    say: Callable[[str], None]

    def tables(self, split: EvalSplit, image: Embedded, text: Embedded, score: rerank.Score | None) -> dict[str, Any]:
        """ "itc", "rerank" where pairs are scored, and "ceiling" where own captions alone are right; see `evaluate`."""
        tables: dict[str, Any] = {"itc": code_tables.cosine_table(image.embed, text.embed, split)}
        if self.config.right == "own":
            tables["ceiling"] = best_possible(split)
        if score is None:
            return tables
        ks = rerank.fitting(self.ks, min(len(split.keys), len(split.captions)))
        self.say(f"re-ranking the best {', '.join(map(str, ks))} with ITM")
        positives = retrieval.positives_from_owners(split.caption_owner, split.text_keys, len(split.keys))
        how = (self.config.combine, self.weight, code_tables.fitting_recall(split))
        return tables | {"rerank": rerank.rerank(score, image.embed, text.embed, *positives, ks, *how)}

    def fold_tables(self, fold: folds.Fold, image: Embedded, text: Embedded) -> dict[str, Any]:
        """The same of one fold, and "codes" where there are any."""
        tables = self.tables(fold.split, image, text, self.score and folds.FoldScorer(self.score, fold))
        return tables if image.codes is None else tables | {
            "codes": code_tables.codes_table(image.codes, text.codes, fold.split)
        }  # fmt: skip


def mean_tables(tables: list[Any]) -> Any:
    """The mean of tables, number by number; texts stay. What some of them lack (a key, or None) is the mean of the others."""
    known = [table for table in tables if table is not None]
    first = known[0] if known else None
    if isinstance(first, dict):
        keys = dict.fromkeys(key for table in known for key in table)
        return {key: mean_tables([table[key] for table in known if key in table]) for key in keys}
    if isinstance(first, list):
        return [mean_tables(list(items)) for items in zip(*known)] if len(set(map(len, known))) == 1 else first
    return float(np.mean(known)) if isinstance(first, (int, float)) else first


def ensure_weight(evaluator: Evaluator, embedder: Embedder, say: Callable[[str], None]) -> float:
    """The weight of the ITM log-odds beside the cosine.

    `config.eval.weight` above 0 is taken as it is; 0 is the learned temperature over the hardness of ITM's negatives, which
    makes the sum a log-posterior (see objectives/matching.py); below 0 the best on a grid, on the first records of the training split.
    """
    config = evaluator.assembly.config
    if config.eval.weight > 0:
        return config.eval.weight
    if config.eval.weight == 0:
        temperature = float(evaluator.assembly.model.apply({"params": evaluator.params}, method="temperature"))
        return temperature / evaluator.assembly.hardness
    origin, data = evaluator.assembly.origin, config.data  # as it was trained, whatever views and languages are evaluated
    refuse_unless(
        origin is None or origin.is_own(data.path),
        f"config.eval.weight is {config.eval.weight:g}: it is chosen on the run's own training records, and {data.path} is "
        "another data set; write a weight, or 0",
    )
    split = head(eval_split(data.path, data.split, evaluator.assembly.tokenizer, data), TRAIN_RECORDS)
    say(f"choosing the ITM weight on {len(split.keys)} training records")
    image = embedder.split(split, "image", config.eval.batch_size, True)
    text = embedder.split(split, "text", config.eval.batch_size, True)
    k = min([*config.eval.rerank, len(split.keys), len(split.captions)])
    refuse_unless(k > 0, f"config.eval.rerank is {config.eval.rerank}; write shortlist lengths above 0")
    to_text, to_image = retrieval.positives_from_owners(split.caption_owner, split.text_keys, len(split.keys))
    score = PairScorer(evaluator.assembly.model, evaluator.params, image, text)
    asks = ((image.embed, text.embed, to_text), (text.embed, image.embed, to_image))
    sides = [rerank.score_shortlist(score, rerank.shortlist(*ask, k), i == 0) for i, ask in enumerate(asks)]
    return rerank.choose_weight(sides)[0]


def head(split: EvalSplit, records: int) -> EvalSplit:
    """The first `records` of a split with one caption each (the first)."""
    count = min(records, len(split.keys))
    first = np.unique(split.caption_owner, return_index=True)[1][:count]
    return split.part(np.arange(count), first)
