"""A small compiled program with loops and collectives, and the tiny step planned on the 8 devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.planning.hlo import parse_module
from xmodal_jax.settings import MeshConfig

LAYERS, WIDTH, ROWS = 5, 64, 128


@pytest.fixture(scope="session")
def mesh():
    """2 x 4 devices, one for the third axis."""
    return make_mesh(MeshConfig(2, 4, 1))


@pytest.fixture(scope="session")
def looped(mesh):
    """(compiled, module) of the gradient of LAYERS products in a scan, kernels split over fsdp, rows over both axes."""
    kernels = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def loss(kernels, x):
        def layer(x, kernel):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), rows), None

        return jax.lax.scan(layer, x, kernels)[0].sum()

    step = jax.jit(jax.grad(loss), in_shardings=(kernels, rows), out_shardings=kernels)
    shapes = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), "float32"), jax.ShapeDtypeStruct((ROWS, WIDTH), "float32")
    compiled = step.lower(*shapes).compile()
    return compiled, parse_module(compiled.as_text())
