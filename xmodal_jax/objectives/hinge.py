"""Hinge losses: VSE++ and VSE-infinity on embeddings, SGR, MVSEN and their like on the scores of pairs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, Sides, stop
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
    """True takes the scores of `config.scorer`, False the cosines of the embeddings. Both directions then have one
    negative each: the hardest, or with `mean_steps` one drawn at random, which has the mean as its expectation.
    """
    draw: float = limited(0.0, least=0.0)
    """Temperature T by which `scorer` draws the negatives of `mean_steps`, as likely as softmax(cosine / T) (ALBEF); 0:
    all alike.
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
        """Refuse a scorer that another objective must train, blocks that do not divide the batch, and fields that would
        be ignored.
        """
        super().check_fit(where, config, facts)
        if not self.scorer:
            if self.draw or self.candidates or self.block:
                raise UserError(
                    f"{where}.scorer is False, and draw, candidates and block are of a scorer's negatives; write "
                    "scorer=True, or leave them out"
                )
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
        one, two = (fwd.encode(field) for field in self.pair)
        cosine = products(one.unit, two.unit)
        target, metrics = self.targets(fwd, batch, cosine, negative), {}
        margin, weight = jnp.full(len(cosine), self.margin), row_weight(batch, self.pair)
        if target is not None:
            metrics["target"] = mean_over(target, weight)
            margin = margin if self.softens == "weight" else soft_margin(target, self.margin)
            weight = weight if self.softens == "margin" else weight * target
        if self.scorer:
            own, wrong = self.of_chosen(fwd, cosine, negative, hardest, key)
            values = add_all(jax.nn.relu(margin + x - own) for x in wrong) * negative.any(1).astype(jnp.float32)
            right = own > jnp.maximum(*wrong)
        else:
            both = hinges(cosine, negative, margin)
            count = jnp.maximum(negative.sum(1), 1).astype(jnp.float32)
            values = add_all(jnp.where(hardest, x.max(1), x.sum(1) / count) for x in both)
            own = jnp.diagonal(cosine)
            right = own > jnp.where(negative, cosine, -jnp.inf).max(1)
        metrics |= {"accuracy": mean_over(right, weight), "own": mean_over(own, weight)}
        return Term(values, weight, metrics)

    def targets(self, fwd: Forward, batch: Batch, cosine: Array, negative: Array) -> Array | None:
        """Return the refurbished targets [B] of the pairs, predicted by their cosines; None without `robust`."""
        trust = self.trust(fwd, batch)
        if trust is None:
            return None
        return refurbished(trust, predicted_match(mean_hinge(cosine, negative, self.margin), self.margin))

    def of_chosen(
        self, fwd: Forward, cosine: Array, negative: Array, hardest: Array, key: Array
    ) -> tuple[Array, list[Array]]:
        """Return the scores [B] of the pairs and of one negative of each in both directions, 2 x [B].

        Only these 3B pairs have a gradient: a third of the cost of all. A negative is the `hardest` or drawn.
        """
        sides = fwd.sides(*(fwd.encode(field) for field in self.pair))
        rows, noise = jnp.arange(len(cosine)), jax.random.gumbel(key, cosine.shape)
        drawn = stop(cosine) / self.draw + noise if self.draw else noise
        order = jax.lax.cond(hardest, lambda: self.constant_scores(fwd, sides, stop(cosine), negative), lambda: drawn)
        seconds, firsts = (jnp.where(negative, x, -jnp.inf).argmax(1) for x in (order, order.T))
        chosen = jnp.concatenate([rows, rows, firsts]), jnp.concatenate([rows, seconds, rows])
        own, *wrong = jnp.split(fwd.score_rows(sides, chosen).astype(jnp.float32), 3)
        return own, wrong

    def constant_scores(self, fwd: Forward, sides: Sides, cosine: Array, negative: Array) -> Array:
        """Return the scores float32 [B,B] of all pairs without gradient; -inf where no side is a candidate."""
        count = len(cosine)
        block = self.block or count
        if not self.candidates:
            return fwd.score_all(sides, block, gradient=False).astype(jnp.float32)
        seconds, firsts = (
            jax.lax.top_k(jnp.where(negative, x, -jnp.inf), min(self.candidates, count))[1] for x in (cosine, cosine.T)
        )
        same = jnp.broadcast_to(jnp.arange(count)[:, None], seconds.shape)
        left, right = jnp.concatenate([same, firsts], 1).ravel(), jnp.concatenate([seconds, same], 1).ravel()
        found = fwd.score_rows(sides, (left, right), count // block, gradient=False).astype(jnp.float32)
        return jnp.full((count, count), -jnp.inf).at[left, right].set(found)
