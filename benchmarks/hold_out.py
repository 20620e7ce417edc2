"""Cut a development split out of a training split, by groups, so that choices are not made on the evaluation split.

    python benchmarks/hold_out.py data/emoji --records 311 --name test --out data/emoji-dev

Writes a data set with two splits, `train` (what is left) and `--name`, and the rows of every feature cache beside them.
"""

import argparse
import collections
import dataclasses
import pathlib
import random
from collections.abc import Sequence

from xmodal_jax.data.card import Card
from xmodal_jax.data.fingerprint import Digests
from xmodal_jax.data.records import RecordWriter, open_records, pack
from xmodal_jax.errors import refuse_unless, run_script


def held_out_groups(groups: Sequence[str], records: int, seed: int) -> set[str]:
    """Whole groups in random order until they hold at least `records` records."""
    sizes = collections.Counter(groups)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    chosen, count = set(), 0
    for group in order:
        if count >= records:
            break
        chosen.add(group)
        count += sizes[group]
    return chosen


def copy_rows(source: pathlib.Path, target: pathlib.Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Write row i of the training split of `source` to the split `names[i]` of `target` -> {split: shard files}."""
    writers = {name: RecordWriter(target, name) for name in sorted(set(names))}
    with open_records(source, "train") as rows:
        for row, name in zip(rows, names, strict=True):
            writers[name].write(pack(row))
    return {name: writer.close() for name, writer in writers.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=pathlib.Path, help="folder of a prepared data set")
    parser.add_argument("--records", type=int, required=True, help="how many to hold out")
    parser.add_argument("--name", default="test", help="name of the new split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args(arguments)
    refuse_unless(not args.out.exists(), f"'{args.out}' exists; write another --out, nothing was overwritten.")
    card = Card.load(args.data)
    with open_records(args.data, "train") as rows:
        records = list(rows)
    chosen = held_out_groups([record["group"] for record in records], args.records, args.seed)
    names = [args.name if record["group"] in chosen else "train" for record in records]
    files = copy_rows(args.data, args.out, names)
    splits = {name: counts([r for r, own in zip(records, names, strict=True) if own == name]) for name in files}
    digests = {name: Digests() for name in files}
    for record, name in zip(records, names, strict=True):
        digests[name].add(record["key"], record["captions"], record["images"])
    made = {name: {"files": files[name], "digest": digests[name].save(args.out, name)} for name in files}
    splits = {name: numbers | made[name] for name, numbers in splits.items()}
    features = {}
    for name, entry in card.features.items():
        features[name] = entry | {
            "files": copy_rows(args.data / "features" / name, args.out / "features" / name, names)
        }
    dataclasses.replace(card, name=f"{card.name}-dev", splits=splits, features=features, ceiling={}, arguments={}).save(
        args.out
    )
    print({name: numbers["records"] for name, numbers in splits.items()})


def counts(records: Sequence[dict]) -> dict[str, int]:
    """The numbers a card keeps of a split."""
    captions = sum(len(own) for record in records for own in record["captions"].values())
    return {"records": len(records), "captions": captions, "groups": len({record["group"] for record in records})}


if __name__ == "__main__":
    run_script(main)
