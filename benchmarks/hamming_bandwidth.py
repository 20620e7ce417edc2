"""Exact top-10 over packed codes on the device that is there, against the time that reading the codes once takes.

    python benchmarks/hamming_bandwidth.py --out FILE [--rows 1000000 100000000] [--bits 64 512] [--queries 1 64]

A search must read every code once, so no search of one query is faster than that: "read" is the exclusive or of all
words of the same arrays, a program that reads them and does hardly anything else. Both take turns, `--repeats` times,
on random codes; medians of whole calls, a search from NumPy queries to NumPy answers, merged over its blocks of 4
million rows. "of_limit" is read over search: 1 is a search at the memory's speed. Codes are put on the device once,
which is not timed. For a GPU; on a CPU it tells the same of the CPU.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from report import keep, machine

from xmodal_jax.errors import UserError, output_file, run_script
from xmodal_jax.search import hamming, numpy_engine

K = 10


@jax.jit
def folded(words: jax.Array) -> jax.Array:
    """Fold all words [t,S,W,L] into a number by exclusive or: it reads everything and keeps nothing."""
    return jax.lax.reduce(words, jnp.uint32(0), jax.lax.bitwise_xor, tuple(range(words.ndim)))


def seconds(call) -> float:
    """Return the seconds of one call, until its answer is there."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def placed(rows: int, bits: int) -> list[hamming.Resident]:
    """Draw random codes on the device, in the blocks that a search takes."""
    rng, found = np.random.default_rng(0), []
    for start in range(0, rows, hamming.BLOCK_ROWS):
        count = min(hamming.BLOCK_ROWS, rows - start)
        found.append(hamming.resident(rng.integers(0, 256, (count, bits // 8), dtype=np.uint8)))
    return found


def nearest(query: np.ndarray, blocks: list[hamming.Resident]) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows [q,10] of the whole gallery, as `hamming.hamming_topk` does."""
    values, rows, start = [], [], 0
    for block in blocks:
        value, row = hamming.resident_topk(query, block, min(K, block.count))
        values.append(-value)
        rows.append(row.astype(np.int64) + start)
        start += block.count
    value, row = numpy_engine.merge_topk(values, rows, min(K, start))
    return -value, row


def measure(rows: int, bits: int, queries: list[int], repeats: int) -> list[dict]:
    """Return one line for each number of queries."""
    blocks, lines = placed(rows, bits), []

    def read():
        return [folded(block.words) for block in blocks]

    size = sum(block.words.nbytes for block in blocks)
    for count in queries:
        query = np.random.default_rng(1).integers(0, 256, (count, bits // 8), dtype=np.uint8)

        def search(query=query):
            return nearest(query, blocks)

        seconds(search), seconds(read)  # compiles
        pairs = np.array([(seconds(search), seconds(read)) for _ in range(repeats)])
        searched, reading = (float(value) for value in np.median(pairs, axis=0))
        line = {"rows": rows, "bits": bits, "queries": count, "search_ms": 1e3 * searched, "read_ms": 1e3 * reading}
        line |= {"read_GB_per_s": size / reading / 1e9, "of_limit": reading / searched}
        print(json.dumps(line), file=sys.stderr)
        lines.append(line)
    return lines


def sizes_parser(about: str) -> argparse.ArgumentParser:
    """Return a parser of where to write and of the sizes that are searched."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=output_file, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=7)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line. Raises UserError for sizes that no search has."""
    args = parser.parse_args()
    given = [*args.rows, *args.queries, args.repeats]
    if min(given) <= 0:
        raise UserError(f"--rows, --queries and --repeats hold {min(given)}; write numbers above 0")
    for bits in args.bits:
        if bits <= 0 or bits % 8 != 0:
            raise UserError(f"--bits {bits}; write a multiple of 8, such as 64")
    return args


def main() -> None:
    """Measure and write."""
    args = parsed(sizes_parser(__doc__.splitlines()[0]))
    lines = [
        line for rows in args.rows for bits in args.bits for line in measure(rows, bits, args.queries, args.repeats)
    ]
    keep({"k": K, **machine(), "lines": lines}, args.out)


if __name__ == "__main__":
    run_script(main)
