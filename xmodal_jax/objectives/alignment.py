"""Alignment inside a modality and between global and local features, beside ITC.

Yang et al. 2022 (TCL, "Vision-language pre-training with triple contrastive learning"): intra-modal contrast and local
mutual information. Wang et al. 2023 ("Adequate alignment and interaction for cross-modal retrieval") name the same two
losses intra-modal separability (IMS) and local mutual information maximisation (LMIM) and put them on features aggregated
by GPO (Chen et al. 2021). Their paper's formulas were not at hand: these are TCL's.

TCL's sum (i2t + t2i + i2i + t2t + lmi_image + lmi_text) / 6 is itc, ims and lmim with a weight of 1/3 each.
"""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.errors import refuse_unless
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.pooling import AGGREGATORS, parse_pool
from xmodal_jax.objectives.base import Plain, Schedule, Term, same
from xmodal_jax.objectives.contrastive import MATCHED, RING, dense_softmax
from xmodal_jax.types import Array, Batch

SIDES = ("image", "text")


@dataclass(frozen=True)
class Sided(Plain, abc.ABC):
    """An objective that is the mean over `sides` of one loss in each modality."""

    weight: Schedule = 1.0
    sides: tuple[str, ...] = SIDES

    contrasts: ClassVar[bool] = True

    def check(self, where: str) -> None:
        """Refuse sides that are none."""
        known = set(self.sides) <= set(SIDES) and len(set(self.sides)) == len(self.sides)
        refuse_unless(
            known and len(self.sides) > 0,
            f"{where}.sides is {self.sides}; write ('image', 'text'), ('image',) or ('text',)",
        )

    @abc.abstractmethod
    def side(self, fwd: Forward, batch: Batch, side: str) -> Array:
        """Losses [B] of one modality."""

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Mean over the sides, [B]."""
        losses = {side: self.side(fwd, batch, side) for side in self.sides}
        values = sum(losses.values()) / len(losses)
        return Term(values, jnp.ones_like(values), {side: loss.mean() for side, loss in losses.items()})


@dataclass(frozen=True)
class IMS(Sided):
    """Intra-modal separability: the student's embedding against the teacher's of another view, and those of other rows.

    The other view of a picture is the batch's "image2" (`config.data.second_view`), or without it the same pixels, where
    student and teacher differ by dropout and momentum alone, as they always do for captions. The queue that ITC keeps
    gives more negatives; nothing is put into it. Positives are rows with the same id or the identical caption.
    """

    parts: ClassVar[frozenset[str]] = frozenset({"temperature"})

    def side(self, fwd: Forward, batch: Batch, side: str) -> Array:
        """Losses [B] of one modality."""
        matched = {name: batch[name] for name in MATCHED}
        other = side == "image" and "image2" in batch
        keys = (fwd.teacher.encode("image2", "image") if other else fwd.teacher.encode(side)).embed
        ring = fwd.memory.get(RING)
        queue = None if ring is None else {"embed": ring[side]} | {name: ring[name] for name in MATCHED}
        rows = {"embed": fwd.encode(side).embed} | matched
        scalars = {"temperature": fwd.temperature(), "alpha": jnp.float32(0.0)}
        return dense_softmax(rows, {"embed": stop(keys)} | matched, queue, scalars)[0]


def global_to_local(embed: Array, local: Array, mask: Array | None, negative: Array, temperature: Array) -> Array:
    """InfoNCE of global against local features (Yang et al. 2022, section 3.3) -> losses [B].

    embed [B,E] and local [B,P,E] are unit rows, mask [B,P] tells real local features (None: all), negative [B,B] whose
    local features count as negatives of whom. Each local feature of a row is a positive of its own, with all local
    features of the negatives against it, and not those of the same row; the loss is the mean over them.

    The negatives of a row are the same for all its positives, so their sum is made once: memory is B * B * P.
    """
    embed, local = embed.astype(jnp.float32), local.astype(jnp.float32)
    logits = jnp.einsum("ie,jpe->ijp", embed, local, precision=jax.lax.Precision.HIGHEST) / temperature
    mask = jnp.ones(local.shape[:2], bool) if mask is None else mask
    against = jnp.where(negative[:, :, None] & mask[None], logits, jnp.finfo(jnp.float32).min)
    against = jax.nn.logsumexp(against, axis=(1, 2))
    own = jnp.einsum("ie,ipe->ip", embed, local, precision=jax.lax.Precision.HIGHEST) / temperature
    losses = jax.nn.softplus(against[:, None] - own)  # -log(exp(own) / (exp(own) + exp(against)))
    real = mask.astype(jnp.float32)
    return (losses * real).sum(1) / jnp.maximum(real.sum(1), 1.0)


def local_features(fwd: Forward, side: str) -> tuple[Array, Array | None]:
    """Unit local features [B,P,E] of the batch's pictures or captions, and which are real [B,P] (None: all)."""
    if fwd.model.config.encoders[side].necked:
        tokens, mask = fwd.raw(side), None
    else:
        whole = fwd.encode(side)
        tokens, mask = whole.tokens, whole.mask[:, 1:]
    return fwd.rowwise(lambda key, tokens: fwd.call("locals", side, tokens), None, tokens), mask


@dataclass(frozen=True)
class LMIM(Sided):
    """Local mutual information maximisation: a row's embedding is told from its own patches or words, against all others'.

    The embedding is the student's, the local features are the teacher's, or the student's own without `momentum`. Rows
    with the same id or the identical caption are not negatives of each other.
    """

    momentum: bool = True  # local features of the teacher; else of the student, which trains them too

    parts: ClassVar[frozenset[str]] = frozenset({"locals", "temperature"})

    def memory(self, model: Any) -> dict[str, Any]:
        """No rings. A head without an aggregator is refused with `momentum`: its local features would never learn."""
        for side in self.sides if self.momentum else ():
            pool = model.config.encoders[side].pool
            refuse_unless(
                parse_pool(pool)[1] in AGGREGATORS,
                f"the objective lmim takes local features of the teacher, and with config.encoders.{side}.pool='{pool}' nothing "
                "trains them; write a pool with an aggregator such as 'mean+gpo', or lmim.momentum=False",
            )
        return {}

    def side(self, fwd: Forward, batch: Batch, side: str) -> Array:
        """Losses [B] of one modality."""
        local, mask = local_features(fwd.teacher if self.momentum else fwd, side)
        local = stop(local) if self.momentum else local
        return global_to_local(fwd.encode(side).embed, local, mask, ~same(batch, batch), fwd.temperature())
