"""The passes of one step: every encoder pass runs at most once, and one that nobody asks for is never traced.

Objectives do not run encoders; they ask a `Forward` for what they need. XLA does not merge identical scanned towers by
itself, so this memo is what makes several objectives over the same towers cheap (benchmarks/composed_step.py).
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.extend.core import get_opaque_trace_state

from xmodal_jax.models.layers import every_row, pick_rows
from xmodal_jax.types import Array, Batch, Params


@struct.dataclass
class Encoded:
    """One encoder pass: tokens [B,N,D], unit embedding [B,E], ids [B,L] of words.

    `mask` bool [B,N] tells real tokens (None: all are), `valid` bool [B] which rows have the field (None: all have); what is
    made of a row without it is a number, and nobody may read it. `name` is the key of the pass, and None for rows picked from it (derived features are never cached).
    """

    tokens: Array
    embed: Array | None = None
    mask: Array | None = None
    ids: Array | None = None
    valid: Array | None = None
    name: str | None = struct.field(pytree_node=False, default=None)

    def rows(self, index: Array) -> "Encoded":
        """The rows `index` of this pass (see `pick_rows`); rows are gathered, nothing runs again."""
        return self._taken(lambda x: pick_rows(x, index))

    def every(self, step: int) -> "Encoded":
        """Rows 0, step, 2 * step ... of this pass; the pass itself for 1."""
        return self if step == 1 else self._taken(lambda x: every_row(x, step))

    def _taken(self, take: Callable[[Array], Array]) -> "Encoded":
        def some(x):
            return None if x is None else take(x)

        return Encoded(some(self.tokens), some(self.embed), some(self.mask), some(self.ids), some(self.valid))


def named_key(key: Array, name: str) -> Array:
    """A key that depends on `name` only, so that adding or reordering objectives changes nobody's randomness."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def _pieces(batch: Batch, chunk: int) -> int:
    """How many chunks a batch makes; 1 without chunks."""
    rows = next(iter(batch.values())).shape[0] if batch else 0
    if chunk and rows % chunk:
        raise ValueError(f"config.chunk={chunk} does not divide the batch of {rows} rows; write a divisor")
    return max(1, rows // chunk) if chunk else 1


def split_rows(x: Array, pieces: int) -> Array:
    """x [R, ...] -> [pieces, R / pieces, ...], piece k the rows k, k + pieces, ...: rows stay on their devices."""
    return jnp.swapaxes(x.reshape(-1, pieces, *x.shape[1:]), 0, 1)


def merge_rows(x: Array) -> Array:
    """The inverse of `split_rows`: [pieces, r, ...] -> [pieces * r, ...]."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


class Forward:
    """The passes over one batch under one tree of parameters, memoised by name for the length of one trace.

    `teacher` is a second Forward on the EMA parameters: no gradient, no dropout. `memory` holds the rings and tables of
    the train state, `step` the step number (for ramps). `passes` lists the names of the passes that were traced.

    With `chunk` every pass runs in pieces of so many rows, one after the other, each recomputed in the backward pass
    (GradCache, Gao et al. 2021, by autodiff): activations of one piece at a time, while every loss still sees the whole
    batch. Piece k holds the rows k, k + K, k + 2K ..., so that a batch split over devices stays where it is.
    """

    def __init__(
        self,
        model: Any,
        params: Params,
        batch: Batch,
        key: Array | None,
        memory: dict[str, Any] | None = None,
        step: Array | int = 0,
        teacher: "Forward | None" = None,
        cache: bool = True,
        chunk: int = 0,
    ) -> None:
        self.model, self.params, self.batch, self.key = model, params, batch, key
        self.memory, self.step, self.teacher = memory or {}, step, teacher
        self.towers: dict[str, Forward] = {}  # encoder -> whose tower pass to take instead of one's own
        self.lent: frozenset[str] = frozenset()  # encoders whose tower pass another Forward takes
        self.passes: list[str] = []
        self.pieces = _pieces(batch, chunk)
        self._memo: dict[str, Any] | None = {} if cache else None
        self._trace = get_opaque_trace_state()

    def _once(self, name: str, run: Callable[[Array | None], Any]) -> Any:
        """Run the pass `name`, or return what it gave before in this trace."""
        if self._trace != get_opaque_trace_state():
            raise RuntimeError(
                f"the pass '{name}' was asked for inside cond, scan, checkpoint or grad; "
                "ask for it before, outside, and use the result inside (a cached tracer would leak)"
            )
        if self._memo is not None and name in self._memo:
            return self._memo[name]
        self.passes.append(name)
        result = run(None if self.key is None else named_key(self.key, name))
        if self._memo is not None:
            self._memo[name] = result
        return result

    def rowwise(self, run: Callable[..., Any], key: Array | None, *arrays: Array) -> Any:
        """run(key, *arrays), which maps rows to rows; with `chunk` in pieces, recomputed in the backward pass.

        arrays have one leading axis, and so has every array of the result. It is for passes, and for heads whose output
        is much larger than their input (token logits).
        """
        if self.pieces == 1:
            return run(key, *arrays)
        keys = None if key is None else jax.random.split(key, self.pieces)
        piece = jax.checkpoint(lambda inputs: run(inputs[0], *inputs[1]))
        out = jax.lax.map(piece, (keys, tuple(split_rows(x, self.pieces) for x in arrays)))
        return jax.tree.map(merge_rows, out)

    def call(self, method: str, *inputs: Any, **options: Any) -> Any:
        """A head or any other method of the model; never memoised."""
        return self.model.apply({"params": self.params}, *inputs, method=method, **options)

    def encoder_of(self, field: str) -> str:
        """The name of the encoder that reads a field."""
        return self.model.config.data.fields[field].encoder

    def raw(self, field: str, encoder: str = "") -> Array:
        """The tower's own tokens [B,N,D'] of the batch's `field`, by its own encoder or another.

        A batch that holds the tokens of a frozen tower spares the pass; a teacher whose tower is the student's (wholly frozen,
        without dropout) takes the student's pass: see `reuse_student_passes`.
        """
        encoder = encoder or self.encoder_of(field)
        if kept_field(field) in self.batch:
            return self.batch[kept_field(field)].astype(jnp.dtype(self.model.config.dtype))
        if encoder in self.towers:
            return stop(self.towers[encoder].raw(field, encoder))

        def run(key: Array | None, x: Array) -> Array:
            return self.call("raw", encoder, x, key)

        return self._once(f"tower:{encoder}:{field}", lambda key: self.rowwise(run, key, self.batch[field]))

    def _joint(self, encoder: str, field: str, joint: Callable, key: Array | None, *more: Array) -> Any:
        """joint(key, raw tokens, field's rows, *more) over the tower's pass; in pieces, tower and joint are one piece."""
        if self.pieces == 1 or encoder in self.towers or encoder in self.lent or kept_field(field) in self.batch:
            return self.rowwise(joint, key, self.raw(field, encoder), self.batch[field], *more)

        def both(key: Array | None, x: Array, *more: Array) -> Any:
            keys = (None, None) if key is None else jax.random.split(key)
            return joint(keys[1], self.call("raw", encoder, x, keys[0]), x, *more)

        return self.rowwise(both, key, self.batch[field], *more)

    def encode(self, field: str, encoder: str = "") -> Encoded:
        """The field's encoder, or another for a field that an objective derived: tower, neck and head."""
        encoder = encoder or self.encoder_of(field)
        name, x, own = f"{encoder}:{field}", self.batch[field], self.model.config.encoders[encoder]

        def joint(key: Array | None, raw: Array, x: Array) -> tuple[Array, Array]:
            return self.call("joint", encoder, raw, x, key)

        def run(key: Array | None) -> Encoded:
            tokens, embed = self._joint(encoder, field, joint, key)
            mask = widened(own.mask(x), tokens)
            return Encoded(
                tokens, embed, mask, x if own.reads == "words" else None, self.batch.get(f"{field}/valid"), name
            )

        return self._once(name, run)

    def codes(self, field: str) -> tuple[Array, ...]:
        """Relaxed codes [B,k] of one field from its hash head, for every length k of `config.joint.nested` and the whole."""
        whole = self._once(
            f"codes:{field}", lambda _: self.call("codes", self.encoder_of(field), self.encode(field).embed)
        )
        return tuple(whole[:, :bits] for bits in self.model.config.joint.lengths)

    def bridge(self, field: str) -> tuple[Encoded, Encoded]:
        """The residual attention between student and teacher, the one pass that reads both (ReCap; models/bridge.py).

        Returns the key, the teacher's tokens plus what the bridge adds and their embedding by the teacher's head, all
        constants; and what the captioner reads, the student's tokens plus the same, which trains bridge and student
        (without the student's own tokens it would, at gamma 0, give them no gradient).
        """
        return self._once(f"bridge:{field}", lambda _: self._bridge(field))

    def _bridge(self, field: str) -> tuple[Encoded, Encoded]:
        own, other, encoder = self.encode(field), self.teacher.encode(field), self.encoder_of(field)
        arrays = (own.tokens, other.tokens, *([] if other.mask is None else [other.mask]))
        delta = self.rowwise(lambda _, *x: self.call("bridge_delta", *x), None, *arrays)
        tokens, section = stop(other.tokens + delta), self.model.config.encoders[encoder]

        def embed(_: None, raw: Array, x: Array, tokens: Array) -> Array:
            return self.teacher.call("embed", encoder, raw, tokens, section.mask(x))

        unit = stop(self.teacher._joint(encoder, field, embed, None, tokens))
        key = other.replace(tokens=tokens, embed=unit, name=f"bridge:{field}")
        return key, own.replace(tokens=own.tokens + delta.astype(own.tokens.dtype), name=f"read:{field}")

    def fuse(self, memory: Encoded, query: Encoded, rows: Array | None = None) -> Encoded:
        """Fused tokens of the query's, each row reading the row of `memory` that `rows` names (see `pick_rows`; default: its own).

        Memoised when both sides are whole passes; rows picked from a pass are fused anew each time.
        """
        name = f"fuse:{memory.name}:{query.name}"
        if memory.name is None or query.name is None or rows is not None:
            key = None if self.key is None else named_key(self.key, f"{name}:rows")
            return Encoded(self._fuse(key, memory, query, rows), None, query.mask, query.ids)

        def run(key):
            return Encoded(self._fuse(key, memory, query, rows), None, query.mask, query.ids)

        return self._once(name, run)

    def _fuse(self, key: Array | None, memory: Encoded, query: Encoded, rows: Array | None) -> Array:
        """The fused tokens [b,L,D]; in pieces of whole groups where `rows` picks from groups."""
        arrays = (memory.tokens, query.tokens, query.mask, *([] if memory.mask is None else [memory.mask]))

        def fuse(
            key: Array | None, rows: Array | None, read: Array, asks: Array, mask: Array, *read_mask: Array
        ) -> Array:
            return self.call("fuse", read, asks, mask, rows, key, *read_mask)

        if rows is None:
            return self.rowwise(lambda key, *x: fuse(key, None, *x), key, *arrays)
        if self.pieces == 1:
            return fuse(key, rows, *arrays)
        if rows.ndim != 2 or rows.shape[0] % self.pieces:
            raise ValueError(
                f"pairs drawn from {rows.shape[0]} groups do not split into {self.pieces} chunks; "
                "set config.objectives.itm.group to a divisor of config.chunk"
            )

        def grouped(x):
            return x.reshape(rows.shape[0], -1, *x.shape[1:])

        def flat(x):
            return x.reshape(-1, *x.shape[2:])

        def groups(key: Array | None, rows: Array, *parts: Array) -> Array:
            return fuse(key, rows, *map(flat, parts)).reshape(parts[1].shape)

        return flat(self.rowwise(groups, key, rows, *map(grouped, arrays)))

    def score(self, one: Encoded, two: Encoded) -> Array:
        """Scores [b] of aligned rows by `config.scorer`."""
        return self.call("score", *(side(x) for x in (one, two)))

    def scores(self, one: Encoded, two: Encoded, block: int) -> Array:
        """Scores [B,M] of all pairs by `config.scorer`, `block` rows of `one` at a time, recomputed in the backward pass."""
        rows, columns = one.tokens.shape[0], two.tokens.shape[0]
        if rows % block:
            raise ValueError(f"blocks of {block} rows do not divide a batch of {rows} rows; write a divisor")

        @jax.checkpoint
        def some(first: Array) -> Array:
            left = one.rows(first + jnp.repeat(jnp.arange(block), columns))
            right = two.rows(jnp.tile(jnp.arange(columns), block))
            return self.score(left, right).reshape(block, columns)

        return jax.lax.map(some, jnp.arange(0, rows, block)).reshape(rows, columns)

    def decode(self, memory: Encoded, field: str) -> Array:
        """Hidden states [B,L,D] of the captioning decoder over `memory` for the ids in the batch's `field`.

        Memoised when `memory` is a whole pass.
        """
        name = f"decode:{memory.name}:{field}"
        arrays = (memory.tokens, self.batch[field], *([] if memory.mask is None else [memory.mask]))

        def write(key: Array | None, read: Array, ids: Array, *read_mask: Array) -> Array:
            return self.call("decode", read, ids, None, key, *read_mask)

        def run(key):
            return self.rowwise(write, key, *arrays)

        if memory.name is None:  # rows picked from a pass: another pick would meet the same name
            return run(None if self.key is None else named_key(self.key, f"decode:rows:{field}"))
        return self._once(name, run)

    def temperature(self) -> Array:
        """The model's temperature, a float32 scalar, for an objective that trains it."""
        if "log_temperature" not in self.params:
            raise ValueError(
                "an objective reads the temperature, and none has 'temperature' in its parts; add it there"
            )
        return self.call("temperature")


def side(encoded: Encoded) -> tuple[Array, Array, Array | None]:
    """A pass as scorers take one side of pairs (models/scorer.py)."""
    return encoded.tokens, encoded.embed, encoded.mask


def kept_field(field: str) -> str:
    """Where a batch has a frozen tower's own tokens of `field` [B,N,D'], so that no pass is needed (encode/token_cache.py)."""
    return f"{field}/tokens"


def widened(mask: Array | None, tokens: Array) -> Array | None:
    """The mask [B,N] of a tower's tokens as one of `tokens` [B,M,D], where an embedding may stand behind them."""
    if mask is None or mask.shape[1] == tokens.shape[1]:
        return mask
    return jnp.pad(mask, ((0, 0), (0, tokens.shape[1] - mask.shape[1])), constant_values=True)


def stop(tree: Any) -> Any:
    """No gradient flows into any leaf of `tree`."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def teacher_forward(
    model: Any, params: Params, batch: Batch, dtype: str = "float32", cache: bool = True, chunk: int = 0
) -> Forward:
    """The teacher's Forward: gradient stopped, dropout off, weights cast to the compute dtype as a view."""
    view = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)) if dtype != "float32" else x, stop(params))
    return Forward(model, view, batch, None, cache=cache, chunk=chunk)


def reuse_student_passes(student: Forward, towers: frozenset[str]) -> None:
    """Let the teacher of `student` take the student's pass of the towers that are the same for both."""
    if student.teacher is not None:
        student.teacher.towers = dict.fromkeys(towers, student)
        student.lent = towers
