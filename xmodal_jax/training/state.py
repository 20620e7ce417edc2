"""The train state: one pytree, one set of sharding rules, one checkpoint."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from xmodal_jax.types import Array, Params

WORD = 2**30  # examples that the low number of a cursor counts to


def advanced(cursor: Array, examples: int) -> Array:
    """Return the cursor int32 [2] after `examples` (below 2^30) more: an int32 alone would overflow at 2^31, and JAX
    has no int64.
    """
    low = cursor[1] + examples
    return jnp.stack([cursor[0] + low // WORD, low % WORD])


def examples_seen(cursor: Array) -> int:
    """Return how many examples of the endless training sequence a cursor int32 [2] has behind it."""
    high, low = np.asarray(cursor).tolist()
    return high * WORD + low


@struct.dataclass
class TrainState:
    """Everything a run is, between two steps.

    step: updates applied or skipped; params: the student; teacher: its EMA (a subset of the leaves, see teacher.py);
    memory: rings and tables of the objectives; cursor: examples seen, see `examples_seen`; opt_state: optax's; key: the
    run's random key;
    skipped: steps in all whose update was not finite; skips_in_row: of these, the latest in a row.
    """

    step: Array
    params: Params
    teacher: dict[str, Array]
    memory: dict[str, Any]
    cursor: Array
    opt_state: Any
    key: Array
    skipped: Array
    skips_in_row: Array
