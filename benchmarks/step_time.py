"""Seconds of a training step of the package in one checkout, to compare two commits by runs in turns.

    for i in 1 2 3 4 5; do
      python benchmarks/step_time.py --root ../before --data ../before/data/emoji
      python benchmarks/step_time.py --root . --data data/emoji
    done

The step is that of configs/quickstart.py (five objectives on cached tokens, 64 pairs, random heads) on one device. Each
run is a process of its own: two versions of one package cannot live in one. Prints one JSON line.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from functools import partial

WARM, STEPS = 2, 6


def step_seconds(root: str, data: str, rows: int) -> list[float]:
    """Time each step after the first ones, in seconds, by the package at `root` on the prepared set `data`."""
    sys.path.insert(0, root)
    import jax

    from xmodal_jax.assemble import assemble
    from xmodal_jax.config_file import freeze, load
    from xmodal_jax.data.train import train_dataset
    from xmodal_jax.encode import token_cache
    from xmodal_jax.training.loop import make_run

    config = freeze(
        load(f"{root}/configs/quickstart.py", [f"data.path={data}", "joint.start=random", f"batch_size={rows}"])
    )
    run = make_run(assemble(config), jax.local_devices()[:1])
    state = run.fresh()
    kept = token_cache.token_caches(run.assembly, state.params)
    if hasattr(run.assembly, "specs"):
        takes, tokens = run.assembly.specs, partial(token_cache.with_tokens, kept, config.data)
    else:  # up to commit d696245 there was one tokenizer
        takes, tokens = run.assembly.tokenizer, kept.add
    dataset = train_dataset(data, config.data.split, takes, config.data, 0, config.batch_size, tokens)
    batch, found = jax.device_put(dataset.batch_at(0)), []
    dataset.close()
    for _ in range(WARM + STEPS):
        start = time.perf_counter()
        state = jax.block_until_ready(run.step(state, batch)[0])
        found.append(time.perf_counter() - start)
    return found[WARM:]


def main() -> None:
    """Print the median of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=".", help="the checkout whose package and configs are used")
    parser.add_argument(
        "--data", required=True, help="the emoji set prepared by that checkout, with both feature caches"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    root = str(pathlib.Path(args.root).resolve())
    seconds = step_seconds(root, args.data, args.batch_size)
    print(json.dumps({"root": pathlib.Path(root).name, "median": statistics.median(seconds), "least": min(seconds)}))


if __name__ == "__main__":
    main()
