"""SigLIP: image-text contrast with a sigmoid for each pair in place of a softmax over all (Zhai et al. 2023).

The logit of a pair is cosine / temperature + bias. The temperature is the model's own, which is learned, kept in
`joint.temperature_min..max`, and shared with the other objectives; the paper's start (t = 10) is
`joint.temperature=0.1`. The bias is a parameter that exists only with this objective and starts at the paper's -10, so
that the many negatives of the first steps cost little.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.forward import Forward
from xmodal_jax.objectives.base import Term, mean_over, products, row_weight, same
from xmodal_jax.objectives.contrastive import Contrast, joined, masked, nearest_is
from xmodal_jax.objectives.robust import refurbished
from xmodal_jax.parallel.ring import Scalars, Sigmoid, contrast
from xmodal_jax.types import NEVER, Array, Batch


def sigmoid_losses(logits: Array, positive: Array, valid: Array, trust: Array | None = None) -> Array:
    """Return the sum [B] over valid columns of -log sigmoid(logit) for positives, -log sigmoid(-logit) for others.

    With `trust` [B] the label of a row's own key, that of its number, is no longer 1 but `robust.refurbished`, with its
    sigmoid as prediction, and other positives are left out: they may be wrong captions of the same picture.
    """
    wrong = jnp.where(positive, -logits, logits)
    losses = jax.nn.softplus(wrong)
    if trust is not None:
        own = jnp.arange(logits.shape[0])[:, None] == jnp.arange(logits.shape[1])[None, :]
        label = refurbished(trust[:, None], jax.nn.sigmoid(logits))
        soft = label * jax.nn.softplus(-logits) + (1.0 - label) * jax.nn.softplus(logits)
        losses = jnp.where(own, soft, jnp.where(positive, 0.0, losses))
    return jnp.where(valid[None, :], losses, 0.0).sum(1)


def dense_sigmoid(rows: Batch, keys: Batch, queue: Batch | None, scalars: Scalars) -> tuple[Array, Array]:
    """Return losses [B] and hits [B] by the whole matrix of logits, as `parallel.ring.contrast` takes its arguments."""
    columns = joined(keys, queue)
    positive, valid = same(rows, columns), columns["id"] != NEVER
    logits = products(rows["embed"], columns["embed"]) / scalars["temperature"] + scalars["bias"]
    return sigmoid_losses(logits, positive, valid, rows.get("trust")), nearest_is(positive, masked(logits, valid))


@dataclass(frozen=True)
class SigLIP(Contrast):
    """The sum over keys of every pair's binary loss, per row; every key that matches a row counts as a positive.

    By default the student's own keys and no queue, as in the paper; queue columns and teacher keys are as in ITC.
    """

    queue: int = limited(0, least=0)
    """Rows of the queue of earlier keys, further columns of the loss; 0: none."""
    student_keys: bool = True
    """True contrasts with the student's own keys of the batch, False with the teacher's."""

    @property
    def parts(self) -> frozenset[str]:
        """The bias of the logits, and the parts that its keys need."""
        return super().parts | {"sigmoid"}

    def _direction(self, fwd: Forward, batch: Batch, scalars: Scalars, query: str, key: str) -> tuple[Array, Array]:
        """Return losses [B] and hits [B] of one direction."""
        records = self.records(fwd, batch, query, key)
        if self.ring:
            return contrast(Sigmoid(), same, *records, scalars, self.student_keys)
        return dense_sigmoid(*records, scalars)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average both directions, [B]; if both have the same pairs (student keys, no queue) one is enough."""
        scalars = {"temperature": fwd.temperature(), "bias": fwd.call("logit_bias")}
        one, two = self.pair
        values, hits = self._direction(fwd, batch, scalars, one, two)
        if self.queue or not self.student_keys:
            values = 0.5 * (values + self._direction(fwd, batch, scalars, two, one)[0])
        weight = row_weight(batch, self.pair)
        metrics = {"accuracy": mean_over(hits, weight)} | scalars
        return Term(values, weight, metrics, self.enqueued(fwd, batch))
