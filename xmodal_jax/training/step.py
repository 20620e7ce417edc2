"""The one train step: forward -> loss -> optimizer -> EMA -> enqueue of the keys that the loss saw."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from xmodal_jax.forward import Forward, named_key, reuse_student_passes, teacher_forward
from xmodal_jax.objectives.base import Objective, Term, at, same
from xmodal_jax.parallel.rules import wholly_frozen
from xmodal_jax.settings import Config, JointConfig
from xmodal_jax.training import memory as memories
from xmodal_jax.training import teacher as teachers
from xmodal_jax.training.optimizer import split_frozen
from xmodal_jax.training.state import TrainState, advanced
from xmodal_jax.types import Array, Batch, DataFacts, Metrics, Params


@dataclass(frozen=True)
class Recipe:
    """What a step needs besides the state and the batch."""

    config: Config
    model: Any
    objectives: dict[str, Objective]
    optimizer: optax.GradientTransformation
    cache: bool = True  # memoise passes (off only to measure what the memo is worth)
    facts: DataFacts = DataFacts()


def create_state(recipe: Recipe, params: Params, seed: int) -> TrainState:
    """Return the state before the first step."""

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    config = recipe.config
    return TrainState(
        step=zero(),
        params=params,
        teacher=teachers.start(params, config.teacher.exclude, config.optimizer.freeze),
        memory=memories.start(recipe.objectives, recipe.model, recipe.facts),
        cursor=jnp.zeros(2, jnp.int32),
        opt_state=recipe.optimizer.init(params),
        key=jax.random.key_data(jax.random.key(seed)),
        skipped=zero(),
        skips_in_row=zero(),
    )


def prepared(objectives: dict[str, Objective], batch: Batch, key: Array) -> Batch:
    """Return the batch with the derived fields of all objectives (an objective's randomness hangs on its own name)."""
    for name, objective in objectives.items():
        batch = batch | objective.prepare(batch, named_key(key, f"prepare:{name}"))
    return batch


def run_objectives(
    recipe: Recipe, params: Params, state: TrainState, batch: Batch, key: Array
) -> tuple[dict[str, Term], Forward]:
    """Return all terms of one batch, and the student's Forward (its
    `passes` and those of its teacher say what was traced).
    """
    config = recipe.config
    batch = prepared(recipe.objectives, batch, key)
    teacher = teacher_forward(
        recipe.model, teachers.view(params, state.teacher), batch, config.dtype, recipe.cache, config.chunk
    )
    student = Forward(recipe.model, params, batch, key, state.memory, state.step, teacher, recipe.cache, config.chunk)
    if recipe.cache:
        reuse_student_passes(student, same_towers(config, params))
    terms = {
        name: objective(student, batch, named_key(key, f"objective:{name}"))
        for name, objective in recipe.objectives.items()
    }
    return terms, student


def same_towers(config: Config, params: Params) -> frozenset[str]:
    """Return the towers that are the same function for student and teacher: wholly frozen, and without dropout."""
    still = [name for name, own in config.encoders.items() if own.dropout == 0.0]
    return frozenset(name for name in still if wholly_frozen(params, f"{name}/tower", config.optimizer.freeze))


def total_loss(
    recipe: Recipe, params: Params, state: TrainState, batch: Batch, key: Array
) -> tuple[Array, dict[str, Term]]:
    """Return the weighted sum of the objectives' means, and their terms."""
    terms, _ = run_objectives(recipe, split_frozen(params, recipe.config.optimizer.freeze), state, batch, key)
    weighted = [at(recipe.objectives[name].weight, state.step) * term.mean() for name, term in terms.items()]
    return sum(weighted[1:], weighted[0]), terms


def term_metrics(terms: dict[str, Term]) -> Metrics:
    """Return scalars to log: each objective's mean loss and its own metrics."""
    metrics = {f"loss/{name}": term.mean() for name, term in terms.items()}
    for name, term in terms.items():
        metrics |= {f"{name}/{key}": value for key, value in term.metrics.items()}
    return metrics


def negatives(batch: Batch) -> Array:
    """Return how many rows of the batch are negatives of its first row, a float32 scalar; 0 where all are one thing."""
    own = {name: rows for name, rows in batch.items() if name == "id" or name.endswith("/key")}
    return (~same({name: rows[:1] for name, rows in own.items()}, own)).sum(dtype=jnp.float32)


def finite(*trees: Any) -> Array:
    """Return True if every number of the trees is finite, a boolean scalar."""
    bad = jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).sum(dtype=jnp.float32)
    # XLA:CPU copies a chain of cheap operations into every fusion that reads its end, which took half of the time to
    # compile a step; a square root is computed once.
    return jnp.sqrt(bad) == 0


def choose(good: Array, new: Any, old: Any) -> Any:
    """Return `new` where `good` (a boolean scalar), else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def projected(joint: JointConfig, params: Params) -> Params:
    """Return `params` after an update, with the temperature put back into its interval.

    Clipped where it is read instead, a temperature outside would have no gradient and stay there for good.
    """
    if "log_temperature" not in params:
        return params
    low, high = (jnp.log(jnp.float32(end)) for end in (joint.temperature_min, joint.temperature_max))
    return params | {"log_temperature": jnp.clip(params["log_temperature"], low, high)}


def train_step(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Make one update. A non-finite loss or gradient changes nothing
    but the counters (and the batch is not tried again).
    """
    config = recipe.config
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    compute = jax.value_and_grad(lambda params: total_loss(recipe, params, state, batch, key), has_aux=True)
    (loss, terms), grads = compute(state.params)
    good = finite(loss, grads)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
        updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params)
    params = projected(config.joint, cast("Params", optax.apply_updates(state.params, updates)))
    teacher = teachers.update(state.teacher, params, teachers.momentum_at(config.teacher, state.step))
    new = (params, teacher, opt_state)
    params, teacher, opt_state = choose(good, new, (state.params, state.teacher, state.opt_state))
    memory = memories.update_memory(state.memory, terms, good)
    memory = memories.refresh(recipe.objectives, memory, state.step + 1, good, recipe.facts)
    bad = jnp.where(good, 0, 1).astype(jnp.int32)
    silent = {f"loss/{name}" for name, item in recipe.objectives.items() if not item.trains}
    metrics = {name: value for name, value in term_metrics(terms).items() if name not in silent} | {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "teacher/drift": teachers.drift(teacher, params),
        "negatives": negatives(batch),
    }
    metrics |= {f"nonfinite/{name}": 1.0 - finite(tree).astype(jnp.float32) for name, tree in grads.items()}
    after = TrainState(
        step=state.step + 1,
        params=params,
        teacher=teacher,
        memory=memory,
        cursor=advanced(state.cursor, batch["id"].shape[0]),
        opt_state=opt_state,
        key=state.key,
        skipped=state.skipped + bad,
        skips_in_row=(state.skips_in_row + bad) * bad,
    )
    return after, metrics | {"skipped": after.skipped, "skips_in_row": after.skips_in_row}


def jit_step(recipe: Recipe, state_shardings: Any, batch_sharding: Any, replicated: Any) -> Callable:
    """Return the compiled step: state donated, shardings fixed on both sides, the mesh known to what is traced."""
    mesh = replicated.mesh.abstract_mesh

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh):
            return train_step(recipe, state, batch)

    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
    )
