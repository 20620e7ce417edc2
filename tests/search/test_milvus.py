import sys

import numpy as np
import pytest
from ties import same_up_to_ties

from xmodal_jax.errors import UserError
from xmodal_jax.search import milvus, store
from xmodal_jax.search.index import Index

COUNT = 60


@pytest.fixture
def opened(tmp_path, rng):
    rows = rng.normal(size=(COUNT, 6)), rng.normal(size=(COUNT, 16))
    items = [{"key": i} for i in range(COUNT)]
    return Index.open(store.write(tmp_path / "index", rows[0], items, rows[1], model="abc", block_rows=32))


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


def test_rows_of_another_model_are_refused(connected, tmp_path, rng):
    connected.fill()
    other = Index.open(store.write(tmp_path / "other", rng.normal(size=(5, 6)), None, model="xyz"))
    with pytest.raises(UserError, match="holds 'xmodal abc dense 6' and the index is 'xmodal xyz dense 6'"):
        milvus.MilvusIndex(other, connected.uri).fill()
    with pytest.raises(UserError, match="letters, digits and _"):
        milvus.MilvusIndex(other, connected.uri, "my-rows")
    assert connected.fill() == {"dense": 0, "codes": 0}


def test_without_pymilvus_the_command_is_named(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UserError, match="pymilvus is not installed; run pip install"):
        milvus.MilvusIndex(opened, "rows.db")
