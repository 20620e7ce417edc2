"""Cut a development split out of a training split, by groups, so that choices are not made on the evaluation split.

    python benchmarks/hold_out.py data/emoji --records 311 --name test --out data/emoji-dev

Writes a data set with two splits, `train` (what is left) and `--name`, and the rows of every feature cache beside them.
A teacher's embeddings and concepts are not among it; `xmodal data embed` and `concepts` make them.
"""

import argparse
import collections
import dataclasses
import pathlib
import random
from collections.abc import Sequence
from typing import Any

from xmodal_jax.data.card import Card
from xmodal_jax.data.fingerprint import Digests
from xmodal_jax.data.prepare import repeated
from xmodal_jax.data.records import PICTURES, RecordWriter, check_record, open_records, pack
from xmodal_jax.data.sidecar import Sidecar, Sidecars
from xmodal_jax.data.source import Item
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.errors import UserError, run_script


def held_out_groups(groups: Sequence[str], records: int, seed: int) -> set[str]:
    """Draw whole groups in random order until they hold at least `records` records."""
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


def describe(source: pathlib.Path, target: pathlib.Path, card: Card, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Write sidecars and digests of the splits `names` that the rows go to -> {split: what a card says of it}."""
    sidecars, digests = Sidecars(target), {name: Digests() for name in names}
    lists = ((sidecars.views, card.views), (sidecars.media, card.media), (sidecars.labels, card.label_names))
    for numbers, known in lists:
        for name in known:
            numbers[name]  # the places that they have in the card
    rows = Sidecar(source, card, "train")
    with open_records(source, "train") as records:
        for row, (record, name) in enumerate(zip(map(check_record, records), names, strict=True)):
            labels = tuple(card.label_names[label] for label in rows.labels(row))
            media = dict(record["media"])
            images, captions = media.pop(PICTURES, {}), rows.captions(row)
            more = {"media": media, "scores": tuple(rows.scores(row))}
            item = Item(rows.keys[row], images, captions, labels, rows.groups[row], name, **more)
            sidecars.add(item)
            digests[name].add(item.key, item.captions, item.every_view)
    told = sidecars.finish(card.languages)
    return {name: own | {"digest": digests[name].save(target, name)} for name, own in told.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=pathlib.Path, help="folder of a prepared data set")
    parser.add_argument("--records", type=int, required=True, help="how many to hold out")
    parser.add_argument("--name", default="test", help="name of the new split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args(arguments)
    if args.out.exists():
        raise UserError(f"'{args.out}' exists; write another --out, nothing was overwritten.")
    card = Card.load(args.data)
    groups = list(Sidecar(args.data, card, "train").groups)
    chosen = held_out_groups(groups, args.records, args.seed)
    names = [args.name if group in chosen else "train" for group in groups]
    files, told = copy_rows(args.data, args.out, names), describe(args.data, args.out, card, names)
    splits = {name: own | {"files": files[name]} for name, own in told.items()}
    features = {}
    for name, entry in card.features.items():
        features[name] = entry | {
            "files": copy_rows(args.data / "features" / name, args.out / "features" / name, names)
        }
    made = {"splits": splits, "features": features, "embeddings": {}, "concepts": {}, "copies": {}, "arguments": {}}
    card = dataclasses.replace(card, name=f"{card.name}-dev", **made)
    card = dataclasses.replace(card, **repeated(Sidecar(args.out, card, name) for name in splits))
    if taxonomy := Taxonomy.load(args.data):
        taxonomy.save(args.out)
    card.save(args.out)
    print({name: numbers["records"] for name, numbers in splits.items()})


if __name__ == "__main__":
    run_script(main)
