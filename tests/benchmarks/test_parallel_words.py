"""Dictionaries as parallel words: what is read of an entry, and what is left out because a picture is asked for it."""

import gzip
import json

import parallel_words
import pytest

from xmodal_jax.data.source import split_groups
from xmodal_jax.errors import UserError

GERMAN = {
    "00databaseinfo": "About this dictionary\n",
    "tiger": "tiger /tˈaɪɡə/\nTiger <masc> [zool.], Großkatze <fem>\n see: {tigers}\n\n",
    "red": "Red /ɹˈɛd/\n1. rot <adj>\n2. kommunistisch\n",
    "build a house": "build a new house /x/\nein Haus bauen\n",
    "boat": "boat //bəʊt// //boʊt// <n>\n   \nBoot; Kahn\n",
}
JAPANESE = {
    "虎": " [ichi1] [news1] 虎 /(ja)tora/, とら\n(noun (common))\ntiger, drunkard\n",
    "酎": "酎 /tsu/\n(noun)\nred\n",
    "書く": " [ichi1] 書く /kaku/\n(verb)\nto write; to compose\n",
}


def in_base_64(value):
    digits = ""
    while True:
        digits = list(parallel_words.DIGITS)[value % 64] + digits
        value //= 64
        if not value:
            return digits


def write_dictionary(folder, name, entries):
    """Write a dictionary as dictd reads it: texts on end, and where each headword's begins."""
    data, index = b"", []
    for word, text in entries.items():
        index.append(f"{word}\t{in_base_64(len(data))}\t{in_base_64(len(text.encode()))}\n")
        data += text.encode()
    (folder / f"{name}.index").write_text("".join(index), "utf-8")
    (folder / f"{name}.dict.dz").write_bytes(gzip.compress(data))


@pytest.fixture
def folder(tmp_path):
    write_dictionary(tmp_path, "freedict-eng-deu", GERMAN)
    write_dictionary(tmp_path, "freedict-jpn-eng", JAPANESE)
    write_dictionary(tmp_path, "freedict-deu-eng", {"rot": "rot\nruby\n"})
    return tmp_path


def test_the_first_translation_of_each_headword_is_read(folder):
    found = parallel_words.words(folder)
    assert found == {
        "tiger": {"de": "Tiger", "ja": "虎"},  # without gender, field and what comes after the comma
        "red": {"de": "rot"},  # its Japanese word is not marked as common
        "boat": {"de": "Boot"},
        "write": {"ja": "書く"},
    }, "four words are too many, and German to English is not read"


def test_a_word_is_of_its_languages_script():
    assert parallel_words.usable("тигр", "ru") and not parallel_words.usable("tigr", "ru")
    assert parallel_words.usable("コーヒー", "ja") and parallel_words.usable("虎", "ja")
    assert not parallel_words.usable("a", "pl"), "what is left of a broken entry"
    assert not parallel_words.usable("", "de") and not parallel_words.usable("x 2", "de")


def test_rows_hold_names_with_their_split_and_no_word_that_names_a_picture_held_out(folder, tmp_path, capsys):
    """The split is that of `xmodal data prepare jsonl --held-out`, for the rows are the same."""
    names = ["tiger", "red", "boat", "write"]
    emoji = [{"id": name, "views": {"a": "a.png"}, "caption": {"en": name.title()}, "group": name} for name in names]
    (tmp_path / "emoji.jsonl").write_text("".join(json.dumps(row) + "\n" for row in emoji), "utf-8")
    out = tmp_path / "out.jsonl"
    given = ["--emoji", str(tmp_path / "emoji.jsonl"), "--held-out", "1", "--least", "1", "--out", str(out)]
    parallel_words.main([str(folder), *given])
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["split"] for row in rows[:4]] == split_groups(names, 1, lambda _: True)
    (asked,) = (row["id"] for row in rows[:4] if row["split"] == "test")
    assert [row["id"] for row in rows[4:]] == [f"word: {name}" for name in sorted(names) if name != asked]
    assert all("views" not in row and row["split"] == "train" for row in rows[4:])
    assert "3 words beside 4 names" in capsys.readouterr().out
    parallel_words.main([str(folder), *given[:5], "2", *given[6:]])
    least = [json.loads(line)["id"] for line in out.read_text("utf-8").splitlines()[4:]]
    assert least == ([] if asked == "tiger" else ["word: tiger"]), "words in two languages"


def test_a_word_that_names_a_picture_held_out_in_another_language_makes_no_row():
    """A car is called "Auto" as the automobile is."""
    emoji = [{"caption": {"en": "automobile", "de": "Auto"}, "split": "test"}]
    found = {"car": {"de": "auto", "fr": "voiture"}, "cart": {"de": "Karren", "fr": "auto"}}
    assert [row["id"] for row in parallel_words.rows_of(found, emoji, 1)] == ["word: cart"]


def test_a_folder_without_dictionaries_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no dictionary of ara, deu.*unpack dict-freedict-eng-deu there"):
        parallel_words.words(tmp_path)
