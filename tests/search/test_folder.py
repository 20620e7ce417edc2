"""Writers that meet, and writers that are killed: real processes."""

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import files, folder, writer
from xmodal_jax.search.index import Index

START = """
import os, pathlib, sys, numpy as np
from xmodal_jax.search import writer
folder = sys.argv[1]
def held(count):  # items that say when they are asked for, and wait for a word
    print("in", flush=True); sys.stdin.readline()
    yield from ({"of": "child"} for _ in range(count))
"""


@pytest.fixture
def child():
    """Start a script (after `START`) on a folder; ended with the test."""
    started = []

    def start(script, folder):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        given = [sys.executable, "-c", START + script, str(folder)]
        started.append(subprocess.Popen(given, text=True, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def written(folder, count, of, **options):
    return writer.write(folder, np.eye(4)[:count], [{"of": of}] * count, model=of, block_rows=2, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def of_header(folder):
    """The files of an index without any that its header does not name."""
    return sorted(files.named_files(files.read_header(folder)) | {files.HEADER, files.VERIFIED} & set(names(folder)))


def test_an_index_that_is_replaced_while_rows_are_appended(tmp_path, child):
    """The overwrite waits for the append; were it to come between, the append would take the new index's place."""
    folder = written(tmp_path / "index", 4, "first")
    adds = child('writer.append(folder, -np.eye(4), held(4), model="first")', folder)
    assert adds.stdout.readline() == "in\n"
    script = 'writer.write(folder, -np.eye(4)[:3], [{"of": "second"}] * 3, model="second", overwrite=True)'
    replaces = child(f"print('in', flush=True); {script}", folder)
    assert replaces.stdout.readline() == "in\n"
    with pytest.raises(subprocess.TimeoutExpired):
        replaces.wait(0.7)
    assert Index.open(folder).model == "first"
    assert adds.communicate("go\n")[1] == "" and adds.returncode == 0
    said = replaces.communicate()[1]
    assert replaces.returncode == 0 and "waiting for another process" in said
    opened = Index.open(folder)
    assert (opened.model, len(opened), opened.item(2)) == ("second", 3, {"of": "second"})
    assert names(tmp_path) == ["index"]


def test_an_index_that_is_moved_away_while_rows_are_appended(tmp_path, child):
    folder = written(tmp_path / "index", 4, "first")
    adds = child('writer.append(folder, -np.eye(4), held(4), model="first")', folder)
    assert adds.stdout.readline() == "in\n"
    folder.rename(tmp_path / "moved")
    other = writer.write(tmp_path / "other", np.eye(4), [{}] * 4, model="second", block_rows=1)  # has more blocks
    other.rename(folder)
    assert "was moved or replaced while rows were appended" in adds.communicate("go\n")[1]
    assert len(Index.open(tmp_path / "moved")) == 4
    np.testing.assert_array_equal(Index.open(folder).vectors(), np.eye(4))
    assert len(names(folder)) == 13  # three files a block


def test_a_second_append_waits_for_the_first(tmp_path, child):
    folder = written(tmp_path / "index", 4, "first")
    adds = child('writer.append(folder, -np.eye(4), held(4), model="first")', folder)
    assert adds.stdout.readline() == "in\n"
    script = 'print("in", flush=True); writer.append(folder, np.eye(4)[:1], [{"of": "last"}], model="first")'
    second = child(script, folder)
    assert second.stdout.readline() == "in\n"
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    adds.communicate("go\n")
    assert second.wait(30) == 0
    opened = Index.open(folder)
    assert [opened.item(row)["of"] for row in range(9)] == ["first"] * 4 + ["child"] * 4 + ["last"]


def test_a_second_new_index_waits_for_the_first_and_does_not_replace_it(tmp_path, child):
    folder = tmp_path / "index"
    first = child('writer.write(folder, np.eye(4), held(4), model="first")', folder)
    assert first.stdout.readline() == "in\n"
    late = child('print("in", flush=True); writer.write(folder, np.eye(4)[:3], None, model="late")', folder)
    assert late.stdout.readline() == "in\n"
    with pytest.raises(subprocess.TimeoutExpired):
        late.wait(0.5)
    with pytest.raises(UserError, match="is not an index"):
        Index.open(folder)
    assert first.communicate("go\n")[1] == ""
    said = late.communicate()[1]
    assert late.returncode == 1 and "waiting for another process" in said and "already holds an index" in said
    assert Index.open(folder).model == "first" and names(tmp_path) == ["index"]


def test_files_that_no_index_writes_are_kept(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / writer.HEADER).write_text("{}")
    with pytest.raises(UserError, match="exists and is not an index"):
        written(site, 2, "a", overwrite=True)
    (site / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="thesis.tex, which no index writes"):
        written(site, 2, "a", overwrite=True)
    assert names(site) == ["index.json", "thesis.tex"]
    folder = written(tmp_path / "index", 2, "a")
    (folder / writer.HEADER).write_text("{")  # a damaged index may be replaced
    assert len(Index.open(written(folder, 3, "b", overwrite=True))) == 3
    (folder / "notes").mkdir()
    with pytest.raises(UserError, match="holds notes"):
        written(folder, 2, "c", overwrite=True)
    assert len(Index.open(folder)) == 3


REPLACING = """
for number in range(10**6):
    writer.write(folder, np.eye(4)[:2 + number % 3], [{}] * (2 + number % 3), model=str(number), overwrite=True)
    print(number, flush=True)
"""


def test_kill_9_while_replacing_leaves_the_old_index_or_the_new_one(tmp_path, child):
    folder = written(tmp_path / "index", 4, "first")
    for seconds in np.random.default_rng(0).uniform(0, 0.05, 5):
        writer = child(REPLACING, folder)
        writer.stdout.readline()
        time.sleep(seconds)
        writer.kill()
        told = [0, *map(int, writer.communicate()[0].split())][-1]
        opened = Index.open(folder)
        assert int(opened.model) in (told, told + 1) and len(opened) == 2 + int(opened.model) % 3
        assert set(names(tmp_path)) <= {"index", ".index.lock"}
    written(folder, 4, "last", overwrite=True)
    assert names(tmp_path) == ["index"] and names(folder) == of_header(folder)


def test_a_reader_sees_one_index_or_the_other(tmp_path, child):
    folder = written(tmp_path / "index", 2, "0")
    writer = child(REPLACING, folder)
    writer.stdout.readline()
    for _ in range(40):
        opened = Index.open(folder, engine="numpy")
        assert len(opened) == 2 + int(opened.model) % 3 and len(opened.vectors()) == len(opened)


KILLED = """
replace = os.replace
def killed(one, other):
    if {after}: replace(one, other)
    os.kill(os.getpid(), 9)
os.replace = killed
writer.write(folder, np.eye(4)[:3], [{{}}] * 3, model="second", overwrite=True)
"""


@pytest.mark.parametrize("after", [False, True])
def test_kill_9_just_before_and_after_the_header_is_replaced(tmp_path, child, after):
    folder = written(tmp_path / "index", 4, "first")
    assert child(KILLED.format(after=after), folder).wait() == -9
    opened = Index.open(folder)
    assert (opened.model, len(opened)) == (("second", 3) if after else ("first", 4))
    assert names(folder) != of_header(folder)
    writer.append(folder, np.eye(4)[:1], [{}], model=opened.model)
    assert len(Index.open(folder)) == len(opened) + 1
    assert names(tmp_path) == ["index"] and names(folder) == of_header(folder)


def test_what_a_killed_writer_left_of_a_new_index_is_written_over(tmp_path, child):
    folder = tmp_path / "index"
    half = child('writer.write(folder, np.eye(4), held(4), model="half", block_rows=2)', folder)
    assert half.stdout.readline() == "in\n"
    half.kill()
    half.communicate()
    with pytest.raises(UserError, match="is not an index"):
        Index.open(folder)
    assert Index.open(written(folder, 3, "whole")).model == "whole"
    assert names(tmp_path) == ["index"] and names(folder) == of_header(folder)


def test_a_link_stays_a_link_and_the_umask_holds(tmp_path):
    real, link = written(tmp_path / "real", 2, "a"), tmp_path / "link"
    link.symlink_to(real)
    written(link, 3, "b", overwrite=True)
    assert link.is_symlink() and len(Index.open(real)) == len(Index.open(link)) == 3
    assert names(tmp_path) == ["link", "real"]
    before = os.umask(0o077)
    try:
        assert written(tmp_path / "private", 2, "a").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(folder.fcntl, "flock", flock)
    path = written(written(tmp_path / "index", 2, "a"), 3, "b", overwrite=True)
    assert len(Index.open(path)) == 3 and names(tmp_path) == ["index"]
    assert "let no other process write it" in caplog.text


def test_an_error_of_the_rows_is_not_said_to_be_another_process(tmp_path):
    def items():
        raise BlockingIOError(11, "pipe")
        yield

    with pytest.raises(BlockingIOError, match="pipe"):
        writer.append(written(tmp_path / "index", 2, "a"), np.eye(4), items(), model="a")
