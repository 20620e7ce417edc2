"""The momentum teacher: a float32 EMA of the student's parameters (He et al. 2020, MoCo; Li et al. 2021, ALBEF).

It is kept as a flat dict {path: leaf} of the leaves that are its own. Frozen parameters and modules that no objective
asks of the teacher have none: the teacher reads the student's, so they cost no memory and no update.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax.settings import TeacherConfig
from xmodal_jax.types import Array, Params

Teacher = dict[str, Array]


def start(params: Params, exclude: str, frozen: str = "") -> Teacher:
    """Return a float32 copy (not an alias: the state is donated) of every leaf that is neither excluded nor frozen."""

    def left_out(path: str) -> bool:
        return any(pattern and re.search(pattern, path) for pattern in (exclude, frozen))

    own = {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if not left_out(path)}
    return {path: jnp.array(leaf, jnp.float32, copy=True) for path, leaf in own.items()}


def view(params: Params, teacher: Teacher) -> Params:
    """Return the teacher's full parameter tree: its own leaves, and the student's where it has none."""
    return unflatten_dict(flatten_dict(params, sep="/") | teacher, sep="/")


def momentum_at(config: TeacherConfig, step: Array) -> Array:
    """Return the EMA's momentum at `step`; with `config.warmup` at most (1 + step) / (10 + step)."""
    momentum = jnp.float32(config.momentum)
    if not config.warmup:
        return momentum
    count = step.astype(jnp.float32)
    return jnp.minimum(momentum, (1.0 + count) / (10.0 + count))


def update(teacher: Teacher, params: Params, momentum: Array) -> Teacher:
    """Return m * teacher + (1 - m) * student, leaf by leaf; exactly the teacher where the student equals it.

    Rounding would else change parameters that nothing trains, such as those of languages that a batch does not have.
    """
    student: dict[str, Any] = flatten_dict(params, sep="/")

    def mixed(old: Array, new: Array) -> Array:
        return jnp.where(new == old, old, momentum * old + (1.0 - momentum) * new)

    return {path: mixed(old, student[path]) for path, old in teacher.items()}


def drift(teacher: Teacher, params: Params) -> Array:
    """Return how far the student has left its teacher: 1 - cosine of all their parameters."""
    student: dict[str, Any] = flatten_dict(params, sep="/")
    dot = sum((jnp.vdot(old, student[path]) for path, old in teacher.items()), jnp.float32(0))
    norms = [
        sum((jnp.vdot(x, x) for x in leaves), jnp.float32(1e-12))
        for leaves in (teacher.values(), [student[path] for path in teacher])
    ]
    return 1.0 - dot * jax.lax.rsqrt(norms[0] * norms[1])
