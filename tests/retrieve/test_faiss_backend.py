import sys
import tracemalloc

import numpy as np
import pytest
from ties import same_up_to_ties

from xmodal_jax.errors import UserError
from xmodal_jax.retrieve.faiss_backend import FaissIndex
from xmodal_jax.search import writer
from xmodal_jax.search.index import Index


@pytest.fixture
def opened(tmp_path, rng):
    rows = rng.normal(size=(300, 6)), rng.normal(size=(300, 16))
    items = [{"key": i} for i in range(300)]
    return Index.open(writer.write(tmp_path / "index", rows[0], items, rows[1], block_rows=128))


@pytest.mark.parametrize("kind", ["dense", "codes"])
def test_faiss_answers_as_the_exact_search(opened, rng, kind):
    pytest.importorskip("faiss")
    query = rng.normal(size=(4, opened.width if kind == "dense" else opened.bits))
    backend = FaissIndex(opened)
    same_up_to_ties(backend.nearest(query, 20, kind), opened.nearest(query, 20, kind))
    hit = backend.search(query, 1, kind)[0][0]
    assert hit.item == {"key": hit.row}
    assert backend._made[kind].ntotal == 300 and backend.nearest(query[:0], 2, kind)[1].shape == (0, 2)
    with pytest.raises(UserError, match="k = 301"):
        backend.nearest(query, 301, kind)


def test_rows_are_handed_over_a_block_at_a_time(tmp_path, rng):
    pytest.importorskip("faiss")
    path = writer.write(tmp_path / "index", rng.normal(size=(8000, 64)), None, block_rows=500, dtype="int8")
    backend = FaissIndex(Index.open(path, engine="numpy"))
    tracemalloc.start()
    try:
        backend.nearest(np.ones(64), 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # all rows are 2 MB of float32; faiss's own are not counted
    finally:
        tracemalloc.stop()


def test_without_faiss_the_command_is_named(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="faiss is not installed; run pip install"):
        FaissIndex(opened)
