import json
import os
import resource
import time
import tracemalloc

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import files, writer
from xmodal_jax.search.index import Index


@pytest.fixture
def folder(tmp_path, rng):
    """4 blocks of 8 rows."""
    items = [{"key": f"k{i}"} for i in range(32)]
    return writer.write(tmp_path / "index", rng.normal(size=(32, 6)), items, rng.normal(size=(32, 8)), block_rows=8)


@pytest.fixture
def settle(monkeypatch):
    """Date the files long ago, as far as that can be done, and wait until their inodes are settled too."""
    monkeypatch.setattr(files, "SETTLED", 0.3)

    def wait(folder):
        for path in folder.iterdir():
            os.utime(path, ns=(1, 1))
        time.sleep(files.SETTLED + 0.05)

    return wait


def test_more_blocks_than_descriptors(tmp_path, rng):
    codes = rng.integers(0, 256, (100, 2), dtype=np.uint8)
    path = writer.write(tmp_path / "many", None, [{"key": i} for i in range(100)], codes, packed=True, block_rows=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, before[1]))
    try:
        opened = Index.open(path, engine="numpy")
        np.testing.assert_array_equal(opened.vectors("codes"), codes)
        assert [opened.item(row)["key"] for row in range(100)] == list(range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_index_with_more_files_than_the_system_allows_is_refused(folder, monkeypatch):
    monkeypatch.setattr(files.resource, "getrlimit", lambda _: (10, 12))
    monkeypatch.setattr(files, "FEW", 4)
    with pytest.raises(UserError, match="has 16 files and a process may open 12; raise that limit"):
        Index.open(folder)


def test_no_descriptor_left_is_not_said_to_be_a_torn_file(folder):
    before, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    entry = files.read_header(folder)["blocks"]["dense"][0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(folder, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            files.open_array(folder, entry, 6, "float32")
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_open_index_keeps_its_rows_and_items_when_it_is_replaced(folder, rng):
    opened = Index.open(folder, engine="numpy")
    rows = opened.vectors()
    writer.write(folder, rng.normal(size=(32, 6)), [{"key": "new"}] * 32, block_rows=8, overwrite=True)
    np.testing.assert_array_equal(opened.vectors(), rows)
    assert [opened.item(row)["key"] for row in range(32)] == [f"k{i}" for i in range(32)]
    assert Index.open(folder).item(0) == {"key": "new"} and Index.open(folder).id != opened.id


def test_a_search_reads_a_checksum_once(folder, settle, monkeypatch):
    read = []
    monkeypatch.setattr(files, "sha256", lambda file, real=files.sha256: read.append(file.name) or real(file))
    Index.open(folder)
    assert len(read) == 16 and not (folder / files.VERIFIED).exists()  # touched just now: nothing is remembered
    settle(folder)
    for again, number in ((False, 16), (False, 0), (True, 16), (False, 0)):
        read.clear()
        Index.open(folder, again=again)
        assert len(read) == number
    assert (folder / files.VERIFIED).stat().st_mode == (folder / files.HEADER).stat().st_mode
    writer.append(folder, np.eye(6), [{}] * 6, np.ones((6, 8)))
    read.clear()
    Index.open(folder)
    assert sorted(read) == ["codes-00004.npy", "dense-00004.npy", "items-00004.jsonl", "lines-00004.npy"]


@pytest.mark.parametrize("name", ["dense-00001.npy", "items-00001.jsonl", "lines-00001.npy"])
def test_a_file_that_changed_after_it_was_compared_is_refused(folder, settle, name):
    settle(folder)
    Index.open(folder)
    assert (folder / files.VERIFIED).exists()
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 4
    (folder / name).write_bytes(data)
    os.utime(folder / name, ns=(1, 1))  # of the same size and dated back: its inode tells
    with pytest.raises(UserError, match=f"{name} is torn or was changed"):
        Index.open(folder)
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{name} is torn or was changed"):
        Index.open(folder, verify=False)


def test_what_was_compared_may_be_damaged_or_not_writable(folder, settle):
    settle(folder)
    for text in ("{", "[]", '{"dense-00000.npy": 3}'):
        (folder / files.VERIFIED).write_text(text)
        assert len(Index.open(folder)) == 32
    assert len(json.loads((folder / files.VERIFIED).read_text())) == 16


def test_an_item_is_read_by_its_place(tmp_path):
    count = 3000
    items = ({"key": i, "thumbnail": "x" * 3000} for i in range(count))
    path = writer.write(tmp_path / "index", np.ones((count, 2)), items)
    opened = Index.open(path, engine="numpy")
    tracemalloc.start()
    try:
        assert opened.item(count - 1)["key"] == count - 1
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    for row in (-1, count):
        with pytest.raises(UserError, match=f"Row {row} is not one of the 3000 rows"):
            opened.item(row)


def test_nothing_is_appended_to_a_damaged_index(folder):
    block = folder / "codes-00003.npy"
    block.write_bytes(block.read_bytes()[:-3])
    with pytest.raises(UserError, match="codes-00003.npy is torn or was changed; index again before you append"):
        writer.append(folder, np.eye(6), [{}] * 6, np.ones((6, 8)))
    assert len(files.read_header(folder)["blocks"]["dense"]) == 4 and not (folder / "dense-00004.npy").exists()


def test_an_older_index_is_to_be_made_again(folder):
    header = files.read_header(folder)
    writer._write_header(folder, header | {"version": 2})
    with pytest.raises(UserError, match="is an index of version 2, this program reads 3; index again"):
        Index.open(folder)


def test_facts_come_back_as_json_gives_them(tmp_path):
    path = writer.write(tmp_path / "index", np.eye(2), None, extra={9: 1, 10: (2,)})
    assert Index.open(path).extra == {"9": 1, "10": [2]}


def test_a_row_that_is_not_finite_is_named_by_its_number(tmp_path):
    rows = np.ones((70, 2))
    rows[67, 0] = np.nan
    with pytest.raises(UserError, match=r"Embedding 67 is not finite"):
        writer.write(tmp_path / "index", rows, None, block_rows=32)


@pytest.mark.parametrize("engine", ["numpy", "jax"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_embeddings_that_were_spoiled_are_not_searched(folder, engine, bad):
    """Without checksums nobody sees it before."""
    block = np.load(folder / "dense-00001.npy")
    block[3, 2] = bad
    np.save(folder / "dense-00001.npy", block)
    opened = Index.open(folder, engine=engine, verify=False)
    with pytest.raises(UserError, match="not finite or not of length 1; search with 'verify', or index again"):
        opened.nearest(np.ones(6), 3)
