"""The losses and the gradient over real processes equal those of one. Four of them: `bash launch/test.sh -m slow`."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from host import free_port
from one_gradient import losses_and_gradient

from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.settings import MeshConfig

SCRIPT = pathlib.Path(__file__).with_name("one_gradient.py")


@pytest.fixture(scope="session")
def alone(start):
    """Losses and gradient of one process with one device."""
    return losses_and_gradient(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), start)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one(count, start, alone, tmp_path):
    """A 2x2 mesh (data x fsdp) over 2 processes of 2 devices, or 4 of 1."""
    np.savez(tmp_path / "start.npz", *jax.tree.leaves(start))
    files = [str(tmp_path / name) for name in ("start.npz", "found.npz")]
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(4 // count)}
    running = [
        subprocess.Popen([sys.executable, SCRIPT, address, str(count), str(process), *files], env=environment)
        for process in range(count)
    ]
    try:
        assert [process.wait(timeout=280) for process in running] == [0] * count
    finally:
        for process in running:
            process.kill()
    with np.load(files[1]) as found:
        assert set(found) == set(alone) and {"loss", "loss/itc", "loss/hash"} < set(alone)
        for name, value in alone.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-6, err_msg=name)
