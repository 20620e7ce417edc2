"""Temporary memory of the contrastive losses on each device, as XLA plans it, against the number of devices.

    python benchmarks/contrastive_memory.py [--devices 2 8 32] [--rows 2048] [--embed 512] [--rounds 5] [--out FILE]

Value and gradient (both towers, temperature, bias), float32, `--rows` pairs a device, student keys, positives by id and
caption. "dense" is the plain matrix of logits, split by XLA; "gathered" is each device's rows against all gathered
keys; "ring" is parallel/ring.py. Softmax is both directions, the sigmoid one (they are the same pairs). Nothing of that
size is run: the programs are compiled for forced host devices and asked by `memory_analysis()`. `--rounds` above 0 also
times ring against dense, alternating, at 256 pairs on each of 8 forced devices of one CPU: a ratio of work, not of a
network. Prints one JSON line: MiB by loss, form and devices.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from report import machine, publish

from xmodal_jax.errors import output_file, run_script
from xmodal_jax.objectives.base import same
from xmodal_jax.objectives.contrastive import dense_softmax
from xmodal_jax.objectives.sigmoid import dense_sigmoid
from xmodal_jax.parallel.mesh import BATCH, batch_sharding, make_mesh, replicated
from xmodal_jax.parallel.ring import Sigmoid, Softmax, contrast
from xmodal_jax.settings import MeshConfig
from xmodal_jax.types import Array, Batch

LOSSES: dict[str, tuple[Callable, Any, str, int]] = {
    "softmax": (dense_softmax, Softmax(), "alpha", 2),  # dense function, ring loss, second scalar, directions
    "sigmoid": (dense_sigmoid, Sigmoid(), "bias", 1),
}
FORMS = ("dense", "gathered", "ring")
TIMED = {"devices": 8, "rows": 256, "embed": 512}


def one_direction(loss: str, form: str) -> Callable:
    """Return a function (rows, keys, scalars) -> losses [B] of the form."""
    dense, ring, _, _ = LOSSES[loss]
    if form == "dense":
        return lambda rows, keys, scalars: dense(rows, keys, None, scalars)[0]
    if form == "ring":
        return lambda rows, keys, scalars: contrast(ring, same, rows, keys, None, scalars, True)[0]

    def local(rows: Batch, keys: Batch, scalars: dict[str, Array]) -> Array:
        everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, BATCH[0], tiled=True), keys)
        return dense(rows, everyone, None, scalars)[0]

    whole = jax.sharding.PartitionSpec()
    return lambda *inputs: jax.shard_map(local, in_specs=(BATCH, BATCH, whole), out_specs=BATCH)(*inputs)


def value_and_grad(loss: str, form: str) -> Callable:
    """Return a function that computes the mean loss and its gradients.

    It takes (image [B,E], text [B,E], scalars, id [B], caption key [B]).
    """
    run, directions = one_direction(loss, form), LOSSES[loss][3]

    def mean(image: Array, text: Array, scalars: dict[str, Array], ids: Array, captions: Array) -> Array:
        image, text = ({"embed": side, "id": ids, "text/key": captions} for side in (image, text))
        values = [run(*sides, scalars) for sides in ((image, text), (text, image))[:directions]]
        return sum(x.mean() for x in values) / directions

    return jax.value_and_grad(mean, argnums=(0, 1, 2))


def mesh_of(devices: int) -> Mesh:
    """Return a mesh of the first devices, all on the data axis."""
    return make_mesh(MeshConfig(devices, 1, 1), jax.devices()[:devices])


def compiled(loss: str, form: str, mesh: Mesh, rows: int, embed: int) -> Any:
    """Compile the program for `rows` pairs on each device of the mesh."""
    row, scalar = batch_sharding(mesh), replicated(mesh)
    size = rows * mesh.size
    features = jax.ShapeDtypeStruct((size, embed), jnp.float32, sharding=row)
    ids = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=row)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
    scalars = {"temperature": number, LOSSES[loss][2]: number}
    grads = (row, row, {name: scalar for name in scalars})
    with jax.set_mesh(mesh):
        run = jax.jit(value_and_grad(loss, form), out_shardings=(scalar, grads))
        return run.lower(features, features, scalars, ids, ids).compile()


def temp_mib(loss: str, form: str, devices: int, rows: int, embed: int) -> float:
    """Return the temporary memory on each device in MiB."""
    program = compiled(loss, form, mesh_of(devices), rows, embed)
    return round(program.memory_analysis().temp_size_in_bytes / 2**20, 1)


def inputs(loss: str, mesh: Mesh, rows: int, embed: int) -> tuple:
    """Draw random unit features and ids, placed on the mesh."""
    draw, size = np.random.default_rng(0), rows * mesh.size
    features = draw.normal(size=(2, size, embed)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    ids = np.arange(size, dtype=np.int32)
    scalars = {"temperature": np.float32(0.07), LOSSES[loss][2]: np.float32(0.0)}
    split = jax.device_put((*features, ids), batch_sharding(mesh))
    return split[0], split[1], jax.device_put(scalars, replicated(mesh)), split[2], split[2]


def time_ratio(loss: str, rounds: int) -> dict[str, Any]:
    """Time ring and dense in turns; return their median seconds and the ratio."""
    mesh = mesh_of(TIMED["devices"])
    given = inputs(loss, mesh, TIMED["rows"], TIMED["embed"])
    programs = {form: compiled(loss, form, mesh, TIMED["rows"], TIMED["embed"]) for form in ("dense", "ring")}
    seconds: dict[str, list[float]] = {form: [] for form in programs}
    for turn in range(rounds + 1):
        for form, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(*given))
            if turn:
                seconds[form].append(time.perf_counter() - begin)
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    return {"seconds": medians, "ring_over_dense": medians["ring"] / medians["dense"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--rows", type=int, default=2048, help="pairs on each device")
    parser.add_argument("--embed", type=int, default=512)
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; 0: none")
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", max(*args.devices, TIMED["devices"]))
    size = (args.rows, args.embed)
    table = {
        loss: {form: {str(n): temp_mib(loss, form, n, *size) for n in args.devices} for form in args.forms}
        for loss in LOSSES
    }
    result = {"benchmark": "contrastive_memory", "temp_mib_per_device": table, "rows": args.rows, "embed": args.embed}
    if args.rounds:
        result["cpu_time"] = {loss: time_ratio(loss, args.rounds) for loss in LOSSES} | {"at": TIMED}
    publish(result | machine(), args.out)


if __name__ == "__main__":
    run_script(main)
