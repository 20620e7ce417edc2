"""The compiled five-objective step, once per mesh: compiling it is what these tests spend their time on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.objectives import parts
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.settings import MeshConfig
from xmodal_jax.training.step import Recipe, create_state, jit_step


@dataclass(frozen=True)
class Machine:
    """A step on one mesh; `fresh` is a state to donate, `put` places a batch."""

    recipe: Recipe
    mesh: jax.sharding.Mesh
    places: object
    start: object
    step: Callable

    def fresh(self):
        """The state before the first step, placed on the mesh."""
        return jax.device_put(self.start, self.places)

    def put(self, batch: dict[str, np.ndarray]):
        """A batch on the mesh."""
        return jax.device_put(batch, batch_sharding(self.mesh))

    def run(self, *batches: dict[str, np.ndarray]):
        """The state after these batches, and the metrics of the last."""
        state, metrics = self.fresh(), {}
        for batch in batches:
            state, metrics = self.step(state, self.put(batch))
        return state, metrics


@pytest.fixture(scope="session")
def recipe():
    """The tiny config's recipe: all five objectives."""
    return tiny_recipe(tiny_config())


@pytest.fixture(scope="session")
def start(recipe):
    """The state before the first step as NumPy arrays, with a ring that is half full."""
    make = jax.jit(lambda: create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0))
    state = jax.tree.map(np.array, make())
    draw, ring = np.random.default_rng(9), state.memory["keys"]
    for name in ("image", "text"):
        rows = draw.normal(size=(12, 8)).astype(np.float32)
        ring[name][:12] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for name in ("id", "text/key"):
        ring[name][:12] = np.arange(12) + 5000
    ring["cursor"][...] = 12
    return state


def machine_on(recipe: Recipe, start: object, data: int, fsdp: int, tensor: int) -> Machine:
    """The step of `recipe` compiled for one mesh."""
    mesh = make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])
    places = shardings(start, mesh)
    return Machine(recipe, mesh, places, start, jit_step(recipe, places, batch_sharding(mesh), replicated(mesh)))


@pytest.fixture(scope="session")
def machine_of():
    """`machine_on`, for recipes of one's own."""
    return machine_on


@pytest.fixture(scope="session")
def machine(recipe, start):
    """`machine(data, fsdp, tensor)`: the step compiled for that mesh, kept for the session."""
    return functools.cache(functools.partial(machine_on, recipe, start))


@pytest.fixture(scope="session")
def single(machine):
    """The step on one device."""
    return machine(1, 1, 1)


@pytest.fixture(scope="session")
def after_one(single):
    """State and metrics after one step on one device, as NumPy arrays."""
    return jax.tree.map(np.asarray, single.run(tiny_batch()))
