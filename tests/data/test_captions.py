"""Which captions are one text, in any language, and which are not."""

import sys
import unicodedata

import numpy as np
import pytest

from xmodal_jax.data.captions import (
    Numbers,
    caption_keys,
    count_words,
    normal_caption,
    quantiles,
    says_something,
    words,
)
from xmodal_jax.data.card import Card
from xmodal_jax.data.source import clean_captions
from xmodal_jax.eval.retrieval import positives_from_owners

DIFFERENT = [  # words that differ by a mark or an accent alone
    ("かき", "がき"),
    ("はし", "ばし"),
    ("कुल", "कल"),
    ("schön", "schon"),
    ("mẹ", "me"),
    ("año", "ano"),
    ("ครับ", "ครบ"),
    ("и", "й"),
    ("Maße", "Masse"),
]


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_words_that_differ_by_a_mark_are_two(one, other):
    for form in ("NFC", "NFD"):
        left, right = (unicodedata.normalize(form, text) for text in (one, other))
        assert len(set(caption_keys([left, right]).tolist())) == 2
        assert words(left) != words(right)


def test_case_space_and_unicode_form_make_no_difference():
    same = ["Ein  schönes\tMädchen", "ein schönes mädchen ", unicodedata.normalize("NFD", "EIN SCHÖNES MÄDCHEN")]
    assert caption_keys(same).tolist() == [0, 0, 0]
    assert normal_caption("İzmir") == normal_caption(unicodedata.normalize("NFD", "İzmir"))
    assert normal_caption("ΟΔΟΣ") == normal_caption("οδος")


def test_both_unicode_forms_of_every_letter_are_one_text():
    letters = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.decomposition(chr(code))]
    assert len(letters) > 2000
    for letter in letters:
        assert normal_caption(letter) == normal_caption(unicodedata.normalize("NFD", letter))


def test_captions_of_one_crc_are_not_one_text():
    one, two = "a small cat moves past the park", "the red man moves past a wall"  # 31 bits of CRC-32 in common
    keys = caption_keys([one, two, one.upper(), "another"])
    assert keys.tolist() == [0, 1, 0, 2]
    assert positives_from_owners(np.arange(2), keys[:2])[0].tolist() == [[0], [1]], "each picture's own caption alone"


def test_captions_that_say_nothing_are_left_out():
    kept, skips = clean_captions({"en": ["\u0301", "\u200b", " a  dog "], "hi": ["\u0941"]}, "key")
    assert kept == {"en": ["a dog"]} and [skip.reason for skip in skips] == ["empty caption"] * 3


def test_a_card_tells_the_length_of_captions(tiny_set):
    want = {"en": {"median": 3, "99 %": 3, "longest": 3}, "fr": {"median": 3, "99 %": 3, "longest": 3}}
    assert Card.load(tiny_set).words == want


def test_keys_are_equal_exactly_where_the_texts_are():
    draw = np.random.default_rng(3)
    captions = ["".join(draw.choice(list("aAbé e\u0301ß"), 4)) for _ in range(400)]
    keys = caption_keys(captions)
    want = [[normal_caption(one) == normal_caption(other) for other in captions] for one in captions]
    np.testing.assert_array_equal(keys[:, None] == keys[None], want)
    assert keys.dtype == np.int32 and 1 < len(set(keys.tolist())) < 400 and caption_keys([]).shape == (0,)


def test_numbers_start_at_zero_in_the_order_of_asking():
    numbers = Numbers()
    assert [numbers[thing] for thing in ("b", "a", "b", "c")] == [0, 1, 0, 2]


def test_quantiles_are_the_smallest_that_cover_the_share(rng):
    values = rng.integers(1, 40, 1234)
    numbers, counts = np.unique(values, return_counts=True)
    want = np.quantile(values, (0.5, 0.99, 1.0), method="inverted_cdf")
    assert list(quantiles(dict(zip(numbers.tolist(), counts.tolist(), strict=True))).values()) == want.tolist()
    assert quantiles({7: 1}) == {"median": 7, "99 %": 7, "longest": 7}


@pytest.mark.parametrize(
    "text, count", [("It's a  dog.", 3), ("", 0), ("Ein Mädchen läuft!", 3), ("赤い猫。", 3), ("कुल लाल", 2)]
)
def test_words_are_counted_in_any_script(text, count):
    assert count_words(text) == count


def test_words_keep_their_marks():
    assert words("Don't, CAFÉ_3 e\u0301te\u0301!") == ["don", "t", "café_3", "été"]
    assert words("कुल लाल फूल।") == ["कुल", "लाल", "फूल"]
    assert words("می\u200cخواهم سیب") == ["می\u200cخواهم", "سیب"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", False),
        ("\u0301\u0308", False),
        ("\u200b\u2060\x07", False),
        ("\u00a0\t", False),
        ("\ufe0f\u200d", False),
        ("...", True),
        ("7", True),
        ("👩‍👧", True),
        ("क", True),
        ("مرحبا", True),
    ],
)
def test_marks_and_control_codes_alone_say_nothing(text, said):
    assert says_something(text) == said
