"""Train and evaluate every row of the fusion table, and write the table.

    python benchmarks/ablate.py --data emoji_views=DIR [--data flickr8k=DIR] [--seeds 3] [--only ReCap]

Rows and budgets are in benchmarks/fusion_rows.py. Each run is one line of `--out`.jsonl; the same command goes on after the
last line and skips what is there, and `--out`.md is written anew from the lines after each run. A run that a signal stopped
is no line, and lines of another config, budget or overrides than the row has now are measured again. Before ReCap's rows
the data set needs its distillation teacher:

    xmodal data embed --data DIR --config configs/recap.py:start --config.data.path=DIR --name start

(`configs/recap.py:start_flickr8k` for Flickr8k). Two processes on one core each, one set each, share `--out`.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from fusion_rows import ROWS, SETS, Row, command
from fusion_table import write_table

from xmodal_jax import config as configs
from xmodal_jax.cli import set_up_jax
from xmodal_jax.errors import refuse_unless, run_script
from xmodal_jax.eval.evaluate import Evaluator, evaluate, head
from xmodal_jax.train.loop import train
from xmodal_jax.workdir import open_run

DRIFT_RECORDS = 500  # of the evaluation split, one caption each

Job = tuple[str, Row, int]


def jobs(data: dict[str, str], seeds: int, only: str) -> Iterator[Job]:
    """(set, row, seed) of every run, seed by seed, so that an unfinished table has all its rows."""
    for seed in range(seeds):
        for name in data:
            chosen = [row for row in ROWS if name in row.sets and seed < row.seeds]
            yield from ((name, row, seed) for row in chosen if not only or only in (row.system, row.name))


def label(job: Job) -> dict[str, Any]:
    """What identifies a run in the file."""
    name, row, seed = job
    return {"set": name, "system": row.system, "row": row.name, "seed": seed}


def is_current(line: dict[str, Any]) -> bool:
    """Whether a line is of a row as it is now: an older budget or weight is another experiment."""
    for row in (row for row in ROWS if (row.system, row.name) == (line["system"], line["row"])):
        spec, overrides = command(row, line["set"], "", line["seed"])
        return (line["config"], line["overrides"]) == (spec, overrides[1:])
    return False


def current_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of rows as they are now."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for line in lines if is_current(line)]


def last_metrics(workdir: pathlib.Path) -> dict[str, float]:
    """Numbers of the last logged step that the table shows or that tell a row that went wrong."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    kept = ("loss", "teacher/drift", "skipped")
    return {k: v for k, v in steps[-1].items() if k in kept or "drift" in k or k.startswith("loss/")}


def encoder_drift(assembly: Any, teacher: Any, student: Any) -> dict[str, float]:
    """1 - cosine of the student's and the teacher's embeddings of the first `DRIFT_RECORDS` evaluation records, without dropout.

    The drift in a run's log compares the student under dropout: at a rate of 0.7 that is nearly all of it.
    """
    config, evaluator = assembly.config, Evaluator(assembly, teacher)
    split = head(evaluator.open(config.data.eval_split, evaluator.views(config.data.eval_split)[0]), DRIFT_RECORDS)
    embedders = [Evaluator(assembly, params).embedder for params in (student, teacher)]
    found = {}
    for side in ("image", "text"):
        own, other = (embedder.split(split, side, config.eval.batch_size).embed for embedder in embedders)
        found[side] = 1.0 - float((own * other).sum(1).mean())
    return found


def measure(job: Job, data: str, workdir: pathlib.Path) -> dict[str, Any]:
    """Train one row and evaluate it -> its line."""
    name, row, seed = job
    spec, overrides = command(row, name, data, seed)
    config = configs.freeze(configs.load(spec, overrides))
    started = time.perf_counter()
    state = train(config, workdir)
    trained = time.perf_counter() - started
    if int(state.step) < config.steps:  # training ends in order when it gets SIGTERM or SIGINT
        raise SystemExit(f"stopped at step {int(state.step)} of {config.steps}; the same command trains this row again")
    assembly, params, _ = open_run(str(workdir), {})
    tables = evaluate(assembly, params)
    own = jax.device_put(state.params, jax.devices()[0])
    return label(job) | {
        "config": spec,
        "overrides": overrides[1:],
        "seconds": {"train": trained, "eval": time.perf_counter() - started - trained},
        "metrics": last_metrics(workdir),
        "drift": encoder_drift(assembly, params, own),
        "views": {view: summary(table) for view, table in tables["views"].items()},
        "mean": summary(tables["mean"]),
    }


def summary(tables: dict[str, Any]) -> dict[str, Any]:
    """Retrieval of one view: embeddings, and the shortest re-ranked list, which is as long in every row."""
    rerank = tables.get("rerank") or {}
    return {"itc": tables["itc"]} | ({"rerank": rerank[min(rerank, key=int)]} if rerank else {})


def main() -> None:
    """Run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, help="SET=FOLDER, SET one of " + ", ".join(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="a system or a row")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/fusion"))
    args = parser.parse_args()
    set_up_jax()
    for item in args.data:
        name, _, folder = item.partition("=")
        refuse_unless(
            name in SETS and bool(folder), f"--data is '{item}'; write SET=FOLDER, SET one of {', '.join(SETS)}"
        )
    data = dict(item.split("=", 1) for item in args.data)
    path = args.out.with_suffix(".jsonl")
    done = current_lines(path)
    known = [{k: line[k] for k in ("set", "system", "row", "seed")} for line in done]
    todo = [job for job in jobs(data, args.seeds, args.only) if label(job) not in known]
    started = time.perf_counter()
    for number, job in enumerate(todo):
        spent = time.perf_counter() - started
        left = f", about {spent / number * (len(todo) - number) / 60:.0f} min left" if number else ""
        print(
            f"[{number + 1}/{len(todo)}{left}] {' | '.join(map(str, label(job).values()))}", file=sys.stderr, flush=True
        )
        folder = pathlib.Path(tempfile.mkdtemp(prefix="ablate-"))
        try:
            line = measure(job, data[job[0]], folder) | {"machine": machine()}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        write_table(current_lines(path), args.out.with_suffix(".md"))  # another process may do another set
        jax.clear_caches()
    write_table(current_lines(path), args.out.with_suffix(".md"))


def machine() -> dict[str, Any]:
    """Where it ran."""
    return {
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    run_script(main)
