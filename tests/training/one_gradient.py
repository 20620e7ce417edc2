"""The five losses and their gradient on one mesh: imported for one process, run as a script for one of several.

    python one_gradient.py COORDINATOR PROCESSES PROCESS STATE.npz RESULT.npz

Process 0 writes the result: everything as whole arrays. Every process reads the same state and takes its own rows.
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]

import jax
import numpy as np
from tiny import tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.data.transfer import to_device
from xmodal_jax.objectives import parts
from xmodal_jax.parallel import processes
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from xmodal_jax.parallel.rules import path_name, shardings
from xmodal_jax.settings import MeshConfig
from xmodal_jax.training.state import TrainState
from xmodal_jax.training.step import create_state, term_metrics, total_loss


def place(leaf: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """The parts of a whole array that this process's devices hold."""
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def losses_and_gradient(mesh: jax.sharding.Mesh, start: TrainState) -> dict[str, np.ndarray]:
    """{name: whole array} of the loss, each objective's metrics and each parameter's gradient at `start`."""
    recipe, every = tiny_recipe(tiny_config()), replicated(mesh)
    places = shardings(start, mesh)
    state = jax.tree.map(place, start, places)

    def compute(state, batch):
        def loss(params):
            return total_loss(recipe, params, state, batch, jax.random.key(7))

        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return term_metrics(terms) | {"loss": value}, gradient

    size = len(tiny_batch()["id"]) // jax.process_count()
    own = {name: rows[jax.process_index() * size :][:size] for name, rows in tiny_batch().items()}
    step = jax.jit(compute, out_shardings=(every, every))
    with jax.set_mesh(mesh):
        metrics, gradient = step(state, to_device(own, batch_sharding(mesh)))
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
    return {name: np.asarray(value) for name, value in (metrics | named).items()}


def main(coordinator: str, count: str, process: str, start: str, result: str) -> None:
    """One process of the test."""
    processes.initialize(coordinator, int(count), int(process), heartbeat_seconds=30, wait_seconds=120)
    jax.config.update("jax_default_matmul_precision", "highest")
    recipe = tiny_recipe(tiny_config())
    shapes = jax.eval_shape(lambda: create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0))
    with np.load(start) as leaves:
        state = jax.tree.unflatten(jax.tree.structure(shapes), list(leaves.values()))
    found = losses_and_gradient(make_mesh(MeshConfig(2, 2, 1)), state)
    if processes.is_first():
        np.savez(result, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
