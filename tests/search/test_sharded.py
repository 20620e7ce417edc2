import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.search import codes, writer
from xmodal_jax.search.index import Index
from xmodal_jax.search.sharded import ShardedIndex
from xmodal_jax.settings import MeshConfig


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """5,000 rows: short codes with many ties, and embeddings of which every tenth is the same."""
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(5000, 4))
    embeddings[::10] = embeddings[0]
    path = tmp_path_factory.mktemp("index") / "index"
    return Index.open(writer.write(path, embeddings, None, rng.normal(size=(5000, 16)), block_rows=1024))


@pytest.mark.parametrize("kind", ["dense", "codes"])
def test_eight_devices_answer_as_one(opened, rng, kind):
    many = ShardedIndex(opened, make_mesh(MeshConfig(data=-1)))
    assert many.mesh.shape["data"] == 8
    query = rng.normal(size=(3, opened.width if kind == "dense" else opened.bits))
    if kind == "dense":
        query[0] = opened.vectors_of([0])[0]
    want, found = opened.nearest(query, 3, kind), many.nearest(query, 3, kind)
    np.testing.assert_allclose(found[0], want[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], want[1])
    if kind == "dense":
        assert found[1][0].tolist() == [0, 10, 20]
    placed = many._placed[kind][0]
    assert len(placed.sharding.device_set) == 8 and placed.addressable_shards[0].data.shape[0] * 8 == placed.shape[0]


def test_fewer_rows_than_devices_hold_and_another_axis(tmp_path, rng):
    bits = rng.normal(size=(9, 8))
    small = Index.open(writer.write(tmp_path / "index", rng.normal(size=(9, 3)), None, bits))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    many = ShardedIndex(small, mesh)
    for kind in ("dense", "codes"):
        query = rng.normal(size=(2, small.width if kind == "dense" else small.bits))
        for a, b in zip(many.nearest(query, 9, kind), small.nearest(query, 9, kind), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        assert [x.shape for x in many.nearest(query[:0], 2, kind)] == [(0, 2)] * 2
    hits = many.search(bits[4], 1, "codes")[0]
    assert hits[0].score == 0 and (codes.pack(bits)[hits[0].row] == codes.pack(bits)[4]).all()
    with pytest.raises(UserError, match='no "data"'):
        ShardedIndex(small, Mesh(np.array(jax.devices()), ("rows",)))
    with pytest.raises(UserError, match="k = 10"):
        many.nearest(bits, 10, "codes")
