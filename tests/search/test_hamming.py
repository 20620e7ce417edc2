import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import codes, hamming


def stable_neighbours(query, gallery, k):
    """Straight from the definition: count the bits that differ, sort, lower row first."""
    distance = (codes.unpack(query)[:, None] != codes.unpack(gallery)[None]).sum(axis=2)
    rows = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, rows, axis=1), rows


@pytest.mark.parametrize("search", [hamming.hamming_topk, hamming.hamming_topk_numpy])
@pytest.mark.parametrize(("bits", "count"), [(16, 50), (64, 1500), (40, 50)])
def test_both_paths_are_exact_with_ties(rng, search, bits, count):
    query, gallery = (rng.integers(0, 256, (n, bits // 8), dtype=np.uint8) for n in (3, count))
    distances, rows = search(query, gallery, 6)
    want = stable_neighbours(query, gallery, 6)
    np.testing.assert_array_equal(distances, want[0])
    np.testing.assert_array_equal(rows, want[1])
    assert distances.dtype == rows.dtype == np.int32


def test_the_whole_gallery_can_be_asked_for(rng):
    gallery = rng.integers(0, 256, (9, 2), dtype=np.uint8)
    _, rows = hamming.hamming_topk(gallery[:1], gallery, 9)
    assert sorted(rows[0]) == list(range(9))


@pytest.mark.parametrize("search", [hamming.hamming_topk, hamming.hamming_topk_numpy])
def test_codes_of_other_length_are_refused(search):
    with pytest.raises(UserError, match="same model"):
        search(np.zeros((1, 4), np.uint8), np.zeros((5, 8), np.uint8), 1)
