"""Each device does its share of an evaluation: what the benchmark counts, on small numbers."""

import pathlib

import inference_mesh
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.parallel.mesh import make_mesh, replicated, split_rows
from xmodal_jax.settings import MeshConfig


@pytest.fixture(scope="module")
def table():
    """The benchmark's table for 8 devices and 16 rows."""
    config = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
    return inference_mesh.measure(f"{config}:tiny", 8, 16)


def test_each_device_does_an_eighth_and_sends_next_to_nothing(table):
    assert set(table) == {
        "encode image",
        "encode text",
        "score pairs",
        "write captions",
        "rank queries",
        "nearest rows",
        "average precision",
    }
    for name, row in table.items():
        assert row["rows_per_device"] == [2] * 8 and len(set(row["bytes_per_device"])) == 1, name
        assert 0.12 < row["share"] < 0.15 and row["flops"] > 1e5, (name, row)
        assert row["sent_bytes"] < 1024, (name, row)


def test_what_is_not_split_is_seen():
    """A program that sorts all rows on every device, as XLA makes of `top_k`, has no share of one eighth."""
    run, programs = jax.jit(lambda gallery, query: jax.lax.top_k(query @ gallery.T, 4)), []
    for count in (1, 8):
        mesh = make_mesh(MeshConfig(), jax.devices()[:count])
        gallery = jax.device_put(np.ones((4096, 4), np.float32), replicated(mesh))
        programs.append(inference_mesh.Program(run, (gallery,), (split_rows(mesh, np.ones((16, 4), np.float32)),)))
    assert inference_mesh.share(*programs)["sent_bytes"] >= 16 * 4096 * jnp.float32(0).nbytes
