"""Distillation from a frozen teacher whose embeddings are stored beside the data (`xmodal data embed`).

The teacher's embeddings of the batch's own pictures and captions come with the batch, so its towers cost nothing in
training, and any pair of towers that the package can load is a teacher. The relation term compares in-batch similarity
softmaxes (Hinton et al. 2015 over the batch, with a fixed teacher in place of ALBEF's momentum), the feature term pulls
the embeddings themselves. ReCap starts from distillation (its text gives no formula; this is our reading).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.objectives.base import Paired, Term, mean_over, positive, products, row_weight
from xmodal_jax.parallel.ring import LOW
from xmodal_jax.types import Array, Batch


def divergence(target: Array, logits: Array) -> Array:
    """Return KL(softmax(target) || softmax(logits)) [B] of the rows of two [B,M]."""
    log_target = jax.nn.log_softmax(target)
    return (jnp.exp(log_target) * (log_target - jax.nn.log_softmax(logits))).sum(1)


@dataclass(frozen=True)
class Distill(Paired):
    """Distillation: the student's in-batch similarities, and with `feature` its embeddings, follow a frozen teacher's.

    A weight such as ((0, 1.0), (100, 0.0)) is the first part of training (a "distilled start"). The loss is still
    computed at weight 0: its embeddings are those of the contrastive loss, so beside one it costs two products [B,B].
    The matrices are whole on every device, as in ITC without `ring`.
    """

    relation: float = limited(1.0, least=0)
    """Weight of the KL between the softmaxes over the batch, both directions averaged."""
    feature: float = limited(0.0, least=0)
    """Weight of 1 - cosine(student, teacher), both sides averaged; needs joint.embed as the teacher's."""
    teacher_temperature: float = positive(0.07)
    """Temperature of the teacher's softmax; the student's is the model's, which learns."""

    @property
    def parts(self) -> frozenset[str]:
        """The temperature of the student's softmax."""
        return frozenset({"temperature"} if self.relation else ())

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair, and the stored teacher's embeddings of both."""
        return (*super().reads, *(f"{field}/teacher" for field in self.pair))

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        super().check(where)
        if not self.relation + self.feature > 0:
            raise UserError(f"{where}.relation and {where}.feature are 0; write one above 0")

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Compute the weighted sum of both terms [B]; metrics are each of them and the teacher's accuracy in the batch.

        Raises UserError for `feature` with a teacher of another width.
        """
        one, two = (fwd.encode(field).unit.astype(jnp.float32) for field in self.pair)
        teacher_one, teacher_two = (batch[f"{field}/teacher"] for field in self.pair)
        weight = row_weight(batch, self.pair)

        def of_present(logits: Array) -> Array:
            return jnp.where(weight[None, :] > 0, logits, LOW)

        target, logits = (
            products(teacher_one, teacher_two) / self.teacher_temperature,
            products(one, two) / fwd.temperature(),
        )
        relation = 0.5 * (
            divergence(of_present(target), of_present(logits)) + divergence(of_present(target.T), of_present(logits.T))
        )
        right = target.argmax(1) == jnp.arange(len(target))
        values, metrics = self.relation * relation, {"relation": mean_over(relation, weight)}
        metrics["teacher_accuracy"] = mean_over(right, weight)
        if self.feature:
            self._refuse_width(teacher_one, one)
            apart = 1.0 - 0.5 * ((one * teacher_one).sum(1) + (two * teacher_two).sum(1))
            values, metrics = values + self.feature * apart, metrics | {"feature": mean_over(apart, weight)}
        return Term(values, weight, metrics)

    def _refuse_width(self, teacher: Array, student: Array) -> None:
        """Refuse a teacher whose embeddings are not as wide as the student's."""
        if teacher.shape != student.shape:
            raise UserError(
                f"the objective '{self.name}' has feature={self.feature}, but the teacher's embeddings have width "
                f"{teacher.shape[1]} and config.joint.embed is {student.shape[1]}; write feature=0, or "
                f"config.joint.embed={teacher.shape[1]}"
            )
