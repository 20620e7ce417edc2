"""The mean of the weights of several checkpoints of one run (Izmailov et al. 2018, SWA; Vaswani et al. 2017)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xmodal_jax.errors import UserError
from xmodal_jax.training.checkpoint import Checkpoints


def average_checkpoints(checkpoints: Checkpoints, wanted: dict[str, Any], count: int) -> tuple[int, dict[str, Any]]:
    """Return the step of the newest checkpoint and the mean of the weights of the last `count` ones.

    `wanted`: {item: tree of ShapeDtypeStructs with shardings}, as `Checkpoints.restore_some` takes it.

    Raises UserError where there are fewer checkpoints, or one of them is damaged.
    """
    steps = checkpoints.steps()
    if len(steps) < count:
        raise UserError(
            f"config.eval.average is {count}, and '{checkpoints.folder}' has {len(steps)} checkpoints; write at most "
            f"so many, or train with config.checkpoint.keep={count}"
        )
    return steps[-1], mean_of_steps(checkpoints, wanted, steps[-count:])


def mean_of_steps(checkpoints: Checkpoints, wanted: dict[str, Any], steps: Sequence[int]) -> dict[str, Any]:
    """Return the float32 mean of the weights `wanted` over these steps; one checkpoint is read at a time."""
    total = None
    for step in steps:
        _, found = checkpoints.restore_some(wanted, [step])
        total = found if total is None else _added(total, found)
    return jax.tree.map(lambda leaf: leaf / jnp.float32(len(steps)), total)


@jax.jit
def _added(one: Any, other: Any) -> Any:
    """Return the sum of two trees in float32."""
    return jax.tree.map(lambda a, b: a.astype(jnp.float32) + b.astype(jnp.float32), one, other)
