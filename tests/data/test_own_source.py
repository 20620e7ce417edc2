"""A source of a user's own file or package, by its place on the command line."""

import doctest
import inspect
import json
import os
import subprocess
import sys

import pytest

import xmodal_jax.data.source
from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.sources import SOURCES

MINE = '''
import pathlib
from xmodal_jax.data.media import read_states
from xmodal_jax.data.source import Item, Skip, Source

NUMBER = 3

def captioned(
    path: str, ending: str = ".png", held_out: int = 1, share: float = 0.5, loud: bool = False,
    root: pathlib.Path | None = None, *, unset=7,
):
    """Pictures of a folder, 100 % of them, each with its name as the caption.

    More of it. Raises `UserError` never.
    """
    def items():
        for number, file in enumerate(sorted(pathlib.Path(path).glob("*" + ending))):
            words = file.stem.upper() if loud else file.stem
            split = "test" if number < held_out else "train"
            yield Item(file.name, {"image": file.read_bytes()}, {"en": [words]}, split=split, files=read_states(file))
        yield Skip("drawn by nobody", f"{share} {root} {unset}")
    return Source("mine", "a folder", "CC0", items)

def quiet(size=16):
    return Source("quiet", "nothing", "", lambda: iter([]), {"size": size * 2})

def nothing():
    return [1, 2]

def greedy(out, path="."):
    pass

def odd(path: "NoSuchType" = ""):
    pass
'''


@pytest.fixture
def own(tmp_path, tiny_items, monkeypatch):
    """The folder of the file and of some pictures, which is the current one."""
    (tmp_path / "mine.py").write_text(MINE, "utf-8")
    (tmp_path / "pictures").mkdir()
    for item in tiny_items(5):
        (tmp_path / "pictures" / f"{item.key}.png").write_bytes(item.images["png"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_items_and_sources_are_right():
    done = doctest.testmod(xmodal_jax.data.source)
    assert done.attempted >= 5 and done.failed == 0


def prepared(*more, source="mine.py:captioned"):
    return main(["data", "prepare", source, "--path", "pictures", "--out", "set", "--allow-bad", *more])


def test_a_function_of_a_file_makes_a_data_set(own, capsys):
    assert prepared("--loud", "--share", "0.25", "--held-out", "2", "--root", "a/b") == 0
    assert "test: 2 records, 2 captions" in capsys.readouterr().out
    card = Card.load("set")
    assert (card.source, card.licence) == ("a folder", "CC0") and card.splits["train"]["records"] == 3
    asked = {"path": "pictures", "loud": True, "share": 0.25, "held_out": 2, "root": f"{own}/a/b"}
    assert card.arguments == {"source": f"{own}/mine.py:captioned", "max_size": 0, "drop_copies": False} | asked
    assert card.skipped == {"drawn by nobody": 1}


def test_its_help_is_that_of_the_function(own, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "prepare", "mine.py:captioned", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "Pictures of a folder, 100 % of them" in said and "More of it." in said
    for option in (
        "--path PATH",
        "(needed)",
        "--ending ENDING",
        "(default: .png)",
        "--held-out",
        "--loud",
        "--max-size",
        "--unset",
    ):
        assert option in said
    assert "Raises" not in said and "records of the test split" not in said, (
        "the words of other sources are not its own"
    )
    with pytest.raises(SystemExit):
        main(["data", "prepare", "--help"])
    assert "FILE.py:FUNCTION" in capsys.readouterr().out


@pytest.mark.parametrize("name", SOURCES)
def test_the_help_of_a_source_is_its_docstring_without_errors(capsys, name):
    with pytest.raises(SystemExit):
        main(["data", "prepare", name, "--help"])
    said = capsys.readouterr().out
    assert inspect.getdoc(SOURCES[name]).partition("\n")[0] in said and "UserError" not in said


def test_the_same_again_is_already_prepared_and_changed_files_are_named(own, capsys):
    assert prepared() == 0 and prepared() == 0
    before = os.stat("set/card.json").st_mtime_ns
    assert prepared("--held-out", "2") == 2
    assert "prepared with another held_out" in capsys.readouterr().err
    assert prepared(source=f"{own}/mine.py:captioned") == 0, "the same file under another name"
    (own / "pictures" / "thing-1.png").write_bytes((own / "pictures" / "thing-2.png").read_bytes())
    assert prepared() == 2
    assert (
        "files of its source are 1 replaced" in capsys.readouterr().err
        and os.stat("set/card.json").st_mtime_ns == before
    )
    assert prepared("--force") == 0 and prepared() == 0


def test_a_source_that_was_rewritten_is_a_changed_file(own):
    """In processes of their own: a file is run once in each."""
    command = [sys.executable, "-m", "xmodal_jax.cli", "data", "prepare", "mine.py:captioned", "--path", "pictures"]
    command += ["--out", "set", "--allow-bad"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (own / "mine.py").write_text(MINE.replace("file.stem.upper()", "file.stem.title()"), "utf-8")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and f"files of its source are 1 replaced ({own}/mine.py)" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1


def test_a_function_of_a_package(own, monkeypatch, capsys):
    (own / "my_sources").mkdir()
    (own / "my_sources" / "__init__.py").write_text("")
    (own / "my_sources" / "folders.py").write_text(MINE, "utf-8")
    monkeypatch.syspath_prepend(own)
    assert prepared(source="my_sources.folders:captioned") == 0
    assert Card.load("set").arguments["source"] == "my_sources.folders:captioned"
    assert prepared(source="my_sources.folders:captioned") == 0


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("none.py:captioned", "the source is 'none.py:captioned', and 'none.py' cannot be imported (FileNotFoundError"),
        ("no.such:captioned", "'no.such' cannot be imported (ModuleNotFoundError"),
        ("mine.py:yours", "'mine.py' has no function 'yours'; write FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"),
        ("mine.py:NUMBER", "'mine.py' has no function 'NUMBER'"),
        ("mine.py:nothing", "the source 'mine.py:nothing' returned list; return a xmodal_jax.data.source.Source"),
        (
            "mine.py:greedy",
            "has the parameter 'out', which `xmodal data prepare` cannot give it; let it take another name",
        ),
        ("mine.py:odd", "the parameters of the source 'mine.py:odd' cannot be read (name 'NoSuchType' is not defined)"),
        ("mine.py:captioned", "'mine.py:captioned' needs --path; write --path=..."),
        ("mine.py:quiet", "source {own}/mine.py:quiet (nothing) gave no usable pair: it is empty."),
    ],
)
def test_one_that_cannot_be_had_is_one_sentence(own, capsys, source, sentence):
    assert main(["data", "prepare", source, "--out", "set"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert sentence.format(own=own) in said[-1] and not (own / "set").exists()


def test_options_that_it_does_not_have_are_refused_with_those_it_has(own, capsys):
    assert main(["data", "prepare", "mine.py:quiet", "--path", "x", "--out", "set"]) == 2
    assert "'mine.py:quiet' takes no --path; it takes --size" in capsys.readouterr().err


def test_other_commands_do_not_load_the_sources(tmp_path):
    code = "import sys, xmodal_jax.cli as cli; cli.main(sys.argv[1:]); print('xmodal_jax.data.sources' in sys.modules)"
    for words, loaded in (
        (["search", "prepare", "--index", tmp_path], "False"),
        (["data", "prepare", "x.py:f", "--out", "o"], "True"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
        assert done.stdout.strip().endswith(loaded), json.dumps([words, done.stdout, done.stderr])
