import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.errors import UserError
from xmodal_jax.search import dense, numpy_engine, topk


def stable_topk(scores, k):
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize(("count", "levels"), [(300, 1000), (300, 3), (297, 2), (20, 2)])
def test_tiled_topk_is_a_stable_sort_even_with_ties(rng, count, levels):
    scores = rng.integers(0, levels, (6, count)).astype(np.float32)
    values, columns = topk.tiled_topk(jnp.asarray(scores), k=5, tile=8)
    want_values, want_columns = stable_topk(scores, 5)
    np.testing.assert_array_equal(values, want_values)
    np.testing.assert_array_equal(columns, want_columns)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_tiled_topk_property(seed, levels):
    scores = np.random.default_rng(seed).integers(0, levels, (2, 200)).astype(np.float32)
    _, columns = topk.tiled_topk(jnp.asarray(scores), k=3, tile=8)
    np.testing.assert_array_equal(columns, stable_topk(scores, 3)[1])


def test_the_tiles_are_really_used():
    """40 rows would be returned as they are; 100,000 go through two small top-k instead of one large one."""
    import jax

    text = str(jax.make_jaxpr(lambda s: topk.tiled_topk(s, 5))(jnp.zeros((1, 100_000))))
    assert text.count("top_k") == 2
    assert "sort" in text


def test_blocked_topk_equals_one_block_and_never_returns_padding(rng):
    query, gallery = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(37, 4)).astype(np.float32) - 5.0
    whole = topk.blocked_topk(dense.inner_product, query, topk.resident(gallery), 37)
    parts = topk.blocked_topk(dense.inner_product, query, topk.resident(gallery), 37, block_scores=128)  # 2 x 64 rows
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert sorted(whole[1][0]) == list(range(37))
    np.testing.assert_array_equal(whole[1], stable_topk(query @ gallery.T, 37)[1])


def test_no_query_is_no_hit():
    values, rows = topk.blocked_topk(
        dense.inner_product, np.zeros((0, 4), np.float32), topk.resident(np.ones((9, 4))), 2
    )
    assert values.shape == rows.shape == (0, 2)


def test_merge_topk_keeps_lower_rows_first_among_ties():
    values, rows = numpy_engine.merge_topk(
        [np.array([[3.0, 1.0]]), np.array([[3.0, 2.0]])], [np.array([[4, 0]]), np.array([[9, 8]])], 3
    )
    np.testing.assert_array_equal(values, [[3.0, 3.0, 2.0]])
    np.testing.assert_array_equal(rows, [[4, 9, 8]])


@pytest.mark.parametrize(
    ("query", "shape", "k", "words"),
    [
        ((2, 4), (0, 4), 1, "empty"),
        ((2, 3), (5, 4), 1, "3 wide and the gallery 4"),
        ((2, 4), (5, 4), 6, "k = 6"),
        ((2, 4), (5, 4), 0, "k = 0"),
        ((4,), (5, 4), 1, "one row per query"),
    ],
)
def test_bad_searches_are_refused(query, shape, k, words):
    with pytest.raises(UserError, match=words):
        numpy_engine.refuse_unsearchable(np.zeros(query), shape, k)
