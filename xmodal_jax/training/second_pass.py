"""Passes over the training data that train nothing: objectives measure all records with the weights of one step."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from xmodal_jax.data.loader import Loader
from xmodal_jax.data.train import TrainDataset
from xmodal_jax.data.transfer import Prefetch
from xmodal_jax.forward import Forward, named_key, teacher_forward
from xmodal_jax.objectives.base import Objective
from xmodal_jax.parallel import stuck
from xmodal_jax.parallel.mesh import batch_sharding, process_share, replicated
from xmodal_jax.training import memory as memories
from xmodal_jax.training import teacher as teachers
from xmodal_jax.training.log import TrainLog
from xmodal_jax.training.run import Run
from xmodal_jax.training.state import TrainState, examples_seen
from xmodal_jax.training.step import Recipe, prepared
from xmodal_jax.training.stop import StopSignal
from xmodal_jax.types import Array, Batch

Memory = dict[str, Any]


def revisited(
    recipe: Recipe, objectives: dict[str, Objective], state: TrainState, memory: Memory, batch: Batch
) -> Memory:
    """Return the memory after the objectives have measured a batch with the weights of `state`, without dropout."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    batch = prepared(objectives, batch, named_key(key, "second pass"))
    config = recipe.config
    teacher = teacher_forward(
        recipe.model, teachers.view(state.params, state.teacher), batch, config.dtype, recipe.cache, config.chunk
    )
    fwd = Forward(recipe.model, state.params, batch, None, memory, state.step, teacher, recipe.cache, config.chunk)
    terms = {name: item.revisit(fwd, batch) for name, item in objectives.items()}
    return memories.update_memory(memory, terms)


@jax.jit
def copied(memory: Memory) -> Memory:
    """Return a copy of the arrays, where they lie."""
    return jax.tree.map(jnp.copy, memory)


def finished(objectives: dict[str, Objective], state: TrainState, memory: Memory) -> Memory:
    """Return the memory after a whole pass: made anew by its objectives, which note the step."""
    for item in objectives.values():
        memory = item.refresh(memory, state.step)
        memory = memory | {item.passed: memory[item.passed] | {"step": state.step[None]}}
    return memory


@dataclass
class SecondPass:
    """The passes of a run; of a run without any, nothing is compiled."""

    run: Run
    dataset: TrainDataset
    report: TrainLog
    stop: StopSignal
    """Raises `Stopped` out of a pass; the state then stays as it was."""
    stuck: bool = False
    """True if a thread was left where it hung, which still reads in the data set."""
    _programs: dict[tuple[str, ...], tuple[Callable, Callable]] = field(default_factory=dict)

    def __call__(self, state: TrainState, step: int) -> TrainState:
        """Return the state after the pass that is due after `step`; a pass that was made already is not due.

        Nor is one after the last step, which trains nothing: a run that goes on with more steps makes it first.
        """
        assembly = self.run.assembly
        if step >= assembly.config.steps:
            return state
        found = {name: item for name, item in assembly.objectives.items() if item.second_pass}
        found = {name: item for name, item in found.items() if item.passes_after(step)}
        last = {name: int(jax.device_get(state.memory[item.passed]["step"])[0]) for name, item in found.items()}
        found = {name: item for name, item in found.items() if last[name] < step}
        return self._made(found, state, step) if found else state

    def _made(self, objectives: dict[str, Objective], state: TrainState, step: int) -> TrainState:
        """Show all training data to the objectives, in the order of the epoch that the run is in."""
        units, started = self.dataset.units, time.perf_counter()
        sharding, config = batch_sharding(self.run.mesh), self.run.assembly.config
        names = tuple(objectives)
        if names not in self._programs:
            self._programs[names] = self._compiled(objectives, sharding)
        visit, finish = self._programs[names]
        first = examples_seen(state.cursor) // units * units
        loader = Loader(
            self.dataset, first, *process_share(sharding, config.batch_size), config.data.threads, config.data.prefetch
        )
        loader.poll, waiting = self.stop.check_alone, None
        memory = copied(state.memory)  # the state's own stays whole if the pass is stopped
        try:
            with Prefetch(loader, sharding) as batches:
                for number in range(math.ceil(units / config.batch_size)):
                    stuck.at(f"batch {number + 1} of the second pass after step {step}")
                    self.stop.check()
                    memory, done = visit(state, memory, next(batches))
                    jax.block_until_ready(waiting)  # a batch ahead of the device, no more
                    waiting = done
        finally:
            self.stuck = self.stuck or loader.stuck
        state = dataclasses.replace(state, memory=jax.block_until_ready(finish(state, memory)))
        what = "pairs" if config.data.unit == "pair" else "records"
        seconds = time.perf_counter() - started
        self.report.say(f"second pass after step {step}: {units} {what} for {', '.join(objectives)} in {seconds:.1f} s")
        self.report.leave_out(seconds)
        return state

    def _compiled(self, objectives: dict[str, Objective], sharding: Any) -> tuple[Callable, Callable]:
        """Return `revisited` and `finished`, compiled for the mesh of the run."""
        places, mesh = self.run.shardings, self.run.mesh.abstract_mesh

        def visit(state: TrainState, memory: Memory, batch: Batch) -> tuple[Memory, Array]:
            with jax.sharding.use_abstract_mesh(mesh):
                return revisited(self.run.recipe, objectives, state, memory, batch), state.step + 1

        return (
            jax.jit(
                visit,
                in_shardings=(places, places.memory, sharding),
                out_shardings=(places.memory, replicated(self.run.mesh)),
                donate_argnums=1,
            ),
            jax.jit(
                lambda state, memory: finished(objectives, state, memory),
                in_shardings=(places, places.memory),
                out_shardings=places.memory,
            ),
        )
