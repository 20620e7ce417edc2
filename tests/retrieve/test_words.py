import pytest

from xmodal_jax.data.readers import InputSpec
from xmodal_jax.data.text import Tokenizer, build_vocabulary, save_tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.retrieve import words

CAPTIONS = [
    "a red circle",
    "the circle is red",
    "a blue square",
    "the square is blue",
    "there is bread in an urn",
    "an elf",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A vocabulary with room left: every word that `CAPTIONS` have twice is one token."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    save_tokenizer(build_vocabulary(CAPTIONS), path)
    return Tokenizer(path)


def test_the_end_that_is_not_read_is_named(tokenizer, caplog):
    ids = words.encoded_words(InputSpec(6, tokenizer), "text", "the circle is red")  # [CLS], four words, [SEP]
    assert not caplog.records and tokenizer.decode(ids[0, 1:]) == "the circle is red"
    ids = words.encoded_words(InputSpec(6, tokenizer), "text", "  the circle is red a blue square")
    assert tokenizer.decode(ids[0, 1:]) == "the circle is red"
    told = (
        "the model reads 6 tokens of a text (config.encoders.text.length) and the query has 9: "
        "not read is the end, 'a blue square'"
    )
    assert caplog.messages == [told]


def test_a_word_that_is_cut_in_the_middle_is_not_read(tokenizer, caplog):
    assert [len(ids) for _, _, ids in tokenizer.words("red circles")] == [1, 2]
    words.encoded_words(InputSpec(4, tokenizer), "text", "red circles")
    assert caplog.messages[0].endswith("and the query has 5: not read is the end, 'circles'")


@pytest.mark.parametrize("query", ["ein Urbild", "elne 日本", "Ω, Ж!", "?", "elba " * 9 + "red"])
def test_a_query_of_which_no_word_is_known_is_refused(tokenizer, query):
    """Not one token of the captions' words, or what is known is beyond the length."""
    with pytest.raises(UserError, match="knows no word of .*; write other words, in the language of the captions"):
        words.encoded_words(InputSpec(8, tokenizer), "text", query)


def test_words_spelled_from_bits_are_named_and_known_words_with_an_ending_are_not(tokenizer, caplog):
    words.encoded_words(InputSpec(8, tokenizer), "text", "circles")
    assert not caplog.records
    words.encoded_words(InputSpec(16, tokenizer), "text", "ein red barn")
    assert caplog.messages == ["the model's tokenizer does not know ein, barn; the rest is searched"]


def test_a_full_vocabulary_may_spell_its_words(tokenizer, monkeypatch):
    assert tokenizer.has_all_words
    monkeypatch.setattr("xmodal_jax.data.text.VOCABULARY", tokenizer.vocab_size)
    assert not tokenizer.has_all_words
    assert words.known(tokenizer, "ein", tokenizer.words("ein")[0][2])


def test_words_have_their_places_and_all_their_tokens(tokenizer):
    text = "Red circles, BLUE"
    found = tokenizer.words(text)
    assert [text[start:stop] for start, stop, _ in found] == ["Red", "circles", ",", "BLUE"]
    flat = [token for _, _, ids in found for token in ids]
    assert tokenizer.encode([text], len(flat) + 2)[0, 1:-1].tolist() == flat
    assert tokenizer.lengths([text])[0] == len(flat) + 2
