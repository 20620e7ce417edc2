"""Precision@N and curves by Hamming radius against plain loops over all orders or all sets."""

import itertools

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.eval import curves


@pytest.fixture
def case(rng):
    """Codes of 8 bits, 5 queries and 7 items, so that most distances tie; relevance by random labels."""
    query, gallery = rng.normal(size=(5, 8)), rng.normal(size=(7, 8))
    labels, own = (rng.random((n, 3)) < 0.4 for n in (5, 7))
    labels, own = labels.astype(np.float32), own.astype(np.float32)
    labels[:4, 0] = own[0, 0] = 1
    labels[4], own[:, 2] = (0, 0, 1), 0  # the last query has no answer
    distance = ((query > 0)[:, None] != (gallery > 0)[None]).sum(2)
    return query, gallery, labels, own, distance, labels @ own.T > 0


def test_histograms_count_every_item_once(case):
    query, gallery, labels, own, distance, relevant = case
    for chunk in (None, 2):
        found = curves.counts(query, gallery, curves.by_labels(labels, own), chunk)
        for i, r in itertools.product(range(5), range(9)):
            assert found.items[i, r] == (distance[i] == r).sum()
            assert found.right[i, r] == (relevant[i] & (distance[i] == r)).sum()


def test_precision_is_the_mean_over_all_orders_of_ties(case):
    query, gallery, labels, own, distance, relevant = case
    found = curves.precision_at(curves.counts(query, gallery, curves.by_labels(labels, own)), (1, 3, 7))
    orders = np.array(list(itertools.permutations(range(7))))
    for n in (1, 3, 7):
        shares = []
        for i in range(4):
            ranked = np.take_along_axis(orders, np.argsort(distance[i][orders], axis=1, kind="stable"), axis=1)
            shares.append(relevant[i][ranked[:, :n]].mean())
        assert found[f"P@{n}"] == pytest.approx(np.mean(shares), abs=1e-9)
    assert found["P@7"] == pytest.approx(relevant[:4].mean())


def test_precision_of_a_cut_tie_is_its_share():
    """Four items at one distance, one of them relevant: each place has it with probability 1/4."""
    counted = curves.counts(np.ones((1, 8)), np.ones((4, 8)), curves.by_positives(np.array([[2, -1]]), 4))
    assert curves.precision_at(counted, (1, 2, 4)) == {"P@1": 0.25, "P@2": 0.25, "P@4": 0.25}
    assert curves.chance_precision(counted) == 0.25


def test_chance_is_that_of_the_queries_of_the_curve(case):
    """The whole gallery is within the last radius, whatever the order: there precision is chance."""
    query, gallery, labels, own, _, relevant = case
    found = curves.counts(query, gallery, curves.by_labels(labels, own))
    assert curves.chance_precision(found) == pytest.approx(relevant[:4].mean())
    assert curves.curve(found)["precision"][-1] == pytest.approx(curves.chance_precision(found))
    assert curves.precision_at(found, (7,))["P@7"] == pytest.approx(curves.chance_precision(found))


def test_histograms_are_small_and_blocks_of_them_change_nothing(case, monkeypatch):
    query, gallery, labels, own, _, _ = case
    found = curves.counts(query, gallery, curves.by_labels(labels, own))
    assert found.items.dtype == found.right.dtype == np.int32

    def tables():
        return {**curves.precision_at(found, (2, 5)), "chance": curves.chance_precision(found), **curves.curve(found)}

    whole = tables()
    monkeypatch.setattr(curves, "BLOCK", 2 * 9)
    assert [len(part.items) for part in found.kept()] == [2, 2]
    for name, value in tables().items():
        assert value == pytest.approx(whole[name]), name


def test_a_curve_is_precision_and_recall_of_the_sets_within_a_radius(case):
    query, gallery, labels, own, distance, relevant = case
    found = curves.curve(curves.counts(query, gallery, curves.by_labels(labels, own)))
    assert found["radius"] == list(range(9)) and found["recall"][-1] == 1.0
    for radius, precision, recall in zip(*found.values(), strict=True):
        within, asked = distance <= radius, range(4)
        assert recall == pytest.approx(np.mean([(within & relevant)[i].sum() / relevant[i].sum() for i in asked]))
        shares = [relevant[i][within[i]].mean() for i in asked if within[i].any()]
        assert precision == (pytest.approx(np.mean(shares)) if shares else None)


def test_a_long_curve_is_thinned(rng):
    codes = rng.normal(size=(3, 128))
    found = curves.curve(curves.counts(codes, codes, curves.by_positives(np.arange(3)[:, None], 3)), 9)
    assert found["radius"] == list(range(0, 129, 16)) and found["precision"][0] == found["recall"][0] == 1.0


def test_positives_are_rows_of_the_gallery():
    relevant = curves.by_positives(np.array([[0, 2], [1, -1]]), 3)
    np.testing.assert_array_equal(relevant(slice(0, 2)), [[1, 0, 1], [0, 1, 0]])


def test_random_recall_is_that_of_all_orders():
    orders = np.array(list(itertools.permutations(range(5))))
    wanted = 100 * np.isin(orders[:, :2], (1, 3)).any(1).mean()
    assert curves.random_recall(np.array([[1, 3]]), 5, (2,))["R@2"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda c: curves.precision_at(c, (3,)), "P@N with N = 3 does not fit a gallery of 2"),
        (lambda c: curves.curve(curves.Counts(c.items, 0 * c.right)), "No query has anything relevant"),
        (lambda c: curves.precision_at(curves.Counts(c.items, 0 * c.right), (1,)), "No query has anything relevant"),
        (lambda c: curves.counts(np.ones((1, 8)), np.ones((1, 16)), None), "8 bits and the gallery's 16"),
        (lambda c: curves.counts(np.ones((0, 8)), np.ones((1, 8)), None), "a side has no codes"),
    ],
)
def test_bad_input_is_refused(run, words):
    counted = curves.counts(np.ones((1, 8)), np.ones((2, 8)), curves.by_positives(np.array([[0]]), 2))
    with pytest.raises(UserError, match=words):
        run(counted)
