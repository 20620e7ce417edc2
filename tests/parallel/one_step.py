"""One process of several (a script): the composed step of the tiny config on one batch; process 0 keeps the results.

python one_step.py COORDINATOR PROCESSES PROCESS FILE.npz
"""

import os
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")

import jax
import numpy as np
import optax
from tiny import tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.data.transfer import to_device
from xmodal_jax.config import MeshConfig
from xmodal_jax.objectives import parts
from xmodal_jax.parallel import processes
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from xmodal_jax.parallel.rules import path_name, shardings
from xmodal_jax.train.step import create_state, jit_step


def own_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The contiguous rows of this process."""
    size = len(batch["id"]) // jax.process_count()
    return {name: rows[jax.process_index() * size :][:size] for name, rows in batch.items()}


def main(coordinator: str, count: str, process: str, path: str) -> None:
    """Join, step once, keep metrics and first moments."""
    import time

    t0 = time.time()
    processes.initialize(coordinator, int(count), int(process), heartbeat_seconds=20, wait_seconds=60)
    jax.config.update("jax_default_matmul_precision", "highest")
    recipe = tiny_recipe(tiny_config())
    mesh = make_mesh(MeshConfig(*((-1, 1, 1) if int(count) < 4 else (2, 2, 1))))
    make = lambda: create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0)
    places = shardings(jax.eval_shape(make), mesh)
    print(time.time() - t0, "eval_shape")
    state = jax.jit(make, out_shardings=places)()
    jax.block_until_ready(state)
    print(time.time() - t0, "made")
    step = jit_step(recipe, places, batch_sharding(mesh), replicated(mesh))
    t1 = time.process_time()
    low = step.lower(state, to_device(own_rows(tiny_batch()), batch_sharding(mesh)))
    print("lower cpu", time.process_time() - t1)
    t1 = time.process_time()
    low.compile()
    print("compile cpu", time.process_time() - t1)
    if count == "1":
        return
    state, metrics = step(state, to_device(own_rows(tiny_batch()), batch_sharding(mesh)))
    jax.block_until_ready(state)
    print(time.time() - t0, "stepped", metrics["loss"])
    copy = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    moments = copy(optax.tree.get(state.opt_state, "mu"))
    if processes.is_first():
        found = {path_name(p): np.asarray(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(moments)}
        np.savez(path, **{f"metric {name}": np.asarray(value) for name, value in metrics.items()}, **found)
    print(time.time() - t0, "saved")


if __name__ == "__main__":
    main(*sys.argv[1:])
