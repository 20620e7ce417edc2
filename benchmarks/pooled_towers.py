"""Mean-pooled features of the two frozen towers, for the second floor of cca_floor.py.

    python benchmarks/pooled_towers.py DATA --features lite0-160 --splits train val --out pooled.npz
    python benchmarks/cca_floor.py DATA --eval-split val --towers pooled.npz

Pictures: the mean over the grid of each cache that `xmodal data features` wrote (the summary token is left out),
several caches side by side; mirrored copies of the training pictures where the cache has them. Captions:
all-MiniLM-L6-v2.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.convert.huggingface import load_minilm
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.split import Split, split_captions
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.errors import output_file, run_script
from xmodal_jax.models.bert import Bert
from xmodal_jax.models.grid import pooling_groups
from xmodal_jax.models.pooling import masked_mean

BLOCK = 500


def pooled_pictures(split: Split, view: str, flip: bool) -> np.ndarray:
    """Return the grid means [n, caches x D] of the records that have the view, in their order."""
    entries = [split.card.feature(name) for name in split.cfg.features]
    ends = list(itertools.accumulate(entry["tokens"] for entry in entries))
    grids = [
        slice(end - entry["tokens"], end - entry["tokens"] + pooling_groups(entry["tower"], entry["tokens"])[0])
        for entry, end in zip(entries, ends, strict=True)
    ]
    rows = [row for row in range(len(split)) if view in split.sidecar.views(row)]
    tokens = (split.tokens(row, view, flip) for row in rows)
    return np.stack([np.concatenate([x[grid].mean(0, dtype=np.float32) for grid in grids]) for x in tokens])


def pooled_captions(captions: Sequence[str], length: int) -> np.ndarray:
    """Average the real tokens of the frozen MiniLM, [M,D]."""
    params, tokenizer = jax.tree.map(jnp.asarray, load_minilm()), load_tokenizer("minilm")
    table = params["embed"]["word"].shape
    tower = Bert(vocab_size=table[0], width=table[1], layers=6, heads=12, hidden=4 * table[1])
    run = jax.jit(lambda params, ids: masked_mean(tower.apply({"params": params}, ids), ids != 0))
    ids = tokenizer.encode(list(captions), length)
    padded = np.pad(ids, ((0, -len(ids) % BLOCK), (0, 0)))
    return np.concatenate([run(params, block) for block in np.split(padded, len(padded) // BLOCK)])[: len(ids)]


def arrays(args: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and rows of every array that cca_floor.py asks for."""
    for number, name in enumerate(args.splits):
        split = Split(args.data, name, DataConfig(path=args.data, features=tuple(args.features)))
        for view in split.views:
            yield f"{name}.image.{view}", pooled_pictures(split, view, False)
            if number == 0:
                yield f"{name}.image.{view}.flip", pooled_pictures(split, view, True)
        split.close()
        yield f"{name}.text", pooled_captions(split_captions(args.data, name, [args.language]), args.length)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="folder of a prepared data set")
    parser.add_argument("--features", nargs="+", required=True, help="names of feature caches")
    parser.add_argument("--splits", nargs=2, default=("train", "test"), help="the training split, then the other")
    parser.add_argument("--language", default="en")
    parser.add_argument("--length", type=int, default=32, help="word pieces of a caption")
    parser.add_argument("--out", type=output_file, required=True, help=".npz to write")
    args = parser.parse_args(arguments)
    np.savez(args.out, **dict(arrays(args)))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_script(main)
