import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import codes, files, numpy_engine, writer
from xmodal_jax.search.index import Index

COUNT, WIDTH, BITS = 20, 6, 16


@pytest.fixture
def rows(rng):
    return rng.normal(size=(2 * COUNT, WIDTH)).astype(np.float32), rng.normal(size=(2 * COUNT, BITS))


def items(start, stop):
    return [{"key": f"k{i}"} for i in range(start, stop)]


@pytest.fixture
def folder(tmp_path, rows):
    first = rows[0][:COUNT], items(0, COUNT), rows[1][:COUNT]
    return writer.write(tmp_path / "index", *first, model="abc", block_rows=8)


def append(folder, rows, **changed):
    given = {"embeddings": rows[0][COUNT:], "items": items(COUNT, 2 * COUNT), "codes": rows[1][COUNT:]}
    return writer.append(folder, **{**given, "model": "abc", "block_rows": 8, **changed})


def test_appended_rows_are_found_and_the_old_files_stay(folder, rows, rng):
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.name != writer.HEADER}
    assert append(folder, rows) == 2 * COUNT
    for name, (data, changed) in before.items():
        assert (folder / name).read_bytes() == data and (folder / name).stat().st_mtime_ns == changed
    opened = Index.open(folder)
    np.testing.assert_allclose(opened.vectors(), numpy_engine.unit_rows(rows[0]), atol=1e-6)
    np.testing.assert_array_equal(opened.vectors("codes"), codes.pack(rows[1]))
    assert [opened.item(i)["key"] for i in (0, 7, 8, 19, 20, 27, 28, 39)] == [
        f"k{i}" for i in (0, 7, 8, 19, 20, 27, 28, 39)
    ]
    query = rng.normal(size=(3, BITS))
    for a, b in zip(
        opened.nearest(query, 9, "codes"),
        numpy_engine.hamming_topk(codes.pack(query), codes.pack(rows[1]), 9),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("step", ["_write_array", "_line", "_write_header", "os.replace"])
def test_an_append_that_dies_leaves_the_index_and_can_be_done_again(folder, rows, monkeypatch, step):
    """Each step in turn fails halfway: files torn, header written but not in place."""
    target, name = (writer.os, "replace") if step == "os.replace" else (writer, step)
    calls = iter(range(99))
    real = getattr(target, name)

    def dies(*args):
        if next(calls) == (0 if step in ("_write_header", "os.replace") else 1):
            (folder / "dense-00004.npy").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(target, name, dies)
    with pytest.raises(KeyboardInterrupt):
        append(folder, rows)
    monkeypatch.undo()
    opened = Index.open(folder)
    assert len(opened) == COUNT and opened.item(19) == {"key": "k19"}
    assert append(folder, rows) == 2 * COUNT
    np.testing.assert_allclose(Index.open(folder).vectors(), numpy_engine.unit_rows(rows[0]), atol=1e-6)


def test_the_header_is_in_place_when_the_names_of_its_blocks_are_on_the_disk(folder, rows, monkeypatch):
    """A power cut right after the header came to its place: all files and the folder have been synchronised before."""
    done, fsync, replace = [], writer.os.fsync, writer.os.replace

    def of(handle):
        return writer.os.readlink(f"/proc/self/fd/{handle}")

    monkeypatch.setattr(writer.os, "fsync", lambda handle: (done.append(os.path.basename(of(handle))), fsync(handle)))
    monkeypatch.setattr(writer.os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    append(folder, rows)
    before, after = done[: done.index("replace")], done[done.index("replace") + 1 :]
    added = {path.name for path in folder.iterdir()} - {writer.HEADER}
    assert before[-1] == folder.name and after == [folder.name]
    assert {name for name in added if "-" in name and name.split("-")[1] >= "00003"} <= set(before[:-1])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"embeddings": np.ones((COUNT, WIDTH + 1))}, "are 6 wide and the new ones 7"),
        ({"codes": np.ones((COUNT, BITS + 8))}, "are 16 bits long and the new ones 24"),
        ({"codes": None}, "are 16 bits long and the new ones 0"),
        ({"embeddings": None}, "are 6 wide and the new ones 0"),
        ({"model": "xyz"}, "made by model abc and the new rows by xyz"),
        ({"items": None}, "has items"),
        ({"items": [{}]}, "20 embeddings and 1 items"),
        ({"items": [{}] * 21}, "20 embeddings and 21 items"),
        ({"items": [{"a": np.float32(1)}] * COUNT}, "Item 0 is not JSON"),
        ({"block_rows": 0}, "block_rows = 0 makes no blocks"),
        ({"embeddings": np.zeros((0, WIDTH))}, "no records"),
        ({"embeddings": np.full((COUNT, WIDTH), np.nan)}, "not finite"),
    ],
)
def test_rows_that_do_not_belong_are_refused_and_nothing_changes(folder, rows, changed, words):
    before = (folder / writer.HEADER).read_bytes()
    with pytest.raises(UserError, match=words):
        append(folder, rows, **changed)
    assert (folder / writer.HEADER).read_bytes() == before
    assert len(Index.open(folder)) == COUNT


def tear(path, how):
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        data = bytearray(path.read_bytes())
        data[-2] ^= 4
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["dense-00002.npy", "codes-00001.npy", "items-00002.jsonl", "lines-00002.npy"])
def test_the_rows_before_a_damaged_file_stay_usable(folder, rows, how, name):
    tear(folder / name, how)
    with pytest.raises(UserError, match=f"{name} is (missing|torn).*'prefix'"):
        Index.open(folder)
    whole = 8 * int(name.split("-")[1][:5])
    for engine in ("jax", "numpy"):
        opened = Index.open(folder, prefix=True, engine=engine)
        assert (len(opened), opened.total) == (whole, COUNT) and name in opened.damage
        assert opened.nearest(rows[1][whole - 1], 1, "codes")[0][0, 0] == 0
        assert opened.item(whole - 1) == {"key": f"k{whole - 1}"}
    with pytest.raises(UserError, match=f"k = {whole + 1} does not fit"):
        opened.nearest(rows[0][0], whole + 1)


def test_a_prefix_of_nothing_is_refused_and_a_whole_index_is_whole(folder):
    opened = Index.open(folder, prefix=True)
    assert (len(opened), opened.damage) == (COUNT, "")
    tear(folder / "dense-00000.npy", "flipped")
    with pytest.raises(UserError, match="dense-00000.npy is torn"):
        Index.open(folder, prefix=True)


@pytest.mark.parametrize(
    ("old", "new"), [('"count": 20', '"count": 28'), ('"abc"', '"abd"'), ('"rows": 8', '"rows": 9')]
)
def test_a_header_with_one_changed_value_is_refused(folder, old, new):
    text = (folder / writer.HEADER).read_text()
    assert old in text
    (folder / writer.HEADER).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match="index.json is damaged"):
        Index.open(folder)


def test_codes_alone_packed_already(tmp_path, rows, rng):
    packed = codes.pack(rows[1])
    path = writer.write(tmp_path / "codes", None, None, packed[:COUNT], packed=True, block_rows=8)
    assert sorted(p.name for p in path.iterdir()) == [
        "codes-00000.npy",
        "codes-00001.npy",
        "codes-00002.npy",
        writer.HEADER,
    ]
    assert writer.append(path, None, None, packed[COUNT:], packed=True) == 2 * COUNT
    opened = Index.open(path)
    assert (opened.width, opened.bits, opened.item(3)) == (0, BITS, {})
    want = numpy_engine.hamming_topk(codes.pack(rows[1][:2]), packed, 5)
    for a, b in zip(opened.nearest(rows[1][:2], 5, "codes"), want, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="has no embeddings; search kind=codes"):
        opened.nearest(np.ones(WIDTH), 1)
    with pytest.raises(UserError, match="neither embeddings nor codes"):
        writer.write(tmp_path / "none", None, None)
    with pytest.raises(UserError, match="Packed codes are bytes and these are float64"):
        writer.write(tmp_path / "none", None, None, rows[1], packed=True)
    with pytest.raises(UserError, match="Packed codes are bytes and these are None"):
        writer.write(tmp_path / "none", rows[0], None, packed=True)


def test_rows_that_come_in_parts_are_written_as_blocks_fill(folder, rows, tmp_path):
    def parts(start, stop):
        for first in range(start, stop, 3):
            last = min(first + 3, stop)
            yield rows[0][first:last], items(first, last), rows[1][first:last]

    with writer.writing(tmp_path / "parts", model="abc", block_rows=8) as out:
        for number, part in enumerate(parts(0, COUNT)):
            out.add(*part)
            if number == 3:  # 12 rows: one block is whole
                names = [
                    "codes-00000.npy",
                    "dense-00000.npy",
                    "items-00000.jsonl",
                    "items-00001.jsonl",
                    "lines-00000.npy",
                ]
                assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    assert out.count == COUNT
    with writer.appending(tmp_path / "parts", model="abc", block_rows=8) as out:
        for part in parts(COUNT, 2 * COUNT):
            out.add(*part)
    assert append(folder, rows) == out.count
    for path in folder.iterdir():
        if path.name != writer.HEADER:
            assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    with pytest.raises(UserError, match="are 6 wide and the new ones 5"), writer.writing(tmp_path / "odd") as out:
        out.add(rows[0], None)
        out.add(rows[0][:, :5], None)
    with pytest.raises(UserError, match="no records"), writer.writing(tmp_path / "odd"):
        pass
    assert not (tmp_path / "odd").exists() and not list(tmp_path.glob(".*"))


def test_int8_embeddings_are_a_quarter_and_nearly_the_same(tmp_path, rng):
    rows, query = rng.normal(size=(400, 64)).astype(np.float32), rng.normal(size=(5, 64))
    paths = [writer.write(tmp_path / dtype, rows, None, dtype=dtype) for dtype in writer.DTYPES]
    sizes = [(path / "dense-00000.npy").stat().st_size - 128 for path in paths]
    assert sizes[0] == 4 * sizes[1] == 4 * 400 * 64
    exact, coarse = (Index.open(path).nearest(query, 10) for path in paths)
    np.testing.assert_allclose(coarse[0], exact[0], atol=0.01)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(exact[1], coarse[1], strict=True)]) >= 9
    np.testing.assert_allclose(np.linalg.norm(Index.open(paths[1]).vectors(), axis=1), 1, atol=1e-6)
    with pytest.raises(UserError, match='dtype = "int4"'):
        writer.write(tmp_path / "bad", rows, None, dtype="int4")


def test_numpy_alone_opens_and_searches(folder, rows):
    """In a process where jax cannot be imported."""
    script = (
        "import sys; sys.modules['jax'] = None; import numpy as np\n"
        "from xmodal_jax.search.index import Index\n"
        "opened, query = Index.open(sys.argv[1], engine='numpy'), np.load(sys.argv[2])\n"
        "for kind, one in zip(('dense', 'codes'), (query[:1, :6], query[:1, 6:])):\n"
        "    print(*opened.nearest(one, 5, kind)[1][0])\n"
    )
    np.save(folder.parent / "query.npy", np.concatenate([rows[0][:1], rows[1][:1]], axis=1))
    given = [sys.executable, "-c", script, str(folder), str(folder.parent / "query.npy")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(given, env=environment, capture_output=True, check=False)
    assert said.returncode == 0, said.stderr.decode()
    opened = Index.open(folder)
    want = [opened.nearest(rows[i][0], 5, kind)[1][0] for i, kind in enumerate(("dense", "codes"))]
    assert said.stdout.decode().split() == [str(row) for row in np.concatenate(want)]


APPENDING = """
import pathlib, sys, numpy as np
from xmodal_jax.search import files, writer
folder = pathlib.Path(sys.argv[1])
print("ready", flush=True)
while True:
    start = files.read_header(folder)["count"]
    rows = np.random.default_rng(start).normal(size=(24, 6)).astype(np.float32)
    items = [{"key": f"k{i}"} for i in range(start, start + 24)]
    writer.append(folder, rows, items, np.tile(rows, 3)[:, :16], model="abc", block_rows=8)
"""


def killed_appends(folder, kills):
    """Start a process that appends without end and kill it, `kills` times; the rows of the index after each kill."""
    counts, wait = [], np.random.default_rng(0).uniform(0.005, 0.15, kills)
    for number, seconds in enumerate(wait, 1):
        process = subprocess.Popen([sys.executable, "-c", APPENDING, folder], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(seconds)
        while number == kills and files.read_header(folder)["count"] == COUNT:  # a busy machine: none was written yet
            time.sleep(0.05)
        process.kill()
        process.communicate()
        counts.append(files.read_header(folder)["count"])
    return counts


def storm(folder, kills):
    counts = killed_appends(folder, kills)
    assert counts == sorted(counts) and counts[-1] > COUNT and all((count - COUNT) % 24 == 0 for count in counts)
    index = Index.open(folder)
    count = counts[-1]
    assert len(index) == count and files.usable(folder, files.read_header(folder)) == (count, "")
    expected = [np.random.default_rng(start).normal(size=(24, 6)) for start in range(COUNT, count, 24)]
    np.testing.assert_allclose(index.vectors()[COUNT:], numpy_engine.unit_rows(np.concatenate(expected)), atol=1e-6)
    assert [index.item(row)["key"] for row in range(count)] == [f"k{i}" for i in range(count)]


def test_kill_9_while_appending_loses_no_row_that_was_told(folder):
    storm(folder, 4)


@pytest.mark.slow
def test_a_storm_of_kill_9_while_appending(folder):
    storm(folder, 20)


def test_a_full_disk_is_one_sentence_with_the_path(tmp_path, rng):
    """The system's limit on the size of a file refuses as a full disk does: in the middle of a block."""
    rows = rng.normal(size=(400, 64))
    path = writer.write(tmp_path / "index", rows[:10], [{"key": i} for i in range(10)])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    long = [{"text": "x" * 1000}] * 400
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        for items, name in (([{}] * 400, "dense-00001.npy"), (long, "items-00001.jsonl")):
            with pytest.raises(UserError, match=rf"{path / name} cannot be written \(.*\); the index is as it was"):
                writer.append(path, rows, items)
            with pytest.raises(UserError, match=rf"{name.replace('1', '0')} cannot be written"):
                writer.write(tmp_path / "new", rows, items)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in path.iterdir()}.items() >= before.items()
    assert Index.open(path).count == 10 and [file.name for file in tmp_path.iterdir()] == ["index"]
