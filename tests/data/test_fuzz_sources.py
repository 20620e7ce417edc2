"""Damaged files of every format end in items, counted skips or one `UserError`, whatever the damage."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest

from xmodal_jax.data.records import pack
from xmodal_jax.data.source import Item, mended_item
from xmodal_jax.data.sources.inaturalist import inaturalist_source
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.data.sources.karpathy import karpathy_source
from xmodal_jax.data.sources.mat import mat_source
from xmodal_jax.data.sources.remote_sensing import albef_source, precomp_source
from xmodal_jax.data.sources.vqa import vqa_source
from xmodal_jax.errors import UserError

NAMES = ("a.png", "b.png")
PIECES = (
    b"null",
    b"NaN",
    b"-1e999",
    b"true",
    b"0",
    b"1.0",
    b"9" * 5000,
    b"[",
    b"[" * 3000,
    b"{}",
    b"[]",
    b'"\\ud83d"',
    b'""',
    b'"a.png"',
    b'"test"',
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\0\0\0\0",
    b"\xe9",
    b"\xed\xa0\xbd",
    b"\r",
    b"\n",
    b",",
    b":",
    b'"',
    b"\\u0000",
    b"\xe2\x80\xa8",
    b"../../",
    b"~",
    b"a" * 300,
)
VALUES = (
    b"null",
    b"NaN",
    b"1e999",
    b"true",
    b"false",
    b"0",
    b"1",
    b"1.0",
    b"7" * 30,
    b"9" * 5000,
    b"[" * 400 + b"]" * 400,
    b"{}",
    b"[]",
    b"[[]]",
    b"[null]",
    b"[1]",
    b'{"a": [1]}',
    b'{"": ""}',
    b'"\\ud83d"',
    b'"\\ud83d\\ude00"',
    b'""',
    b'" "',
    b'"a.png"',
    b'"test"',
    b'"restval"',
    b'"a/b"',
    b'"\\u0000"',
    b'".."',
    b'"%s"' % (b"a" * 300),
    b'["a", {}]',
    b'{"en": null}',
    b'"\xc3\xa9"',
)
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+|\[[^\[\]{}]*\]|\{[^\[\]{}]*\}')


def karpathy_rows():
    sentences = [{"raw": "A dog .", "tokens": ["a", "dog"]}, {"tokens": ["a", "cat"]}]
    more = {"a.png": {"filepath": "", "keywords": ["x", "y"]}, "b.png": {}}
    return [{"filename": name, "split": "train", "sentences": sentences} | more[name] for name in NAMES]


def category(number):
    ranks = ("kingdom", "phylum", "class", "order", "family", "genus")
    return {"id": number, "name": f"name {number}", "supercategory": "Aves", **{rank: f"{rank} x" for rank in ranks}}


def vqa_rows():
    answers = [{"answer": text, "answer_id": number} for number, text in enumerate(["yes", "no", "a dog", "2"] * 2)]
    own = {"answers": answers, "multiple_choice_answer": "yes", "question_type": "is it", "answer_type": "other"}
    return {
        "questions": [{"question_id": n, "image_id": name[0], "question": "Is it?"} for n, name in enumerate(NAMES)],
        "annotations": [{"question_id": number} | own for number in range(2)],
    }


def mat_files(tmp_path):
    import scipy.io

    content = {
        "index": np.array([["a.png"], ["b.png"]], object),
        "caption": np.array([["a dog"], ["a cat"]], object),
        "label": np.eye(2, dtype=np.uint8),
    }
    scipy.io.savemat(tmp_path / "set.mat", content, do_compression=False)
    return ["set.mat"]


def write(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return list(files)


FORMATS = {
    "jsonl": (
        lambda folder: write(
            folder,
            {
                "x.jsonl": "".join(
                    json.dumps(row) + "\n"
                    for row in (
                        {"image": "a.png", "caption": "a dog", "id": 7, "labels": ["x"], "group": "g"},
                        {"views": {"v": "b.png"}, "caption": {"en": ["a", "b"], "de": "c"}, "split": "val"},
                        {"image": "b.png", "id": "c", "caption": ["one", "two"], "labels": "y"},
                        {"image": "b.png", "id": "c", "caption": "three", "labels": 3},
                        {"image": "a.png", "id": "d", "caption": "four", "group": 0},
                        {"image": "a.png", "id": 1.5, "caption": "five", "split": "train"},
                    )
                )
            },
        ),
        lambda folder: jsonl_source(folder / "x.jsonl", held_out=1),
    ),
    "karpathy": (
        lambda folder: write(folder, {"dataset.json": json.dumps({"images": karpathy_rows(), "dataset": "x"})}),
        lambda folder: karpathy_source(folder / "dataset.json", folder),
    ),
    "albef": (
        lambda folder: write(
            folder,
            {
                f"{split}.json": json.dumps(
                    [{"image": name, "caption": ["a", "b"], "label_name": "x"} for name in NAMES]
                )
                for split in ("train", "val")
            },
        ),
        lambda folder: albef_source(folder, folder),
    ),
    "precomp": (
        lambda folder: write(folder, {"train_caps.txt": "a dog\na cat\n", "train_filename.txt": "a.png\nb.png\n"}),
        lambda folder: precomp_source(folder, folder),
    ),
    "inaturalist": (
        lambda folder: write(
            folder,
            {
                "categories.json": json.dumps([category(0), category(1)]),
                "train2018.json": json.dumps(
                    {
                        "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
                        "annotations": [{"image_id": number, "category_id": number} for number in range(2)],
                    }
                ),
            },
        ),
        lambda folder: inaturalist_source(folder),
    ),
    "vqa": (
        lambda folder: write(folder, {f"{name}.json": json.dumps({name: rows}) for name, rows in vqa_rows().items()}),
        lambda folder: vqa_source(folder / "questions.json", folder / "annotations.json", folder, template="{id}.png"),
    ),
    "mat": (mat_files, lambda folder: mat_source(folder / "set.mat", folder)),
}


def damaged(content, rng):
    """`content` with one to three faults: another value at a place of a value, or other bytes anywhere."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        values = list(VALUE.finditer(content))
        if values and rng.random() < 0.7:
            found = rng.choice(values)
            content = content[: found.start()] + rng.choice(VALUES) + content[found.end() :]
            continue
        at, end = sorted((rng.randint(0, len(content)), rng.randint(0, len(content))))
        piece = rng.choice(PIECES)
        near = min(end, at + rng.randint(0, 12))
        content = rng.choice(
            (
                content[:at],
                content[:at] + piece + content[at:],
                content[:at] + piece + content[near:],
                content[:at] + content[near:],
                content[:end] + content[at:],
                content[:at] + bytes([rng.randint(0, 255)]) + content[at + 1 :],
            )
        )
    return content


def survives(make, folder):
    """Read everything, as `prepare` does; the number of items, -1 where the source was refused."""
    try:
        source = make(folder)
        items = [mended_item(item) for item in source.items() if isinstance(item, Item)]
    except (UserError, OSError):  # OSError is one sentence at the command line, as for a name that is too long
        return -1
    if source.taxonomy:
        source.taxonomy.save(folder)
    for item in items:
        pack(dataclasses.asdict(item))
    return len(items)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_end_in_items_skips_or_one_sentence(kind, count, tmp_path, encoded):
    for name in NAMES:
        (tmp_path / name).write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    files, make = FORMATS[kind]
    names, rng, ends = files(tmp_path), random.Random(kind), set()
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    assert survives(make, tmp_path) >= 2, "undamaged, it is read"
    for number in range(count):
        name = rng.choice(names)
        content = damaged(whole[name], rng)
        (tmp_path / name).write_bytes(content)
        try:
            ends.add(survives(make, tmp_path))
        except Exception as error:
            raise AssertionError(f"damage {number} of {name}: {content[:3000]!r}") from error
        (tmp_path / name).write_bytes(whole[name])
    assert -1 in ends and len(ends) > 1, "some damage is refused, some is survived"
