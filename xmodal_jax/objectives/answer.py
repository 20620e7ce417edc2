"""Answers to questions on pictures as classification: the fused question tells the labels of its record.

The loss of ViLT (Kim et al. 2021) and METER (Dou et al. 2022), from Teney et al. 2018: binary cross-entropy of all
answers against the accuracy that each would earn. Labels without scores are targets of 1.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from xmodal_jax.forward import Forward, named_key
from xmodal_jax.objectives.base import Paired, Term, mean_over, row_weight
from xmodal_jax.objectives.multilabel import binary_cross_entropy
from xmodal_jax.types import Array, Batch


def accuracy(logits: Array, target: Array) -> Array:
    """Return [B], what the answer of the highest logit [B,C] earns by `target` [B,C].

    Example:
        >>> print(accuracy(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([[0.25, 1.0], [0.25, 1.0]])))
        [0.25 1.  ]
    """
    return jnp.take_along_axis(target, logits.argmax(1)[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class VQA(Paired):
    """Classification of the fused tokens of a pair onto the labels of the data set: the answers to its second field.

    The question's tokens read those of the picture, and the head reads the first of them. The loss of a row is the sum
    of the binary cross-entropies over the labels, against `labels` of the batch. A row without any label does not
    count: its answers are none that the model knows. Metrics: the "accuracy" of the best answer, 0 to 1.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair, and the answers."""
        return (*self.pair, "labels")

    @property
    def parts(self) -> frozenset[str]:
        """Fusion and the head of answers."""
        return frozenset({"fusion", "answer"})

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Compute the losses [B] of all questions."""
        picture, question = (fwd.encode(field) for field in self.pair)
        fused = fwd.fuse(picture, question)
        logits = fwd.call("answer_logits", fused.tokens, named_key(key, "answer"))
        target = batch["labels"]
        weight = row_weight(batch, self.pair) * (target > 0).any(1).astype(jnp.float32)
        values = binary_cross_entropy(logits, target) * target.shape[1]
        return Term(values, weight, {"accuracy": mean_over(accuracy(logits, target), weight)})
