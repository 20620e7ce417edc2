"""The shortlist benchmark: whose rows are whose after mixing, and what a shortlist keeps."""

import numpy as np
import pytest
import shortlist

from xmodal_jax.encode.embed import Embedded
from xmodal_jax.search.numpy_engine import unit_rows

WIDTH, BITS = 8, 16


def rows(seed: int, count: int) -> Embedded:
    """Rows whose codes are the signs of a fixed map of their embeddings."""
    embed = unit_rows(np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32))
    return Embedded(embed, codes=embed @ np.random.default_rng(99).normal(size=(WIDTH, BITS)).astype(np.float32))


@pytest.fixture
def side() -> shortlist.Side:
    """Five queries that lie beside two captions each, among thirty others."""
    query = rows(0, 5)
    twice = Embedded(np.repeat(query.embed, 2, axis=0), codes=np.repeat(query.codes, 2, axis=0))
    owner = np.repeat(np.arange(5), 2)
    return shortlist.Side(query, *shortlist.mixed(np.random.default_rng(1), (twice, rows(2, 30)), np.arange(5), owner))


def test_mixing_keeps_each_rows_code_and_record(side):
    assert len(side.owner) == 40 and (side.owner < 0).sum() == 30
    for query in range(5):
        own = side.owner == query
        assert own.sum() == 2
        np.testing.assert_array_equal(side.gallery.embed[own], np.repeat(side.query.embed[query][None], 2, axis=0))
        np.testing.assert_array_equal(side.gallery.codes[own], np.repeat(side.query.codes[query][None], 2, axis=0))
    assert np.any(np.flatnonzero(side.owner >= 0) >= 10)  # not all in front, where equal distances would favour them


def test_a_shortlist_of_all_rows_is_the_cosine_and_a_short_one_is_not(side, tmp_path):
    found = shortlist.recalls(side, tmp_path, (8, BITS), [10, 40])
    assert found["cosine"] == {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0}
    for own in found["bits"].values():
        assert own["0"]["R@10"] == 100.0  # equal codes come first, at most two of others here
        assert own["40"] == found["cosine"] | {"kept": 100.0}
        assert own["10"]["R@10"] == 100.0  # equal embeddings have equal codes
        assert own["10"]["kept"] < 100.0


def test_recall_and_kept_by_hand():
    nothing = Embedded(np.zeros((2, 1), np.float32))
    ranks = {1: 0, 4: 1, 8: 0, 11: 1}  # the right row's place -> who asks
    side = shortlist.Side(nothing, nothing, np.array(list(ranks.values())), np.array([0, 1, *[-1] * 20]))
    rows = np.array([[asked if place == own else 5 + place for place in range(1, 12)] for own, asked in ranks.items()])
    assert shortlist.recall(rows, side) == {"R@1": 25.0, "R@5": 50.0, "R@10": 75.0}
    assert shortlist.kept(np.array([[1, 2], [3, 4]]), np.array([[2, 5], [4, 3]])) == 75.0


def test_times_are_of_an_index_as_large_as_asked(side, tmp_path):
    index = shortlist.enlarged(side, 100, tmp_path / "large", 8)
    assert (len(index), index.bits, index.width) == (100, 8, WIDTH)
    lengths = np.linalg.norm(index.vectors(), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    assert np.einsum("ne,ne->n", index.vectors()[:40], side.gallery.embed).min() > 0.99
    one, many = shortlist.times(side, index, [10, 40], 1)
    assert (one["queries"], many["queries"], one["rows"]) == (1, 5, 100)  # there are five
    assert set(one["ms"]) == {"cosine", "codes", "10", "40"} and min(one["ms"].values()) > 0
    assert one["times_faster"]["10"] == one["ms"]["cosine"] / one["ms"]["10"]
