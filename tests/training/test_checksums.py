"""A folder is as it was written, or the first file that is not is named."""

import json
import pathlib
import zlib

import pytest

from xmodal_jax.training import checksums


@pytest.fixture
def folder(tmp_path):
    """A recorded folder with a file in a folder, an empty file, one longer than a chunk, and orbax's last marks."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "small").write_bytes(b"words")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long").write_bytes(bytes(range(256)) * (checksums.CHUNK // 256 + 3))
    checksums.write(tmp_path)
    for name in checksums.AFTER:
        (tmp_path / name).write_text("written last")
    return tmp_path


def test_a_folder_as_it_was_written_has_no_fault(folder):
    assert checksums.fault(folder, ("deep",)) == ""
    record = json.loads((folder / checksums.FILE).read_text())["files"]
    assert record["deep/small"] == [5, zlib.crc32(b"words")]
    assert record["long"][1] == zlib.crc32((folder / "long").read_bytes()) and set(record) == {
        "deep/small",
        "empty",
        "long",
    }


def test_marks_that_are_there_already_are_not_recorded(folder):
    checksums.write(folder)
    (folder / "commit_success.txt").write_text("written again")
    files = json.loads((folder / checksums.FILE).read_text())["files"]
    assert not set(files) & set(checksums.AFTER)


def swap(path: pathlib.Path) -> None:
    path.write_bytes(b"sword")


def unreadable(path: pathlib.Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading its first byte is an input/output error, also for root


@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [
        ("deep/small", pathlib.Path.unlink, "deep/small is missing"),
        ("deep/small", lambda path: path.write_bytes(b"wo"), "deep/small has 2 bytes, not 5"),
        ("deep/small", swap, "deep/small has other bytes than were written"),
        ("empty", unreadable, "Input/output error: '{folder}/empty'"),
        ("commit_success.txt", pathlib.Path.unlink, "commit_success.txt is missing"),
        ("_CHECKPOINT_METADATA", lambda path: path.write_text(""), "_CHECKPOINT_METADATA is empty"),
        (checksums.FILE, pathlib.Path.unlink, "checksums.json cannot be read (No such file or directory)"),
        (checksums.FILE, lambda path: path.write_text("[1, 2]"), "checksums.json is damaged"),
        (checksums.FILE, lambda path: path.write_bytes(b"\xff{"), "checksums.json is damaged"),
        (
            checksums.FILE,
            lambda path: path.write_text(path.read_text().replace("5,", "6,")),
            "checksums.json is damaged",
        ),
    ],
)
def test_a_fault_is_named(folder, name, fault, said):
    fault(folder / name)
    assert said.format(folder=folder) in checksums.fault(folder, ("deep",))


def test_items_that_are_not_asked_for_are_not_read(folder):
    swap(folder / "deep" / "small")
    assert checksums.fault(folder, ("other",)) == ""
    assert checksums.fault(folder, ("other", "deep")) == "deep/small has other bytes than were written"
    (folder / "long").unlink()  # beside the items: always asked for
    assert checksums.fault(folder, ("other",)) == "long is missing"
