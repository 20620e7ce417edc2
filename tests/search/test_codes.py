import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import codes


def test_pack_and_unpack_are_inverse(rng):
    signs = 2 * rng.integers(0, 2, (9, 24)) - 1
    packed = codes.pack(signs)
    assert packed.shape == (9, 3)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(codes.unpack(packed), signs)


def test_the_first_bit_is_the_highest_and_zero_is_minus_one():
    assert codes.pack(np.array([[0.3, -0.2, 0.0, 5.0, -1, -1, -1, -1]])).tolist() == [[0b10010000]]


@pytest.mark.parametrize("size", [4, 8])
def test_words_keep_distances(rng, size):
    packed = rng.integers(0, 256, (5, 6), dtype=np.uint8)
    words = codes.words(packed, size)
    assert words.dtype.itemsize == size
    bits = np.bitwise_count(words[0] ^ words[1]).sum()
    assert bits == (codes.unpack(packed)[0] != codes.unpack(packed)[1]).sum()


@pytest.mark.parametrize("bits", [0, 7, 12, 65])
def test_bits_that_do_not_fill_bytes_are_refused(bits):
    with pytest.raises(UserError, match="multiple of 8"):
        codes.pack(np.ones((2, bits)))


def test_nan_and_wrong_axes_are_refused():
    with pytest.raises(UserError, match="NaN"):
        codes.pack(np.full((1, 8), np.nan))
    with pytest.raises(UserError, match="one row per record"):
        codes.pack(np.ones(8))


def test_codes_too_long_to_search_are_refused():
    with pytest.raises(UserError, match="32776 bits is too long"):
        codes.pack(np.ones((1, 32776)))
