import sys

import pytest
from ties import same_up_to_ties

from xmodal_jax.errors import UserError
from xmodal_jax.search import store
from xmodal_jax.search.faiss_backend import FaissIndex
from xmodal_jax.search.index import Index


@pytest.fixture
def opened(tmp_path, rng):
    rows = rng.normal(size=(300, 6)), rng.normal(size=(300, 16))
    items = [{"key": i} for i in range(300)]
    return Index.open(store.write(tmp_path / "index", rows[0], items, rows[1], block_rows=128))


@pytest.mark.parametrize("kind", ["dense", "codes"])
def test_faiss_answers_as_the_exact_search(opened, rng, kind):
    pytest.importorskip("faiss")
    query = rng.normal(size=(4, opened.width if kind == "dense" else opened.bits))
    backend = FaissIndex(opened)
    same_up_to_ties(backend.nearest(query, 20, kind), opened.nearest(query, 20, kind))
    hit = backend.search(query, 1, kind)[0][0]
    assert hit.item == {"key": hit.row}
    with pytest.raises(UserError, match="k = 301"):
        backend.nearest(query, 301, kind)


def test_without_faiss_the_command_is_named(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="faiss is not installed; run pip install"):
        FaissIndex(opened)
