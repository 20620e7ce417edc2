"""FLOPs counted over the jaxpr: products, loops, branches, recomputation, shard_map, convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from xmodal_jax.plan.executed import executed_flops

X, W = jax.ShapeDtypeStruct((8, 16), "float32"), jax.ShapeDtypeStruct((16, 16), "float32")
ONE = 2 * 8 * 16 * 16


def flops(step, *shapes, devices=1):
    """Executed FLOPs of a function."""
    return executed_flops(jax.jit(step).trace(*shapes).jaxpr, devices)


def test_a_product_counts_two_per_multiply_add():
    assert flops(jnp.matmul, X, W) == ONE
    batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)
    shapes = jax.ShapeDtypeStruct((3, 8, 16), "float32"), jax.ShapeDtypeStruct((3, 16, 4), "float32")
    assert flops(batched, *shapes) == 2 * 3 * 8 * 16 * 4


def test_a_loop_counts_every_trip():
    assert flops(lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0], X, W) == 7 * ONE


@pytest.mark.parametrize(("remat", "times"), [(False, 3), (True, 4)])
def test_the_backward_pass_costs_two_and_recomputation_one_more(remat, times):
    def loss(w, x):
        layer = lambda x: jnp.tanh(x @ w)
        layer = jax.checkpoint(layer) if remat else layer
        return jax.lax.scan(lambda x, _: (layer(x), None), x, None, length=5)[0].sum()

    assert flops(jax.grad(loss, argnums=(0, 1)), W, X) == times * 5 * ONE


def test_of_a_branch_the_dearer_side():
    step = lambda p, x, w: jax.lax.cond(p, lambda: x @ w, lambda: x @ w @ w)
    assert flops(step, jax.ShapeDtypeStruct((), "bool"), X, W) == 2 * ONE


def test_shard_map_counts_all_devices(mesh):
    rows, whole = PartitionSpec(("data", "fsdp")), PartitionSpec()
    step = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert flops(step, X, W, devices=8) == ONE


def test_a_convolution_counts_its_taps():
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    shapes = jax.ShapeDtypeStruct((2, 6, 6, 3), "float32"), jax.ShapeDtypeStruct((3, 3, 3, 5), "float32")
    assert flops(convolve, *shapes) == 2 * (2 * 6 * 6 * 5) * (3 * 3 * 3)


def test_against_xla_without_loops():
    step = lambda x, w: ((x @ w) @ w) @ w
    np.testing.assert_allclose(flops(step, X, W), jax.jit(step).lower(X, W).cost_analysis()["flops"], rtol=1e-6)
