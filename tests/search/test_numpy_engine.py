import tracemalloc

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import numpy_engine, writer
from xmodal_jax.search.index import Index


def test_the_answers_are_the_sorted_products(rng):
    query, gallery = rng.normal(size=(5, 7)), rng.normal(size=(600, 7)) * rng.uniform(0.1, 9, (600, 1))
    products = query @ gallery.T
    for k in (1, 9, 600):
        values, rows = numpy_engine.dense_topk(query, gallery, k)
        np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :k])
        np.testing.assert_allclose(values, -np.sort(-products, axis=1)[:, :k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1003, 70])
def test_equal_rows_are_equal_wherever_they_stand(rng, count):
    gallery = np.tile(rng.normal(size=300).astype(np.float32), (count, 1))
    gallery[11] *= 1.5
    for query in (rng.normal(size=(3, 300)), rng.normal(size=(1, 300))):
        query *= np.sign(query @ gallery[:1].T)
        values, rows = numpy_engine.dense_topk(query, gallery, 5)
        assert rows.tolist() == [[11, 0, 1, 2, 3]] * len(query)
        assert (values[:, 1:] == values[:, 1:2]).all()


def test_equal_rows_of_an_index_come_in_order(tmp_path, rng):
    path = writer.write(tmp_path / "index", np.tile(rng.normal(size=300), (1003, 1)), None, block_rows=301)
    assert Index.open(path, engine="numpy").nearest(rng.normal(size=300), 500)[1].tolist() == [list(range(500))]


def test_many_queries_are_a_block_in_memory_at_a_time(rng, monkeypatch):
    monkeypatch.setattr(numpy_engine, "BLOCK_SCORES", 1 << 16)
    query, gallery = (rng.normal(size=(n, 4)).astype(np.float32) for n in (300, 20000))
    tracemalloc.start()
    try:
        values, rows = numpy_engine.dense_topk(query, gallery, 3)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20  # all scores are 24 MB
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(rows[250:], numpy_engine.dense_topk(query[250:], gallery, 3)[1])
    np.testing.assert_array_equal(values[:, 0], (gallery[rows[:, 0]] * query).sum(axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_any_length_become_unit_rows(dtype):
    long, short = (1e300, 1e-300) if dtype == np.float64 else (1e38, 1e-44)
    rows = np.array([[long, 0], [long, -long], [short, 0], [short, short], [0, 0], [3, 4]], dtype)
    half = np.sqrt(0.5)
    want = [[1, 0], [half, -half], [1, 0], [half, half], [0, 0], [0.6, 0.8]]
    np.testing.assert_allclose(numpy_engine.unit_rows(rows), want, rtol=1e-6)
    assert numpy_engine.unit_rows(rows).dtype == np.float32
    for bad in (np.nan, np.inf):
        rows[4, 1] = bad
        with pytest.raises(UserError, match=r"Embedding 14 is not finite \(1 of 6 rows\)"):
            numpy_engine.unit_rows(rows, 10)
