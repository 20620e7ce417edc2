"""Negatives inside groups: no token leaves its device in the compiled program of eight, and the loss is the same."""

import jax
import numpy as np
import pytest
from tiny import TOKENS, WIDTH, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.planning.collectives import collectives
from xmodal_jax.planning.hlo import parse_module
from xmodal_jax.settings import MeshConfig
from xmodal_jax.training.step import create_state, total_loss

ROWS = 32


def compiled(group, shape, chunk=0, negatives=2):
    """Loss and gradient of ITM alone on a mesh of `shape`: the program, the state and the batch it takes."""
    config = tiny_config(batch_size=ROWS, chunk=chunk, objectives={"itm": {"group": group, "negatives": negatives}})
    recipe = tiny_recipe(config)
    count = int(np.prod(shape))
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[:count])

    def make():
        return create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0)

    state = jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))()
    batch = jax.device_put(tiny_batch(0, ROWS), batch_sharding(mesh))

    def run(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):

            def loss(params):
                return total_loss(recipe, params, state, batch, jax.random.key(0))[0]

            return jax.value_and_grad(loss)(state.params)

    return jax.jit(run).lower(state, batch).compile(), state, batch


def moved(program, devices):
    """Bytes of the largest array that one collective other than a sum (of gradients) brings to a device."""
    found = [item for item in collectives(parse_module(program.as_text()), devices) if item.kind != "all-reduce"]
    return max((item.payload for item in found), default=0.0)


@pytest.fixture(scope="module")
def grouped():
    """ITM in groups of four on eight devices of four rows each."""
    return compiled(4, (8, 1, 1))


def test_no_token_crosses_devices(grouped):
    row = 4 * TOKENS * WIDTH  # bytes of one image's tokens in float32
    assert moved(grouped[0], 8) < row
    assert moved(compiled(0, (8, 1, 1))[0], 8) >= row  # what it would be with negatives from anywhere


def test_the_loss_does_not_depend_on_the_mesh(grouped):
    loss, grads = grouped[0](*grouped[1:])
    one, state, batch = compiled(4, (1, 1, 1))
    expected, reference = one(state, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6), grads, reference)


def test_nor_does_a_chunk_of_whole_groups_bring_tokens_over():
    program, _, _ = compiled(2, (8, 1, 1), chunk=16, negatives=1)
    assert moved(program, 8) < 4 * TOKENS * WIDTH
