"""Compute contrastive losses whose memory does not grow with the number of devices: keys travel in a ring.

Each device keeps its rows of queries. Keys go once around the row axes of the ambient mesh; every device folds each
passing block into statistics of its rows (running maximum and sum of exponentials, as in Milakov and Gimelshein 2018)
and keeps no block. The backward pass sends the keys around again, with their gradients beside them, and recomputes each
block of logits: residuals are the inputs and a few numbers per row. Plain autodiff of the same loop would keep every
block, and so would a global matrix of logits. Inside a device, blocks are cut into `COLUMNS` columns, so a single
device is bounded too. Everything inside is float32, whatever the embeddings are.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import BATCH
from xmodal_jax.types import NEVER, Array, Batch

COLUMNS = 1024  # columns of logits that exist at once on a device
LOW = float(jnp.finfo(jnp.float32).min)

# Accelerators round the factors of a float32 product by default, and logits are divided by a small temperature.
exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

Match = Callable[[Batch, Batch], Array]
Stats = dict[str, Array]
Scalars = dict[str, Array]


class Block(NamedTuple):
    """Logits of n rows against c columns: student and teacher [n,c] float32, positive [n,c], valid [c]."""

    student: Array
    teacher: Array | None
    positive: Array
    valid: Array

    def of_valid(self, values: Array) -> Array:
        """Return `values` [n,c] with 0 in the empty columns."""
        return jnp.where(self.valid[None, :], values, 0.0)

    def best(self, chosen: Array) -> Array:
        """Return the highest logit [n] among the chosen pairs (bool [n,c] or [1,c])."""
        return jnp.where(chosen, self.student, LOW).max(1)


def grown(top: Array, total: Array, logits: Array, block: Block) -> tuple[Array, Array, Array]:
    """Update a running (maximum, sum of exponentials) [n] with logits [n,c].

    Returns the new pair and the factor [n] that older sums shrink by.
    """
    new = jnp.maximum(top, jnp.where(block.valid[None, :], logits, LOW).max(1))
    shrink = jnp.exp(top - new)
    return new, total * shrink + block.of_valid(jnp.exp(logits - new[:, None])).sum(1), shrink


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of softmax rows; the target is alpha * the teacher's softmax + (1 - alpha) * even positives."""

    def start(self, rows: Batch) -> Stats:
        """Return the statistics of rows that have seen no column."""
        zero = jnp.zeros_like(rows["embed"][:, 0])
        low = jnp.full_like(zero, LOW)
        stats = {"top": low, "total": zero, "count": zero, "positives": zero, "best": low}
        soft = {"soft_top": low, "soft_total": zero, "soft_logit": zero}
        return stats | soft if "teacher" in rows else stats

    def fold(self, stats: Stats, block: Block) -> Stats:
        """Add one block of columns to the statistics."""
        top, total, _ = grown(stats["top"], stats["total"], block.student, block)
        new = {
            "top": top,
            "total": total,
            "count": stats["count"] + block.positive.sum(1, dtype=jnp.float32),
            "positives": stats["positives"] + jnp.where(block.positive, block.student, 0.0).sum(1),
            "best": jnp.maximum(stats["best"], block.best(block.positive)),
        }
        if block.teacher is None:
            return new
        top, total, shrink = grown(stats["soft_top"], stats["soft_total"], block.teacher, block)
        share = block.of_valid(jnp.exp(block.teacher - top[:, None]))
        logit = stats["soft_logit"] * shrink + (share * block.student).sum(1)
        return new | {"soft_top": top, "soft_total": total, "soft_logit": logit}

    def finish(self, stats: Stats, scalars: Scalars) -> tuple[Array, Array, Stats]:
        """Return losses [n], hits bool [n], and the numbers of each row that the backward pass needs."""
        count = jnp.maximum(stats["count"], 1.0)  # a row with something missing may have no positive
        target = stats["positives"] / count

        def norm(top: Array, total: Array) -> Array:
            return top + jnp.log(jnp.maximum(total, 1.0))  # below 1 only where no column counts

        saved = {"norm": norm(stats["top"], stats["total"]), "count": count}
        if "soft_top" in stats:
            soft = stats["soft_logit"] / jnp.maximum(stats["soft_total"], 1.0)
            target = scalars["alpha"] * soft + (1.0 - scalars["alpha"]) * target
            saved["soft_norm"] = norm(stats["soft_top"], stats["soft_total"])
        return saved["norm"] - target, stats["best"] >= stats["top"], saved

    def slope(self, saved: Stats, block: Block, scalars: Scalars) -> Array:
        """Return the derivative of each row's loss by its logits [n,c]: softmax minus target."""
        target = block.positive.astype(jnp.float32) / saved["count"][:, None]
        if block.teacher is not None:
            soft = jnp.exp(block.teacher - saved["soft_norm"][:, None])
            target = scalars["alpha"] * soft + (1.0 - scalars["alpha"]) * target
        return block.of_valid(jnp.exp(block.student - saved["norm"][:, None]) - target)


@dataclass(frozen=True)
class Sigmoid:
    """Sum over columns of -log sigmoid(±logit): each pair is a yes-or-no question (Zhai et al. 2023, SigLIP)."""

    def start(self, rows: Batch) -> Stats:
        """Return the statistics of rows that have seen no column."""
        zero = jnp.zeros_like(rows["embed"][:, 0])
        return {"loss": zero, "top": jnp.full_like(zero, LOW), "best": jnp.full_like(zero, LOW)}

    def fold(self, stats: Stats, block: Block) -> Stats:
        """Add one block of columns to the statistics."""
        wrong = jnp.where(block.positive, -block.student, block.student)
        return {
            "loss": stats["loss"] + block.of_valid(jax.nn.softplus(wrong)).sum(1),
            "top": jnp.maximum(stats["top"], block.best(block.valid[None, :])),
            "best": jnp.maximum(stats["best"], block.best(block.positive)),
        }

    def finish(self, stats: Stats, scalars: Scalars) -> tuple[Array, Array, Stats]:
        """Return losses [n] and hits bool [n]; the backward pass needs no number of a row."""
        return stats["loss"], stats["best"] >= stats["top"], {}

    def slope(self, saved: Stats, block: Block, scalars: Scalars) -> Array:
        """Return the derivative of each row's loss by its logits [n,c]: sigmoid minus label."""
        return block.of_valid(jax.nn.sigmoid(block.student) - block.positive.astype(jnp.float32))


@dataclass(frozen=True)
class Ring:
    """The static part of a ring loss: the loss, the rule for positives, and whether the batch's keys are trained."""

    loss: Softmax | Sigmoid
    match: Match
    train_keys: bool


def divided(part: Batch, shards: int) -> Batch:
    """Pad columns [M,...] with empty ones until `shards` divides them."""
    fill = -part["id"].shape[0] % shards

    def pad(name: str, x: Array) -> Array:
        return jnp.concatenate([x, jnp.full((fill, *x.shape[1:]), NEVER if name == "id" else 0, x.dtype)])

    return {name: pad(name, x) for name, x in part.items()} if fill else part


def chunks(part: Batch) -> Batch:
    """Cut columns [M,...] into [C,c,...] with c <= COLUMNS; the last chunk is padded with empty columns."""
    count = max(1, -(-part["id"].shape[0] // COLUMNS))
    return {name: x.reshape(count, -1, *x.shape[1:]) for name, x in divided(part, count).items()}


def block_of(ring: Ring, scalars: Scalars, rows: Batch, part: Batch) -> Block:
    """Compute the logits of the rows against the columns `part`."""
    keys, valid = part["embed"].astype(jnp.float32).T, part["id"] != NEVER
    student = exact(rows["embed"], keys) / scalars["temperature"]
    if "bias" in scalars:
        student = student + scalars["bias"]
    teacher = exact(rows["teacher"], keys) / scalars["temperature"] if "teacher" in rows else None
    return Block(student, teacher, ring.match(rows, part) & valid[None, :], valid)


def in_float32(rows: Batch) -> Batch:
    """Convert every embedding of the rows to float32."""
    return {name: x.astype(jnp.float32) if x.ndim == 2 else x for name, x in rows.items()}


def pass_on(tree: Any, axes: tuple[str, ...]) -> Any:
    """Send each device's arrays to the next device of the ring and receive those of the previous one."""
    size = jax.lax.axis_size(axes)
    return jax.lax.ppermute(tree, axes, [(i, (i + 1) % size) for i in range(size)])


def around(step: Callable, carry: Any, block: Any, axes: tuple[str, ...]) -> tuple[Any, Any]:
    """Run `carry, block = step(carry, block)` on every device's block as it passes; at the end each block is at home.

    The last hop serves only what the steps added to the block. It stays in the loop so that the program, and with it
    the memory, is the same for every number of devices (XLA unrolls a loop of one round).
    """

    def hop(_: Array, state: tuple) -> tuple:
        carry, block = step(*state)
        return carry, pass_on(block, axes)

    return jax.lax.fori_loop(0, jax.lax.axis_size(axes), hop, (carry, block)) if axes else step(carry, block)


def forward(
    ring: Ring, axes: tuple[str, ...], scalars: Scalars, rows: Batch, keys: dict[str, Batch]
) -> tuple[Array, Array, Stats]:
    """Compute, on one device, losses [n], hits [n] and the saved statistics of its rows."""
    rows = in_float32(rows)

    def fold(stats: Stats, part: Batch) -> tuple[Stats, None]:
        return ring.loss.fold(stats, block_of(ring, scalars, rows, part)), None

    def step(stats: Stats, keys: dict[str, Batch]) -> tuple[Stats, dict[str, Batch]]:
        for part in keys.values():
            stats, _ = jax.lax.scan(fold, stats, chunks(part))
        return stats, keys

    stats, _ = around(step, ring.loss.start(rows), keys, axes)
    return ring.loss.finish(stats, scalars)


def backward(
    ring: Ring, axes: tuple[str, ...], scalars: Scalars, rows: Batch, keys: dict[str, Batch], saved: Stats, slope: Array
) -> tuple[Scalars, Array, Array]:
    """Compute, on one device, gradients of the scalars, its queries [n,E] and its keys [n,E] (0 if not trained).

    `slope` [n] is the gradient of its losses.
    """
    query_dtype, key_dtype = rows["embed"].dtype, keys["batch"]["embed"].dtype
    rows = in_float32(rows)
    zeros = jnp.zeros_like(rows["embed"])

    def pull(train: bool, carry: tuple[Array, Array], part: Batch) -> tuple[tuple[Array, Array], Array | None]:
        block = block_of(ring, scalars, rows, part)
        change = ring.loss.slope(saved, block, scalars) * slope[:, None]
        query = carry[0] + exact(change, part["embed"].astype(jnp.float32))
        return (query, carry[1] + change.sum(1)), exact(change.T, rows["embed"]) if train else None

    def step(carry: tuple[Array, Array], travelling: tuple) -> tuple[tuple, tuple]:
        keys, grads = travelling
        for name, part in keys.items():
            train = ring.train_keys and name == "batch"
            carry, new = jax.lax.scan(functools.partial(pull, train), carry, chunks(part))
            if new is not None:
                grads = grads + new.reshape(-1, zeros.shape[1])[: grads.shape[0]]
        return carry, (keys, grads)

    start = jnp.zeros_like(keys["batch"]["embed"], jnp.float32) if ring.train_keys else None
    (query, shift), (_, grads) = around(step, (zeros, zeros[:, 0]), (keys, start), axes)
    scale = 1.0 / scalars["temperature"]
    # a logit is q.k / temperature, so the sum of slope * logit over columns is q.dq: no further pass is needed
    ends = {"temperature": -scale * (rows["embed"] * query * scale).sum(), "bias": shift.sum()}
    ends = {name: jax.lax.psum(ends[name], axes) if axes else ends[name] for name in scalars if name in ends}
    home = grads * scale if ring.train_keys else zeros
    return ends, (query * scale).astype(query_dtype), home.astype(key_dtype)


def row_axes() -> tuple[str, ...]:
    """Return the axes of the ambient mesh that split rows; none without a mesh or with one row shard."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH[0] if name in mesh.shape)
    return axes if math.prod(mesh.shape[name] for name in axes) > 1 else ()


def on_mesh(run: Callable, inputs: tuple[bool, ...], outputs: tuple[bool, ...]) -> Callable:
    """Wrap `run(axes, ...)` to take every device's rows of arguments marked True, and the whole of the others."""
    axes = row_axes()
    local = functools.partial(run, axes)
    if not axes:
        return local

    def spec(rows: bool) -> PartitionSpec:
        return PartitionSpec(axes) if rows else PartitionSpec()

    return jax.shard_map(local, in_specs=tuple(map(spec, inputs)), out_specs=tuple(map(spec, outputs)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_ring(ring: Ring, scalars: Scalars, rows: Batch, keys: dict[str, Batch]) -> tuple[Array, Array]:
    """Compute losses [B] and hits [B] of rows against the parts of `keys`."""
    return run_forward(ring, scalars, rows, keys)[0]


def run_forward(ring: Ring, scalars: Scalars, rows: Batch, keys: dict[str, Batch]) -> tuple[tuple, tuple]:
    """Compute the loss and its residuals: the inputs and one record per row."""
    run = on_mesh(functools.partial(forward, ring), (False, True, True), (True, True, True))
    losses, hits, saved = run(scalars, rows, keys)
    return (losses, hits), (scalars, rows, keys, saved)


def run_backward(ring: Ring, residuals: tuple, slopes: tuple) -> tuple:
    """Return gradients of scalars, rows and keys; None for what has none (targets, ids, the queue)."""
    scalars, rows, keys, saved = residuals
    run = on_mesh(functools.partial(backward, ring), (False, True, True, True, True), (False, True, True))
    ends, query, own = run(scalars, rows, keys, saved, slopes[0])

    def nothing(tree: dict[str, Any]) -> dict[str, Any]:
        return dict.fromkeys(tree)

    batch = nothing(keys["batch"]) | ({"embed": own} if ring.train_keys else {})
    parts = {name: nothing(part) for name, part in keys.items()} | {"batch": batch}
    return nothing(scalars) | ends, nothing(rows) | {"embed": query}, parts


run_ring.defvjp(run_forward, run_backward)


def contrast(
    loss: Softmax | Sigmoid,
    match: Match,
    rows: Batch,
    keys: Batch,
    queue: Batch | None,
    scalars: Scalars,
    train_keys: bool = False,
) -> tuple[Array, Array]:
    """Contrast rows of queries with every key of the batch and of the queue: losses [B] float32, hits [B] bool.

    A hit: no key is nearer than the nearest positive. Rows are split over data x fsdp of the ambient mesh (tensor peers
    do the same work); a queue that does not divide is padded with empty rows. Gradients reach `rows["embed"]`,
    temperature, bias and, with `train_keys`, `keys["embed"]`; targets, queue and alpha get none.

    Args:
      loss: the loss of a row.
      match: `match(rows, keys)` returns the positives, bool [B,M]; the loss of a row without one means nothing.
      rows: `embed` [B,E] of the student, the fields that `match` reads (id, caption keys [B]) and, for soft targets,
        `teacher` [B,E].
      keys: `embed` [B,E], id, caption keys.
      queue: the same with Q rows, id -1 where empty.
      scalars: `temperature`, and `alpha` (softmax) or `bias` (sigmoid).
      train_keys: whether the batch's keys get a gradient.

    Raises:
      UserError: B does not divide by the row shards.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards, size = math.prod(mesh.shape[name] for name in row_axes()), rows["id"].shape[0]
    if size % shards != 0:
        raise UserError(
            f"a ring loss has {size} rows on {shards} row shards (data x fsdp); "
            f"write a batch_size that {shards} divides"
        )
    parts = {"batch": keys} if queue is None else {"batch": keys, "queue": divided(queue, shards)}
    return run_ring(Ring(loss, match, train_keys), scalars, rows, parts)
