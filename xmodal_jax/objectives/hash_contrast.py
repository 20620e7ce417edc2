"""Contrastive losses on codes.

`hash_contrast`: with a memory of binary codes, and by ranking (UCCH, Hu et al. 2022). `hash_supcon`: with all matching
rows as positives (Khosla et al. 2020).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.models.heads import l2_normalize
from xmodal_jax.objectives.base import (
    Steps,
    Term,
    add_all,
    counted,
    marks,
    positive,
    products,
    ring_marks,
    row_weight,
    same,
)
from xmodal_jax.objectives.codes import CodeLoss, Losses, Rows, signs
from xmodal_jax.objectives.contrastive import hard_targets, masked
from xmodal_jax.settings import Config
from xmodal_jax.types import NEVER, Array, Batch, DataFacts


def contrast(query: Array, own: Array, keys: Array, negative: Array, temperature: float) -> Array:
    """Return the cross-entropy [B] of each query's own key against other keys: L_c of one side.

    query [B,K] relaxed codes, own [B,K] and keys [M,K] of -1 and +1, negative bool [B,M]; logits are unit query . key
    / (T sqrt K).
    """
    unit, scale = l2_normalize(query), 1.0 / (temperature * query.shape[1] ** 0.5)
    positive = (unit * own).sum(1, keepdims=True) * scale
    others = jnp.where(negative, products(unit, keys) * scale, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([positive, others], axis=1), axis=1) - positive[:, 0]


def ranking(scores: Array, negative: Array, margin: float, shift: float) -> Array:
    """Return L_r [B] of one direction, -s_ii + log sum_j exp(s'_ij) + margin, from cosines `scores` [B,B].

    s' is s where s_ij >= s_ii - margin and s - shift elsewhere: a negative that is far enough counts less.
    """
    own = jnp.diagonal(scores)
    shifted = jnp.where(scores >= own[:, None] - margin, scores, scores - shift)
    kept = negative | jnp.eye(len(own), dtype=bool)
    return jax.nn.logsumexp(jnp.where(kept, shifted, -jnp.inf), axis=1) - own + margin


def direction(image: Array, text: Array) -> Array:
    """Return the normalised sum [B,K] of a pair's codes, each scaled to length one first, without gradient."""
    return stop(l2_normalize(l2_normalize(image) + l2_normalize(text)))


@dataclass(frozen=True)
class HashContrast(CodeLoss):
    """UCCH's loss alpha L_c + (1 - alpha) L_r, summed over both sides and both directions.

    The memory u holds one code of length one per training record, u_i <- unit(delta u_i + (1 - delta) unit(h_image +
    h_text)) with h of length one too, and its signs are the keys. Before `warmup` steps delta is 0 and the batch's own
    h_image + h_text are the keys; so they are for a record not seen yet. The lengths are those of UCCH's published
    code: beside codes as long as sqrt(K) a row of length one would count next to nothing.

    Negatives are the other rows of the batch and `negatives` rows of the memory, drawn once a step for the whole batch
    (UCCH draws them for each row), except those that match. Without `table` there is no memory.
    """

    alpha: float = limited(0.7, least=0, most=1)
    """Share of L_c, from 0 to 1; L_r has the rest."""
    temperature: float = positive(0.9)
    """Temperature T of L_c."""
    margin: float = limited(0.2, least=0)
    """Margin of L_r, in units of the cosine."""
    shift: float = limited(0.1, least=0)
    """Reduction of the cosines of negatives beyond the margin in L_r."""
    delta: float = limited(0.4, least=0, most=1)
    """Share of the old code when a row of the memory is updated, from 0 to 1."""
    table: int = limited(0, least=0)
    """Rows of the memory: the training records; 0: negatives of the batch alone."""
    negatives: int = limited(4096, least=0)
    """Rows of the memory drawn as negatives in each step."""
    warmup: Steps = limited(0, least=0)
    """Steps, or epochs such as "2 epochs", before the memory is read."""
    keys: str = "codes"
    """Name of the memory."""

    contrasts: ClassVar[bool] = True

    @property
    def fills(self) -> dict[str, str]:
        """Its codes: no two objectives have the same."""
        return {f"{self.keys}/codes": f"of {self.name}"} if self.table else {}

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse a memory without a row for each training record, and a `robust` that is no entry."""
        super().check_fit(where, config, facts)
        if self.table and self.table < facts.records:
            raise UserError(
                f"{where}.table is {self.table}, and the data set '{config.data.path}' has {facts.records} training "
                f"records; write {facts.records}, or 0 for no memory"
            )

    def memory(self, model: CrossModal, facts: DataFacts) -> dict[str, Any]:
        """Return one code, and the marks that it matches by, for each training record."""
        return self.empty(model, facts, self.table, {"codes": model.config.joint.bits})

    def shared(self, fwd: Forward, batch: Batch, rows: Rows, key: Array) -> Batch:
        """Read the memory: own rows, whether they count, the rows drawn [M] and whether they are negatives [B,M].

        Empty without a memory.
        """
        if not self.table:
            return {}
        table, index = fwd.memory[self.keys], batch["index"]
        ready = jnp.asarray(fwd.step) >= counted(self.warmup)
        drawn = jax.random.randint(key, (min(self.negatives, self.table),), 0, self.table)
        known = marks(table, self.pair)
        theirs = {name: values[drawn] for name, values in known.items()}
        far = ~same(marks(batch, self.pair), theirs) & (theirs["id"] != NEVER)[None, :] & ready
        own = {"own": table["codes"][index], "own_known": (known["id"][index] != NEVER) & ready}
        return own | {"drawn": table["codes"][drawn], "drawn_negative": far}

    def values(self, shared: Batch, rows: Rows, one: Array, two: Array) -> Losses:
        """Compute alpha L_c of both sides + (1 - alpha) L_r of both directions, [B]."""
        bits = one.shape[1]
        batch_keys = signs(direction(one, two))
        own, keys, negative = batch_keys, batch_keys, rows.negative
        if "own" in shared:
            own = jnp.where(shared["own_known"][:, None], signs(shared["own"][:, :bits]), batch_keys)
            keys = jnp.concatenate([batch_keys, signs(shared["drawn"][:, :bits])])
            negative = jnp.concatenate([negative, shared["drawn_negative"]], axis=1)
        contrasted = add_all(contrast(codes, own, keys, negative, self.temperature) for codes in (one, two))
        cosine = products(l2_normalize(one), l2_normalize(two))
        ranked = add_all(ranking(x, rows.negative, self.margin, self.shift) for x in (cosine, cosine.T))
        values = self.alpha * contrasted + (1.0 - self.alpha) * ranked
        return values, {"contrast": rows.mean(contrasted), "ranking": rows.mean(ranked)}

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Compute the loss, and the rows of the memory that this batch changes."""
        term = super().__call__(fwd, batch, key)
        if self.table:
            index, fresh = batch["index"], direction(*(fwd.codes(field)[-1] for field in self.pair))
            delta = jnp.where(jnp.asarray(fwd.step) >= counted(self.warmup), jnp.float32(self.delta), 0.0)
            blended = delta * fwd.memory[self.keys]["codes"][index] + (1.0 - delta) * fresh
            place = jnp.where(
                row_weight(batch, self.pair) > 0, index, self.table
            )  # rows that lack a field write outside
            term.write[self.keys] = (place, {"codes": l2_normalize(blended)} | ring_marks(batch, self.pair))
        return term


@dataclass(frozen=True)
class HashSupCon(CodeLoss):
    """Supervised contrastive loss across sides (Khosla et al. 2020, equation 2), both directions' mean.

    -1/|P(i)| sum over p in P(i) of log softmax_j(s(i,j) / T), s the cosine of an image's and a text's code, P(i) the
    rows of the other side that match i (`batch_rows`): the own pair and, `by_label`, all that share a label.
    """

    temperature: float = positive(0.1)
    """Temperature T of the softmax over cosines."""
    by_label: bool = True
    """True makes rows with a shared label positives too."""

    contrasts: ClassVar[bool] = True

    def shared(self, fwd: Forward, batch: Batch, rows: Rows, key: Array) -> Array:
        """Return each row's share of positives [B,B]; rows sum to 1, or to 0 where there is none."""
        return hard_targets(rows.match & (rows.real > 0)[None, :])

    def values(self, shared: Array, rows: Rows, one: Array, two: Array) -> Losses:
        """Return the cross-entropy [B]; `matched` is the first field's probability of its positives."""
        logits = products(l2_normalize(one), l2_normalize(two)) / self.temperature
        log_shares = [jax.nn.log_softmax(masked(scores, rows.real > 0), axis=1) for scores in (logits, logits.T)]
        values = -0.5 * add_all((shared * each).sum(1) for each in log_shares)
        right = jnp.exp(jnp.where(shared > 0, log_shares[0], -jnp.inf)).sum(1)
        return values, {"matched": rows.mean(right)}
