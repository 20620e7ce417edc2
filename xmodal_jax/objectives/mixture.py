"""Mixtures of two distributions, fitted to the losses of all training pairs inside the compiled step.

The fit sees a histogram: its counts are whole numbers, so it is the same however the losses are spread over devices,
and its cost does not grow with their number. Beta mixture: Arazo et al. 2019 (section 3.1), with weighted moments in
the maximisation; Gaussian mixture: Li et al. 2020 (DivideMix), Huang et al. 2021 (NCR).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln

from xmodal_jax.types import Array

BINS = 1000
EDGE = 1e-4  # losses are cut to [EDGE, 1 - EDGE], where the densities of beta distributions are finite
SPREAD = 5e-4  # least variance of a Gaussian component, of losses from 0 to 1
STARTS = {  # parameters of the two components, the one with the lower losses first
    "beta": ((1.0, 2.0), (2.0, 1.0)),
    "gaussian": ((0.25, 0.05), (0.75, 0.05)),
}


class Mixture(NamedTuple):
    """A fitted mixture; the first component is the one with the lower losses."""

    clean: Array
    """Posterior [BINS] of the first component at the middle of each bin."""
    mean: Array
    """Means [2] of the components, as a share of the range."""
    deviation: Array
    """Standard deviations [2] of the components, as a share of the range."""
    share: Array
    """Shares [2] of the pairs."""


def middles() -> Array:
    """Return the middle [BINS] of each bin of losses from 0 to 1."""
    return jnp.clip((jnp.arange(BINS, dtype=jnp.float32) + 0.5) / BINS, EDGE, 1.0 - EDGE)


def scaled(losses: Array, low: Array, high: Array) -> Array:
    """Map losses so that `low` becomes 0 and `high` 1; what lies outside is cut."""
    return jnp.clip((losses - low) / jnp.maximum(high - low, 1e-12), 0.0, 1.0)


def bin_of(losses: Array, low: Array, high: Array) -> Array:
    """Return the bin int32 of each loss."""
    return jnp.minimum((scaled(losses, low, high) * BINS).astype(jnp.int32), BINS - 1)


def histogram(losses: Array, seen: Array, percent: float) -> tuple[Array, Array, Array]:
    """Count the losses [P] that were `seen` [P]: counts [BINS], and the range low, high that the bins divide.

    The range goes from the `percent`-th to the (100 - `percent`)-th percentile; what lies outside does not count, as
    in Arazo et al.: at the ends it would make a spike there, which bends a beta distribution to it.
    """
    order = jnp.sort(jnp.where(seen, losses, jnp.inf))
    last = jnp.maximum(seen.sum() - 1, 0)

    def percentile(share: float) -> Array:
        return order[jnp.round(share * last.astype(jnp.float32)).astype(jnp.int32)]

    low, high = percentile(percent / 100.0), percentile(1.0 - percent / 100.0)
    inside = seen & (losses >= low) & (losses <= high)
    places = jnp.where(inside, bin_of(losses, low, high), BINS)
    return jnp.zeros(BINS, jnp.int32).at[places].add(1, mode="drop"), low, high


def log_beta(x: Array, parameters: Array) -> Array:
    """Return the log-densities [2,BINS] at x [1,BINS] of beta distributions with parameters (alpha, beta) [2,2]."""
    alpha, beta = parameters[:, :1], parameters[:, 1:]
    return (alpha - 1.0) * jnp.log(x) + (beta - 1.0) * jnp.log1p(-x) - betaln(alpha, beta)


def log_gaussian(x: Array, parameters: Array) -> Array:
    """Return the log-densities [2,BINS] at x [1,BINS] of Gaussians with parameters (mean, variance) [2,2].

    A constant is left out.
    """
    mean, variance = parameters[:, :1], parameters[:, 1:]
    return -0.5 * jnp.square(x - mean) / variance - 0.5 * jnp.log(variance)


def moments(x: Array, weight: Array) -> tuple[Array, Array]:
    """Return the means [2] and variances [2] of x [1,BINS] under weights [2,BINS]."""
    total = jnp.maximum(weight.sum(1), 1e-12)
    mean = (weight * x).sum(1) / total
    return mean, (weight * jnp.square(x - mean[:, None])).sum(1) / total


def maximised(kind: str, x: Array, weight: Array) -> Array:
    """Return the parameters [2,2] of both components from weights [2,BINS], by their moments."""
    mean, variance = moments(x, weight)
    if kind == "gaussian":
        return jnp.stack([mean, variance + SPREAD], axis=1)
    # a beta distribution's variance is below mean (1 - mean); of a component that is all at both ends it would be that
    concentration = mean * (1.0 - mean) / jnp.clip(variance, 1e-6, 0.999 * mean * (1.0 - mean)) - 1.0
    return jnp.stack([mean * concentration, (1.0 - mean) * concentration], axis=1)


def responsibilities(kind: str, x: Array, parameters: Array, share: Array) -> Array:
    """Return the posteriors [2,BINS] of both components at x [1,BINS]."""
    density = log_beta(x, parameters) if kind == "beta" else log_gaussian(x, parameters)
    return jax.nn.softmax(density + jnp.log(jnp.maximum(share, 1e-12))[:, None], axis=0)


def falling(clean: Array) -> Array:
    """Make a posterior [BINS] fall as the loss rises: its highest value holds below it, its lowest above it.

    The densities of two beta distributions can cross twice, and the tail of one would claim the extremes of the other.
    """
    place, top, bottom = jnp.arange(BINS), clean.argmax(), clean.argmin()
    fixed = jnp.where(place < top, clean[top], jnp.where(place > bottom, clean[bottom], clean))
    return jnp.where(top < bottom, fixed, clean)


def fit_histogram(counts: Array, kind: str, iterations: int, monotone: bool) -> Mixture:
    """Fit a mixture to the counts [BINS] of losses from 0 to 1 by expectation and maximisation.

    kind: "beta" or "gaussian". Without any count all is the first component's.
    """
    x, number = middles()[None, :], counts.astype(jnp.float32)[None, :]

    def improve(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        parameters, share = state
        weight = responsibilities(kind, x, parameters, share) * number
        return maximised(kind, x, weight), weight.sum(1) / jnp.maximum(number.sum(), 1.0)

    parameters, share = jax.lax.fori_loop(0, iterations, improve, (jnp.array(STARTS[kind]), jnp.full(2, 0.5)))
    weight = responsibilities(kind, x, parameters, share)
    mean, variance = moments(x, weight * number)
    found = (weight, mean, jnp.sqrt(variance), share)
    weight, *traits = (jnp.where(mean[0] > mean[1], own[::-1], own) for own in found)
    clean = falling(weight[0]) if monotone else weight[0]
    return Mixture(jnp.where(number.sum() > 0, clean, 1.0), *traits)


def posterior_of(losses: Array, low: Array, high: Array, clean: Array) -> Array:
    """Look up the posterior [P] of losses [P] in that of the bins [BINS] of the range `low` to `high`."""
    return clean[bin_of(losses, low, high)]
