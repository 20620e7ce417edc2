"""Evaluate a run by more than retrieval: `config.evals`. `EVALUATIONS` is the one place that names the kinds."""

import abc
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xmodal_jax.config_build import build, limited
from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError
from xmodal_jax.eval.answering import answer_split
from xmodal_jax.eval.captioning import Unwritten, caption_split, decoded_pair
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.eval.zeroshot import TEMPLATES, classes_of, classified_pair, classify, refuse_odd_template
from xmodal_jax.models.crossmodal import started
from xmodal_jax.plugins import find_class
from xmodal_jax.settings import Config

log = logging.getLogger(__name__)

Numbers = dict[str, Any]  # numbers, or numbers by name, however deep


@dataclass(frozen=True)
class Evaluation(abc.ABC):
    """One entry of `config.evals`, a frozen dataclass whose fields are the entry's. Subclasses write `__call__`."""

    kind: str = ""
    training: bool = False
    """Whether it also runs at the quick evaluations of a run that trains (`config.eval.every`)."""

    def check_fit(self, where: str, config: Config, card: Card, parts: frozenset[str]) -> None:
        """Refuse what the config, the data set or the trained `parts` of the model cannot serve (default: nothing)."""
        return

    @abc.abstractmethod
    def __call__(self, evaluator: Evaluator, split: str, say: Callable[[str], None]) -> Numbers:
        """Evaluate a split whose records were checked to be none that the run was trained on."""


@dataclass(frozen=True)
class Classification(Evaluation):
    """Zero-shot classification over the labels of the data set (eval/zeroshot.py), the mean over the views."""

    templates: tuple[str, ...] = TEMPLATES
    """Sentences with {} for the name of a class, whose embeddings are averaged."""
    classes: str = limited("all", among=("all", "split"))
    """Classes to choose from: those of the whole data set ("all"), or of the split alone."""

    def check_fit(self, where: str, config: Config, card: Card, parts: frozenset[str]) -> None:
        """Refuse a data set without labels, and templates without a place for the name."""
        for template in self.templates:
            refuse_odd_template(template, f"{where}.templates")
        classified_pair(config)
        classes_of(card, None)

    def __call__(self, evaluator: Evaluator, split: str, say: Callable[[str], None]) -> Numbers:
        """Classify the split: {measure: {"right", "chance"}} in %."""
        own = evaluator.assembly, evaluator.params
        return classify(*own, split, self.templates, self.classes, say, True, evaluator.poll)["mean"]


@dataclass(frozen=True)
class Captioning(Evaluation):
    """BLEU-4 and CIDEr of the decoder's captions, by language where these are in several (eval/captioning.py).

    `limit`: records of the split, 0 for all.
    """

    beam: int = limited(3, least=1)
    limit: int = limited(0, least=0)

    def check_fit(self, where: str, config: Config, card: Card, parts: frozenset[str]) -> None:
        """Refuse a model without a decoder, and true captions in no language that it is trained to write."""
        if "decoder" not in parts:
            raise UserError(f"{where} writes captions, and no objective trains a decoder; add the objective 'lm'")
        told = {language for field in started(parts) for language in config.data.languages_in(field)}
        asked = config.eval_data.languages_in(decoded_pair(config)[1])
        if told and not told & set(asked):
            raise UserError(
                f"{where} writes captions in {', '.join(sorted(told))}, and those to score by are in "
                f"{', '.join(asked)}; write some of these in config.eval.languages"
            )

    def __call__(self, evaluator: Evaluator, split: str, say: Callable[[str], None]) -> Numbers:
        """Caption the split: {score: value}, with several languages their mean and "languages": {code: the same}."""
        say("writing captions")
        own = evaluator.assembly, evaluator.params
        try:
            return caption_split(*own, split, self.limit, self.beam, True, evaluator.poll)[1]
        except Unwritten as error:  # a run may be evaluated in other languages than it writes
            log.warning("no captions are written: %s", error)
            return {}


@dataclass(frozen=True)
class Answering(Evaluation):
    """VQA accuracy of the answers to the questions of a split, beside the best constant answer (eval/answering.py)."""

    types: bool = True
    """Whether questions of each type have numbers of their own, where the data set tells types."""

    def check_fit(self, where: str, config: Config, card: Card, parts: frozenset[str]) -> None:
        """Refuse a model without a head for answers."""
        if "answer" not in parts:
            raise UserError(f"{where} answers questions, and no objective trains that; add the objective 'answer'")

    def __call__(self, evaluator: Evaluator, split: str, say: Callable[[str], None]) -> Numbers:
        """Answer the questions of the split: {"all": {"right", "most frequent", "possible", "questions"}, ...}."""
        return answer_split(evaluator, split, self.types, say)


EVALUATIONS: dict[str, type[Evaluation]] = {
    "classification": Classification,
    "captioning": Captioning,
    "answering": Answering,
}


def build_evaluations(section: dict[str, Any]) -> dict[str, Evaluation]:
    """Build `config.evals`: {name: evaluation}. Each entry has a `kind` (default: its name) and the kind's fields.

    Raises UserError for an unknown kind or field.
    """
    built = {}
    for name, fields in section.items():
        where = f"config.evals.{name}"
        if not hasattr(fields, "items"):
            raise UserError(f"{where} is {fields!r}; write a dict such as {{'kind': 'classification'}}")
        cls = find_class(fields.get("kind", name), f"{where}.kind", EVALUATIONS, Evaluation)
        built[name] = build(cls, dict(fields), where)
    return built


def check_evaluations(config: Config, parts: frozenset[str]) -> None:
    """Refuse entries of `config.evals` that cannot be evaluated, before a run trains for hours."""
    checked_evaluations(config, parts)


def checked_evaluations(config: Config, parts: frozenset[str]) -> dict[str, Evaluation]:
    """Build `config.evals`, and refuse entries that cannot be evaluated."""
    if not config.evals:
        return {}
    card = Card.load(config.data.path)
    entries = build_evaluations(config.evals)
    for name, own in entries.items():
        own.check_fit(f"config.evals.{name}", config, card, parts)
    return entries


checked_once = functools.lru_cache(maxsize=1)(checked_evaluations)  # of a run that evaluates again and again


def further(evaluator: Evaluator, split: str, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate the entries of `config.evals`, or with `quick` those for training alone: {name: numbers}.

    Quick evaluations of a run check the entries once, all others anew.
    """
    config = evaluator.assembly.config
    entries = (checked_once if quick else checked_evaluations)(config, frozenset(evaluator.params))
    found = {}
    for name, own in entries.items():
        if own.training or not quick:
            say(f"evaluating {name}")
            found[name] = numbers_of(own(evaluator, split or config.data.eval_split, say), f"config.evals.{name}")
    return {name: numbers for name, numbers in found.items() if numbers != {}}


def numbers_of(found: Any, where: str) -> Numbers | float:
    """Convert the result of an evaluation to plain numbers. Raises UserError, naming the entry, for anything else."""
    if isinstance(found, dict):
        return {str(name): numbers_of(own, where) for name, own in found.items()}
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} gave {found!r:.60}; let it return a dict of numbers, or of such dicts") from error
