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

from xmodal_jax.types import Array, Batch, Params


@struct.dataclass
class Encoded:
    """One encoder pass: tokens [B,N,D], unit embedding [B,E], boolean mask [B,N] of real tokens, ids [B,L] of a text.

    `name` is the key of the pass, and None for rows picked from it (derived features are never cached).
    """

    tokens: Array
    embed: Array | None = None
    mask: Array | None = None
    ids: Array | None = None
    name: str | None = struct.field(pytree_node=False, default=None)

    def rows(self, index: Array) -> "Encoded":
        """The rows `index` int [b] of this pass; rows are gathered, nothing runs again."""
        take = lambda x: None if x is None else x[index]
        return Encoded(take(self.tokens), take(self.embed), take(self.mask), take(self.ids))


def named_key(key: Array, name: str) -> Array:
    """A key that depends on `name` only, so that adding or reordering objectives changes nobody's randomness."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


class Forward:
    """The passes over one batch under one tree of parameters, memoised by name for the length of one trace.

    `teacher` is a second Forward on the EMA parameters: no gradient, no dropout. `memory` holds the rings and tables of
    the train state, `step` the step number (for ramps). `passes` lists the names of the passes that were traced.
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
    ) -> None:
        self.model, self.params, self.batch, self.key = model, params, batch, key
        self.memory, self.step, self.teacher = memory or {}, step, teacher
        self.towers: dict[str, Forward] = {}
        self.passes: list[str] = []
        self.calls: list[tuple[str, tuple]] = []  # (method, shapes of its inputs), for the FLOP model
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

    def call(self, method: str, *inputs: Any, **options: Any) -> Any:
        """A head or any other method of the model; never memoised."""
        self.calls.append((method, tuple(getattr(x, "shape", ()) for x in inputs)))
        return self.model.apply({"params": self.params}, *inputs, method=method, **options)

    def tower(self, side: str, field: str) -> Array:
        """Tokens [B,N,D'] of the tower `side` ("image" or "text") on the batch's `field`.

        A teacher whose tower is the student's (wholly frozen, without dropout) takes the student's pass: see `share`.
        """
        if side in self.towers:
            return stop(self.towers[side].tower(side, field))
        return self._once(f"tower:{field}", lambda key: self.call(f"{side}_tower", self.batch[field], key))

    def image(self, field: str = "image") -> Encoded:
        """The image tower and its head on the batch's `field`."""
        name = f"image:{field}"

        def run(key: Array | None) -> Encoded:
            tokens, embed = self.call("image_joint", self.tower("image", field), key)
            return Encoded(tokens, embed, name=name)

        return self._once(name, run)

    def text(self, field: str = "text") -> Encoded:
        """The text tower and its head on the batch's `field` of ids [B,L]."""
        name = f"text:{field}"

        def run(key: Array | None) -> Encoded:
            ids, tokens = self.batch[field], self.tower("text", field)
            return Encoded(tokens, self.call("text_joint", tokens, ids, key), ids != 0, ids, name)

        return self._once(name, run)

    def fuse(self, image: Encoded, text: Encoded, rows: Array | None = None) -> Encoded:
        """Fused tokens of the texts, each reading the image `rows[i]` (default: its own).

        Memoised when both sides are whole passes; rows picked from a pass are fused anew each time.
        """
        name = f"fuse:{image.name}:{text.name}"

        def run(key: Array | None) -> Encoded:
            tokens = self.call("fuse", image.tokens, text.tokens, text.mask, rows, key)
            return Encoded(tokens, None, text.mask, text.ids)

        if image.name is None or text.name is None or rows is not None:
            return run(None if self.key is None else named_key(self.key, f"{name}:rows"))
        return self._once(name, run)

    def decode(self, image: Encoded, field: str) -> Array:
        """Hidden states [B,L,D] of the captioning decoder over `image` for the ids in the batch's `field`.

        Memoised when `image` is a whole pass.
        """
        name = f"decode:{image.name}:{field}"
        run = lambda key: self.call("decode", image.tokens, self.batch[field], None, key)
        if image.name is None:  # rows picked from a pass: another pick would meet the same name
            return run(None if self.key is None else named_key(self.key, f"decode:rows:{field}"))
        return self._once(name, run)

    def temperature(self) -> Array:
        """The model's clamped temperature, a float32 scalar."""
        return self.call("temperature")


def stop(tree: Any) -> Any:
    """No gradient flows into any leaf of `tree`."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def teacher_forward(model: Any, params: Params, batch: Batch, dtype: str = "float32", cache: bool = True) -> Forward:
    """The teacher's Forward: gradient stopped, dropout off, weights cast to the compute dtype as a view."""
    view = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)) if dtype != "float32" else x, stop(params))
    return Forward(model, view, batch, None, cache=cache)


def share(student: Forward, towers: frozenset[str]) -> None:
    """Let the teacher of `student` take the student's pass of the towers that are the same for both."""
    if student.teacher is not None:
        student.teacher.towers = dict.fromkeys(towers, student)
