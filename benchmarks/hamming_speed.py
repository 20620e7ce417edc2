"""Exact top-10 over packed codes: ours on the CPU (jax, and NumPy alone) against faiss IndexBinaryFlat.

    python benchmarks/hamming_speed.py --out FILE [--rows 1000000 100000000] [--bits 64 512] [--queries 1 64] \\
      [--threads 1 2]

Each number of threads is a process of its own, bound to that many cores (XLA sizes its thread pool by them; faiss and
BLAS are told). In it all searchers take turns, a run each, `--repeats` times, on the same codes and queries; the
medians and their ratio to faiss go into FILE as JSON. Answers are compared: distances must be equal. Random codes are
the hardest case for a threshold: most rows are equally far. Building (copying the rows into each searcher) is not
timed.

faiss: pip install -e '.[index]'. NumPy alone is left out above `--numpy-rows` rows x queries.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
from hamming_bandwidth import K, nearest, parsed, sizes_parser
from report import keep, machine

from xmodal_jax.errors import UserError, run_script


def searchers(gallery: np.ndarray, threads: int, with_numpy: bool) -> dict:
    """Return {name: function (packed queries) -> distances int32 [q,10]}; only NumPy's keeps the gallery itself."""
    from xmodal_jax.retrieve.faiss_backend import load_faiss
    from xmodal_jax.search import hamming, numpy_engine

    faiss = load_faiss()
    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexBinaryFlat(gallery.shape[1] * 8)
    flat.add(gallery)
    cuts = range(0, len(gallery), hamming.BLOCK_ROWS)
    blocks = [hamming.resident(gallery[start : start + hamming.BLOCK_ROWS]) for start in cuts]

    found = {"faiss": lambda query: flat.search(query, K)[0], "jax": lambda query: nearest(query, blocks)[0]}
    return found | ({"numpy": lambda query: numpy_engine.hamming_topk(query, gallery, K)[0]} if with_numpy else {})


def measure(rows: int, bits: int, queries: tuple[int, ...], threads: int, repeats: int, numpy_rows: int) -> list[dict]:
    """Return one line per number of queries: median and fastest milliseconds of each searcher, taken in turns."""
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 256, (rows, bits // 8), dtype=np.uint8)
    found, lines = searchers(gallery, threads, rows * min(queries) <= numpy_rows), []
    del gallery  # 100 million rows of 512 bits three times over do not fit 24 GB
    for count in queries:
        query = rng.integers(0, 256, (count, bits // 8), dtype=np.uint8)
        names = [name for name in found if name != "numpy" or rows * count <= numpy_rows]
        answers = {name: found[name](query) for name in names}  # warms up: compiled, in memory
        for name in names:
            if not np.array_equal(answers[name], answers["faiss"]):
                raise UserError(f"{name} and faiss differ at {bits} bits")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                started = time.perf_counter(), time.process_time()
                found[name](query)
                ended = time.perf_counter(), time.process_time()
                times[name].append(tuple(1e3 * (b - a) for a, b in zip(started, ended, strict=True)))
        lines.append({"rows": rows, "bits": bits, "queries": count, "threads": threads} | summary(times))
        print(json.dumps(lines[-1]), file=sys.stderr)
    return lines


def summary(times: dict[str, list[tuple[float, float]]]) -> dict:
    """Summarise the times of a searcher's calls in ms: medians, the fastest, and each over faiss's.

    "ms" is by the clock, "cpu_ms" is processor time, which other work on the machine hardly moves (waiting threads
    count); the fastest is by the clock.
    """
    tables = {
        "ms": {name: float(np.median([wall for wall, _ in own])) for name, own in times.items()},
        "fastest_ms": {name: min(wall for wall, _ in own) for name, own in times.items()},
        "cpu_ms": {name: float(np.median([cpu for _, cpu in own])) for name, own in times.items()},
    }
    over = {
        f"{title}_over_faiss": {name: table[name] / table["faiss"] for name in table if name != "faiss"}
        for title, table in tables.items()
    }
    return tables | over


def bound(threads: int) -> list[dict]:
    """Run this command again in a process bound to `threads` cores and return its lines."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise UserError(f"--threads {threads}: this machine lends {len(cores)} cores; write fewer")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, *sys.argv[1:], "--one", str(threads)]

    def bind():
        return os.sched_setaffinity(0, cores[:threads])

    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, preexec_fn=bind, check=False)
    if done.returncode != 0:
        raise UserError(f"the run with {threads} threads ended with code {done.returncode}; see above")
    return json.loads(done.stdout)


def main() -> None:
    """Measure and write."""
    parser = sizes_parser(__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--numpy-rows", type=int, default=64_000_000)
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    args = parsed(parser)
    if args.one:
        given = tuple(args.queries), args.one, args.repeats, args.numpy_rows
        lines = [line for rows in args.rows for bits in args.bits for line in measure(rows, bits, *given)]
        print(json.dumps(lines))
        return
    jax.config.update("jax_platforms", "cpu")  # as in the processes that search
    load_before = os.getloadavg()[0]
    lines = [line for threads in args.threads for line in bound(threads)]
    import faiss

    facts = machine() | {"load_before": load_before, "numpy": np.__version__, "faiss": faiss.__version__}
    keep({"k": K, **facts, "lines": lines}, args.out)


if __name__ == "__main__":
    run_script(main)
