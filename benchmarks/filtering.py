"""Retrieval filtering: seconds and recall when fusion scores the best k of a cheap score, against all pairs.

    python benchmarks/filtering.py --workdir RUN [--ks 16 32 64 128] [--all FOLDER] [--out FILE]

The run's evaluation split, all its pictures against all its captions. The cheap score is the embeddings' cosine.
Encoding (embeddings, fusion's keys and values of each picture, the first layer's self-attention of each text) is done
once and timed apart; "seconds" is pair scoring, compilation left out. `--all` scores every pair once and ranks both
directions by it: this is what filtering is compared with, and takes hours on a CPU; scores and seconds are kept in
FOLDER as they come, and the same command goes on after the last. A second process may help from the other end
(`--backwards`); for seconds that can be compared bind each to a core of its own (`taskset -c 0`), which also does more
in all than one process on two cores. Combined as the run's config says.

One JSON line; with `--out` also to a file, before all pairs and after, which keeps an "all" measured before.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from report import keep, machine

from xmodal_jax.api import use_compile_cache
from xmodal_jax.data.progress import Progress
from xmodal_jax.encode.embed import PairScorer
from xmodal_jax.errors import UserError, output_file, run_script
from xmodal_jax.eval import rerank, retrieval
from xmodal_jax.eval.evaluate import Evaluator, ensure_weight
from xmodal_jax.search.index import fingerprint
from xmodal_jax.workdir import open_run

IMAGES_AT_ONCE = 10


def exhaustive(
    score: PairScorer, images: int, texts: int, block: int, folder: pathlib.Path, backwards: bool = False
) -> tuple[np.ndarray, float]:
    """Score every pair by fusion, float32 [images, texts], and return that and the seconds it took.

    Scores that lie in `folder` already are read, also when another process puts them there meanwhile.
    """
    rows = np.arange(texts, dtype=np.int32)
    rerank.compile_lengths(score, 0, rows, block)
    firsts = range(0, images, IMAGES_AT_ONCE)
    groups = [np.arange(i, min(i + IMAGES_AT_ONCE, images), dtype=np.int32) for i in firsts]

    def left():
        return [group for group in groups if not (folder / f"{group[0]}.npz").is_file()]

    total = sum(map(len, left()))
    for group in Progress(taken_in_turn(left, backwards), "all pairs", "images", total, size=len):
        started = time.perf_counter()
        pairs = np.repeat(group, texts), np.tile(rows, len(group))
        found = rerank.score_pairs(score, *pairs, block).reshape(len(group), texts)
        write_part(folder / f"{group[0]}.npz", found, time.perf_counter() - started)
    parts = [np.load(folder / f"{i}.npz") for i in firsts]
    return np.concatenate([part["scores"] for part in parts]), float(sum(part["seconds"] for part in parts))


def taken_in_turn(left: Callable[[], list[np.ndarray]], backwards: bool) -> Iterator[np.ndarray]:
    """Yield the first (or last) group left, until none is."""
    while groups := left():
        yield groups[-1 if backwards else 0]


def write_part(path: pathlib.Path, scores: np.ndarray, seconds: float) -> None:
    """Write one group's scores, whole or not at all."""
    new = path.with_suffix(f".{os.getpid()}.npz")  # two processes may meet at a group
    np.savez(new, scores=scores, seconds=seconds)
    new.replace(path)


def open_folder(folder: pathlib.Path, model: str, shape: tuple[int, int]) -> pathlib.Path:
    """Open the folder of one model's scores of one split's pairs, made if needed.

    Raises:
        UserError: it holds those of other parameters or another split.
    """
    told, facts = folder / "pairs.json", {"model": model, "shape": list(shape)}
    folder.mkdir(parents=True, exist_ok=True)
    if not told.exists():
        if any(folder.iterdir()):
            raise UserError(f"--all {folder} is not empty; name a folder that is new")
        new = folder / "pairs.new.json"
        new.write_text(json.dumps(facts), "utf-8")
        new.replace(told)
    same = json.loads(told.read_text("utf-8")) == facts
    if not same:
        raise UserError(f"--all {folder} holds the scores of another model or split; name a folder that is new")
    return folder


def ranked(matrix: np.ndarray, positives: tuple[np.ndarray, np.ndarray]) -> dict:
    """Compute the recall of a whole matrix of scores [n,m] in both directions."""
    sides = []
    for scores, right in zip((matrix, matrix.T), positives, strict=True):
        relevant = np.zeros(scores.shape, bool)
        for row, own in enumerate(right):
            relevant[row, own[own >= 0]] = True
        best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
        equal = scores == best
        places = retrieval.Places((scores > best).sum(1), equal.sum(1), (equal & relevant).sum(1))
        sides.append(retrieval.recall_of_places(places, (1, 5, 10)))
    return retrieval.summary(*sides)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--ks", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--all", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--backwards", action="store_true", help="only help with --all, the last pictures first")
    parser.add_argument("--block", type=int, default=256, help="pairs of one call")
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args()
    if args.backwards and not args.all:
        raise UserError("--backwards helps with --all; write --all FOLDER too")
    if args.block <= 0 or min(args.ks) <= 0:
        raise UserError("--block and --ks are 1 or more; write such numbers")
    use_compile_cache()
    assembly, params, step = open_run(args.workdir)
    if "match" not in params:
        raise UserError(f"the run {args.workdir} was not trained to match (ITM); name one that was")
    config, evaluator = assembly.config, Evaluator(assembly, params)
    name = config.data.eval_split
    split = evaluator.open(name, evaluator.views(name)[0])
    shape, before = (len(split.left), len(split.right)), earlier(args.out)
    kept = args.all and open_folder(args.all, fingerprint(params), shape)
    started = time.perf_counter()
    image, text = (evaluator.embedder.side(side, config.eval.batch_size, True) for side in (split.left, split.right))
    score = PairScorer(assembly.model, params, image, text)
    jax.block_until_ready(score.arrays)
    encoded = time.perf_counter() - started
    if args.backwards:
        exhaustive(score, *shape, args.block, kept, backwards=True)
        return
    positives = retrieval.positives(split)
    weight = (
        ensure_weight(evaluator, evaluator.embedder, lambda said: None) if config.eval.rerank_score == "add" else 1.0
    )
    how = (config.eval.rerank_score, weight)
    ks = (0, *rerank.fitting(args.ks, min(shape)))
    tables = rerank.rerank(score, image.embed, text.embed, *positives, ks, *how, block=args.block)
    found = {"run": config.name, "step": step, "images": shape[0], "texts": shape[1], "how": how} | machine()
    found |= {"encode_seconds": encoded, "k": {str(k): table for k, table in tables.items()}}
    if "all" in before["k"] and same_model(before, json.loads(json.dumps(found))):
        found["k"]["all"] = before["k"]["all"]
    keep(found, args.out)
    if kept:
        matrix, seconds = exhaustive(score, *shape, args.block, kept)
        whole = rerank.combined(image.embed @ text.embed.T, matrix, *how)
        found["k"]["all"] = ranked(whole, positives) | {"seconds": seconds, "pairs": matrix.size}
        keep(found, args.out)
    print(json.dumps(found))
    if "all" in found["k"]:
        report(found["k"])


def earlier(path: pathlib.Path | None) -> dict:
    """Read the file that an older run wrote to `path`; {"k": {}} without one.

    Raises:
        UserError: something else is there.
    """
    if path is None or not path.exists():
        return {"k": {}}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    whole = isinstance(found, dict) and {"run", "k"} <= set(found)
    if not whole:
        raise UserError(f"--out '{path}' is no result of this script; write another path")
    return found


def same_model(before: dict, found: dict) -> bool:
    """Return True if two results are of one model on one split; name and step may be those of another seed."""

    def recalls(result):
        return {name: own for name, own in result["k"]["0"].items() if name not in ("seconds", "pairs")}

    fields = ("run", "step", "images", "texts", "how")
    return all(before[name] == found[name] for name in fields) and recalls(before) == recalls(found)


def report(tables: dict) -> None:
    """Print the speed-up and the loss of each k against all pairs, on stderr."""
    whole = tables["all"]
    for k, own in tables.items():
        times = f"{whole['seconds'] / own['seconds']:.1f} times faster" if own["seconds"] else "embeddings alone"
        print(f"k={k}: mR {own['mR']:.2f} ({own['mR'] - whole['mR']:+.2f}), {times}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
