"""Alignment inside a modality and between global and local features, beside ITC.

Yang et al. 2022 (TCL, "Vision-language pre-training with triple contrastive learning"): intra-modal contrast and local
mutual information. Wang et al. 2023 ("Adequate alignment and interaction for cross-modal retrieval") name the same two
losses intra-modal separability (IMS) and local mutual information maximisation (LMIM) and put them on features
aggregated by GPO (Chen et al. 2021). Their paper's formulas were not at hand: these are TCL's.

TCL's sum (i2t + t2i + i2i + t2t + lmi_image + lmi_text) / 6 is itc, ims and lmim with a weight of 1/3 each.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.data.config import PAIR
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.pooling import AGGREGATORS, parse_pool
from xmodal_jax.objectives.base import Objective, Term, add_all, marks, mean_over, row_weight, same
from xmodal_jax.objectives.contrastive import KEYS, dense_softmax
from xmodal_jax.settings import Config
from xmodal_jax.types import NEVER, Array, Batch, DataFacts


@dataclass(frozen=True)
class Sided(Objective, abc.ABC):
    """An objective that averages one loss over several fields of the batch; a row's mean is over the fields it has."""

    sides: tuple[str, ...] = PAIR
    """The fields of the batch, each with a loss of its own."""

    contrasts: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields."""
        return self.sides

    def check(self, where: str) -> None:
        """Refuse an empty list of fields, and a field named twice."""
        super().check(where)
        if not self.sides or len(set(self.sides)) != len(self.sides):
            raise UserError(
                f"{where}.sides is {self.sides}; write each field once, such as ('image', 'text') or ('image',)"
            )

    def marks(self, rows: Batch, side: str) -> Batch:
        """Return the entries that decide which rows match: those of the field `side`, and all fields' caption keys."""
        return marks(rows, (side,)) | {name: keys for name, keys in rows.items() if name.endswith("/key")}

    def here(self, batch: Batch, side: str) -> Array:
        """Return how much each row counts for the field `side`, float32 [B]: 1 for rows that have it."""
        return row_weight(batch, (side,))

    @abc.abstractmethod
    def side(self, fwd: Forward, batch: Batch, side: str) -> Array:
        """Compute the losses [B] of one field."""

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average the losses over the fields, [B]."""
        losses = {side: self.side(fwd, batch, side) for side in self.sides}
        here = {side: self.here(batch, side) for side in self.sides}
        count = add_all(here.values())
        values = add_all(losses[side] * here[side] for side in losses) / jnp.maximum(count, 1.0)
        metrics = {side: mean_over(losses[side], here[side]) for side in losses}
        return Term(values, (count > 0).astype(jnp.float32), metrics)


@dataclass(frozen=True)
class IMS(Sided):
    """Intra-modal separability: the student's embedding against the teacher's of another view, and those of other rows.

    The other view is that of `config.data.fields`, or without one the same input, where student and teacher differ by
    dropout and momentum alone, as they always do for captions. ITC's queue gives more negatives; this objective puts
    nothing into it. Positives are rows with the same id or the identical caption.
    """

    keys: str = KEYS
    """Name of the ring that gives more negatives, read if another objective keeps it."""

    @property
    def parts(self) -> frozenset[str]:
        """The temperature."""
        return frozenset({"temperature"})

    @property
    def more_negatives(self) -> frozenset[str]:
        """Another objective's ring."""
        return frozenset({self.keys})

    def side(self, fwd: Forward, batch: Batch, side: str) -> Array:
        """Compute the losses [B] of one field."""
        matched = self.marks(batch, side)
        other = fwd.model.config.data.other_view(side) or side
        ring = fwd.memory.get(self.keys)
        queue = None if ring is None or side not in ring else {"embed": ring[side]} | self.marks(ring, side)
        if queue is not None:  # a ring has the caption keys of the fields that fill it
            matched = {name: rows for name, rows in matched.items() if name in queue}
        rows = {"embed": fwd.encode(side).unit} | matched
        scalars = {"temperature": fwd.temperature(), "alpha": jnp.float32(0.0)}
        return dense_softmax(rows, {"embed": stop(fwd.teacher.encode(other).unit)} | matched, queue, scalars)[0]


def global_to_local(embed: Array, local: Array, mask: Array | None, negative: Array, temperature: Array) -> Array:
    """Return InfoNCE losses [B] of global against local features (Yang et al. 2022, section 3.3).

    embed [B,E] and local [B,P,E] are unit rows, mask [B,P] marks real local features (None: all), negative [i,j] is
    True if the local features of row j are negatives of row i. Each local feature of a row is a positive of its own,
    with all local features of the negatives against it, and not those of the same row; the loss is the mean over them.

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
    """Return unit local features [B,P,E] of one field, and the mask [B,P] of real ones (None: all)."""
    encoder = fwd.encoder_of(side)
    own = fwd.model.config.encoders[encoder]
    tokens, mask = fwd.raw(side) if own.necked else fwd.encode(side).tokens, own.mask(fwd.batch[side])
    local = fwd.rowwise(lambda key, tokens: fwd.call("locals", encoder, tokens), None, tokens)
    places = own.local_map(tokens.shape[1])
    if mask is None:
        return local, None
    if places is None:
        return local, mask[:, 1:]
    return local, jnp.einsum("pn,bn->bp", jnp.asarray(places), mask.astype(jnp.float32)) > 0


@dataclass(frozen=True)
class LMIM(Sided):
    """Local mutual information maximisation: a row's embedding must tell its own patches or words from all others'.

    The embedding is the student's, the local features are the teacher's, or the student's own without `momentum`. Rows
    with the same id or the identical caption are not negatives of each other.
    """

    momentum: bool = True
    """True takes local features of the teacher, False those of the student, which then train too."""

    @property
    def parts(self) -> frozenset[str]:
        """Local features and the temperature."""
        return frozenset({"locals", "temperature"})

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse `momentum` with a head without an aggregator: its local features would never learn."""
        for side in self.sides if self.momentum else ():
            encoder = config.data.fields[side].encoder
            pool = config.encoders[encoder].pool
            if parse_pool(pool)[1] not in AGGREGATORS:
                raise UserError(
                    f"{where} takes local features of the teacher, and with config.encoders.{encoder}.pool='{pool}' "
                    "nothing trains them; write a pool with an aggregator such as 'mean+gpo', or "
                    f"{where}.momentum=False"
                )

    def side(self, fwd: Forward, batch: Batch, side: str) -> Array:
        """Compute the losses [B] of one field."""
        local, mask = local_features(fwd.teacher if self.momentum else fwd, side)
        local = stop(local) if self.momentum else local
        matched = self.marks(batch, side)
        negative = ~same(matched, matched) & (matched["id"] != NEVER)[None, :]
        return global_to_local(fwd.encode(side).unit, local, mask, negative, fwd.temperature())
