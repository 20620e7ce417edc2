import dataclasses
import shutil
import threading

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.retrieve import build, query
from xmodal_jax.search import keys, writer
from xmodal_jax.search.index import Index

PICTURES = build.Kind("image", "pictures", False, ("image", "text"))
CAPTIONS = build.Kind("text", "captions", True, ("image", "text"))


@pytest.fixture(scope="module")
def views(opened_run):
    """The test split of the shapes, opened view by view."""
    return build.opened_views(opened_run[0], opened_run[0].config.data, "test", PICTURES)


@pytest.fixture
def copy(tiny_index, tmp_path):
    """A copy of the index of these pictures."""
    return shutil.copytree(tiny_index, tmp_path / "index")


def test_pictures_are_their_keys_and_views_and_captions_their_words(views, opened_run):
    names = build.names_of(views, PICTURES)
    assert len(names) == 24 and set(names.values()) == {(key, view.view) for view in views for key in view.keys}
    texts = build.opened_views(opened_run[0], opened_run[0].config.data, "test", CAPTIONS)
    owners = {
        text: texts[0].keys[owner] for owner, text in zip(texts[0].right.owner, texts[0].right.words, strict=True)
    }
    assert set(build.names_of(texts, CAPTIONS).values()) == {(key, text) for text, key in owners.items()}
    doubled = dataclasses.replace(views[0], keys=[views[0].keys[0]] * 2)
    with pytest.raises(UserError, match="a key occurs twice in one view among the 2 pictures"):
        build.names_of([dataclasses.replace(doubled, left=doubled.left.part(np.arange(2), np.arange(2)))], PICTURES)


def test_the_same_pictures_again_are_refused(copy, tiny_run, opened_run):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(
        UserError, match="24 of the 24 new rows are in .*index already .*upsert to replace.*allow duplicates"
    ):
        build.build_index(*opened_run, str(tiny_run[0]), str(copy), how=build.IndexOptions(append=True))
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert (
        build.build_index(*opened_run, str(tiny_run[0]), str(copy), split="train", how=build.IndexOptions(append=True))[
            1
        ]
        == 48
    )


def test_duplicates_that_are_allowed_are_doubled_and_told(copy, tiny_run, opened_run, caplog):
    how = build.IndexOptions(append=True, duplicates=True)
    assert build.build_index(*opened_run, str(tiny_run[0]), str(copy), how=how)[1] == 48
    opened = Index.open(copy)
    assert opened.item(0) == opened.item(24) and opened.extra["repeated"] == 24
    np.testing.assert_array_equal(opened.vectors()[:24], opened.vectors()[24:])
    query.warn_of(opened)
    assert "24 rows of" in caplog.text and "a hit may come twice" in caplog.text
    build.build_index(*opened_run, str(tiny_run[0]), str(copy), how=build.IndexOptions(upsert=True))
    assert Index.open(copy).count == 24 and "repeated" not in Index.open(copy).extra


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_upsert_replaces_rows_of_the_same_keys_and_keeps_the_others(
    tiny_index, tiny_run, opened_run, tmp_path, rng, dtype
):
    """Old rows of 20 of the pictures, between others that stay bit for bit and in their order."""
    tiny = Index.open(tiny_index)
    items = [{"key": f"other {i}", "view": "filled"} for i in range(12)] + [tiny.item(i) for i in range(20)]
    order = rng.permutation(32)
    rows, bits = rng.normal(size=(32, 16)), rng.normal(size=(32, 16))
    given = {"model": tiny.model, "block_rows": 5, "extra": tiny.extra, "dtype": dtype}
    path = writer.write(tmp_path / "index", rows, [items[i] for i in order], bits, **given)
    old = Index.open(path)
    stay = np.flatnonzero(order < 12)
    how = build.IndexOptions(upsert=True)
    assert build.build_index(*opened_run, str(tiny_run[0]), str(path), how=how) == (path, 36)
    new = Index.open(path)
    assert new.id != old.id and new.dtype == dtype and new.extra == old.extra
    for kind in ("dense", "codes"):
        np.testing.assert_array_equal(new.stored(np.arange(12), kind), old.stored(stay, kind))
    assert [new.item(row) for row in range(12)] == [old.item(row) for row in stay]
    assert [new.item(row)["key"] for row in range(12, 36)] == [tiny.item(row)["key"] for row in range(24)]
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(new.vectors()[12:], tiny.vectors(), atol=tolerance)
    np.testing.assert_array_equal(new.vectors("codes")[12:], tiny.vectors("codes"))


def test_an_append_waits_for_rows_that_are_replaced(copy, tiny_index, views):
    model = Index.open(tiny_index).model
    row = np.ones((1, 16))
    late = threading.Thread(target=writer.append, args=(copy, row, [{"key": "late", "view": "x"}], row, model))
    with keys.replacing(copy, model, build.names_of(views[:1], PICTURES), False) as out:
        late.start()
        late.join(0.3)
        assert late.is_alive() and Index.open(copy).count == 24
        out.add(row, [{"key": "new", "view": "x"}], row)
    late.join()
    opened = Index.open(copy)
    assert [opened.item(row)["key"] for row in (12, 13)] == ["new", "late"] and opened.count == 14
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_items_of_the_caller_s_own_are_like_no_other(tmp_path):
    opened = Index.open(writer.write(tmp_path / "index", np.eye(3), [{}, {"key": "a", "view": "v"}, {"name": 1}]))
    found = list(keys.digests_in(opened, False))
    assert len(set(found)) == 3 and found[1] == keys.digest("a", "v")


@pytest.mark.parametrize("kind", ["dense", "codes"])
def test_an_index_of_one_kind_alone_is_replaced_and_a_damaged_one_is_not(tmp_path, rng, kind):
    items = [{"key": f"k{i}", "view": "v"} for i in range(6)]
    rows = rng.normal(size=(8, 8))

    def given(rows):
        return (rows, None) if kind == "dense" else (None, rows)

    path = writer.write(tmp_path / "index", given(rows[:6])[0], items, given(rows[:6])[1], "abc", block_rows=4)
    before = Index.open(path).vectors(kind)
    names = {keys.digest(key, "v"): (key, "v") for key in ("k1", "new")}
    with keys.replacing(path, "abc", names, False) as out:
        out.add(given(rows[6:])[0], [{"key": "k1", "view": "v"}, {"key": "new", "view": "v"}], given(rows[6:])[1])
    new = Index.open(path)
    assert [new.item(row)["key"] for row in range(7)] == ["k0", "k2", "k3", "k4", "k5", "k1", "new"]
    np.testing.assert_array_equal(new.vectors(kind)[:5], np.delete(before, 1, axis=0))
    (block,) = path.glob(f"{kind}-*.npy")
    data = bytearray(block.read_bytes())
    data[-1] ^= 1
    block.write_bytes(data)
    with pytest.raises(UserError, match=f"{block.name} is torn or was changed"):
        with keys.replacing(path, "abc", names, False):
            raise AssertionError("copied a damaged block")
    assert block.read_bytes() == data
