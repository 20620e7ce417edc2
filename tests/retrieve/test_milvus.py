import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ties import same_up_to_ties

from xmodal_jax.errors import UserError
from xmodal_jax.retrieve import milvus, query
from xmodal_jax.search import writer
from xmodal_jax.search.index import Index

COUNT = 60


@pytest.fixture
def opened(tmp_path, rng):
    rows = rng.normal(size=(COUNT, 6)), rng.normal(size=(COUNT, 16))
    items = [{"key": i} for i in range(COUNT)]
    return Index.open(writer.write(tmp_path / "index", rows[0], items, rows[1], model="abc", block_rows=32))


@pytest.fixture
def connected(opened, tmp_path):
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    backend = milvus.MilvusIndex(opened, str(tmp_path / "rows.db"))
    yield backend
    backend.close()


def test_milvus_answers_as_the_exact_search_and_goes_on_where_it_stopped(connected, opened, rng, monkeypatch):
    with pytest.raises(UserError, match="has 0 of the 60 rows"):
        connected.nearest(np.ones(16), 1, "codes")
    stopped = iter(range(2))
    upsert = connected.client.upsert
    monkeypatch.setattr(connected.client, "upsert", lambda *args: upsert(*args) if next(stopped, 9) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        connected.fill(batch=25)
    monkeypatch.undo()
    assert connected.rows_in("dense") == 50
    assert connected.fill(batch=25) == {"dense": 10, "codes": COUNT}
    assert connected.fill() == {"dense": 0, "codes": 0}
    for kind in ("dense", "codes"):
        query = rng.normal(size=(3, opened.width if kind == "dense" else opened.bits))
        same_up_to_ties(connected.nearest(query, 12, kind), opened.nearest(query, 12, kind))
        hit = connected.search(query, 1, kind)[0][0]
        assert hit.item == {"key": hit.row}
    with pytest.raises(UserError, match="k = 61"):
        connected.nearest(np.ones(16), 61, "codes")


def test_rows_of_another_index_are_refused(connected, opened, tmp_path, rng):
    connected.fill()
    rows, items = rng.normal(size=(COUNT, 6)), [{"other": i} for i in range(COUNT)]
    other = Index.open(
        writer.write(tmp_path / "other", rows, items, model="abc")
    )  # of the same model, width and length
    told = f"holds 'xmodal abc dense 6 {opened.id}' and the index is 'xmodal abc dense 6 {other.id}'.*--collection"
    with pytest.raises(UserError, match=told):
        milvus.MilvusIndex(other, connected.uri).fill()
    with pytest.raises(UserError, match="letters, digits and _"):
        milvus.MilvusIndex(other, connected.uri, "my-rows")
    apart = milvus.MilvusIndex(other, connected.uri, "others")
    assert apart.fill() == {"dense": COUNT}
    hit = apart.search(rows[7], 1)[0][0]
    assert hit.item == {"other": 7} and hit.score == pytest.approx(1, abs=1e-5)
    assert connected.fill() == {"dense": 0, "codes": 0}


def test_an_index_that_grew_goes_on_in_its_collection(connected, opened, tmp_path, rng):
    connected.fill()
    writer.append(opened.path, rng.normal(size=(5, 6)), [{"key": 60 + i} for i in range(5)], np.ones((5, 16)), "abc")
    grown = milvus.MilvusIndex(Index.open(opened.path), connected.uri)
    assert grown.fill() == {"dense": 5, "codes": 5} and grown.search(np.ones(16), 1, "codes")[0][0].row >= 0


def test_a_server_that_stops_is_one_sentence(connected):
    from milvus_lite.server_manager import server_manager_instance

    connected.fill()
    server_manager_instance.release_server(connected.uri)
    with pytest.raises(UserError, match=r"Milvus at .*rows.db did not answer \(.*\); see that it runs"):
        connected.nearest(np.ones(6), 1)
    with pytest.raises(UserError, match=r"Milvus at .*rows.db did not answer"):
        connected.fill()


def test_a_server_that_is_not_there_is_one_sentence(opened, monkeypatch):
    pytest.importorskip("pymilvus")
    monkeypatch.setattr(milvus, "CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match="Milvus at http://127.0.0.1:9 cannot be reached"):
        milvus.MilvusIndex(opened, "http://127.0.0.1:9")


def test_without_pymilvus_the_command_is_named(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UserError, match="pymilvus is not installed; run pip install"):
        milvus.MilvusIndex(opened, "rows.db")
    with pytest.raises(UserError, match="pymilvus is not installed"):
        query.SearchTarget(opened.path, "milvus", "rows.db").open()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("my rows.db", "no name that milvus-lite takes"),
        ("r" * 34 + ".db", "no name that milvus-lite takes"),
        ("rows.sqlite", "that ends in .db"),
        ("no/rows.db", "there is no folder"),
        ("folder.db", "is a folder"),
        ("other.db", "is a file that Milvus did not write"),
        ("http://", "is no address of a server"),
        ("http://host:port", "is no address of a server"),
        ("ftp://host", "is no address of a server"),
    ],
)
def test_what_milvus_cannot_open_is_one_sentence(tmp_path, monkeypatch, uri, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "other.db").write_text("no database")
    with pytest.raises(UserError, match=f"^uri '{uri}'.*{words}"):
        milvus.refuse_bad_uri(uri)
    for good in ("rows.db", "http://localhost:19530", "https://x.y/z", "unix:///tmp/a.sock", "r" * 33 + ".db"):
        milvus.refuse_bad_uri(good)


@pytest.mark.skipif(not pathlib.Path("/proc/locks").exists(), reason="the system does not tell who holds a lock")
def test_a_file_that_another_process_has_open_is_one_sentence(tmp_path):
    """milvus-lite locks .NAME.lock with POSIX locks, which a process has for itself."""
    code = f"import fcntl; file = open({str(tmp_path / '.rows.db.lock')!r}, 'a'); fcntl.lockf(file, fcntl.LOCK_EX)"
    code += "; print('in', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(
            UserError, match=rf"rows.db' is open in another process \({other.pid}\); wait until it ends"
        ):
            milvus.refuse_bad_uri(str(tmp_path / "rows.db"))
        other.communicate(b"\n")
    milvus.refuse_bad_uri(str(tmp_path / "rows.db"))
