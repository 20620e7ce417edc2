"""Contrast of codes.

`hash_contrast`: with a memory of binary codes, and by ranking (UCCH, Hu et al. 2022). `hash_supcon`: with all that
matches as positives (Khosla et al. 2020).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.heads import l2_normalize
from xmodal_jax.objectives.base import Term, products, same
from xmodal_jax.objectives.codes import CodeLoss, Rows, signs, similarity
from xmodal_jax.objectives.contrastive import MATCHED
from xmodal_jax.parallel.ring import NEVER
from xmodal_jax.types import Array, Batch

TABLE = "codes"


def contrast(query: Array, own: Array, keys: Array, negative: Array, temperature: float) -> Array:
    """Cross-entropy of each query's own key against other keys: L_c of one side -> [B].

    query [B,K] relaxed codes, own [B,K] and keys [M,K] of -1 and +1, negative bool [B,M]; logits are unit query . key /
    (T sqrt K).
    """
    unit, scale = l2_normalize(query), 1.0 / (temperature * query.shape[1] ** 0.5)
    positive = (unit * own).sum(1, keepdims=True) * scale
    others = jnp.where(negative, products(unit, keys) * scale, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([positive, others], axis=1), axis=1) - positive[:, 0]


def ranking(scores: Array, negative: Array, margin: float, shift: float) -> Array:
    """L_r of one direction: -s_ii + log sum_j exp(s'_ij) + margin -> [B]; scores are cosines [B,B].

    s' is s where s_ij >= s_ii - margin and s - shift elsewhere: a negative that is far enough counts less.
    """
    own = jnp.diagonal(scores)
    shifted = jnp.where(scores >= own[:, None] - margin, scores, scores - shift)
    kept = negative | jnp.eye(len(own), dtype=bool)
    return jax.nn.logsumexp(jnp.where(kept, shifted, -jnp.inf), axis=1) - own + margin


def direction(image: Array, text: Array) -> Array:
    """What a pair's two codes [B,K] point at together, of length one, a constant [B,K]; each side counts alike."""
    return stop(l2_normalize(l2_normalize(image) + l2_normalize(text)))


@dataclass(frozen=True)
class HashContrast(CodeLoss):
    """alpha L_c + (1 - alpha) L_r, both sides' and both directions' sum.

    The memory u holds one code of length one a training record, u_i <- unit(delta u_i + (1 - delta) unit(h_image +
    h_text)) with h of length one too, and its signs are the keys. Before `warmup` steps delta is 0 and the batch's own
    h_image + h_text are the keys; a record not seen yet has its own as well. The lengths are those of UCCH's published
    code: beside codes as long as sqrt(K) a row of length one would count next to nothing.

    Negatives are the other rows of the batch and `negatives` rows of the memory, drawn once a step for the whole batch
    (UCCH draws them for each row); what matches a row is none. Without `table` there is no memory.
    """

    alpha: float = 0.7
    temperature: float = 0.9
    margin: float = 0.2
    shift: float = 0.1
    delta: float = 0.4
    table: int = 0  # rows of the memory: the training records; 0: negatives of the batch alone
    negatives: int = 4096
    warmup: int = 0  # steps

    contrasts: ClassVar[bool] = True

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        for name in ("alpha", "delta"):
            value = getattr(self, name)
            refuse_unless(0.0 <= value <= 1.0, f"{where}.{name} is {value}; write a share from 0 to 1")
        refuse_unless(self.temperature > 0, f"{where}.temperature is {self.temperature}; write a number above 0")
        for name in ("table", "negatives", "warmup", "margin", "shift"):
            value = getattr(self, name)
            refuse_unless(value >= 0, f"{where}.{name} is {value}; write 0 or more")

    def memory(self, model: Any) -> dict[str, Any]:
        """One code and what it matches by for each training record."""
        if not self.table:
            return {}
        marks = {name: jnp.full((self.table,), NEVER, jnp.int32) for name in MATCHED}
        return {TABLE: marks | {"codes": jnp.zeros((self.table, model.config.joint.bits), jnp.float32)}}

    def shared(self, fwd: Forward, batch: Batch, key: Array) -> Batch:
        """Negatives in the batch bool [B,B] and, with a memory: own rows, whether they count, and those drawn [M]."""
        found = {"negative": ~same(batch, batch)}
        if not self.table:
            return found
        table, index = fwd.memory[TABLE], batch["index"]
        ready = jnp.asarray(fwd.step) >= self.warmup
        drawn = jax.random.randint(key, (min(self.negatives, self.table),), 0, self.table)
        marks = {name: table[name][drawn] for name in MATCHED}
        far = ~same(batch, marks) & (marks["id"] != NEVER)[None, :] & ready
        own = {"own": table["codes"][index], "own_known": (table["id"][index] != NEVER) & ready}
        return found | own | {"drawn": table["codes"][drawn], "drawn_negative": far}

    def rows(self, shared: Batch, image: Array, text: Array) -> Rows:
        """L_c of both sides and L_r of both directions, [B]."""
        bits = image.shape[1]
        batch_keys = signs(direction(image, text))
        own, keys, negative = batch_keys, batch_keys, shared["negative"]
        if "own" in shared:
            own = jnp.where(shared["own_known"][:, None], signs(shared["own"][:, :bits]), batch_keys)
            keys = jnp.concatenate([batch_keys, signs(shared["drawn"][:, :bits])])
            negative = jnp.concatenate([negative, shared["drawn_negative"]], axis=1)
        told = sum(contrast(codes, own, keys, negative, self.temperature) for codes in (image, text))
        cosine = products(l2_normalize(image), l2_normalize(text))
        ranked = sum(ranking(x, shared["negative"], self.margin, self.shift) for x in (cosine, cosine.T))
        return self.alpha * told + (1.0 - self.alpha) * ranked, {"contrast": told.mean(), "ranking": ranked.mean()}

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """The loss, and the rows of the memory that this batch changes."""
        term = super().__call__(fwd, batch, key)
        if self.table:
            index, fresh = batch["index"], direction(fwd.codes("image")[-1], fwd.codes("text")[-1])
            delta = jnp.where(jnp.asarray(fwd.step) >= self.warmup, jnp.float32(self.delta), 0.0)
            blended = delta * fwd.memory[TABLE]["codes"][index] + (1.0 - delta) * fresh
            rows = {"codes": l2_normalize(blended)} | {name: batch[name] for name in MATCHED}
            term.write[TABLE] = (index, rows)
        return term


@dataclass(frozen=True)
class HashSupCon(CodeLoss):
    """Supervised contrastive loss across sides (Khosla et al. 2020, equation 2), both directions' mean.

    -1/|P(i)| sum over p in P(i) of log softmax_j(s(i,j) / T), s the cosine of an image's and a text's code, P(i) the rows
    of the other side that match i (`similarity`): the own pair and, `by_label`, all that share a label.
    """

    temperature: float = 0.1
    by_label: bool = True

    contrasts: ClassVar[bool] = True

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        refuse_unless(self.temperature > 0, f"{where}.temperature is {self.temperature}; write a number above 0")

    def shared(self, fwd: Forward, batch: Batch, key: Array) -> Array:
        """Each row's share of positives, [B,B], rows sum to 1."""
        match = similarity(batch, self.by_label)
        return match / match.sum(1, keepdims=True)

    def rows(self, shared: Array, image: Array, text: Array) -> Rows:
        """Cross-entropy [B]; `matched` is the probability that an image's code gives to its positives."""
        logits = products(l2_normalize(image), l2_normalize(text)) / self.temperature
        told = [jax.nn.log_softmax(scores, axis=1) for scores in (logits, logits.T)]
        values = -0.5 * sum((shared * each).sum(1) for each in told)
        return values, {"matched": jnp.exp(jnp.where(shared > 0, told[0], -jnp.inf)).sum(1).mean()}
