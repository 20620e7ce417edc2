"""Mixtures fitted to losses: against EM in SciPy on the losses themselves, and on losses of known mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from xmodal_jax.objectives import mixture

PAIRS = 20_000
TRUE = {"clean": (2.0, 9.0), "noisy": (7.0, 3.0)}


def drawn(share, seed=0):
    """Losses of `share` noisy pairs of a beta mixture, and which are noisy."""
    rng = np.random.default_rng(seed)
    noisy = rng.random(PAIRS) < share
    losses = np.where(noisy, rng.beta(*TRUE["noisy"], PAIRS), rng.beta(*TRUE["clean"], PAIRS))
    return losses.astype(np.float32), noisy


def fitted(losses, kind="beta", percent=0.0, monotone=False, iterations=10):
    """The mixture of the losses [P], and the posterior of each."""
    counts, low, high = mixture.histogram(jnp.asarray(losses), jnp.ones(len(losses), bool), percent)
    fit = jax.jit(mixture.fit_histogram, static_argnums=(1, 2, 3))(counts, kind, iterations, monotone)
    return fit, np.asarray(mixture.posterior_of(jnp.asarray(losses), low, high, fit.clean)), (float(low), float(high))


def em(losses, kind, iterations=10):
    """Fit by SciPy's densities on every loss: posteriors [P] of the component with the lower losses."""
    x = np.clip((losses - losses.min()) / (losses.max() - losses.min()), 1e-4, 1 - 1e-4).astype(np.float64)
    parameters, share = [tuple(row) for row in mixture.STARTS[kind]], np.full(2, 0.5)

    def posteriors():
        if kind == "beta":
            density = np.stack([stats.beta.pdf(x, *own) for own in parameters])
        else:
            density = np.stack([stats.norm.pdf(x, mean, variance**0.5) for mean, variance in parameters])
        weighted = density * share[:, None] + 1e-300
        return weighted / weighted.sum(0)

    for _ in range(iterations):
        weight = posteriors()
        share = weight.mean(1)
        for side in range(2):
            mean = np.average(x, weights=weight[side])
            variance = np.average((x - mean) ** 2, weights=weight[side])
            scale = mean * (1 - mean) / variance - 1
            parameters[side] = (mean * scale, (1 - mean) * scale) if kind == "beta" else (mean, variance + 5e-4)
    return posteriors()[0]


@pytest.mark.parametrize("kind", ["beta", "gaussian"])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_posteriors_are_those_of_em_on_every_loss(kind, share):
    losses, _ = drawn(share)
    _, posterior, _ = fitted(losses, kind)
    reference = em(losses, kind)
    assert np.quantile(np.abs(posterior - reference), 0.999) < 0.02  # a bin is a thousandth of the range
    assert np.abs(posterior - reference).mean() < 1e-3


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_shares_and_means_of_a_known_mixture_are_found(share):
    losses, noisy = drawn(share)
    fit, posterior, (low, high) = fitted(losses, iterations=50)
    np.testing.assert_allclose(fit.share, (1 - share, share), atol=0.03)
    means = low + (high - low) * np.asarray(fit.mean)
    np.testing.assert_allclose(means, [a / (a + b) for a, b in TRUE.values()], atol=0.02)
    assert ((posterior < 0.5) == noisy).mean() > 0.95


def test_the_range_is_that_of_the_percentiles_of_losses_seen():
    losses = np.random.default_rng(1).normal(size=1001).astype(np.float32)
    seen = np.arange(1001) % 3 > 0
    counts, low, high = mixture.histogram(jnp.asarray(losses), jnp.asarray(seen), 5.0)
    np.testing.assert_allclose((low, high), np.percentile(losses[seen], (5, 95), method="nearest"), rtol=1e-6)
    inside = losses[seen & (losses >= low) & (losses <= high)]
    assert counts.sum() == len(inside) < 0.95 * seen.sum()  # what lies outside makes no spike at the ends
    places = np.minimum(((inside - low) / (high - low) * mixture.BINS).astype(int), mixture.BINS - 1)
    middle = np.bincount(places, minlength=mixture.BINS)[1:-1]
    assert np.abs(np.asarray(counts)[1:-1] - middle).sum() <= 4  # the last digit of a quotient may fall elsewhere


def test_one_outlier_does_not_hide_the_mixture():
    losses, noisy = drawn(0.4)
    losses[0] = 100.0
    _, cut, _ = fitted(losses, percent=5.0)
    assert ((cut < 0.5) == noisy).mean() > 0.95
    _, squeezed, _ = fitted(losses)
    assert ((squeezed < 0.5) == noisy).mean() < 0.95  # the reason for the cut


def test_a_monotone_posterior_only_falls_and_changes_nothing_between_its_ends():
    losses, _ = drawn(0.4)
    free, _, _ = fitted(losses)
    tied, _, _ = fitted(losses, monotone=True)
    top, bottom = int(free.clean.argmax()), int(free.clean.argmin())
    assert top < bottom and (np.diff(np.asarray(tied.clean)) <= 1e-6).all()
    np.testing.assert_array_equal(tied.clean[top : bottom + 1], free.clean[top : bottom + 1])


@pytest.mark.parametrize("kind", ["beta", "gaussian"])
@pytest.mark.parametrize("losses", [np.zeros(0), np.zeros(50), np.r_[np.zeros(25), np.ones(25)], np.full(1, 0.3)])
def test_posteriors_are_numbers_whatever_the_losses(kind, losses):
    seen = np.r_[np.ones(len(losses), bool), np.zeros(3, bool)]
    own = np.r_[losses, -np.ones(3)].astype(np.float32)
    counts, low, high = mixture.histogram(jnp.asarray(own), jnp.asarray(seen), 5.0)
    fit = mixture.fit_histogram(counts, kind, 10, True)
    assert np.isfinite(fit.clean).all() and (fit.clean >= 0).all() and (fit.clean <= 1).all()
    assert counts.sum() == len(losses)
    if not len(losses):
        assert (np.asarray(fit.clean) == 1).all()
    if len(set(losses)) == 2:
        posterior = np.asarray(mixture.posterior_of(jnp.asarray(own[:50]), low, high, fit.clean))
        assert (posterior[:25] > 0.9).all() and (posterior[25:] < 0.1).all()
