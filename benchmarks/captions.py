"""Memory and time of millions of captions: what `xmodal data prepare` and the start of a run do with them.

    python benchmarks/captions.py --out benchmarks/results/captions.json [--captions 10000000]

Made-up captions in three languages, 1 to 5 a record, two in three of them texts that others may have too, go through
the code of `prepare` (the writer of the sidecar, its numbering of texts, the card's ceiling and repetitions) and of the
start of a run (the sidecar opened and checked, a tokenizer built, the ids that captions use, random captions read).
Pictures have no part in it. Memory is the largest resident set after each stage, files that are mapped included, over
what it was when the package had been imported. Exits with 1 where it is above `--limit` GB.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from report import machine, publish

from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.prepare import repeated
from xmodal_jax.data.sidecar import FOLDER, Sidecar, Sidecars
from xmodal_jax.data.source import Item
from xmodal_jax.data.split import split_captions
from xmodal_jax.data.text import load_tokenizer, used_ids
from xmodal_jax.errors import output_file, run_script

LANGUAGES = ("en", "de", "hi")
NOUNS = ("dog", "cat", "tree", "house", "boat", "street", "child", "Straße", "पेड़", "बिल्ली")
DOINGS = ("runs past", "is near", "stands behind", "sieht aus wie", "के पास", "looks at")
SHARED = 200_000  # different texts among those that repeat
READ = 100_000  # random records whose captions are read


def made_up(captions: int, seed: int = 0) -> Iterator[Item]:
    """Make records with `captions` captions in all.

    A third has texts of `SHARED`, a third these in another case, and a third texts of its own.
    """
    rng, left, number = np.random.default_rng(seed), captions, 0
    while left:
        counts = rng.integers(1, 6, 4096)
        draws = rng.integers(0, SHARED, (len(counts), 5)).tolist()
        kinds = rng.integers(0, 3, (len(counts), 5)).tolist()
        for count, own, kind in zip(counts.tolist(), draws, kinds, strict=True):
            count = min(count, left)
            found: dict[str, list[str]] = {}
            for text, repeats in zip(own[:count], kind[:count], strict=True):
                said = sentence(text, spaced(number) if repeats == 0 else "")
                found.setdefault(LANGUAGES[text % 3], []).append(said.capitalize() if repeats == 1 else said)
            yield Item(f"record-{number:09d}", {"image": b""}, found, group=f"group-{number // 2}")
            left, number = left - count, number + 1
            if not left:
                return


def sentence(text: int, own: str) -> str:
    """Return a caption of one text."""
    one, other = NOUNS[text % 10], NOUNS[text // 10 % 10]
    return f"a {one} {DOINGS[text // 100 % 6]} the {other} number {spaced(text)}{own and ' of ' + own}"


def spaced(number: int) -> str:
    """Write a number as a few words of three digits: millions of captions do not have millions of words."""
    return f"{number:_}".replace("_", " ")


class Stages:
    """Measures one stage after the other: seconds, and MB of the largest resident set so far over that at the start."""

    def __init__(self) -> None:
        self.start, self.found = peak(), {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Call `work`, measure it and return its result."""
        started = time.perf_counter()
        result = work()
        taken = {"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak() - self.start)}
        self.found[name] = taken
        print(name, taken, file=sys.stderr, flush=True)
        return result


def peak() -> float:
    """Return the largest resident set of this program in MB (`ru_maxrss` is also of the one that started it)."""
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def written(folder: pathlib.Path, captions: int) -> Sidecars:
    """Write the sidecars of made-up records and return them, not finished."""
    sidecars = Sidecars(folder)
    for item in made_up(captions):
        sidecars.add(item)
    return sidecars


def finished(folder: pathlib.Path, sidecars: Sidecars) -> Card:
    """Finish a data set of these sidecars and return its card, written to its folder."""
    told = sidecars.finish(LANGUAGES)
    splits = {split: own | {"files": [], "digest": ""} for split, own in told.items()}
    card = Card("captions", "made up", "none", list(LANGUAGES), ["image"], [], splits)
    card.save(folder)
    return card


def random_captions(opened: Sidecar, count: int) -> int:
    """Read the captions and numbers of random records, as training does; returns how many captions there were."""
    read = 0
    for row in np.random.default_rng(1).integers(0, len(opened), count).tolist():
        pairs = opened.pairs(row, LANGUAGES)
        read += len([opened.texts[pair] for pair in pairs]) and len(opened.number[pairs])
    return read


def measure(folder: pathlib.Path, captions: int) -> dict[str, Any]:
    """Measure all stages on so many captions, in an empty folder."""
    stages = Stages()
    sidecars = stages.run("write", lambda: written(folder, captions))
    card = stages.run("number", lambda: finished(folder, sidecars))
    facts = stages.run("card", lambda: repeated([Sidecar(folder, card, "train")]))
    opened = stages.run("open", lambda: Sidecar(folder, Card.load(folder), "train"))
    tokenizer = stages.run("tokenizer", lambda: load_tokenizer("data", folder, LANGUAGES))
    used = stages.run("used ids", lambda: used_ids(tokenizer, split_captions(folder, "train", LANGUAGES)))
    read = stages.run("read random records", lambda: random_captions(opened, READ))
    size = sum(path.stat().st_size for path in (folder / FOLDER).rglob("*.bin"))
    return {
        "captions": card.splits["train"]["captions"],
        "records": len(opened),
        "languages": card.splits["train"]["languages"],
        "texts": int(opened.number.max()) + 1,
        "shared_percent": facts["duplicates"]["train"]["shared"],
        "sidecar_mb": round(size / 1e6),
        "card_kb": round((folder / CARD_FILE).stat().st_size / 1e3),
        "used_ids": len(used),
        "read": read,
        "interpreter_mb": round(stages.start),
        "peak_over_interpreter_mb": max(stage["peak_mb"] for stage in stages.found.values()),
        "stages": stages.found,
    }


def main() -> int:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=10_000_000)
    parser.add_argument("--limit", type=float, default=2.0, help="GB over the interpreter's own")
    parser.add_argument("--folder", type=pathlib.Path, help="where there is room for it; default: the system's own")
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(pathlib.Path(folder), args.captions)
    publish({"benchmark": "captions", "limit_mb": round(1e3 * args.limit)} | found | machine(), args.out)
    return int(found["peak_over_interpreter_mb"] > 1e3 * args.limit)


if __name__ == "__main__":
    run_script(lambda: sys.exit(main()))
