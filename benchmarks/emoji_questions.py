"""Questions on drawings in VQA's files: the group, the subgroup and the colour of emoji by several vendors.

    python benchmarks/emoji_questions.py FOLDER --out OUT [--vendors noto twemoji] [--held-out 400]
    xmodal data prepare vqa --questions OUT/train_questions.json --annotations OUT/train_annotations.json \\
        --val-questions OUT/val_questions.json --val-annotations OUT/val_annotations.json --images OUT/images \\
        --answers 200 --out data/emoji_questions

FOLDER is that of emoji_views.py: pairs.jsonl with id, views {vendor: path}, caption and labels [group, subgroup]. Flags
are left out; relatives are in one split, `--held-out` concepts in "val". Each picture is asked four questions, each in
one of several wordings; the type of a question is what it asks for:

    group, subgroup  the labels, certain: all ten annotators say them
    colour           the one of eleven basic colours that is nearest (RGB) to most pixels of the drawing; the ten
                     answers are shared out by the pixels of each colour, so that the second has a score too
    is it            whether that colour is one that the question names, half of the time the right one

Pixels of the drawing are those that are opaque; of a picture without transparency, all but the near white ones that
reach a corner. To train on them and to measure, beside the best constant answer to each type of question:

    xmodal data features --data data/emoji_questions --size 128 --no-flip
    xmodal train --config configs/vqa.py:emoji --workdir runs/emoji_questions
    xmodal eval --workdir runs/emoji_questions
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from emoji_views import read_rows
from PIL import Image, ImageDraw

from xmodal_jax.data.source import split_groups
from xmodal_jax.data.sources.emoji import group_key
from xmodal_jax.errors import UserError, run_script

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (220, 30, 40),
    "orange": (245, 140, 30),
    "yellow": (255, 215, 60),
    "green": (70, 160, 60),
    "blue": (50, 120, 220),
    "purple": (130, 70, 170),
    "pink": (250, 150, 190),
    "brown": (130, 80, 45),
}
WORDINGS = {
    "group": ("Which group does this belong to?", "What group is it in?", "Which of the main groups is that?"),
    "subgroup": ("Which subgroup does this belong to?", "What subgroup is it in?", "What kind of thing is that?"),
    "colour": ("Which colour has most pixels?", "What is its main colour?", "What colour is most of it?"),
    "is it": ("Is it mostly {}?", "Is the main colour {}?", "Is most of it {}?"),
}
ANNOTATORS = 10
NEAR = 40  # difference of a pixel from its neighbour, summed over RGB, up to which white goes on


def drawn_pixels(picture: Image.Image) -> np.ndarray:
    """Return the pixels uint8 [n,3] that belong to the drawing; all of them where nothing else is left."""
    if "A" in picture.getbands():
        pixels = np.asarray(picture.convert("RGBA"))
        drawn = pixels[pixels[..., 3] >= 128][:, :3]
    else:
        plain, marked = picture.convert("RGB"), picture.convert("RGB")
        marker, (right, low) = (255, 0, 254), (plain.width - 1, plain.height - 1)
        for corner in ((0, 0), (right, 0), (0, low), (right, low)):
            if sum(plain.getpixel(corner)) > 3 * 255 - NEAR:
                ImageDraw.floodfill(marked, corner, marker, thresh=NEAR)
        drawn = np.asarray(plain)[(np.asarray(marked) != marker).any(-1)]
    return drawn if len(drawn) else np.asarray(picture.convert("RGB")).reshape(-1, 3)


def colour_counts(pixels: np.ndarray) -> collections.Counter[str]:
    """Count the pixels uint8 [n,3] by the nearest of `COLOURS`."""
    table = np.array(list(COLOURS.values()), np.int32)
    nearest = ((pixels[:, None].astype(np.int32) - table) ** 2).sum(-1).argmin(1)
    counts = np.bincount(nearest, minlength=len(COLOURS)).tolist()
    return collections.Counter(dict(zip(COLOURS, counts, strict=True)))


def shared_out(counts: collections.Counter[str], total: int = ANNOTATORS) -> list[str]:
    """Return `total` answers, the most frequent first, as many of each as its share (largest remainders)."""
    whole = sum(counts.values())
    shares = {name: total * count / whole for name, count in counts.most_common()}
    given = {name: int(share) for name, share in shares.items()}
    rest = sorted(shares, key=lambda name: given[name] - shares[name])[: total - sum(given.values())]
    return [name for name in shares for _ in range(given[name] + (name in rest))]


def questions(row: dict[str, Any], picture: Image.Image, draw: random.Random) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (type, question, ten answers) of one picture."""
    colours = shared_out(colour_counts(drawn_pixels(picture)))
    main = colours[0]
    asked = main if draw.random() < 0.5 else draw.choice([name for name in COLOURS if name != main])
    told = {"group": [row["labels"][0]] * ANNOTATORS, "subgroup": [row["labels"][1]] * ANNOTATORS}
    told |= {"colour": colours, "is it": ["yes" if asked == main else "no"] * ANNOTATORS}
    for kind, answers in told.items():
        yield kind, draw.choice(WORDINGS[kind]).format(asked), answers


def asked(rows: list[dict[str, Any]], vendors: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (row, path of a picture) for each vendor that drew it."""
    for row in rows:
        yield from ((row, row["views"][vendor]) for vendor in vendors if vendor in row["views"])


def write_split(
    folder: pathlib.Path, out: pathlib.Path, split: str, rows: list[dict[str, Any]], vendors: Sequence[str], first: int
) -> int:
    """Write the two files and the pictures of a split, numbered from `first`; return the number after the last."""
    asks, answers, number = [], [], first
    for number, (row, path) in enumerate(asked(rows, vendors), first):
        shutil.copy(folder / path, out / "images" / f"COCO_{split}2014_{number:012d}.jpg")
        with Image.open(folder / path) as picture:
            found = list(questions(row, picture, random.Random(path)))
        for place, (kind, question, given) in enumerate(found):
            ids = {"question_id": 10 * number + place, "image_id": number}
            asks.append(ids | {"question": question})
            own = [{"answer": text, "answer_id": n, "answer_confidence": "yes"} for n, text in enumerate(given, 1)]
            chosen = {"multiple_choice_answer": given[0], "answers": own}
            types = {"question_type": kind, "answer_type": "yes/no" if kind == "is it" else "other"}
            answers.append(ids | chosen | types)
    for name, content in (("questions", asks), ("annotations", answers)):
        told = {"data_subtype": f"{split}2014", name: content}
        (out / f"{split}_{name}.json").write_text(json.dumps(told), "utf-8")
    print(f"{split}: {len(asks)} questions on {len(asks) // len(WORDINGS)} pictures of {len(rows)} concepts")
    return number + 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="holds pairs.jsonl and the pictures")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--vendors", nargs="+", default=["noto", "twemoji"], help="views that are asked about")
    parser.add_argument("--held-out", type=int, default=400, help="concepts of the split val")
    args = parser.parse_args(arguments)
    if args.out.exists():
        raise UserError(f"'{args.out}' exists; write another --out, nothing was overwritten.")
    rows = [row for row in read_rows(args.folder / "pairs.jsonl") if "flags" not in row["labels"]]
    rows = [row for row in rows if any(vendor in row["views"] for vendor in args.vendors)]
    if not 0 < args.held_out < len(rows):
        raise UserError(
            f"--held-out is {args.held_out}, and {len(rows)} concepts are drawn by {', '.join(args.vendors)}; write "
            "fewer, at least 1, or other --vendors"
        )
    drawn = split_groups([group_key(row["caption"]) for row in rows], args.held_out)
    (args.out / "images").mkdir(parents=True)
    number = 1
    for split, name in (("train", "train"), ("val", "test")):
        own = [row for row, where in zip(rows, drawn, strict=True) if where == name]
        number = write_split(args.folder, args.out, split, own, args.vendors, number)


if __name__ == "__main__":
    run_script(main)
