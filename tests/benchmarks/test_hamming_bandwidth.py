"""The time of a search against that of reading its codes: the read reads all, the limit is their ratio."""

import sys

import hamming_bandwidth
import hamming_speed
import numpy as np
import pytest

from xmodal_jax.search import hamming, numpy_engine


def test_the_read_reads_every_word(rng):
    gallery = rng.integers(0, 256, (5_000, 8), dtype=np.uint8)
    words = hamming.resident(gallery).words
    assert int(hamming_bandwidth.folded(words)) == int(np.bitwise_xor.reduce(np.asarray(words), axis=None))
    one = np.zeros_like(np.asarray(words))
    one[-1, -1, -1, -1] = 7
    assert int(hamming_bandwidth.folded(one)) == 7


def test_the_search_that_is_timed_is_exact_over_all_blocks(monkeypatch, rng):
    monkeypatch.setattr(hamming, "BLOCK_ROWS", 1_000)
    blocks = hamming_bandwidth.placed(2_500, 64)
    assert [block.count for block in blocks] == [1_000, 1_000, 500]
    draw = np.random.default_rng(0)
    gallery = np.concatenate([draw.integers(0, 256, (count, 8), dtype=np.uint8) for count in (1_000, 1_000, 500)])
    query = rng.integers(0, 256, (3, 8), dtype=np.uint8)
    for found, want in zip(
        hamming_bandwidth.nearest(query, blocks), numpy_engine.hamming_topk(query, gallery, 10), strict=True
    ):
        np.testing.assert_array_equal(found, want)


def test_a_line_for_each_number_of_queries():
    lines = hamming_bandwidth.measure(4_000, 64, [1, 3], repeats=3)
    assert [(line["rows"], line["bits"], line["queries"]) for line in lines] == [(4_000, 64, 1), (4_000, 64, 3)]
    for line in lines:
        assert line["of_limit"] == pytest.approx(line["read_ms"] / line["search_ms"]) and line["read_ms"] > 0
        assert line["read_GB_per_s"] > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(["--rows", "0"], "hold 0; write numbers above 0"), (["--bits", "12"], "--bits 12; write a multiple of 8")],
)
@pytest.mark.parametrize("script", [hamming_bandwidth, hamming_speed])
def test_numbers_that_mean_nothing_are_refused(script, wrong, words, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", "--out", str(tmp_path / "x.json"), *wrong])
    with pytest.raises(SystemExit) as stopped:
        script.run_script(script.main)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
