"""Make a config ready to train on a mesh: optimizer, shardings, the jitted step and the state before the first step."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from xmodal_jax.assemble import Assembly, abstract_params, document_frequencies, start_params
from xmodal_jax.checks import refuse_chunks
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from xmodal_jax.parallel.processes import is_first
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.training.cca import start_state
from xmodal_jax.training.init import Rows, weights_of_run
from xmodal_jax.training.optimizer import make_optimizer
from xmodal_jax.training.state import TrainState
from xmodal_jax.training.step import Recipe, create_state, jit_step
from xmodal_jax.types import Array
from xmodal_jax.weights import pretrained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A config made ready on a mesh: the recipe, and where each leaf of the state lives."""

    assembly: Assembly
    recipe: Recipe
    mesh: jax.sharding.Mesh
    abstract: TrainState  # ShapeDtypeStructs with shardings
    step: Callable

    @property
    def shardings(self) -> Any:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def fresh(self) -> TrainState:
        """Return the state before the first step, made in place on the mesh: nothing ever exists unsharded."""
        config = self.assembly.config
        found, rows = pretrained(config) | document_frequencies(self.assembly), {}
        if config.init:
            leaves, rows = weights_of_run(self.assembly, self.abstract.params, found)
            found |= leaves
        make = jax.jit(
            lambda key, leaves, rows: _state(self.assembly, self.recipe, key, leaves, rows),
            out_shardings=self.shardings,
        )
        state = make(jax.random.key(config.seed), found, rows)
        if config.joint.start != "cca":
            return state
        if is_first():
            log.info("starting the heads from CCA on the training split")
        return start_state(self.assembly, state)


def _state(
    assembly: Assembly, recipe: Recipe, key: Array, found: dict[str, Any], rows: Rows | None = None
) -> TrainState:
    """Return the state before the first step, with the leaves `found` and `rows` of word tables in place."""
    return create_state(recipe, start_params(assembly, key, found, rows), assembly.config.seed)


def make_run(assembly: Assembly, devices: list | None = None, cache: bool = True) -> Run:
    """Make optimizer, mesh, shardings and the jitted step of an assembly; allocates nothing."""
    config = assembly.config
    mesh = make_mesh(config.mesh, devices)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % rows != 0:
        raise UserError(
            f"config.batch_size is {config.batch_size}, which {rows} devices (data x fsdp) cannot share; write a "
            f"multiple of {rows}"
        )
    refuse_chunks(config, assembly.objectives, rows)
    optimizer = make_optimizer(config.optimizer, abstract_params(assembly), config.steps)
    recipe = Recipe(config, assembly.model, assembly.objectives, optimizer, cache, assembly.facts)
    shapes = jax.eval_shape(lambda key: _state(assembly, recipe, key, {}), jax.random.key(0))
    places = shardings(shapes, mesh)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    return Run(assembly, recipe, mesh, abstract, jit_step(recipe, places, batch_sharding(mesh), replicated(mesh)))
