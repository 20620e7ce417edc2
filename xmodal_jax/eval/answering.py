"""Answer the questions of a split, and measure what the answers earn: VQA accuracy.

The accuracy of an answer is the score of its label (`Item.scores`), 0 for a label that the record does not have; the
source `vqa` stores the official accuracy there. Beside it stand the accuracy of the answer that earns most on the
training questions of the same type, which reads neither picture nor question, and the best possible one, as answers
that are no label of the data set cannot be given.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from xmodal_jax.data.captions import TYPE
from xmodal_jax.data.card import Card
from xmodal_jax.data.evaluation import EvalSplit
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.encode.token_cache import TokenCache
from xmodal_jax.errors import UserError
from xmodal_jax.eval.captioning import decoded_pair
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.forward import Forward, kept_field
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.parallel.mesh import filled, mesh_of, split_rows, to_host
from xmodal_jax.types import Array, Params

ALL = "all"
Row = dict[str, float]
Scores = list[dict[int, float]]  # of each record, {label: score}


@partial(jax.jit, static_argnums=(0, 1))
def best_labels(model: CrossModal, pair: tuple[str, str], params: Params, batch: dict[str, Array]) -> Array:
    """Return the label int32 [b] of the highest logit for each question, by the passes that training runs."""
    fwd = Forward(model, params, batch, None)
    picture, question = (fwd.encode(field) for field in pair)
    fused = fwd.fuse(picture, question)
    return fwd.call("answer_logits", fused.tokens).argmax(1)


def told_labels(evaluator: Evaluator, found: EvalSplit, say: Callable[[str], None]) -> np.ndarray:
    """Return the label int32 [m] that the model tells for each input of the right side, its questions."""
    assembly, mesh = evaluator.assembly, mesh_of(evaluator.params)
    kept = evaluator.embedder.texts.get(found.right.encoder)
    size = min(assembly.config.eval.batch_size, len(found.right))
    say(f"answering {len(found.right)} questions")
    told = []
    for start in range(0, len(found.right), size):
        evaluator.poll()
        places = np.arange(start, min(start + size, len(found.right)))
        batch = {name: split_rows(mesh, filled(own, size)) for name, own in inputs(found, places, kept).items()}
        told.append(to_host(best_labels(assembly.model, found.pair, evaluator.params, batch), len(places)))
    return np.concatenate(told)


def inputs(found: EvalSplit, places: np.ndarray, kept: TokenCache | None = None) -> dict[str, np.ndarray]:
    """Return the questions at some places int [b] of the right side, their pictures, and kept tokens of the questions.

    A record's picture is its first input of the left side.
    """
    pictures = np.searchsorted(found.left.owner, found.right.owner[places])
    sides = ((found.left, pictures), (found.right, places))
    batch = {side.field: np.stack([side.read(int(place), False) for place in own]) for side, own in sides}
    tokens = None if kept is None else kept.rows(batch[found.right.field])
    return batch if tokens is None else batch | {kept_field(found.right.field): tokens}


def scores_of(own: Sidecar) -> Scores:
    """Return {label: score} of each record of a split."""
    return [dict(zip(own.labels(row), own.scores(row), strict=True)) for row in range(len(own))]


def types_of(own: Sidecar) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield (kind, {type: rows int [n]}) for each kind of type that records of a split have, such as "en-answer-type".

    See `captions.TYPE`.
    """
    for kind in (name for name in own.languages if name.endswith(TYPE)):
        pairs = own.all_pairs((kind,))
        names, which = np.unique([own.texts[pair] for pair in pairs.tolist()], return_inverse=True)
        yield kind, {str(name): own.owner[pairs[which == place]] for place, name in enumerate(names)}


def best_constant(scores: Scores, rows: np.ndarray | None = None) -> int:
    """Return the label that earns most as the answer for all of some records (default: all); -1 if none has any."""
    sums: dict[int, float] = {}
    for row in range(len(scores)) if rows is None else rows.tolist():
        for label, score in scores[row].items():
            sums[label] = sums.get(label, 0.0) + score
    return max(sums, key=lambda label: (sums[label], -label), default=-1)


@dataclasses.dataclass(frozen=True)
class Answered:
    """The questions of a split: what was told for each, its record's row, and the scores of all records."""

    told: np.ndarray
    rows: np.ndarray
    scores: Scores

    def row(self, which: np.ndarray, constant: int) -> Row:
        """Tabulate the questions at some places int [k] in %, beside the answer `constant` and the best possible."""
        own = [self.scores[row] for row in self.rows[which].tolist()]
        right = [score.get(label, 0.0) for score, label in zip(own, self.told[which].tolist(), strict=True)]
        floor, best = [score.get(constant, 0.0) for score in own], [max(score.values(), default=0.0) for score in own]
        means = {"right": right, "most frequent": floor, "possible": best}
        return {name: 100 * float(np.mean(values)) for name, values in means.items()} | {"questions": len(own)}


def answer_split(
    evaluator: Evaluator, split: str, types: bool = True, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Answer all questions of a split on the first view of its pictures.

    Returns:
      {"all": row}, with several languages "language": {code: row}, and with `types` a dict of rows by type for each
        kind of type that the data set tells; rows have "right" (the accuracy in %), "most frequent" (of the best
        constant answer of the training split, of the same type), "possible" and "questions".

    Raises:
      UserError: a data set whose labels are not the answers that the run was trained on.
    """
    config = evaluator.assembly.config
    card = Card.load(config.data.path)
    refuse_other_answers(evaluator.assembly.answers, card, config.data.path)
    data = dataclasses.replace(config.data, labels=False)  # [n,C] of thousands of answers would be large
    lean = dataclasses.replace(evaluator.assembly, config=dataclasses.replace(config, data=data))
    evaluator, pair = dataclasses.replace(evaluator, assembly=lean), decoded_pair(config)
    found = evaluator.open(split, evaluator.views(split, pair)[0], pair=pair)
    own, before = (Sidecar(data.path, card, name) for name in (split, data.split))
    answered = Answered(told_labels(evaluator, found, say), found.rows[found.right.owner], scores_of(own))
    known = scores_of(before)
    constant = best_constant(known)
    result: dict[str, Any] = {ALL: answered.row(np.arange(len(answered.told)), constant)}
    language = found.right.language
    if language is not None and len(set(language.tolist())) > 1:
        places = {card.languages[code]: np.flatnonzero(language == code) for code in sorted(set(language.tolist()))}
        result["language"] = {name: answered.row(which, constant) for name, which in places.items()}
    return result | (by_type(answered, own, known, dict(types_of(before))) if types else {})


def by_type(
    answered: Answered, own: Sidecar, known: Scores, trained: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, Row]]:
    """Tabulate the questions by the types of their records; constants are chosen on training records of the type."""
    result = {}
    for kind, groups in types_of(own):
        places = {name: np.flatnonzero(np.isin(answered.rows, rows)) for name, rows in groups.items()}
        seen = {name: trained.get(kind, {}).get(name, np.zeros(0, int)) for name in places}
        result[kind] = {
            name: answered.row(which, best_constant(known, seen[name])) for name, which in places.items() if len(which)
        }
    return result


def refuse_other_answers(answers: tuple[str, ...], card: Card, path: str) -> None:
    """Raise UserError for a data set whose labels are others than the answers of a run, or in another order."""
    if tuple(card.label_names) != answers:
        raise UserError(
            f"the labels of '{path}' are not the {len(answers)} answers that the run was trained on, in their order; "
            "evaluate it on its own data set"
        )
