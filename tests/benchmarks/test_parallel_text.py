"""Dialogues of a game as parallel sentences: what is read, what is kept, and recall where sentences are equal."""

import json

import numpy as np
import parallel_text
import pytest

from xmodal_jax.errors import UserError

ENGLISH = r"""
dialogId("a", "font", "Say \"yes\".")

dialogId("b", "font", "Be thankful.")
"""
GERMAN = """
dialogId("a", "font", "Say yes.")
dialogStr("Sag ja.")

dialogId("b", "font", "Be thankful.")
dialogStr("Sei dankbar.")

dialogId("c", "font", "Only here.")
"""


@pytest.fixture
def folder(tmp_path):
    for room in ("city", "reef"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "dialogs_en.lua").write_text(ENGLISH)
        (tmp_path / room / "dialogs_de.lua").write_text(GERMAN)
    return tmp_path


def test_sentences_are_joined_by_room_and_id_over_the_languages(folder):
    found = parallel_text.sentences(folder)
    assert found.keys() == {f"{room}/{key}" for room in ("city", "reef") for key in "abc"}
    assert found["city/b"] == {"en": "Be thankful.", "de": "Sei dankbar."} and found["reef/c"] == {"en": "Only here."}
    assert found["city/a"] == {"en": "Say yes.", "de": "Sag ja."}, "the first file that tells counts"
    assert list(parallel_text.spoken(ENGLISH))[0] == ("a", 'Say "yes".', "")
    texts = parallel_text.complete(found, ("de",))
    assert texts == {"en": ["Say yes.", "Be thankful."] * 2, "de": ["Sag ja.", "Sei dankbar."] * 2}


def test_equal_sentences_are_equally_right():
    rows = np.eye(3, dtype=np.float32)
    assert parallel_text.recall(rows, rows[[1, 0, 2]], ["x", "x", "y"]) == 100.0
    assert parallel_text.recall(rows, rows[[1, 0, 2]], ["x", "z", "y"]) == pytest.approx(100 / 3)


def test_sentences_are_read_further_than_the_names_of_training(tiny_run):
    run = parallel_text.opened(str(tiny_run[0]), 14)
    assert run.assembly.specs["text"].size == 14 and run.config.encoders["image"].size == 16
    long = [f"{11 * 'a '}{colour}" for colour in ("red", "blue")]
    assert not np.array_equal(*run.encode_texts(long)), "the last word is read"


def test_a_run_finds_translations(folder, tiny_run, tmp_path, monkeypatch, capsys):
    """By the tower of the field of words."""
    monkeypatch.setattr(parallel_text, "LANGUAGES", ("de",))
    run = ("--run", str(tiny_run[0]))
    parallel_text.main(
        ["--folder", str(folder), *run, "--tower", "--length", "12", "--out", str(tmp_path / "out.json")]
    )
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["sentences"] == 4 and 0 <= found["de"]["from English"] <= 100
    assert "de {'from English'" in capsys.readouterr().out


def test_a_folder_without_dialogues_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no dialogues in bg, cs, de"):
        parallel_text.main(["--folder", str(tmp_path), "--run", "none", "--out", str(tmp_path / "out.json")])
