"""Native-language transfer: the embedding of a text follows that of its translation by a frozen encoder.

M-CLIP (Carlsson et al. 2022) trains a multilingual text encoder on translations of captions to give CLIP's embedding of
the English one; MLA (Zhang et al. 2022) does so in its first stage. Both take the mean squared error; no picture is
needed, and a text in any language then finds what the English encoder's space holds.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.forward import Forward
from xmodal_jax.objectives.base import Paired, Term, mean_over, row_weight
from xmodal_jax.types import Array, Batch


@dataclass(frozen=True)
class Transfer(Paired):
    """The squared distance of the unit embeddings of the pair, without gradient to its first field, the target.

    The sum over E, so E times the mean squared error: 2 - 2 cosine. Both encoders need the same joint space only.
    """

    contrasts: ClassVar[bool] = False

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Compute the squared distances [B]; the metric is the mean cosine."""
        target, own = (fwd.encode(field).unit.astype(jnp.float32) for field in self.pair)
        target, weight = jax.lax.stop_gradient(target), row_weight(batch, self.pair)
        values = jnp.square(own - target).sum(1)
        return Term(values, weight, {"cosine": mean_over(1.0 - 0.5 * values, weight)})
