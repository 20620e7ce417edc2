"""The train state: one pytree, one set of sharding rules, one checkpoint."""

from typing import Any

from flax import struct

from xmodal_jax.types import Array, Params


@struct.dataclass
class TrainState:
    """Everything a run is, between two steps.

    step: updates applied or skipped; params: the student; teacher: its EMA (a subset of the leaves, see teacher.py);
    memory: rings and tables of the objectives; cursor: the next batch; opt_state: optax's; key: the run's random key;
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
