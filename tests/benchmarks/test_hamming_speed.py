"""The benchmark against faiss: every searcher gives faiss's distances, and the table says whose time is whose."""

import hamming_speed
import numpy as np
import pytest


@pytest.mark.parametrize("bits", [64, 96])
def test_all_searchers_give_the_distances_of_faiss(rng, bits):
    pytest.importorskip("faiss")
    gallery = rng.integers(0, 256, (3_000, bits // 8), dtype=np.uint8)
    query = rng.integers(0, 256, (3, bits // 8), dtype=np.uint8)
    apart = np.bitwise_count(gallery[None] ^ query[:, None]).sum(2)
    found = hamming_speed.searchers(gallery, 1, with_numpy=True)
    assert sorted(found) == ["faiss", "jax", "numpy"]
    for name, ask in found.items():
        np.testing.assert_array_equal(ask(query), np.sort(apart, axis=1)[:, : hamming_speed.K], err_msg=name)


def test_numpy_is_left_out_where_it_would_take_too_long():
    pytest.importorskip("faiss")
    lines = hamming_speed.measure(2_000, 64, (1, 4), threads=1, repeats=1, numpy_rows=2_000)
    assert [("numpy" in line["ms"], line["queries"]) for line in lines] == [(True, 1), (False, 4)]
    lines = hamming_speed.measure(2_000, 64, (4,), threads=1, repeats=1, numpy_rows=2_000)
    assert sorted(lines[0]["ms"]) == ["faiss", "jax"]


def test_medians_and_ratios():
    table = hamming_speed.summary(
        {"faiss": [(2.0, 4.0), (3.0, 4.0), (9.0, 4.0)], "jax": [(6.0, 2.0), (5.0, 2.0), (7.0, 2.0)]}
    )
    assert table["ms"] == {"faiss": 3.0, "jax": 6.0} and table["fastest_ms"] == {"faiss": 2.0, "jax": 5.0}
    assert table["ms_over_faiss"] == {"jax": 2.0} and table["fastest_ms_over_faiss"] == {"jax": 2.5}
    assert table["cpu_ms_over_faiss"] == {"jax": 0.5}
