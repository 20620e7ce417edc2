"""Hamming shortlist, then cosine: the recall it loses against the cosine of all rows, and the time it wins.

    python benchmarks/shortlist.py --workdir RUN --out FILE [--shortlists 20 50 100 200 500] [--rows 1000000]

RUN makes hash codes (configs/tecmh.py with `joint.nested`, say). Recall: pictures of its evaluation split ask for their
captions among the captions of that split and of the training split, and the other way round; at every length of
`joint.lengths`. Rows lie in a random order, so equal distances favour nobody; a hit is right when it is of the same
record. Time: an index of `--rows` rows on disk, the gallery's own again and again, each with noise in its embedding
(0.05 of its length) and one bit in twenty turned; no model made those, so only their time is told. All ways take turns,
`--repeats` times, with one query and with 64; medians.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np
from report import keep, machine

from xmodal_jax.api import use_compile_cache
from xmodal_jax.encode.embed import Embedded
from xmodal_jax.errors import UserError, output_file, run_script
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.retrieve.pipeline import shortlisted
from xmodal_jax.search import writer
from xmodal_jax.search.index import Index
from xmodal_jax.workdir import open_run

KS = (1, 5, 10)
BATCH = 64
TIMED = (64, 512, 2048)  # bits, those of them that the run has


@dataclass(frozen=True)
class Side:
    """Queries, the gallery in a random order, and the record of each row of both (-1: one that nobody asks for)."""

    query: Embedded
    gallery: Embedded
    asked: np.ndarray
    owner: np.ndarray


def encoded(evaluator: Evaluator, name: str) -> tuple[Embedded, Embedded, np.ndarray]:
    """Encode the pictures and captions of a split; return them and the picture's row of each caption."""
    split, size = evaluator.open(name, evaluator.views(name)[0]), evaluator.assembly.config.eval.batch_size
    image, text = (evaluator.embedder.side(side, size) for side in (split.left, split.right))
    return image, text, np.asarray(split.right.owner)


def sides(evaluator: Evaluator, seed: int = 0) -> dict[str, Side]:
    """Return both directions, with the training split's rows in the gallery."""
    image, text, owner = encoded(evaluator, evaluator.assembly.config.data.eval_split)
    others, own = encoded(evaluator, "train"), np.arange(len(image.embed))
    draw = np.random.default_rng(seed)
    return {
        "i2t": Side(image, *mixed(draw, (text, others[1]), own, owner)),
        "t2i": Side(text, *mixed(draw, (image, others[0]), owner, own)),
    }


def mixed(
    draw: np.random.Generator, parts: tuple[Embedded, Embedded], asked: np.ndarray, owner: np.ndarray
) -> tuple[Embedded, np.ndarray, np.ndarray]:
    """Shuffle the rows of both parts; return them, `asked`, and the record of each row."""
    owner = np.concatenate([owner, np.full(len(parts[1].embed), -1)])
    order = draw.permutation(len(owner))
    embed, codes = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("embed", "codes"))
    return Embedded(embed, codes=codes), asked, owner[order]


def recall(rows: np.ndarray, side: Side) -> dict[str, float]:
    """Return R@k in % of rows [q,k], best first."""
    right = side.owner[rows] == side.asked[:, None]
    return {f"R@{k}": 100 * float(right[:, :k].any(1).mean()) for k in KS}


def recalls(side: Side, folder: pathlib.Path, lengths: tuple[int, ...], shortlists: list[int]) -> dict:
    """Return R@k of the cosine of all rows, of the codes at each length, and of each shortlist.

    With the share of the ten best by cosine that each has kept.
    """
    best, found = None, {"rows": len(side.owner), "queries": len(side.asked), "bits": {}}
    for bits in lengths:
        writer.write(folder / str(bits), side.gallery.embed, None, side.gallery.codes[:, :bits])
        index, codes = Index.open(folder / str(bits)), side.query.codes[:, :bits]
        if best is None:
            best = index.nearest(side.query.embed, KS[-1])[1]
            found["cosine"] = recall(best, side)
        own = {"0": recall(index.nearest(codes, KS[-1], "codes")[1], side)}
        for shortlist in shortlists:
            rows = shortlisted(index, index, codes, side.query.embed, shortlist, KS[-1])[1]
            own[str(shortlist)] = recall(rows, side) | {"kept": kept(rows, best)}
        found["bits"][str(bits)] = own
    return found


def kept(rows: np.ndarray, best: np.ndarray) -> float:
    """Return the share in % of `best` [q,k] that is among `rows` [q,k]."""
    return 100 * float(np.mean([np.isin(own, row).mean() for own, row in zip(best, rows, strict=True)]))


def enlarged(side: Side, rows: int, folder: pathlib.Path, bits: int) -> Index:
    """Write an index of `rows` rows like the gallery's, a gallery at a time."""
    draw, packed = np.random.default_rng(1), side.gallery.codes[:, :bits] > 0
    with writer.writing(folder, "", writer.BLOCK_ROWS) as out:
        for start in range(0, rows, len(packed)):
            count = min(len(packed), rows - start)
            noise = draw.standard_normal((count, side.gallery.embed.shape[1]), np.float32)
            embed = side.gallery.embed[:count] + 0.05 * noise / np.sqrt(np.float32(noise.shape[1]))
            out.add(embed, None, packed[:count] ^ (draw.random((count, bits)) < 0.05))
    return Index.open(folder)


def times(side: Side, index: Index, shortlists: list[int], repeats: int) -> list[dict]:
    """Return the median ms of a call, all ways in turns, for one query and for `BATCH`."""
    lines = []
    for count in (1, BATCH):
        embed, codes = side.query.embed[:count], side.query.codes[:count, : index.bits]
        ways = {
            "cosine": lambda embed=embed: index.nearest(embed, KS[-1]),
            "codes": lambda codes=codes: index.nearest(codes, KS[-1], "codes"),
        }
        for n in shortlists:
            ways[str(n)] = lambda n=n, codes=codes, embed=embed: shortlisted(index, index, codes, embed, n, KS[-1])
        taken = {name: [] for name in ways}
        for turn in range(repeats + 1):  # the first one compiles and puts the rows in memory
            for name, ask in ways.items():
                started = time.perf_counter()
                ask()
                taken[name] += [1e3 * (time.perf_counter() - started)] * (turn > 0)
        middle = {name: float(np.median(own)) for name, own in taken.items()}
        faster = {name: middle["cosine"] / own for name, own in middle.items() if name != "cosine"}
        lines.append(
            {"rows": len(index), "bits": index.bits, "queries": len(embed), "ms": middle, "times_faster": faster}
        )
        print(json.dumps(lines[-1]), file=sys.stderr)
    return lines


def refuse_bad(args: argparse.Namespace) -> None:
    """Raise `UserError` for numbers that can be told to be wrong before anything is read."""
    low, high, rows = min(args.shortlists), max(args.shortlists), min(args.rows)
    if low < KS[-1]:
        raise UserError(f"--shortlists has {low}; ten hits are asked for, write {KS[-1]} or more")
    if high > rows:
        raise UserError(f"--shortlists has {high} and --rows {rows}; write at most {rows}")
    if args.repeats <= 0:
        raise UserError(f"--repeats is {args.repeats}; write 1 or more")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", type=output_file, required=True)
    parser.add_argument("--shortlists", type=int, nargs="+", default=[20, 50, 100, 200, 500])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    refuse_bad(args)
    use_compile_cache()
    load_before, (assembly, params, step) = os.getloadavg()[0], open_run(args.workdir)
    if "hash" not in params["image"]:
        raise UserError(f"the run {args.workdir} makes no hash codes; name one that does")
    both, lengths = sides(Evaluator(assembly, params)), assembly.config.joint.lengths
    high, least = max(args.shortlists), min(len(side.owner) for side in both.values())
    if high > least:
        raise UserError(f"--shortlists has {high} and a gallery {least} rows; write at most {least}")
    found = {"run": assembly.config.name, "step": step, "width": int(both["i2t"].query.embed.shape[1])}
    found |= machine() | {"load_before": load_before, "times": []}
    with tempfile.TemporaryDirectory(prefix="shortlist-") as name:
        folder = pathlib.Path(name)
        for way, side in both.items():
            found[way] = recalls(side, folder / way, lengths, args.shortlists)
            print(json.dumps({way: found[way]}), file=sys.stderr)
        for rows in args.rows:
            for bits in [own for own in lengths if own in TIMED] or lengths[-1:]:
                index = enlarged(both["i2t"], rows, folder / "large", bits)
                found["times"] += times(both["i2t"], index, args.shortlists, args.repeats)
                shutil.rmtree(folder / "large")
                keep(found, args.out)


if __name__ == "__main__":
    run_script(main)
