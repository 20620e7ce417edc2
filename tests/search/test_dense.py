import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import dense


def test_cosine_topk_is_the_sorted_matrix(rng):
    query, gallery = rng.normal(size=(5, 6)), rng.normal(size=(1500, 6))
    scores, rows = dense.dense_topk(query, gallery, 7)
    cosine = query @ gallery.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)[None]
    want = np.argsort(-cosine, axis=1)[:, :7]
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_allclose(scores, np.take_along_axis(cosine, want, axis=1), atol=1e-6)


def test_inner_products_are_not_normalised_when_asked(rng):
    query, gallery = rng.normal(size=(3, 4)), rng.normal(size=(20, 4)) * np.arange(1, 21)[:, None]
    scores, rows = dense.dense_topk(query, gallery, 2, cosine=False)
    np.testing.assert_array_equal(rows, np.argsort(-(query @ gallery.T), axis=1)[:, :2])
    np.testing.assert_allclose(scores[:, 0], (query @ gallery.T).max(axis=1), rtol=1e-5)


def test_a_row_of_zeros_has_cosine_zero():
    np.testing.assert_array_equal(dense.unit_rows(np.array([[0.0, 0.0], [3.0, 4.0]])), np.float32([[0, 0], [0.6, 0.8]]))


def test_rows_that_are_not_finite_are_named():
    with pytest.raises(UserError, match="Embedding 1 is not finite"):
        dense.unit_rows(np.array([[1.0, 2.0], [np.nan, 0.0]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inner_products_of_rows_that_are_not_finite_are_refused(bad):
    query, gallery = np.ones((1, 2)), np.ones((3, 2))
    gallery[1, 0] = bad
    with pytest.raises(UserError, match="Embedding 1 is not finite"):
        dense.dense_topk(query, gallery, 2, cosine=False)
    with pytest.raises(UserError, match="Embedding 0 is not finite"):
        dense.dense_topk(query * bad, np.ones((3, 2)), 2, cosine=False)
