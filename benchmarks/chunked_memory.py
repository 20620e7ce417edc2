"""Temporary memory of the contrastive gradient: a batch, eight times that batch, and the same in chunks of the first.

    python benchmarks/chunked_memory.py [--rows 16] [--times 8] [--out FILE]

ViT-S/16 at 224 px and a 6-layer text tower, ITC with a momentum teacher, float32; compiled for one device, not run: the
numbers are XLA's own (`memory_analysis`). The ratio is the chunked batch over the small one.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from report import machine, publish

from xmodal_jax import config_file as configs
from xmodal_jax.assemble import assemble_without_data
from xmodal_jax.errors import output_file, run_script
from xmodal_jax.settings import Config, defaults
from xmodal_jax.training.loop import make_run
from xmodal_jax.training.step import total_loss

MIB = 1024**2


def settings(rows: int, chunk: int) -> Config:
    """Return the config of one row of the table."""
    config = defaults()
    config.batch_size, config.chunk = rows, chunk
    config.encoders.image.size, config.encoders.text.vocab_size = 224, 30522
    config.objectives = {"itc": {"queue": 0}}
    return configs.freeze(config)


def temporary(rows: int, chunk: int) -> float:
    """Return the temporary memory of one gradient in MiB."""
    run = make_run(assemble_without_data(settings(rows, chunk)), jax.devices()[:1])
    batch = {"image": jax.ShapeDtypeStruct((rows, 224, 224, 3), jnp.uint8)}
    batch["text"] = jax.ShapeDtypeStruct((rows, run.assembly.config.encoders["text"].length), jnp.int32)
    batch |= {name: jax.ShapeDtypeStruct((rows,), jnp.int32) for name in ("id", "text/key", "index")}

    def loss(params, state, batch):
        return total_loss(run.recipe, params, state, batch, jax.random.key(0))[0]

    compiled = jax.jit(jax.grad(loss)).lower(run.abstract.params, run.abstract, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes / MIB


def main() -> None:
    """Compile the three and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args()
    cases = {
        "batch": (args.rows, 0),
        "large": (args.rows * args.times, 0),
        "chunked": (args.rows * args.times, args.rows),
    }
    found = {name: round(temporary(*case), 1) for name, case in cases.items()}
    row = {"benchmark": "chunked_memory", "temp_mib": found, "ratio": round(found["chunked"] / found["batch"], 3)}
    row |= {"rows": {name: case[0] for name, case in cases.items()}, "chunk": args.rows}
    row |= machine()
    publish(row, args.out)


if __name__ == "__main__":
    run_script(main)
