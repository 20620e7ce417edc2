import json

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.search import codes, dense, hamming, index, writer

COUNT, WIDTH, BITS = 37, 6, 16


@pytest.fixture
def rows(rng):
    return rng.normal(size=(COUNT, WIDTH)), rng.normal(size=(COUNT, BITS))


@pytest.fixture
def folder(tmp_path, rows):
    items = [{"key": f"k{i}", "caption": f"número {i}"} for i in range(COUNT)]
    return writer.write(tmp_path / "index", rows[0], items, rows[1], model="abc", block_rows=16)


def test_search_over_blocks_equals_search_over_the_whole(folder, rows, rng):
    opened = index.Index.open(folder, model="abc")
    assert (len(opened), opened.width, opened.bits) == (COUNT, WIDTH, BITS)
    query = rng.normal(size=(4, WIDTH))
    scores, found = opened.nearest(query, 20)
    want_scores, want = dense.dense_topk(query, rows[0], 20)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)


def test_search_by_codes_counts_bits(folder, rows, rng):
    query = rng.normal(size=(4, BITS))
    distances, found = index.Index.open(folder).nearest(query, COUNT, kind="codes")
    want_distances, want = hamming.hamming_topk(codes.pack(query), codes.pack(rows[1]), COUNT)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(distances, want_distances)


def test_hits_carry_their_items(folder, rows):
    (hits,) = index.Index.open(folder).search(rows[0][30], k=2)
    assert hits[0].row == 30
    assert hits[0].score == pytest.approx(1.0, abs=1e-6)
    assert hits[0].item == {"key": "k30", "caption": "número 30"}
    assert index.Index.open(folder).item(0)["key"] == "k0"


def test_vectors_give_back_what_was_written(folder, rows):
    opened = index.Index.open(folder)
    np.testing.assert_allclose(opened.vectors(), dense.unit_rows(rows[0]))
    np.testing.assert_array_equal(opened.vectors("codes"), codes.pack(rows[1]))


@pytest.mark.parametrize(
    ("query", "k", "kind", "words"),
    [
        (np.ones(WIDTH + 1), 1, "dense", "7 wide and the gallery 6"),
        (np.ones(WIDTH), COUNT + 1, "dense", "k = 38"),
        (np.ones(WIDTH), 1, "sparse", 'write "dense" or "codes"'),
        (np.ones(BITS + 8), 1, "codes", "24 wide and the gallery 16"),
        (np.full(WIDTH, np.inf), 1, "dense", "not finite"),
    ],
)
def test_bad_queries_are_refused(folder, query, k, kind, words):
    with pytest.raises(UserError, match=words):
        index.Index.open(folder).search(query, k, kind)


@pytest.mark.parametrize("name", ["dense-00001.npy", "codes-00002.npy", "items-00001.jsonl"])
def test_a_damaged_file_is_refused_by_name(folder, name):
    damaged = bytearray((folder / name).read_bytes())
    damaged[-3] ^= 1
    (folder / name).write_bytes(damaged)
    with pytest.raises(UserError, match=f"{name} is torn or was changed"):
        index.Index.open(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        index.Index.open(folder)


def test_headers_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is not an index"):
        index.Index.open(tmp_path)
    with pytest.raises(UserError, match="made by model abc and is asked by model xyz"):
        index.Index.open(folder, model="xyz")
    header = json.loads((folder / writer.HEADER).read_text())
    (folder / writer.HEADER).write_text(json.dumps({**header, "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        index.Index.open(folder)
    for damaged in ("{", "[1]", '{"version": 1}'):
        (folder / writer.HEADER).write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            index.Index.open(folder)


def test_a_torn_block_is_refused_even_without_the_checksum(folder):
    block = folder / "dense-00001.npy"
    block.write_bytes(block.read_bytes()[:-9])
    with pytest.raises(UserError, match="dense-00001.npy is torn"):
        index.Index.open(folder, verify=False)


def test_nothing_is_overwritten_unasked_and_nothing_half_made_stays(folder, tmp_path, rows):
    with pytest.raises(UserError, match="already holds an index"):
        writer.write(folder, rows[0][:2], [{}, {}])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(UserError, match="is not an index"):
        writer.write(tmp_path / "notes", rows[0][:2], [{}, {}], overwrite=True)
    with pytest.raises(UserError, match="2 embeddings and 1 items"):
        writer.write(folder, rows[0][:2], [{}], overwrite=True)
    assert len(index.Index.open(folder)) == COUNT
    writer.write(folder, rows[0][:2], [{}, {}], overwrite=True)
    assert len(index.Index.open(folder)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "notes"]


@pytest.mark.parametrize(
    ("embeddings", "bits", "words"),
    [
        (np.zeros((0, 4)), None, "no records"),
        (np.zeros(4), None, "one row per record"),
        (np.ones((2, 4)), np.ones((3, 8)), "2 embeddings and 3 codes"),
        (np.ones((2, 4)), np.ones((2, 9)), "multiple of 8"),
        (np.full((2, 4), np.nan), None, "not finite"),
    ],
)
def test_bad_rows_are_refused(tmp_path, embeddings, bits, words):
    with pytest.raises(UserError, match=words):
        writer.write(tmp_path / "index", embeddings, [{}] * len(embeddings), bits)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_is_replaced_while_it_is_opened_is_read_again(folder, rows, monkeypatch):
    """Even with `prefix`, which would take the files that a writer deleted for damaged ones."""
    usable, calls = index.files.usable, []

    def replaced(*given):
        calls.append(given)
        if len(calls) <= times:
            writer.write(folder, rows[0][: len(calls)], None, overwrite=True)
        return usable(*given)

    monkeypatch.setattr(index.files, "usable", replaced)
    times = 2
    opened = index.Index.open(folder, prefix=True)
    assert (len(opened), opened.damage, len(calls)) == (2, "", 3)
    times = len(calls) + index.TRIES
    with pytest.raises(UserError, match="is replaced all the time"):
        index.Index.open(folder)


def test_an_index_without_codes_says_so(tmp_path):
    path = writer.write(tmp_path / "index", np.eye(4), [{}] * 4)
    with pytest.raises(UserError, match="no hash codes"):
        index.Index.open(path).search(np.ones(8), 1, "codes")


def test_fingerprint_follows_values_names_and_shapes():
    params = {"a": {"kernel": np.ones((2, 3), np.float32)}}
    assert index.fingerprint(params) == index.fingerprint({"a": {"kernel": np.ones((2, 3), np.float32)}})
    others = [
        {"b": {"kernel": np.ones((2, 3), np.float32)}},
        {"a": {"kernel": np.ones((3, 2), np.float32)}},
        {"a": {"kernel": np.full((2, 3), 1 + 1e-6, np.float32)}},
    ]
    assert len({index.fingerprint(p) for p in [params, *others]}) == 4
