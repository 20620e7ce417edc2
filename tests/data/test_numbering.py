"""Numbers of texts are exact whatever the digests and however many are sorted at a time; sets know what they hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.data.captions import caption_keys, normal_caption
from xmodal_jax.data.columns import Texts
from xmodal_jax.data.numbering import DigestSet, digest, text_numbers
from xmodal_jax.errors import UserError


def column(words):
    """Texts in memory."""
    data = [word.encode() for word in words]
    starts = np.cumsum([0, *map(len, data)])
    return Texts(np.frombuffer(b"".join(data), np.uint8), starts)


def digests(words, width=16):
    """uint64 [M,2] of the normal form of each text; with a smaller `width` of its first bytes alone."""
    found = b"".join(digest(normal_caption(word))[:width].ljust(16, b"\0") for word in words)
    return np.frombuffer(found, np.uint64).reshape(-1, 2)


def numbered(splits, **options):
    return text_numbers([digests(words) for words in splits], [column(words) for words in splits], **options)


WORDS = st.sampled_from(["a", "A ", "b", "é", "e\u0301", "É", "", "日", "a b", "a  B"])


@given(st.lists(st.lists(WORDS, max_size=9), min_size=1, max_size=3), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_numbers_are_those_of_a_dictionary(splits, at_once):
    found = np.concatenate(numbered(splits, at_once=at_once))
    wanted = caption_keys([word for words in splits for word in words])
    assert found.dtype == np.int32 and len(found) == len(wanted)
    pairs = set(zip(found.tolist(), wanted.tolist(), strict=True))
    assert len(pairs) == len(set(wanted.tolist())) == len(set(found.tolist()))
    assert set(found.tolist()) == set(range(len(pairs))), "without gaps"


def test_a_number_does_not_depend_on_the_parts_or_the_order(rng):
    words = [f"caption {number % 700}" for number in rng.integers(0, 1000, 5000)]
    (whole,) = numbered([words])
    (parts,) = numbered([words], at_once=50)
    np.testing.assert_array_equal(whole, parts)
    order = rng.permutation(5000)
    first, second = numbered([[words[place] for place in own] for own in (order[:2000], order[2000:])])
    np.testing.assert_array_equal(np.concatenate([first, second]), whole[order])


def test_texts_that_share_a_digest_are_never_one(monkeypatch):
    words = [f"text {number}" for number in range(40)]
    with pytest.raises(UserError, match="'text .*' and 'text .*' have the same 128 bits by chance"):
        text_numbers([digests(words, width=1)], [column(words)])
    monkeypatch.setattr("xmodal_jax.data.numbering.COMPARED", 3)  # the two that differ are in two blocks
    same = ["one"] * 3 + ["two"]
    with pytest.raises(UserError, match="'one' and 'two'"):
        text_numbers([np.zeros((4, 2), np.uint64)], [column(same)])
    assert text_numbers([digests(same)], [column(same)])[0].tolist().count(0) in (1, 3)


def test_a_set_of_many_keys_knows_each(rng):
    known, seen = DigestSet(), set()
    for number in rng.integers(0, 6000, 20_000).tolist():
        key = f"schlüssel {number}"
        assert known.add(key) == (key not in seen)
        seen.add(key)
    assert len(known) == len(seen) > 5000
