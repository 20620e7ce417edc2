import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import codes, hamming, numpy_engine


def stable_neighbours(query, gallery, k):
    """Straight from the definition: count the bits that differ, sort, lower row first."""
    distance = (codes.unpack(query)[:, None] != codes.unpack(gallery)[None]).sum(axis=2)
    rows = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, rows, axis=1), rows


@pytest.mark.parametrize("search", [hamming.hamming_topk, numpy_engine.hamming_topk])
@pytest.mark.parametrize(("bits", "count"), [(16, 50), (64, 1500), (40, 50), (8, 2050), (16, 2304)])
def test_both_paths_are_exact_with_ties(rng, search, bits, count):
    query, gallery = (rng.integers(0, 256, (n, bits // 8), dtype=np.uint8) for n in (3, count))
    distances, rows = search(query, gallery, 3)
    want = stable_neighbours(query, gallery, 3)
    np.testing.assert_array_equal(distances, want[0])
    np.testing.assert_array_equal(rows, want[1])
    assert distances.dtype == rows.dtype == np.int32


def test_the_padding_behind_the_last_row_never_wins():
    """The query is all zeros, as the padding is: the k-th row is far away, in a tile with no padding."""
    gallery = np.full((2050, 2), 255, np.uint8)
    gallery[[5, 700, 2049]] = 0
    gallery[1300] = 1
    distances, rows = hamming.hamming_topk(np.zeros((1, 2), np.uint8), gallery, 4)
    assert rows.tolist() == [[5, 700, 2049, 1300]] and distances.tolist() == [[0, 0, 0, 2]]


def test_only_the_best_tiles_are_gathered(rng):
    """2,304 rows are 18 tiles: 3 are looked into, and the one with the end of the rows."""
    gallery = rng.integers(0, 256, (2304, 2), dtype=np.uint8)
    words = hamming.tiled(gallery)
    assert words.shape == (32, 16, 1, 8)
    best = hamming._chosen_tiles(codes.words(gallery[:1]), words, np.int32(2304), 3)
    assert best.shape == (1, 4) and 0 in np.asarray(best) and best[0, -1] == 18


def test_blocks_of_rows_and_of_queries_change_nothing(rng, monkeypatch):
    query, gallery = (rng.integers(0, 256, (n, 2), dtype=np.uint8) for n in (5, 700))
    whole = hamming.hamming_topk(query, gallery, 6)
    monkeypatch.setattr(hamming, "BLOCK_ROWS", 256)
    monkeypatch.setattr(hamming, "GATHERED", 2048)
    monkeypatch.setattr(numpy_engine, "BLOCK_BYTES", 200)
    for search in (hamming.hamming_topk, numpy_engine.hamming_topk):
        for a, b in zip(search(query, gallery, 6), whole, strict=True):
            np.testing.assert_array_equal(a, b)
    assert hamming.query_block(5, 6, (4, 16, 1, 8)) < 5


@pytest.mark.parametrize(("bits", "steps"), [(64, 16), (512, 8), (1024, 4), (2048, 2)])
def test_long_codes_have_smaller_tiles(bits, steps):
    assert hamming.steps_of(bits // 32) == steps


def test_the_whole_gallery_can_be_asked_for(rng):
    gallery = rng.integers(0, 256, (9, 2), dtype=np.uint8)
    _, rows = hamming.hamming_topk(gallery[:1], gallery, 9)
    assert sorted(rows[0]) == list(range(9))


@pytest.mark.parametrize("search", [hamming.hamming_topk, numpy_engine.hamming_topk])
def test_codes_of_other_length_are_refused(search):
    with pytest.raises(UserError, match="same model"):
        search(np.zeros((1, 4), np.uint8), np.zeros((5, 8), np.uint8), 1)
    assert search(np.zeros((0, 8), np.uint8), np.zeros((5, 8), np.uint8), 2)[0].shape == (0, 2)


@pytest.mark.parametrize("search", [hamming.hamming_topk, numpy_engine.hamming_topk])
def test_the_longest_codes_count_right_and_longer_ones_are_refused(search):
    gallery = np.stack([np.full(4096, 255, np.uint8), np.full(4096, 1, np.uint8)])
    distances, rows = search(np.zeros((1, 4096), np.uint8), gallery, 2)
    assert (distances.tolist(), rows.tolist()) == ([[4096, 32768]], [[1, 0]])
    with pytest.raises(UserError, match="A hash code of 65536 bits is too long to search; write at most 32768"):
        search(np.zeros((1, 8192), np.uint8), np.zeros((2, 8192), np.uint8), 2)
