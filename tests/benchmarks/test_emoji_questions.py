"""Questions on drawings: colours counted by hand, files that the source reads, and bad input in one sentence."""

import collections
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from emoji_questions import COLOURS, WORDINGS, colour_counts, drawn_pixels, shared_out
from PIL import Image

from xmodal_jax.data.source import Item
from xmodal_jax.data.sources.vqa import vqa_source

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "emoji_questions.py"


def ringed(inner=(220, 30, 40), outer=(255, 255, 255), hole=(255, 255, 255)):
    """A square ring of one colour, 24 px wide and 8 px thick, on 32 px."""
    image = np.full((32, 32, 3), outer, np.uint8)
    image[4:28, 4:28], image[12:20, 12:20] = inner, hole
    return image


def test_the_white_around_a_drawing_does_not_count_and_white_inside_does():
    pixels = drawn_pixels(Image.fromarray(ringed()))
    assert colour_counts(pixels) == collections.Counter({"red": 24 * 24 - 64, "white": 64})
    clear = np.dstack([ringed(), np.full((32, 32), 255, np.uint8)])
    clear[:4, :, 3] = 0
    assert len(drawn_pixels(Image.fromarray(clear))) == 28 * 32, "what is transparent does not, whatever its colour"
    dark = drawn_pixels(Image.fromarray(ringed(outer=(10, 10, 10))))
    assert colour_counts(dark)["black"] == 32 * 32 - 24 * 24, "only white is a background"
    assert len(drawn_pixels(Image.fromarray(np.full((8, 8, 3), 255, np.uint8)))) == 64, "a blank picture is all white"


@pytest.mark.parametrize("name", COLOURS)
def test_a_basic_colour_is_nearest_to_itself(name):
    near = np.clip(np.array([COLOURS[name]]) + [[3, -3, 2]], 0, 255).astype(np.uint8)
    assert colour_counts(near).most_common(1) == [(name, 1)]


def test_ten_answers_are_shared_out_by_pixels():
    counts = collections.Counter({"red": 55, "blue": 31, "green": 14, "pink": 0})
    assert shared_out(counts) == ["red"] * 6 + ["blue"] * 3 + ["green"]
    assert shared_out(collections.Counter({"red": 1})) == ["red"] * 10


def run(*arguments):
    """The script in a process of its own, as a user starts it."""
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    """Five concepts, two of them relatives, by one or two vendors, and a flag."""
    rows = []
    for number, name in enumerate(("cat", "man cook", "woman cook", "dog", "car", "flag: x")):
        views = {vendor: f"{number}-{vendor}.png" for vendor in ("noto", "twemoji")[: 1 + number % 2]}
        for path in views.values():
            Image.fromarray(ringed()).save(tmp_path / path)
        labels = (
            ["flags", "x"] if name.startswith("flag") else ["animals" if name in "cat dog" else "people", f"s{number}"]
        )
        rows.append({"id": str(number), "views": views, "caption": name, "tags": [], "labels": labels})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_files_are_those_of_vqa(folder):
    out = folder / "out"
    done = run(folder, "--out", out, "--held-out", "2")
    assert done.returncode == 0, done.stderr
    files = {name: out / f"train_{name}.json" for name in ("questions", "annotations")}
    files |= {f"val_{name}": out / f"val_{name}.json" for name in ("questions", "annotations")}
    found = list(vqa_source(**files, images=out / "images", answers=50).items())
    assert len(found) == 4 * 7 and all(isinstance(item, Item) for item in found), "no flag, seven pictures"
    kinds = collections.Counter(item.captions["en-question-type"][0] for item in found)
    assert kinds == dict.fromkeys(WORDINGS, 7)
    told = {name: json.loads(path.read_text())[name.removeprefix("val_")] for name, path in files.items()}
    chosen = [{own["multiple_choice_answer"] for own in told[name]} for name in ("annotations", "val_annotations")]
    assert [len(own & {"s1", "s2"}) for own in chosen] in ([2, 0], [0, 2]), "relatives are in one split"
    for question, answer in zip(told["questions"], told["annotations"], strict=True):
        given = [own["answer"] for own in answer["answers"]]
        if answer["question_type"] == "colour":
            assert given == ["red"] * 9 + ["white"]
        if answer["question_type"] == "is it":
            assert set(given) == {"yes" if "red" in question["question"] else "no"}
    assert run(folder, "--out", out).returncode == 2, "nothing is overwritten"
    again = run(folder, "--out", folder / "again", "--held-out", "2")
    assert again.stdout == done.stdout
    assert (folder / "again" / "val_questions.json").read_text() == (out / "val_questions.json").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--held-out", "5"], "--held-out is 5, and 5 concepts are drawn"), (["--vendors", "x"], "and 0 concepts")],
)
def test_impossible_numbers_are_one_sentence(folder, options, words):
    done = run(folder, "--out", folder / "out", *options)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (folder / "out").exists()
