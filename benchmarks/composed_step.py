"""The five objectives in one step against the five one at a time, and against their FLOPs.

    python benchmarks/composed_step.py --data DATA [--config configs/quickstart.py:finetune] [--rounds 3] [--out FILE]

Every step is the real one (forward, backward, AdamW, EMA, queues) on a real batch; alternating runs in one process, the
order rotated. "share" is the composed step's median time over the sum of the five; "predicted" is what
training/flops.py counts for that share. "no_cache" is the composed step with the pass cache off over the same with it
on.
"""

import argparse
import dataclasses
import statistics

import jax
from report import machine, publish
from train_step import alternate

from xmodal_jax import config_file as configs
from xmodal_jax.assemble import assemble
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import output_file, run_script
from xmodal_jax.training.flops import step_flops
from xmodal_jax.training.loop import make_run


def stepper(config, batch, names: tuple[str, ...], cache: bool = True):
    """Return a function that runs one step of `config` with the objectives `names` only, and the step's FLOPs."""
    kept = {name: config.objectives[name] for name in names}
    assembly = assemble(dataclasses.replace(config, objectives=kept))
    run = make_run(assembly, cache=cache)
    state = run.fresh()

    def step() -> None:
        nonlocal state
        state, metrics = run.step(state, batch)
        jax.block_until_ready((state, metrics))

    return step, step_flops(run.recipe, run.abstract, batch)


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py:finetune")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args()
    overrides = [f"data.path={args.data}", f"batch_size={args.batch}", "joint.start=random"]
    config = configs.freeze(configs.load(args.config, overrides))
    assembly = assemble(config)
    dataset = train_dataset(config.data.path, config.data.split, assembly.specs, assembly.config.data, 0, args.batch)
    batch = jax.device_put(dataset.batch_at(0))
    names = tuple(config.objectives)
    built = {name: stepper(config, batch, (name,)) for name in names}
    built |= {"all": stepper(config, batch, names), "all, no cache": stepper(config, batch, names, cache=False)}
    seconds = alternate({name: step for name, (step, _) in built.items()}, args.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    flops = {name: count for name, (_, count) in built.items()}
    row = {
        "benchmark": "composed_step",
        "config": args.config,
        "share": medians["all"] / sum(medians[name] for name in names),
        "predicted": flops["all"] / sum(flops[name] for name in names),
        "no_cache": medians["all, no cache"] / medians["all"],
        "seconds": medians,
        "gflop": {name: round(count / 1e9, 1) for name, count in flops.items() if name != "all, no cache"},
        "batch": args.batch,
    } | machine()
    publish(row, args.out)


if __name__ == "__main__":
    run_script(main)
