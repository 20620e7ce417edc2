"""The encoder passes of one step: each runs at most once, and a pass that nobody asks for is never traced.

Objectives do not run encoders; they ask a `Forward` for what they need. XLA does not merge identical scanned towers by
itself, so this memo is what makes several objectives over the same towers cheap (benchmarks/composed_step.py).
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.extend.core import get_opaque_trace_state

from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.models.layers import every_row, pick_rows
from xmodal_jax.models.pair_score import Side
from xmodal_jax.types import Array, Batch, Params


@struct.dataclass
class Encoded:
    """The result of one encoder pass over a batch.

    A row without the field (`valid` False) holds arbitrary finite numbers, which nobody may use.
    """

    tokens: Array
    """Tokens [B,N,D]."""
    embed: Array | None = None
    """Unit embeddings [B,E]; None after fusion (`unit` raises then)."""
    mask: Array | None = None
    """True for real tokens, bool [B,N]; None if all are real."""
    ids: Array | None = None
    """Token ids int32 [B,L] of words; None for other inputs."""
    valid: Array | None = None
    """True for rows that have the field, bool [B]; None if all have it."""
    name: str | None = struct.field(pytree_node=False, default=None)
    """Key of the pass in the memo; None for rows picked from a pass, which are never memoised."""

    @property
    def unit(self) -> Array:
        """Unit embeddings [B,E]; raises ValueError for fused tokens, which have none."""
        if self.embed is None:
            raise ValueError("these tokens are fused and have no unit embedding; take that of a pass of one field")
        return self.embed

    def rows(self, index: Array) -> "Encoded":
        """Return the rows `index` of this pass (see `pick_rows`); rows are gathered, nothing runs again."""
        return self._taken(lambda x: pick_rows(x, index))

    def every(self, step: int) -> "Encoded":
        """Return rows 0, step, 2 * step ... of this pass, or the pass itself for step 1."""
        return self if step == 1 else self._taken(lambda x: every_row(x, step))

    def _taken(self, take: Callable[[Array], Array]) -> "Encoded":
        """Return a nameless pass with `take` applied to every array."""

        others = (self.embed, self.mask, self.ids, self.valid)
        embed, mask, ids, valid = (None if x is None else take(x) for x in others)
        return Encoded(take(self.tokens), embed, mask, ids, valid)


def named_key(key: Array, name: str) -> Array:
    """Derive a key that depends on `name` only, so that adding or reordering objectives changes nobody's randomness."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def _pieces(batch: Batch, chunk: int) -> int:
    """Return the number of chunks of `chunk` rows in a batch, 1 without chunks.

    Raises ValueError if the chunks do not divide the batch.
    """
    rows = next(iter(batch.values())).shape[0] if batch else 0
    if chunk and rows % chunk:
        raise ValueError(f"config.chunk={chunk} does not divide the batch of {rows} rows; write a divisor")
    return max(1, rows // chunk) if chunk else 1


Sides = tuple[Any, Any]  # what a scorer computes of each side of pairs alone, trees of arrays with an axis of rows


def split_rows(x: Array, pieces: int) -> Array:
    """Split x [R, ...] into [pieces, R / pieces, ...].

    Piece k holds rows k, k + pieces, ..., so that rows stay on their devices.
    """
    return jnp.swapaxes(x.reshape(-1, pieces, *x.shape[1:]), 0, 1)


def merge_rows(x: Array) -> Array:
    """Undo `split_rows`: [pieces, r, ...] -> [pieces * r, ...]."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


class Forward:
    """The passes over one batch with one tree of parameters, memoised by name for the length of one trace.

    `teacher` is a second Forward on the EMA parameters: no gradient, no dropout. `memory` holds the rings and tables of
    the train state, `step` the step number (for ramps). `passes` lists the names of the passes that were traced.

    With `chunk` every pass runs in pieces of `chunk` rows, one after the other, each recomputed in the backward pass
    (GradCache, Gao et al. 2021, by autodiff): activations of one piece exist at a time, while every loss still sees the
    whole batch. Piece k of K holds the rows k, k + K, k + 2K ..., so that a batch split over devices stays where it is.
    """

    def __init__(
        self,
        model: CrossModal,
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
        self.memory, self.step, self._teacher = memory or {}, step, teacher
        self.towers: dict[str, Forward] = {}  # encoder -> the Forward whose tower pass replaces this one's
        self.lent: frozenset[str] = frozenset()  # encoders whose tower passes another Forward takes
        self.passes: list[str] = []
        self.pieces = _pieces(batch, chunk)
        self._memo: dict[str, Any] | None = {} if cache else None
        self._trace = get_opaque_trace_state()

    @property
    def teacher(self) -> "Forward":
        """The Forward on the EMA parameters; raises ValueError if this one has none."""
        if self._teacher is None:
            raise ValueError("the teacher's passes were asked for, and this Forward has no teacher; give it one")
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: "Forward | None") -> None:
        self._teacher = teacher

    def _once(self, name: str, run: Callable[[Array | None], Any]) -> Any:
        """Run the pass `name`, or return its result from earlier in this trace.

        Raises RuntimeError inside another trace (cond, scan, checkpoint, grad), where a memoised tracer would leak.
        """
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
        """Call run(key, *arrays), which must map rows to rows; with `chunk`, in pieces recomputed by the backward pass.

        `arrays` share one leading axis, and every array of the result has it too. Meant for passes, and for heads whose
        output is much larger than their input (token logits).
        """
        if self.pieces == 1:
            return run(key, *arrays)
        keys = None if key is None else jax.random.split(key, self.pieces)
        piece = jax.checkpoint(lambda inputs: run(inputs[0], *inputs[1]))
        out = jax.lax.map(piece, (keys, tuple(split_rows(x, self.pieces) for x in arrays)))
        return jax.tree.map(merge_rows, out)

    def call(self, method: str, *inputs: Any, **options: Any) -> Any:
        """Apply a head or any other method of the model; the result is never memoised."""
        return self.model.apply({"params": self.params}, *inputs, method=method, **options)

    def encoder_of(self, field: str) -> str:
        """Return the name of the encoder that reads `field`."""
        return self.model.config.data.fields[field].encoder

    def raw(self, field: str, encoder: str = "") -> Array:
        """Return the tower's own tokens [B,N,D'] of the batch's `field`, by its own encoder or by `encoder`.

        No pass runs if the batch already holds the tokens of a frozen tower. A teacher whose tower equals the student's
        (wholly frozen, without dropout) takes the student's pass; see `reuse_student_passes`.
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
        """Call joint(key, raw tokens, field's rows, *more) on the tower's pass; in pieces, both run in one piece."""
        if self.pieces == 1 or encoder in self.towers or encoder in self.lent or kept_field(field) in self.batch:
            return self.rowwise(joint, key, self.raw(field, encoder), self.batch[field], *more)

        def both(key: Array | None, x: Array, *more: Array) -> Any:
            keys = (None, None) if key is None else jax.random.split(key)
            return joint(keys[1], self.call("raw", encoder, x, keys[0]), x, *more)

        return self.rowwise(both, key, self.batch[field], *more)

    def encode(self, field: str, encoder: str = "") -> Encoded:
        """Run tower, neck and head of the field's encoder, or of `encoder` for a field that an objective derived."""
        encoder = encoder or self.encoder_of(field)
        name, x, own = f"{encoder}:{field}", self.batch[field], self.model.config.encoders[encoder]

        def joint(key: Array | None, raw: Array, x: Array) -> tuple[Array, Array]:
            return self.call("joint", encoder, raw, x, key)

        def run(key: Array | None) -> Encoded:
            tokens, embed = self._joint(encoder, field, joint, key)
            mask = widen_mask(own.mask(x), tokens)
            return Encoded(
                tokens, embed, mask, x if own.reads == "words" else None, self.batch.get(f"{field}/valid"), name
            )

        return self._once(name, run)

    def codes(self, field: str) -> tuple[Array, ...]:
        """Return relaxed codes [B,k] of a field from its hash head, for each k of `joint.nested` and all bits."""
        whole = self._once(
            f"codes:{field}", lambda _: self.call("codes", self.encoder_of(field), self.encode(field).unit)
        )
        return tuple(whole[:, :bits] for bits in self.model.config.joint.lengths)

    def bridge(self, field: str) -> tuple[Encoded, Encoded]:
        """Run the residual attention of student and teacher, the only pass that reads both (ReCap; models/bridge.py).

        Returns:
            The key, without gradient: the teacher's tokens plus the bridge's delta, and their embedding by its head.
            The captioner's input: the student's tokens plus the same delta, which trains bridge and student (without
            the student's own tokens the bridge, whose gamma starts at 0, would pass them no gradient).
        """
        return self._once(f"bridge:{field}", lambda _: self._bridge(field))

    def _bridge(self, field: str) -> tuple[Encoded, Encoded]:
        """Compute both results of `bridge`, without the memo."""
        own, other, encoder = self.encode(field), self.teacher.encode(field), self.encoder_of(field)
        arrays = (own.tokens, other.tokens, *([] if other.mask is None else [other.mask]))
        delta = self.rowwise(lambda _, *x: self.call("bridge_delta", *x), None, *arrays)
        tokens, section = stop(other.tokens + delta), self.model.config.encoders[encoder]

        def embed(_: None, raw: Array, x: Array, tokens: Array) -> Array:
            return self.teacher.call("embed", encoder, raw, tokens, section.mask(x))

        unit = stop(self.teacher._joint(encoder, field, embed, None, tokens))
        key = replace(other, tokens=tokens, embed=unit, name=f"bridge:{field}")
        return key, replace(own, tokens=own.tokens + delta.astype(own.tokens.dtype), name=f"read:{field}")

    def fuse(self, memory: Encoded, query: Encoded, rows: Array | None = None) -> Encoded:
        """Fuse the tokens of `query` with those of `memory` -> [b,L,D]; row i reads row `rows[i]` (default: row i).

        Memoised when both sides are whole passes; rows picked from a pass are fused anew each time. See
        `pick_rows` for `rows`.
        """
        name = f"fuse:{memory.name}:{query.name}"
        if memory.name is None or query.name is None or rows is not None:
            key = None if self.key is None else named_key(self.key, f"{name}:rows")
            return Encoded(self._fuse(key, memory, query, rows), None, query.mask, query.ids)

        def run(key: Array | None) -> Encoded:
            return Encoded(self._fuse(key, memory, query, None), None, query.mask, query.ids)

        return self._once(name, run)

    def _fuse(self, key: Array | None, memory: Encoded, query: Encoded, rows: Array | None) -> Array:
        """Return fused tokens [b,L,D]; with chunks and grouped `rows`, each piece holds whole groups."""
        assert query.mask is not None, "fusion's query has a mask, as all words do"
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

        def grouped(x: Array) -> Array:
            return x.reshape(rows.shape[0], -1, *x.shape[1:])

        def flat(x: Array) -> Array:
            return x.reshape(-1, *x.shape[2:])

        def groups(key: Array | None, rows: Array, *parts: Array) -> Array:
            return fuse(key, rows, *map(flat, parts)).reshape(parts[1].shape)

        return flat(self.rowwise(groups, key, rows, *map(grouped, arrays)))

    def _prepared(self, x: Encoded, first: bool) -> Any:
        """Do the scorer's work on one side of pairs, once in this trace for a whole pass."""
        name = f"side:{'first' if first else 'second'}:{x.name}"
        arrays = (x.tokens, x.unit, *([] if x.mask is None else [x.mask]))

        def prepare(key: Array | None, *side: Array) -> Any:
            return self.call("prepare_side", Side(*side), first, key)

        def run(key: Array | None) -> Any:
            return self.rowwise(prepare, key, *arrays)

        if x.name is None:  # rows picked from a pass: another pick would have the same name
            return run(None if self.key is None else named_key(self.key, name))
        return self._once(name, run)

    def sides(self, one: Encoded, two: Encoded) -> Sides:
        """Return what the scorer computes of each side of pairs alone."""
        return self._prepared(one, True), self._prepared(two, False)

    def score(self, one: Encoded, two: Encoded, rows: tuple[Array, Array] | None = None) -> Array:
        """Return the scores [b] of aligned rows by `config.scorer`, or of the pairs of `rows` of both sides.

        With `rows`, two int [b] (see `pick_rows`), what the scorer computes of a side alone is computed once for all
        pairs of an input, as in `scores`.
        """
        return self.score_rows(self.sides(one, two), rows)

    def score_rows(
        self, sides: Sides, rows: tuple[Array, Array] | None = None, pieces: int = 1, gradient: bool = True
    ) -> Array:
        """Return the scores of `score`; pairs are gathered and scored in `pieces` parts, one after the other.

        Without `gradient` scores are constants.
        """
        params = self.params
        if not gradient:
            sides, params = stop((sides, params))

        def some(rows: tuple[Array, Array] | None) -> Array:
            picked = [
                side if rows is None else jax.tree.map(lambda x, index=rows[number]: pick_rows(x, index), side)
                for number, side in enumerate(sides)
            ]
            found: Any = self.model.apply({"params": params}, *picked, method="score_prepared")
            return found

        if pieces == 1 or rows is None:
            return some(rows)
        return merge_rows(jax.lax.map(jax.checkpoint(some), jax.tree.map(lambda x: split_rows(x, pieces), rows)))

    def scores(self, one: Encoded, two: Encoded, block: int) -> Array:
        """Return the scores [B,M] of all pairs by `config.scorer`, `block` rows of `one` at a time.

        Each block is recomputed in the backward pass, so that memory grows with `block` x M pairs, not with B x M. A
        block of K = B / block holds the rows k, k + K, ..., which keeps rows on their devices. Raises ValueError if the
        blocks do not divide the rows.
        """
        return self.score_all(self.sides(one, two), block)

    def score_all(self, sides: Sides, block: int, gradient: bool = True) -> Array:
        """Return the scores of `scores`.

        Without `gradient` they are constants, for the choice of negatives: a hinge on the hardest of them then takes
        `score_rows` with a gradient, at a third of the cost of a gradient through all pairs.
        """
        params, (rows, columns) = self.params, (jax.tree.leaves(side)[0].shape[0] for side in sides)
        if rows % block:
            raise ValueError(f"blocks of {block} rows do not divide a batch of {rows} rows; write a divisor")
        if not gradient:
            sides, params = stop((sides, params))
        left, right = sides

        @jax.checkpoint
        def some(part: Any) -> Array:
            found: Any = self.model.apply({"params": params}, part, right, method="score_pairwise")
            return found

        if block == rows:
            return some(left)
        pieces = jax.tree.map(lambda x: split_rows(x, rows // block), left)
        return merge_rows(jax.lax.map(some, pieces)).reshape(rows, columns)

    def decode(self, memory: Encoded, field: str, language: str = "") -> Array:
        """Return the captioning decoder's hidden states [B,L,D] over `memory` for the ids in the batch's `field`.

        The batch's `language` holds the place of each row's language among those that the model begins captions in; "":
        all begin alike. Memoised when `memory` is a whole pass.
        """
        name = f"decode:{memory.name}:{field}"
        more = {} if memory.mask is None else {"memory_mask": memory.mask}
        more |= {"language": self.batch[language]} if language else {}
        arrays = (memory.tokens, self.batch[field], *more.values())

        def write(key: Array | None, read: Array, ids: Array, *rest: Array) -> Array:
            return self.call("decode", read, ids, None, key, **dict(zip(more, rest, strict=True)))

        def run(key: Array | None) -> Array:
            return self.rowwise(write, key, *arrays)

        if memory.name is None:  # rows picked from a pass: another pick would have the same name
            return run(None if self.key is None else named_key(self.key, f"decode:rows:{field}"))
        return self._once(name, run)

    def temperature(self) -> Array:
        """Return the model's temperature, a float32 scalar, for an objective that trains it.

        Raises ValueError if no objective has "temperature" in its parts, so that the model has no such parameter.
        """
        if "log_temperature" not in self.params:
            raise ValueError(
                "an objective reads the temperature, and none has 'temperature' in its parts; add it there"
            )
        return self.call("temperature")


def kept_field(field: str) -> str:
    """Return the batch's name for a frozen tower's own tokens of `field` [B,N,D'] (encode/token_cache.py)."""
    return f"{field}/tokens"


def widen_mask(mask: Array | None, tokens: Array) -> Array | None:
    """Extend the mask [B,N] of a tower's tokens to `tokens` [B,M,D], which may have an embedding behind them."""
    if mask is None or mask.shape[1] == tokens.shape[1]:
        return mask
    return jnp.pad(mask, ((0, 0), (0, tokens.shape[1] - mask.shape[1])), constant_values=True)


def stop(tree: Any) -> Any:
    """Stop the gradient at every leaf of `tree`."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def teacher_forward(
    model: CrossModal, params: Params, batch: Batch, dtype: str = "float32", cache: bool = True, chunk: int = 0
) -> Forward:
    """Build the teacher's Forward: gradient stopped, dropout off, weights cast to the compute dtype as a view."""
    view = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)) if dtype != "float32" else x, stop(params))
    return Forward(model, view, batch, None, cache=cache, chunk=chunk)


def reuse_student_passes(student: Forward, towers: frozenset[str]) -> None:
    """Let the teacher of `student` take the student's passes of `towers`, which must be identical in both."""
    if student._teacher is not None:
        student._teacher.towers = dict.fromkeys(towers, student)
        student.lent = towers
