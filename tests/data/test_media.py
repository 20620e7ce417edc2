"""A picture file is found under the spelling it has, and only a file is opened."""

import os
import socket

import pytest

from xmodal_jax.data.media import ABSENT, UnreadableFile, file_state, find_file, read_file
from xmodal_jax.data.source import Item, Skip, file_item

COMPOSED, APART = "caf\u00e9.png", "cafe\u0301.png"


@pytest.mark.parametrize(
    "there, named",
    [
        ("a b#c.png", "a%20b%23c.png"),
        ("50%25.png", "50%2525.png"),
        (COMPOSED, APART),
        (APART, COMPOSED),
        (APART, "caf%C3%A9.png"),
        ("\u00fcber/x.png", "u\u0308ber/x.png"),
        ("two words/x y.png", "two%20words/x%20y.png"),
        ("img/1.png", "img\\1.png"),
    ],
)
def test_a_file_is_found_under_another_spelling_of_its_name(tmp_path, there, named):
    path = tmp_path / "odd%20root" / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"here")
    assert find_file(tmp_path / "odd%20root" / named) == path and find_file(path) == path
    (item,) = file_item("k", {"image": tmp_path / "odd%20root" / named}, "words")
    assert item == Item("k", {"image": b"here"}, {"en": ["words"]}) and item.files == (file_state(path, b"here"),)


def test_of_two_spellings_that_are_there_none_is_guessed(tmp_path):
    for name in (COMPOSED, APART):
        (tmp_path / name).write_bytes(b"x")
    named = tmp_path / "caf%C3%A9.png"
    assert find_file(named) == named
    assert list(file_item("k", {"image": named}, "words")) == [Skip("missing image", f"k: {named}")]


def skipped(path):
    """Why a row with this picture is left out."""
    (found,) = file_item("k", {"image": path}, "words")
    return found.reason, found.where


def test_what_is_no_file_is_refused_without_being_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket")
        for path, kind in (
            (tmp_path / "pipe", "pipe"),
            (tmp_path / "socket", "socket"),
            (tmp_path, "folder"),
            ("/dev/zero", "device"),
        ):
            assert skipped(path) == ("image is no file", f"k: {path}: it is a {kind}, not a file")


@pytest.mark.parametrize("url", ["http://x.org/a b.jpg", "https://x.org/a.jpg?w=1", "s3://bucket/a.jpg"])
def test_an_address_is_said_to_be_not_downloaded(tmp_path, url):
    where = f"k: {url}: download it, and write the path of the file"
    assert skipped(tmp_path / url) == skipped(tmp_path.joinpath(url)) == ("image is an address", where)


@pytest.mark.parametrize("name", ["gone.png", "nul\0.png", "x" * 300, "half\ud83d.png"])
def test_a_file_that_is_not_there_is_missing(tmp_path, name):
    assert skipped(tmp_path / name) == ("missing image", f"k: {tmp_path / name}")
    assert file_state(tmp_path / name)[1] == ABSENT


def test_a_state_changes_with_its_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"123")
    os.utime(path, ns=(5, 7))
    assert file_state(path) == (str(path), 3, 7, "")
    assert file_state(path, b"123") != file_state(path, b"124")
    with pytest.raises(UnreadableFile, match="No such file"):
        read_file(tmp_path / "b")
