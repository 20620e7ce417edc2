"""What each device does when a run is evaluated on a mesh: its rows, its bytes, its operations, and what it sends.

    python benchmarks/inference_mesh.py [--config configs/quickstart.py:tiny] [--devices 8] [--rows 64] [--out FILE]

The programs of encoding (evaluation and index building run the same), re-ranking, captioning and ranking, with fresh
weights and random inputs, on `--devices` forced host devices and on one. Operations are XLA's `cost_analysis()` of the
compiled program of one device; loops count once on both sides. Bytes are of the rows that a program reads, by
`addressable_shards`; sent are the bytes of all collectives. No time is measured: forced devices share one CPU.
Prints one JSON line.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.sharding import Mesh
from report import machine, publish

from xmodal_jax.assemble import Assembly, assemble_without_data, start_params
from xmodal_jax.config_file import freeze, load
from xmodal_jax.encode.embed import Embedded, Embedder, PairScorer, encode_rows, score_rows
from xmodal_jax.errors import output_file, run_script
from xmodal_jax.eval.generate import beam_search
from xmodal_jax.eval.hashing import expected_average_precision
from xmodal_jax.eval.retrieval import places_block
from xmodal_jax.parallel.mesh import make_mesh, replicated, split_rows
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.planning.collectives import collectives
from xmodal_jax.planning.hlo import parse_module
from xmodal_jax.search.dense import inner_product
from xmodal_jax.search.topk import topk_block
from xmodal_jax.settings import MeshConfig
from xmodal_jax.types import Array, Params

GALLERY, WIDTH, NEAREST, BEAM = 4096, 256, 16, 3


@dataclass(frozen=True)
class Program:
    """A jitted function, what it is called with before its rows, and the rows [B,...] that are split."""

    run: Callable
    given: tuple
    rows: tuple[Array, ...]

    def compiled(self) -> Any:
        """Compile the program for the places of its arrays."""
        return self.run.lower(*self.given, *self.rows).compile()


def weights(assembly: Assembly, mesh: Mesh) -> Params:
    """Make fresh parameters, placed on the mesh by the rules of training."""
    make = partial(start_params, assembly, found={})
    places = shardings(jax.eval_shape(make, jax.random.key(0)), mesh)
    return jax.jit(make, out_shardings=places)(jax.random.key(0))


def inputs(assembly: Assembly, rows: int) -> dict[str, np.ndarray]:
    """Draw random rows for each encoder, the same on every call."""
    draw, found = np.random.default_rng(0), {}
    for name, one in assembly.example().items():
        shape = (rows, *one.shape[1:])
        found[name] = draw.integers(6, 200, shape).astype(one.dtype)
    return found


def programs(assembly: Assembly, mesh: Mesh, rows: int) -> dict[str, Program]:
    """Return the programs of an evaluation by name, with `rows` rows each, on a mesh."""
    model, params, batch = assembly.model, weights(assembly, mesh), inputs(assembly, rows)
    found, coded = {}, {}
    embedder = Embedder(model, params)
    for name, x in batch.items():
        given = (model, "encode", name, embedder.hashes, params)
        found[f"encode {name}"] = Program(encode_rows, given, (split_rows(mesh, x),))
        coded[name] = embedder.rows(name, x)
    memory, asks = (coded[name] for name in assembly.config.fusion.pair)
    found["score pairs"] = scoring(PairScorer(model, params, memory, asks), mesh, rows)
    found["write captions"] = captioning(assembly, params, memory, mesh)
    return found | ranking(mesh, rows)


def scoring(score: PairScorer, mesh: Mesh, rows: int) -> Program:
    """Return the program that re-ranks `rows` pairs at full length."""
    pairs = tuple(split_rows(mesh, np.random.default_rng(i).integers(0, rows, rows, dtype=np.int32)) for i in range(2))
    given = (score.model, score.projected, score.length_of(np.arange(rows)), score.params, score.arrays)
    return Program(score_rows, given, pairs)


def captioning(assembly: Assembly, params: Params, memory: Embedded, mesh: Mesh) -> Program:
    """Return the program of a beam search for all pictures."""
    vocabulary, model = assembly.tokenizer, assembly.model
    special = (vocabulary.bos_id, vocabulary.mask_id)
    run = jax.jit(
        lambda params, tokens: beam_search(
            model, params, tokens, assembly.config.encoders["text"].length, BEAM, 1, special, model.output_ids
        )
    )
    return Program(run, (params,), (split_rows(mesh, memory.tokens),))


def ranking(mesh: Mesh, rows: int) -> dict[str, Program]:
    """Return the programs of recall's places and of the nearest rows of `rows` queries in a gallery."""
    draw = np.random.default_rng(0)
    query, gallery = (draw.normal(size=(n, WIDTH)).astype(np.float32) for n in (rows, GALLERY))
    there, asked = jax.device_put(gallery, replicated(mesh)), split_rows(mesh, query)
    right = split_rows(mesh, np.arange(rows, dtype=np.int32)[:, None])
    place = jax.jit(lambda gallery, query, right: places_block(query, gallery, right, mesh))
    near = jax.jit(lambda gallery, query: topk_block(inner_product, query, gallery, np.int32(GALLERY), NEAREST, mesh))
    scores = split_rows(mesh, query @ gallery.T)
    precision = jax.jit(lambda k, scores, relevant: expected_average_precision(scores, relevant, k))
    return {
        "rank queries": Program(place, (there,), (asked, right)),
        "nearest rows": Program(near, (there,), (asked,)),
        "average precision": Program(precision, (NEAREST,), (scores, scores > 0)),
    }


def share(one: Program, many: Program) -> dict[str, Any]:
    """Return each device's share of the rows of `many`, and of the operations of `one`, the same on one device."""
    whole, part = (program.compiled() for program in (one, many))
    flops = [program.cost_analysis()["flops"] for program in (whole, part)]
    shards = [x.addressable_shards for x in many.rows]
    return {
        "rows": len(many.rows[0]),
        "rows_per_device": [len(shard.data) for shard in shards[0]],
        "bytes_per_device": [sum(own[i].data.nbytes for own in shards) for i in range(len(shards[0]))],
        "flops": flops[0],
        "flops_per_device": flops[1],
        "share": round(flops[1] / flops[0], 4),
        "sent_bytes": sent(part, len(shards[0])),
    }


def sent(program: Any, devices: int) -> int:
    """Return the bytes of all collectives of a compiled program."""
    module = parse_module(program.as_text())
    return int(sum(item.total for item in collectives(module, devices)))


def measure(config: str, devices: int, rows: int) -> dict[str, dict[str, Any]]:
    """Return {program: the share of each of `devices` devices}."""
    assembly = assemble_without_data(freeze(load(config, ["data.path="])))
    meshes = [make_mesh(MeshConfig(), jax.devices()[:count]) for count in (1, devices)]
    one, many = (programs(assembly, mesh, rows) for mesh in meshes)
    return {name: share(one[name], many[name]) for name in many}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/quickstart.py:tiny")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64, help="of each program, on all devices together")
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", args.devices)
    table = measure(args.config, args.devices, args.rows)
    command = f"python benchmarks/inference_mesh.py --config {args.config} --devices {args.devices} --rows {args.rows}"
    publish({"benchmark": "inference_mesh", "command": command, "programs": table} | machine(), args.out)


if __name__ == "__main__":
    run_script(main)
