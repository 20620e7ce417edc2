"""Numbers about the losses of training pairs against SciPy and plain counts."""

import numpy as np
import pytest
from scipy import stats

from xmodal_jax.objectives.pair_report import BINS, auc, pair_report


@pytest.mark.parametrize("digits", [1, 8])
def test_auc_is_that_of_the_mann_whitney_statistic(digits):
    rng = np.random.default_rng(0)
    wrong = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + wrong, digits)  # one digit: many ties
    expected = stats.mannwhitneyu(scores[wrong], scores[~wrong]).statistic / (wrong.sum() * (~wrong).sum())
    np.testing.assert_allclose(auc(scores, wrong), expected, rtol=1e-12)


def test_auc_of_one_kind_is_none():
    assert auc(np.arange(3.0), np.zeros(3, bool)) is None and auc(np.arange(3.0), np.ones(3, bool)) is None


def test_a_report_counts_right_and_wrong_pairs_apart():
    losses = np.array([0.1, 0.2, 0.3, 0.9, 0.8, -1.0], np.float32)
    clean, changed = np.array([1, 0.9, 0.8, 0.1, 0.2, 1.0]), np.array([0, 0, 1, 1, 1, 1], bool)
    found = pair_report(losses, clean, -1.0, changed)
    assert found["auc"] == found["auc_posterior"] == 1.0
    np.testing.assert_allclose(found["seen"], 5 / 6)
    np.testing.assert_allclose((found["trusted_right"], found["trusted_wrong"]), (0.95, 1.1 / 3))
    bars = found["histogram"]
    assert (sum(bars["right"]), sum(bars["wrong"]), len(bars["wrong"])) == (2, 3, BINS)
    np.testing.assert_allclose((bars["low"], bars["high"]), (0.1, 0.9), rtol=1e-6)
    assert bars["right"][0] == 1 and bars["wrong"][-1] == 1


def test_without_the_truth_there_is_one_histogram():
    found = pair_report(np.array([0.5, 0.5]), np.ones(2), -1.0, None)
    assert "auc" not in found and sum(found["histogram"]["all"]) == 2


def test_before_any_visit_there_is_nothing_to_count():
    assert pair_report(np.full(3, -1.0), np.ones(3), -1.0, None) == {"seen": 0.0}
