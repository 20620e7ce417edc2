"""Losses on the relaxed K-bit codes of both modalities, each averaged over nested lengths (`codes.py`).

`hash`: DCMH's likelihood (Jiang and Li 2017, equation 1), quantisation and balance. `hash_triplet`: VSE++'s hinge
with the hardest negative (Faghri et al. 2018). `hash_euclidean`: DCHMT (Tu et al. 2022). `hash_quality`: near ±1,
balanced and uncorrelated bits. `hash_distance`: codes as far apart as the features they came from (CMHR-DRN's aim in
our reading).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.heads import l2_normalize
from xmodal_jax.models.pooling import masked_mean
from xmodal_jax.models.tfidf import tfidf_vectors
from xmodal_jax.objectives.base import Schedule, Steps, add_all, at, counted, positive, products
from xmodal_jax.objectives.codes import CodeLoss, Losses, Rows
from xmodal_jax.types import Array, Batch


def pairwise_likelihood(left: Array, right: Array, target: Array, real: Array, scale: Array) -> Array:
    """Return the negative log-likelihood [B] of S [B,B] under Theta = scale * left @ right.T, over `real` [B] columns.

    Averaged over positives and negatives separately for each row (a batch has far more negatives than positives; DCMH's
    plain sum would drown them).
    """
    theta = scale * products(left, right)
    losses = jax.nn.softplus(theta) - target * theta
    target, other = target * real[None, :], (1.0 - target) * real[None, :]
    positive = (losses * target).sum(1) / jnp.maximum(target.sum(1), 1.0)
    return positive + (losses * other).sum(1) / jnp.maximum(other.sum(1), 1.0)


@dataclass(frozen=True)
class Hash(CodeLoss):
    """Codes whose inner products tell matching pairs from others, near ±1, with balanced bits.

    With `exact` the three parts are DCMH's published sums, divided by the rows of the batch: Theta = f.g / 2
    (`scale` is not read), -sum(S Theta - log(1 + exp Theta)), ||B-F||^2 + ||B-G||^2 and ||F'1||^2 + ||G'1||^2; its
    gamma and eta are 1 (`quantization=1.0, balance=1.0`). B = sign(F + G) is that of the batch, where DCMH keeps one
    for the whole epoch.
    """

    similarity: float = 1.0
    """Weight of the likelihood of matches under the codes' inner products."""
    quantization: float = 0.1
    """Weight of the squared distance from the codes to their common signs."""
    balance: float = 0.1
    """Weight of the squared mean of each bit over the batch."""
    by_label: bool = False
    """True makes rows with a shared label match too (the data set must have labels)."""
    scale: float = positive(16.0)
    """Theta = scale * mean product of the codes; K/2 is DCMH's, too steep for long codes."""
    exact: bool = False
    """True takes DCMH's published sums in place of means."""

    def values(self, shared: None, rows: Rows, one: Array, two: Array) -> Losses:
        """Compute the weighted sum of the three parts, [B]; the encoders are trained through the codes as well."""
        likelihood, quantization, balance = (self._sums if self.exact else self._means)(rows, one, two)
        values = self.similarity * likelihood + self.quantization * quantization + self.balance * balance
        agree = (jnp.sign(one) == jnp.sign(two)).astype(jnp.float32).mean(1)
        return values, {"bits_agree": rows.mean(agree), "balance": balance}

    def _means(self, rows: Rows, one: Array, two: Array) -> tuple[Array, Array, Array]:
        """Return likelihood [B], quantisation [B] and balance, all as means."""
        scale = jnp.float32(self.scale / one.shape[1])
        both = ((one, two), (two, one))
        likelihood = 0.5 * add_all(pairwise_likelihood(*pair, rows.similar, rows.real, scale) for pair in both)
        code = stop(jnp.sign(one + two))
        quantization = 0.5 * (jnp.square(one - code).mean(1) + jnp.square(two - code).mean(1))
        # Each bit should be on for half of the rows; a row's share of |mean|^2 is spread over all rows alike.
        balance = jnp.square(rows.mean(one)).mean() + jnp.square(rows.mean(two)).mean()
        return likelihood, quantization, balance

    def _sums(self, rows: Rows, one: Array, two: Array) -> tuple[Array, Array, Array]:
        """Return likelihood [B], quantisation [B] and balance as DCMH's sums."""
        theta, real = 0.5 * products(one, two), rows.real
        code = stop(jnp.sign(one + two))
        quantization = jnp.square(one - code).sum(1) + jnp.square(two - code).sum(1)

        def total(codes: Array) -> Array:
            return jnp.square((codes * real[:, None]).sum(0)).sum()

        balance = (total(one) + total(two)) / jnp.maximum(real.sum(), 1.0)
        return ((jax.nn.softplus(theta) - rows.similar * theta) * real[None, :]).sum(1), quantization, balance


@dataclass(frozen=True)
class HashTriplet(CodeLoss):
    """Hinge on the codes' cosine s: [margin + s(i,j) - s(i,i)]+ with the hardest j, in both directions.

    Pairs that match (`batch_rows`) are no negatives. For the first `mean_steps` steps the mean over all negatives takes
    the place of the hardest, without which training may collapse to one point at its start (VSE++, VSE-infinity).
    """

    margin: float = 0.2
    """Margin in units of the cosine, between 0 and 2."""
    by_label: bool = False
    """True makes rows with a shared label match, and thus no negatives."""
    mean_steps: Steps = limited(0, least=0)
    """Steps, or epochs such as "2 epochs", with the mean over negatives in place of the hardest."""

    contrasts: ClassVar[bool] = True

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        if not 0 < self.margin < 2:
            raise UserError(f"{where}.margin is {self.margin}; write a cosine from 0 to 2, such as 0.2")

    def shared(self, fwd: Forward, batch: Batch, rows: Rows, key: Array) -> Array:
        """Return True, as an array, once the hardest negative counts."""
        return jnp.asarray(fwd.step) >= counted(self.mean_steps)

    def values(self, shared: Array, rows: Rows, one: Array, two: Array) -> Losses:
        """Sum both directions, [B]."""
        cosine = products(l2_normalize(one), l2_normalize(two))
        own = jnp.diagonal(cosine)
        parts = [self._direction(scores, own, rows.negative, shared) for scores in (cosine, cosine.T)]
        return add_all(parts), {"own_cosine": rows.mean(own)}

    def _direction(self, scores: Array, own: Array, negative: Array, hardest: Array) -> Array:
        """Return the hinge [B] of one direction, over the hardest negative or the mean of all."""
        hinge = jnp.where(negative, jax.nn.relu(self.margin + scores - own[:, None]), 0.0)
        mean = hinge.sum(1) / jnp.maximum(negative.sum(1), 1).astype(jnp.float32)
        return jnp.where(hardest, hinge.max(1), mean)


def euclidean(left: Array, right: Array) -> tuple[Array, Array]:
    """Return squared distances and distances [B,B] of DCHMT's 2K-wide select vectors, from codes c = p1 - p0 [B,K].

    With p1 + p0 = 1 and c in (-1, 1) both halves of a bit differ by half the difference of c: |select - select'|^2 =
    |c - c'|^2 / 2, so a tanh head may stand in for the two-way head. The distance of equal codes
    has gradient 0.
    """
    both = jnp.square(left).sum(1)[:, None] + jnp.square(right).sum(1)[None, :]
    squared = 0.5 * jnp.maximum(both - 2.0 * products(left, right), 0.0)
    apart = squared > 0
    return squared, jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


@dataclass(frozen=True)
class HashEuclidean(CodeLoss):
    """DCHMT: matching codes meet, others go dmax = sqrt(2 K vartheta) apart; image-text, image-image and text-text.

    mean(d^2 S) + mean((dmax - min(d, dmax))^2 (1 - S)) over all pairs, for each of the three. S counts the same id and
    identical captions, so without labels it is the identity (the published setting for such data), `by_label` shared
    ones. Its size grows with K: with `per_bit` it is divided by K, so that nested lengths count alike.
    """

    vartheta: float = 0.5
    """Share of the largest squared distance that non-matching codes are pushed to, above 0 and up to 1."""
    by_label: bool = False
    """True makes rows with a shared label match too."""
    per_bit: bool = False
    """True divides the loss by the number of bits."""

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        if not 0 < self.vartheta <= 1:
            raise UserError(f"{where}.vartheta is {self.vartheta}; write a share above 0, up to 1")

    def values(self, shared: None, rows: Rows, one: Array, two: Array) -> Losses:
        """Sum the loss over the three kinds of pairs, [B]."""
        bits, values, distances = one.shape[1], 0.0, []
        for left, right in ((one, two), (one, one), (two, two)):
            squared, distance = euclidean(left, right)
            short = (2 * bits * self.vartheta) ** 0.5 - distance
            # As with min(), a pair beyond dmax has no gradient.
            values += rows.column_mean(squared * rows.similar + jnp.square(jax.nn.relu(short)) * (1.0 - rows.similar))
            distances.append(distance)
        return values / (bits if self.per_bit else 1), {"pair_distance": rows.mean(jnp.diagonal(distances[0]))}


def decorrelation(codes: Array, real: Array) -> Array:
    """Return the mean square of the off-diagonal entries of H'H / B over the `real` rows of H [B,K], a scalar.

    It is ||H'H/B - I||^2 without its diagonal.
    """
    count = codes.shape[1]
    gram = products((codes * real[:, None]).T, codes.T) / jnp.maximum(real.sum(), 1.0)
    return (jnp.square(gram) * (1.0 - jnp.eye(count))).sum() / max(count * (count - 1), 1)


@dataclass(frozen=True)
class HashQuality(CodeLoss):
    """Codes whose signs lose little: near ±1, each bit on for half of the rows, no two bits alike.

    Each weight may be a schedule, such as quantization=((0, 0.1), (1000, 1.0)); 0 leaves a part out. Both sides' mean.
    """

    quantization: Schedule = 1.0
    """Weight of mean((|h| - 1)^2): a number or a schedule."""
    balance: Schedule = 0.0
    """Weight of the mean over bits of (mean over rows)^2: a number or a schedule."""
    decorrelation: Schedule = 0.0
    """Weight of the mean over pairs of bits of (mean product)^2: a number or a schedule."""

    def shared(self, fwd: Forward, batch: Batch, rows: Rows, key: Array) -> tuple[Array, Array, Array]:
        """Return the three weights at this step."""
        return at(self.quantization, fwd.step), at(self.balance, fwd.step), at(self.decorrelation, fwd.step)

    def values(self, shared: tuple[Array, Array, Array], rows: Rows, one: Array, two: Array) -> Losses:
        """Compute the weighted sum of the three parts, [B]."""
        sides = (one, two)
        far = 0.5 * add_all(jnp.square(jnp.abs(codes) - 1.0).mean(1) for codes in sides)
        uneven = 0.5 * add_all(jnp.square(rows.mean(codes)).mean() for codes in sides)
        alike = 0.5 * add_all(decorrelation(codes, rows.real) for codes in sides)
        values = shared[0] * far + shared[1] * uneven + shared[2] * alike
        return values, {"quantization": rows.mean(far), "balance": uneven, "decorrelation": alike}


def feature_distance(features: Array) -> Array:
    """Return (1 - cosine) / 2 of rows [B,D] as [B,B] in 0..1 with a zero diagonal, without gradient."""
    unit = l2_normalize(stop(features).astype(jnp.float32))
    return 0.5 * (1.0 - products(unit, unit)) * (1.0 - jnp.eye(unit.shape[0]))


@dataclass(frozen=True)
class HashDistance(CodeLoss):
    """Codes of one side as far apart as their features: mean_ij ((1 - h_i.h_j / K) / 2 - D_ij)^2, both sides' mean.

    D = (1 - cosine) / 2 of the text's TF-IDF vectors where `text.kind` is "tfidf", and else of the tower's own tokens
    averaged over a row. It gets no gradient. It is the same in every step for TF-IDF, cached features and frozen
    towers; for a tower that is trained it follows the tower, so such a tower should start from weights and move slowly.

    `center` subtracts the mean over the batch first: features that are never negative have cosines near 1, and would
    ask for codes that are all alike. `by_label` compares the label vectors instead (0 for the same labels, 1/2 for none
    in common). With `config.chunk` the towers run once more for it.
    """

    center: bool = True
    """True subtracts the batch's mean from the features before their cosines."""
    by_label: bool = False
    """True compares label vectors in place of features."""

    def shared(self, fwd: Forward, batch: Batch, rows: Rows, key: Array) -> tuple[Array, Array]:
        """Return D of both fields, [B,B] each."""
        if self.by_label:
            distance = feature_distance(batch["labels"])
            return distance, distance
        one, two = (feature_distance(self._features(fwd, field, rows)) for field in self.pair)
        return one, two

    def _features(self, fwd: Forward, field: str, rows: Rows) -> Array:
        """Return the pooled features [B,D] of one field, centred if `center`."""
        pooled = self._pooled(fwd, field)
        return pooled - rows.mean(pooled)[None] if self.center else pooled

    def _pooled(self, fwd: Forward, field: str) -> Array:
        """Return the TF-IDF vectors [B,V] or the mean tower tokens [B,D'] of one field, without gradient."""
        encoder, x = fwd.encoder_of(field), fwd.batch[field]
        tower = fwd.params[encoder].get("tower", {})
        if "idf" in tower:
            return tfidf_vectors(x, stop(tower["idf"]))  # raw weights: the tower's own layer over them is trained
        tokens = stop(fwd.raw(field)).astype(jnp.float32)
        return masked_mean(tokens, fwd.model.config.encoders[encoder].mask(x))

    def values(self, shared: tuple[Array, Array], rows: Rows, one: Array, two: Array) -> Losses:
        """Average both fields, [B]."""
        parts = []
        for codes, distance in ((one, shared[0]), (two, shared[1])):
            own = 0.5 * (1.0 - products(codes, codes) / codes.shape[1])
            parts.append(rows.column_mean(jnp.square(own - distance)))
        apart = 0.5 * add_all(rows.mean(rows.column_mean(distance)) for distance in shared)
        return 0.5 * (parts[0] + parts[1]), {"feature_distance": apart}
