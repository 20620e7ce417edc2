"""Learn from pairs that do not all match: the losses of all training pairs, a mixture fitted to them, softer targets.

`refurbish` is the part of RCAR (Guo and Ding 2023) that finds wrong pairs: it keeps the loss of each training pair in
the train state, and once an epoch fits a mixture of two distributions to them inside the compiled step. A pair's
posterior of the component with the lower losses says how far its target is trusted. Objectives whose `robust` names the
entry read it: for them the target of pair i is y = c + (1 - c) p, with the posterior c and their own prediction p that
it matches (Arazo et al. 2019, section 3.2, for pairs in place of classes).
"""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.records import WORDS
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.objectives.base import (
    Objective,
    Paired,
    Steps,
    Term,
    add_all,
    counted,
    marks,
    mean_over,
    positive,
    products,
    row_weight,
    same,
    steps_of,
)
from xmodal_jax.objectives.mixture import fit_histogram, histogram, posterior_of
from xmodal_jax.objectives.pair_report import pair_report
from xmodal_jax.parallel.mesh import to_host
from xmodal_jax.plugins import find_class
from xmodal_jax.settings import Config
from xmodal_jax.types import NEVER, Array, Batch, DataFacts

log = logging.getLogger(__name__)

ROWS = 256  # the table has a multiple of so many rows, which any mesh of devices divides
UNSEEN = -1.0  # loss of a pair that was not visited yet: losses are 0 or more
TRAITS = ("mean", "deviation", "share")  # of each component of the mixture, for the log


def negatives_of(batch: Batch, pair: tuple[str, str]) -> Array:
    """Return bool [B,B], True where the column's row is a negative of the row: it counts, and does not match it."""
    own = marks(batch, pair)
    return ~same(own, own) & (own["id"] != NEVER)[None, :]


def hinges(scores: Array, negative: Array, margin: Array | float) -> tuple[Array, Array]:
    """Return the hinges [B,B] of both directions, [margin_i + s_ij - s_ii]+ and [margin_i + s_ji - s_ii]+.

    They are 0 where `negative` [B,B] is False. `margin`: a number, or [B].
    """
    least = (
        jnp.diagonal(scores)[:, None] - jnp.broadcast_to(jnp.asarray(margin, jnp.float32), scores.shape[:1])[:, None]
    )
    both = (jax.nn.relu(own - least) for own in (scores, scores.T))
    one, two = (jnp.where(negative, own, 0.0) for own in both)
    return one, two


def mean_hinge(scores: Array, negative: Array, margin: float) -> Array:
    """Return the mean hinge [B] over the negatives of each pair, summed over both directions (NCR's loss of a pair)."""
    count = jnp.maximum(negative.sum(1), 1).astype(jnp.float32)
    return add_all(own.sum(1) for own in hinges(scores, negative, margin)) / count


def predicted_match(losses: Array, margin: float) -> Array:
    """Return how likely pairs match [B] by their `mean_hinge` [B]: [margin - loss / 2]+ over that of the best.

    Huang et al. 2021 (NCR, section 3.3): the hinge is that of one direction on average; the best are a tenth of the
    batch, by their mean; cut to 1.
    """
    left = jnp.clip(margin - 0.5 * losses, 0.0, margin)
    best = jnp.sort(left)[-(len(losses) // 10 + 1) :].mean()
    return jnp.clip(left / jnp.maximum(best, 1e-6), 0.0, 1.0)


def soft_margin(target: Array, margin: float) -> Array:
    """Return the margins [B] of targets [B] from 0 to 1: margin (10^y - 1) / 9 (NCR, equation 8)."""
    return margin * (jnp.power(10.0, target) - 1.0) / 9.0


def refuse_other_captions(where: str, pair: tuple[str, str], config: Config) -> None:
    """Refuse a field of `pair` with another caption of the record than the one that the pair's number tells."""
    for field in pair:
        own = config.data.fields.get(field)
        if own is not None and own.of and own.medium == WORDS:
            raise UserError(
                f"{where}.pair has '{field}', another caption than that of the pair whose loss is known; write "
                f"'{own.of}', or leave out robust"
            )


def is_refurbish(kind: str) -> bool:
    """Return True for the kind "refurbish" and for the place of a class derived from its own."""
    own = ":" in kind and find_class(kind, "config.objectives", {}, Objective)
    return kind == "refurbish" or bool(own and issubclass(own, Refurbish))


@dataclass(frozen=True)
class Robust(Paired):
    """An objective over two fields that can trust pairs by a `refurbish` entry."""

    robust: str = ""
    """Name of an entry of kind "refurbish" in config.objectives, whose posteriors soften the targets; "": none."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair, and the pair's number where its posterior is read."""
        return (*super().reads, "pair") if self.robust else super().reads

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse a `robust` that names no entry of kind "refurbish", or of a user's own class derived from it."""
        if not self.robust:
            return
        refuse_other_captions(where, self.pair, config)
        entry = config.objectives.get(self.robust, {"weight": 0.0})
        if entry.get("weight", 1.0) == 0 or not is_refurbish(entry.get("kind", self.robust)):
            raise UserError(
                f"{where}.robust is '{self.robust}', and config.objectives has no entry of kind 'refurbish' with that "
                "name; add config.objectives.refurbish={}, or write robust=''"
            )

    def trust(self, fwd: Forward, batch: Batch) -> Array | None:
        """Return the posterior [B] that each pair matches, without gradient; None without `robust`."""
        return stop(fwd.memory[self.robust]["clean"][batch["pair"], 0]) if self.robust else None


def refurbished(trust: Array, predicted: Array) -> Array:
    """Return the targets [B] of pairs, c + (1 - c) p, without gradient.

    Example:
        >>> print(refurbished(jnp.array([1.0, 0.0, 0.5]), jnp.array([0.25, 0.25, 0.25])))
        [1.    0.25  0.625]
    """
    return stop(trust + (1.0 - trust) * predicted)


@dataclass(frozen=True)
class Refurbish(Paired):
    """The losses of all training pairs, and the posterior of each that it matches; it trains nothing by itself.

    The loss of a pair is its mean hinge over the negatives of the batch, both directions.
    A table of the train state keeps it and the posterior, 8 bytes a pair, sharded as the batch; pairs not visited yet
    are trusted. Every `period` after `warmup` steps the mixture is fitted anew to all losses that are known, and the
    posteriors are written. `config.data.unit` must be "pair".
    """

    margin: float = positive(0.2)
    """Margin of the hinge by which the loss of a pair is measured, in units of the cosine."""
    measured: str = limited("student", among=("student", "teacher", "stored"))
    """Embeddings that the loss is measured on: the student's; the teacher's, without dropout, at the cost of its
    passes; or those that `xmodal data embed` stored of another run (`config.data.embeddings`).
    """
    average: float = limited(0.0, least=0, most=1)
    """Share of the old loss of a pair when it is visited again; 0: the last loss alone."""
    mixture: str = limited("beta", among=("beta", "gaussian"))
    """Distribution of the two components."""
    iterations: int = limited(10, least=1)
    """Rounds of expectation and maximisation of a fit."""
    clip: float = limited(5.0, least=0, most=49)
    """Percentile below which, and above 100 minus which, losses are left out of the fit; 0: all count."""
    monotone: bool = True
    """Let the posterior only fall as the loss rises, where the two densities would cross a second time."""
    warmup: Steps = limited("5 epochs", least=0)
    """Steps, or epochs, in which all pairs are trusted."""
    period: Steps = limited("1 epoch", least=1)
    """Steps, or epochs, between two fits."""
    second_pass: bool = False
    """True measures all pairs before each fit, in a pass of its own over the data that trains nothing, with the weights
    of that step and without dropout; False takes the losses of the steps in which the pairs came by.
    """

    trains: ClassVar[bool] = False
    contrasts: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair, the pair's number and the stored embeddings, where they are measured."""
        stored = (f"{field}/teacher" for field in self.pair) if self.measured == "stored" else ()
        return (*super().reads, "pair", *stored)

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse captions that are not those of the pairs; warn where a run ends before the first fit."""
        refuse_other_captions(where, self.pair, config)
        if facts.steps_per_epoch and steps_of(self.warmup, facts) >= config.steps:
            log.warning(
                "%s.warmup is %s, and the run has %d steps: no pair is ever distrusted",
                where,
                self.warmup,
                config.steps,
            )

    @property
    def fitted_to(self) -> str:
        """Name of the memory with the last mixture."""
        return f"{self.name}_mixture"

    def memory(self, model: CrossModal, facts: DataFacts) -> dict[str, Any]:
        """Return the loss and the posterior of each pair, the traits of both components and the range of the fit; with
        `second_pass` the step of the last one too.
        """
        rows = (-(-max(facts.pairs, 1) // ROWS) * ROWS, 1)
        table = {"loss": jnp.full(rows, UNSEEN, jnp.float32), "clean": jnp.ones(rows, jnp.float32)}
        last = {self.passed: {"step": jnp.zeros(1, jnp.int32)}} if self.second_pass else {}
        traits = {trait: jnp.zeros(2, jnp.float32) for trait in (*TRAITS, "range")}
        return {self.name: table, self.fitted_to: traits} | last

    def _warm(self, step: Any) -> Any:
        """Return True from the fit on that is nearest to the end of the warm-up."""
        return step + counted(self.period) // 2 >= counted(self.warmup)

    def passes_after(self, step: int) -> bool:
        """Return True where a fit is due."""
        return step % counted(self.period) == 0 and bool(self._warm(step))

    def revisit(self, fwd: Forward, batch: Batch) -> Term:
        """Measure the pairs of a batch, for the table."""
        losses, weight = self.losses(fwd, batch), row_weight(batch, self.pair)
        return Term(jnp.zeros_like(losses), weight, write=self._written(fwd, batch, losses, weight))

    def refresh(self, memory: dict[str, Any], step: Array) -> dict[str, Any]:
        """Fit the mixture to all losses that are known, and write every pair's posterior; nothing before `warmup`."""
        table = memory[self.name]
        losses = table["loss"][:, 0]
        seen = losses != UNSEEN
        counts, low, high = histogram(losses, seen, self.clip)
        told = high > low  # else all losses are alike, or none is known
        fit = fit_histogram(counts, self.mixture, self.iterations, self.monotone)
        clean = jnp.where(seen, posterior_of(losses, low, high, fit.clean), 1.0)
        ready = jnp.asarray(self._warm(step)) & told & seen.any()
        width, old = high - low, memory[self.fitted_to]
        traits = {"mean": low + width * fit.mean, "deviation": width * fit.deviation, "share": fit.share}
        traits["range"] = jnp.stack([low, high])
        return memory | {
            self.name: table | {"clean": jnp.where(ready, clean[:, None], table["clean"])},
            self.fitted_to: old | {name: jnp.where(ready, values, old[name]) for name, values in traits.items()},
        }

    def report(self, memory: dict[str, Any], data: DataConfig) -> dict[str, Any]:
        """Return numbers about the losses and posteriors, with the truth where the data set was made noisy."""
        sidecar = Sidecar(data.path, Card.load(data.path), data.split)
        table, fit = memory[self.name], memory[self.fitted_to]
        pairs = sidecar.all_pairs(data.unit_languages)
        losses, clean = (to_host(table[name])[pairs, 0] for name in ("loss", "clean"))
        changed = None if sidecar.changed is None else sidecar.changed[pairs] > 0
        numbers = pair_report(losses, clean, UNSEEN, changed)
        traits = {name: to_host(fit[name]).tolist() for name in (*TRAITS, "range")}
        return numbers | {"mixture": {"kind": self.mixture} | traits}

    def losses(self, fwd: Forward, batch: Batch) -> Array:
        """Return the loss [B] of each pair of the batch, without gradient."""
        if self.measured == "stored":
            one, two = (batch[f"{field}/teacher"] for field in self.pair)
        else:
            passes = fwd.teacher if self.measured == "teacher" else fwd
            one, two = (stop(passes.encode(field).unit) for field in self.pair)
        return mean_hinge(products(one, two), negatives_of(batch, self.pair), self.margin)

    def _written(self, fwd: Forward, batch: Batch, losses: Array, weight: Array) -> dict[str, Any]:
        """Return the losses [B] as rows for the table; rows without a field or a negative write outside it."""
        pair, table = batch["pair"], fwd.memory[self.name]
        old = table["loss"][pair, 0]
        kept = jnp.where(old == UNSEEN, losses, self.average * old + (1.0 - self.average) * losses)
        known = (weight > 0) & negatives_of(batch, self.pair).any(1) & jnp.isfinite(losses)
        return {self.name: (jnp.where(known, pair, len(table["loss"])), {"loss": kept[:, None]})}

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Return zeros [B], and the losses for the table where no second pass measures them."""
        weight, fit = row_weight(batch, self.pair), fwd.memory[self.fitted_to]
        clean = fwd.memory[self.name]["clean"][batch["pair"], 0]
        metrics, write = {"trusted": mean_over(clean, weight)}, {}
        if not self.second_pass:
            losses = self.losses(fwd, batch)
            metrics["pair_loss"], write = mean_over(losses, weight), self._written(fwd, batch, losses, weight)
        for number, side in enumerate(("clean", "noisy")):
            metrics |= {f"{side}_{trait}": fit[trait][number] for trait in TRAITS}
        return Term(jnp.zeros_like(weight), weight, metrics, write=write)
