import itertools
import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.data.card import ceiling
from xmodal_jax.errors import UserError
from xmodal_jax.eval import curves, retrieval
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.settings import MeshConfig


def first_relevant(scores, positives, rng):
    """Rank of the first relevant item in one random order of ties."""
    shuffled = rng.permutation(len(scores))
    order = shuffled[np.argsort(-scores[shuffled], kind="stable")]
    return 1 + np.flatnonzero(np.isin(order, positives))[0]


def small_integers(seed, queries=5, gallery=30, levels=2, positives=3):
    """Embeddings whose inner products are exact and tie often."""
    rng = np.random.default_rng(seed)
    query, rows = (rng.integers(0, levels, (n, 4)).astype(np.float32) for n in (queries, gallery))
    right = np.stack([rng.permutation(gallery)[:positives] for _ in range(queries)])
    right[0, 1:] = -1
    return query, rows, right


def numpy_ranks(query, gallery, positives):
    scores, ranks = query @ gallery.T, []
    for score, row in zip(scores, positives, strict=True):
        relevant = np.isin(np.arange(len(gallery)), row)
        best = score[relevant].max()
        ranks.append((score > best).sum() + ((score == best).sum() + 1) / (((score == best) & relevant).sum() + 1))
    return np.array(ranks)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_ranks_follow_the_definition(seed, levels):
    query, gallery, positives = small_integers(seed, levels=levels)
    got = retrieval.places(query, gallery, positives).ranks()
    np.testing.assert_allclose(got, numpy_ranks(query, gallery, positives))


def test_the_rank_is_the_mean_over_random_orders_of_ties(rng):
    query, gallery, positives = small_integers(3)
    ranks = retrieval.places(query, gallery, positives).ranks()
    for i, score in enumerate(query @ gallery.T):
        drawn = [first_relevant(score, positives[i], rng) for _ in range(4000)]
        assert np.mean(drawn) == pytest.approx(ranks[i], abs=4 * np.std(drawn) / np.sqrt(4000) + 1e-9)


def test_blocks_and_devices_do_not_change_the_result(rng):
    query, gallery = (rng.normal(size=(n, 8)).astype(np.float32) for n in (21, 40))
    positives = np.arange(21)[:, None]
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    whole = retrieval.places(query, gallery, positives, mesh=one)
    for mesh in (one, make_mesh(MeshConfig(4, 2)), make_mesh(MeshConfig(2, 2, 2)), None):
        parts = retrieval.places(query, gallery, positives, chunk=6, mesh=mesh)
        np.testing.assert_array_equal(np.stack(parts), np.stack(whole))


def test_the_block_of_scores_is_bounded_whatever_the_sizes():
    assert retrieval.block_size(10**6, 10**6, None) * 10**6 <= retrieval.BLOCK_SCORES
    assert retrieval.block_size(5, 100, None) == retrieval.block_size(5, 100, 4000) == 5
    assert retrieval.block_size(5, 100, None, multiple=8) == 8
    assert retrieval.block_size(5, 10**9, None) == 1


def test_a_repeated_positive_counts_once():
    query, gallery = np.ones((1, 2)), np.ones((3, 2))
    once = retrieval.places(query, gallery, np.array([[1, -1, -1]]))
    twice = retrieval.places(query, gallery, np.array([[1, 1, 1]]))
    assert once == twice == (0, 3, 1)
    assert once.ranks() == [2.0]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_hit_is_the_mean_over_all_orders_of_ties(levels):
    """Every order of a gallery of six, sorted by score: how many have a relevant item among the first k."""
    query, gallery, positives = small_integers(levels, queries=6, gallery=6, levels=levels, positives=2)
    found, orders = retrieval.places(query, gallery, positives), np.array(list(itertools.permutations(range(6))))
    for i, score in enumerate(query @ gallery.T):
        ranked = np.take_along_axis(orders, np.argsort(-score[orders], axis=1, kind="stable"), axis=1)
        right = np.isin(ranked, positives[i])
        assert 1 + right.argmax(axis=1).mean() == pytest.approx(found.ranks()[i])
        for k in range(1, 7):
            assert right[:, :k].any(axis=1).mean() == pytest.approx(found.hits(k)[i], abs=1e-12)
    for k in (1, 3):
        wanted = 100 * found.hits(k).mean()
        assert retrieval.recall(query, gallery, positives, (k,))[f"R@{k}"] == pytest.approx(wanted)


def standing(above, tied, relevant):
    """One query's `Places`."""
    return retrieval.Places(*(np.array([count]) for count in (above, tied, relevant)))


@st.composite
def standings(draw, largest):
    """above, tied, relevant of a gallery with up to `largest` of each."""
    tied = draw(st.integers(1, largest))
    return draw(st.integers(0, largest)), tied, draw(st.integers(1, tied))


@settings(deadline=None, max_examples=200)
@given(standings(12))
def test_hits_add_up_to_the_expected_rank_and_lie_between_winning_and_losing_ties(counts):
    """E[rank] is the sum over k of the probability that the rank is above k."""
    one, end = standing(*counts), sum(counts[:2])
    hits = [one.hits(k)[0] for k in range(end + 1)]
    assert sum(1 - hit for hit in hits) == pytest.approx(one.ranks()[0])
    assert hits == sorted(hits) and hits[0] == 0.0 and hits[end] == 1.0
    for k, hit in enumerate(hits):
        assert one.lost().hits(k)[0] - 1e-12 <= hit <= one.won().hits(k)[0] + 1e-12
        assert one.won().hits(k)[0] == float(counts[0] < k)


@settings(deadline=None, max_examples=50)
@given(standings(10**6), st.integers(1, 40))
def test_hits_of_a_million_ties_are_exact(counts, more):
    """Against whole numbers of any size; k is from 1 to 40 places behind the items above."""
    above, tied, relevant = counts
    drawn = min(more, tied)
    missed = Fraction(math.comb(tied - relevant, drawn), math.comb(tied, drawn))
    assert standing(*counts).hits(above + more)[0] == pytest.approx(float(1 - missed), rel=1e-9, abs=1e-14)


def test_hits_of_many_queries_with_large_ties():
    tied = np.full(25_000, 10**6)
    found = retrieval.Places(np.arange(25_000) % 3, tied, np.resize([1, 5, 10**6], 25_000))
    hits = found.hits(10)
    assert hits.min() > 0 and (hits[2::3] == 1).all() and hits[0] == pytest.approx(1e-5)  # ten of a million
    assert found.hits(10**6 + 2).tolist() == [1.0] * 25_000


def test_a_constant_model_gets_chance_and_not_everything():
    """Sorting would leave every positive in file order, and an expected rank within k gives R@1 to nobody."""
    table = retrieval.recall(np.ones((10, 4)), np.ones((10, 4)), np.arange(10)[:, None], ks=(1, 5, 10))
    assert table == pytest.approx({"R@1": 10.0, "R@5": 50.0, "R@10": 100.0, "median_rank": 5.5})


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True), min_size=1, max_size=6))
def test_a_constant_model_has_the_recall_of_a_random_order(right):
    positives = np.array([own + [-1] * (4 - len(own)) for own in right])
    table = retrieval.recall(np.ones((len(right), 2)), np.ones((12, 2)), positives)
    chance = curves.random_recall(positives, 12, (1, 5, 10))
    assert {name: table[name] for name in chance} == pytest.approx(chance)
    for k in (1, 5, 10):  # the chance of each query in whole numbers
        missed = [math.comb(12 - len(own), k) / math.comb(12, k) for own in right]
        assert chance[f"R@{k}"] == pytest.approx(100 * (1 - np.mean(missed)))


def test_a_model_that_knows_all_captions_reaches_the_ceiling_where_they_repeat():
    """Own captions alone are right; each picture lies on its text with the largest share of own copies."""
    captions = [["a", "b"], ["b", "a"], ["c", "c"], ["c"], ["c", "d"]]
    owner = np.repeat(np.arange(5), [len(own) for own in captions])
    text = np.eye(4)[["abcd".index(one) for own in captions for one in own]]
    image = np.eye(4)[["abcd".index(one) for one in "aaccd"]]
    right, _ = retrieval.positives_from_owners(owner, np.arange(len(owner)))
    found, best = retrieval.recall(image, text, right, (1, 2, 5)), ceiling(owner, text.argmax(1), (1, 2, 5))["i2t"]
    assert {name: round(found[name], 2) for name in best} == best
    assert best["R@1"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 2 / 4 + 1 / 4 + 1) / 5)


def test_recall_and_summary():
    def without_ties(ranks):
        return retrieval.Places(np.array(ranks) - 1, *np.ones((2, len(ranks)), int))

    i2t = retrieval.recall_of_places(without_ties([1, 2, 7, 30]))
    assert i2t == {"R@1": 25.0, "R@5": 50.0, "R@10": 75.0, "median_rank": 4.5}
    t2i = retrieval.recall_of_places(without_ties([1, 1, 1, 1]))
    table = retrieval.summary(i2t, t2i)
    assert table["rSum"] == 450.0
    assert table["mR"] == 75.0
    assert table["i2t"] is i2t
    assert table["t2i"] is t2i
    assert "expectation of a hit" in table["ties"]


def as_sets(table):
    return [set(row[row >= 0].tolist()) for row in table]


def test_any_matching_caption_is_right_in_both_directions():
    owner = np.array([0, 0, 1, 1, 2, 3])
    keys = np.array([7, 8, 8, 9, 5, 5])  # images 0 and 1 share a caption, 2 and 3 are the same caption
    to_text, to_image = retrieval.positives_from_owners(owner, keys)
    assert as_sets(to_text) == [{0, 1, 2}, {1, 2, 3}, {4, 5}, {4, 5}]
    assert as_sets(to_image) == [{0}, {0, 1}, {0, 1}, {1}, {2, 3}, {2, 3}]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=1, max_size=20))
def test_positives_follow_the_definition(pairs):
    owner, keys = np.array(pairs).T
    to_text, to_image = retrieval.positives_from_owners(owner, keys, images=6)
    for image, right in enumerate(as_sets(to_text)):
        mine = set(keys[owner == image])
        assert right == {j for j, key in enumerate(keys) if key in mine}
    for caption, right in enumerate(as_sets(to_image)):
        assert right == set(owner[keys == keys[caption]])


@pytest.mark.parametrize(
    ("query", "gallery", "positives", "words"),
    [
        (np.ones((2, 3)), np.ones((20, 4)), [[0], [1]], "3 wide and the gallery 4"),
        (np.ones((2, 3)), np.ones((20, 3)), [[0]], "2 queries and 1 rows"),
        (np.ones((2, 3)), np.ones((20, 3)), [[0], [20]], "outside the gallery"),
        (np.ones((2, 3)), np.ones((20, 3)), [[0], [-1]], "no positive, the first is query 1"),
        (np.full((2, 3), np.nan), np.ones((20, 3)), [[0], [1]], "diverged"),
        (np.zeros((0, 3)), np.ones((20, 3)), np.zeros((0, 1)), "nothing to evaluate"),
        (np.ones((2, 3)), np.ones((5, 3)), [[0], [1]], "k = 1, 5, 10 does not fit a gallery of 5"),
    ],
)
def test_bad_input_is_refused(query, gallery, positives, words):
    with pytest.raises(UserError, match=words):
        retrieval.recall(query, gallery, np.array(positives))


def test_topk_is_by_inner_product(rng):
    query, gallery = rng.normal(size=(3, 4)), rng.normal(size=(12, 4))
    scores, rows = retrieval.topk(query, gallery, 5)
    np.testing.assert_array_equal(rows, np.argsort(-(query @ gallery.T), axis=1)[:, :5])
    np.testing.assert_allclose(scores[:, 0], (query @ gallery.T).max(axis=1), rtol=1e-5)
