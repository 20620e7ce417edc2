import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.errors import UserError
from xmodal_jax.eval import hashing
from xmodal_jax.search import codes


def average_precision(relevant_in_order, k):
    """Textbook AP@k of ranked lists of 0 and 1, [n,m] -> [n]."""
    relevant = np.asarray(relevant_in_order)
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return (precision * relevant)[:, :k].sum(axis=1) / np.minimum(k, relevant.sum(axis=1))


def numpy_values(scores, relevant, k):
    """AP@k of each query that has anything relevant, ties in the order of the gallery."""
    order = np.argsort(-scores, axis=1, kind="stable")
    answered = relevant.any(axis=1)
    return average_precision(np.take_along_axis(relevant, order, axis=1)[answered], k)


@pytest.mark.parametrize("k", [None, 5])
def test_without_ties_it_is_the_textbook_map(rng, k):
    query, gallery = rng.normal(size=(7, 5)), rng.normal(size=(23, 5))
    labels, gallery_labels = (rng.integers(0, 2, (n, 4)) * (rng.random((n, 4)) < 0.5) for n in (7, 23))
    want = numpy_values(query @ gallery.T, labels @ gallery_labels.T > 0, k or 23).mean()
    for chunk in (None, 3):
        got = hashing.mean_average_precision(query, gallery, labels, gallery_labels, k, chunk)
        assert got == pytest.approx(want, abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.sampled_from([4, 12]))
def test_with_ties_it_is_the_mean_over_random_orders(seed, k):
    rng = np.random.default_rng(seed)
    scores, relevant = rng.integers(0, 3, (1, 12)).astype(np.float32), rng.random((1, 12)) < 0.4
    relevant[0, 0] = True
    got = hashing.expected_average_precision(jnp.asarray(scores), jnp.asarray(relevant), k)
    orders = rng.permuted(np.tile(np.arange(12), (20_000, 1)), axis=1)
    drawn = numpy_values(scores[0][orders], relevant[0][orders], k)
    assert float(got[0]) == pytest.approx(np.mean(drawn), abs=6 * np.std(drawn) / np.sqrt(20_000) + 1e-6)


def test_equal_codes_are_worth_the_mean_of_all_orders():
    """Every order is equally likely, and the order of the files is nothing to the result."""
    labels = np.eye(2)[[0, 1, 0, 1]]
    front, back = np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[1, 1, 0, 0]]
    values = [hashing.mean_average_precision(np.ones((4, 8)), np.ones((4, 8)), labels, side) for side in (front, back)]
    assert values[0] == pytest.approx(values[1])
    ways = np.array(list(itertools.permutations([1, 1, 0, 0])))
    assert values[0] == pytest.approx(average_precision(ways, 4).mean(), abs=1e-6)


def test_queries_without_anything_relevant_are_left_out():
    labels, gallery_labels = np.array([[1, 0], [0, 1]]), np.array([[1, 0], [1, 0]])
    assert hashing.mean_average_precision(np.eye(2), np.eye(2), labels, gallery_labels) == pytest.approx(1.0)


def test_random_codes_are_worth_chance_and_good_codes_more(rng):
    label = rng.integers(0, 4, 60)
    labels = np.eye(4)[label]
    good = 2.0 * np.eye(4).repeat(4, axis=1)[label] - 1.0
    both = hashing.Labelled(good, good, labels, labels)
    row = hashing.label_table(both, both, k=10)["i2t"]
    assert row["MAP@ALL"] == row["mAP@10"] == pytest.approx(1.0)
    assert 0.2 < row["MAP@ALL random"] < 0.35
    assert row["MAP@ALL random"] == hashing.random_code_value(labels, labels, 16)


def test_hamming_recall_ranks_by_distance_with_expected_ties(rng):
    query, gallery = rng.normal(size=(12, 16)), rng.normal(size=(30, 16))
    positives = np.arange(12)[:, None]
    distance = (np.sign(query)[:, None] != np.sign(gallery)[None]).sum(axis=2)
    own = distance[np.arange(12), np.arange(12)][:, None]
    ahead, equal = (distance < own).sum(1), (distance == own).sum(1)
    found = hashing.hamming_recall(query, gallery, positives)
    for k in (1, 5, 10):  # one of `equal` places behind those ahead, each as likely
        assert found[f"R@{k}"] == pytest.approx(100 * np.mean(np.clip((k - ahead) / equal, 0, 1)))
    assert found["median_rank"] == np.median(ahead + (equal + 1) / 2) and equal.max() > 1
    packed = codes.pack(query)
    assert packed.shape == (12, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 31}, "k = 31 does not fit a gallery of 30"),
        ({"k": 0}, "k = 0 does not fit a gallery of 30"),
        ({"query_labels": np.ones((4, 3))}, "5 rows and 4 rows of labels"),
        ({"gallery_labels": np.zeros((30, 3))}, "No query shares a label"),
        ({"gallery_labels": np.zeros((30, 2))}, "label names"),
        ({"query": np.full((5, 8), np.nan)}, "diverged"),
        ({"query": np.zeros((0, 8)), "query_labels": np.zeros((0, 3))}, "nothing to evaluate"),
    ],
)
def test_bad_input_is_refused(change, words):
    good = {
        "query": np.ones((5, 8)),
        "gallery": np.ones((30, 8)),
        "query_labels": np.ones((5, 3)),
        "gallery_labels": np.ones((30, 3)),
    }
    with pytest.raises(UserError, match=words):
        hashing.mean_average_precision(**{**good, **change})


def test_odd_bits_are_refused():
    with pytest.raises(UserError, match="multiple of 8"):
        hashing.random_code_value(np.ones((3, 2)), np.ones((3, 2)), bits=12)
