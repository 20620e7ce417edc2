"""Hinge losses: VSE++ and VSE-infinity on embeddings, SGR, MVSEN and their like on the scores of pairs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Encoded, Forward, stop
from xmodal_jax.objectives.base import Steps, Term, add_all, counted, mean_over, positive, products, row_weight
from xmodal_jax.objectives.robust import (
    Robust,
    hinges,
    mean_hinge,
    negatives_of,
    predicted_match,
    refurbished,
    soft_margin,
)
from xmodal_jax.settings import Config
from xmodal_jax.types import Array, Batch, DataFacts


@dataclass(frozen=True)
class Hinge(Robust):
    """Hinge on the scores s of pairs: [margin + s(i,j) - s(i,i)]+ with the hardest j, both directions (VSE++).

    s is the cosine of the embeddings or, with `scorer`, what `config.scorer` gives for all pairs of the batch. Pairs
    that match are no negatives. With `robust` the margin of a pair shrinks with its target (`robust.soft_margin`), and
    it counts less (`softens`).
    """

    margin: float = positive(0.2)
    """Margin, in units of the score."""
    mean_steps: Steps = limited(0, least=0)
    """Steps, or epochs such as "1 epoch", with the mean over negatives in place of the hardest, against a collapse."""
    scorer: bool = False
    """True takes the scores of `config.scorer`, False the cosines of the embeddings. Both directions then have the
    hardest negative alone, or with `mean_steps` a random one in place of the mean.
    """
    candidates: int = limited(0, least=0)
    """Negatives of each row, those with the highest cosine, of which `scorer` finds the hardest; 0: all of the batch.
    The choice then costs 2 B x candidates scores in place of B x B; an objective such as `itc` must train the cosines.
    """
    block: int = limited(0, least=0)
    """Rows whose scores with all others, or with their candidates, are made at a time, to bound the memory of `scorer`;
    0: all.
    """

    softens: str = limited("both", among=("margin", "weight", "both"))
    """What the target of a pair that is not trusted makes smaller: its "margin" (NCR), its "weight" in the mean, or
    "both". The hardest negative of a wrong pair is above it, so with no margin at all its hinge still pulls it up.
    """

    contrasts: ClassVar[bool] = True

    @property
    def parts(self) -> frozenset[str]:
        """The scorer, if it is trained."""
        return frozenset({"scorer"}) if self.scorer else frozenset()

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse a scorer that another objective must train, and blocks that do not divide the batch."""
        super().check_fit(where, config, facts)
        if not self.scorer:
            return
        found: Any = config.scorer  # which `build_scorer` has made of the config's dict
        if found.part != "scorer":
            raise UserError(
                f"{where}.scorer is True, and config.scorer is of kind '{found.kind}', which the objective 'itm' "
                "trains; write config.scorer.kind='sgr', or scorer=False"
            )
        if self.block and config.batch_size % self.block:
            raise UserError(
                f"{where}.block is {self.block}, which does not divide the batch of {config.batch_size} rows; "
                "write a divisor"
            )

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Sum both directions, [B]."""
        negative, hardest = negatives_of(batch, self.pair), jnp.asarray(fwd.step) >= counted(self.mean_steps)
        scores = self.scores(fwd, negative)
        rivals = negative & (scores > -jnp.inf)
        target, metrics = self.targets(fwd, batch, scores, rivals), {}
        margin, weight = jnp.full(len(scores), self.margin), row_weight(batch, self.pair)
        if target is not None:
            metrics["target"] = mean_over(target, weight)
            margin = margin if self.softens == "weight" else soft_margin(target, self.margin)
            weight = weight if self.softens == "margin" else weight * target
        if self.scorer:
            values = self.of_chosen(fwd, scores, negative, margin, hardest, key)
        else:
            both = hinges(scores, negative, margin)
            count = jnp.maximum(negative.sum(1), 1).astype(jnp.float32)
            values = add_all(jnp.where(hardest, own.max(1), own.sum(1) / count) for own in both)
        own = jnp.diagonal(scores)
        right = jnp.where(rivals, scores, -jnp.inf).max(1) < own
        metrics |= {"accuracy": mean_over(right, weight), "own": mean_over(own, weight)}
        return Term(values, weight, metrics)

    def scores(self, fwd: Forward, negative: Array) -> Array:
        """Return the scores float32 [B,B] of all pairs of the batch; those of the scorer are constants.

        With `candidates` they are -inf for other pairs of `negative` [B,B].
        """
        one, two = (fwd.encode(field) for field in self.pair)
        if not self.scorer:
            return products(one.unit, two.unit)
        if self.candidates:
            return self.of_candidates(fwd, one, two, negative)
        return fwd.scores(one, two, self.block or one.tokens.shape[0], gradient=False).astype(jnp.float32)

    def of_candidates(self, fwd: Forward, one: Encoded, two: Encoded, negative: Array) -> Array:
        """Return the scores [B,B] of pairs that match and of those with candidates of either side; -inf elsewhere."""
        count, cosine = len(negative), stop(products(one.unit, two.unit))
        near = min(self.candidates, count)
        seconds, firsts = (jax.lax.top_k(jnp.where(negative, x, -jnp.inf), near)[1] for x in (cosine, cosine.T))
        own = jnp.arange(count)[:, None]
        same = jnp.broadcast_to(own, seconds.shape)
        rows = (jnp.concatenate(parts, 1).ravel() for parts in ((own, same, firsts), (own, seconds, same)))
        left, right = rows
        pieces = count // (self.block or count)
        found = fwd.score(one, two, (left, right), pieces, gradient=False).astype(jnp.float32)
        return jnp.full((count, count), -jnp.inf).at[left, right].set(found)

    def targets(self, fwd: Forward, batch: Batch, scores: Array, negative: Array) -> Array | None:
        """Return the refurbished targets [B] of the pairs; None without `robust`."""
        trust = self.trust(fwd, batch)
        if trust is None:
            return None
        return refurbished(trust, predicted_match(mean_hinge(scores, negative, self.margin), self.margin))

    def of_chosen(
        self, fwd: Forward, scores: Array, negative: Array, margin: Array, hardest: Array, key: Array
    ) -> Array:
        """Return the hinge [B] of the scorer on one negative in each direction, chosen by constant `scores` [B,B].

        Only these 3B pairs have a gradient: a third of the cost of all. Before the hardest count, a negative is drawn
        at random, whose hinge has the mean over all as its expectation.
        """
        drawn = jnp.where(hardest, scores, jax.random.gumbel(key, scores.shape))
        own, places = jnp.arange(len(scores)), (jnp.where(negative, x, -jnp.inf).argmax(1) for x in (drawn, drawn.T))
        seconds, firsts = places
        rows = jnp.concatenate([own, own, firsts]), jnp.concatenate([own, seconds, own])
        one, two = (fwd.encode(field) for field in self.pair)
        found = fwd.score(one, two, rows).astype(jnp.float32)
        right, *wrong = jnp.split(found, 3)
        return add_all(jax.nn.relu(margin + x - right) for x in wrong) * negative.any(1).astype(jnp.float32)
