"""Damaged files given to commands: code 0 or 2, one sentence, nothing half-written (index: search/test_fuzz.py)."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from mutations import TOKENS, check_answer, counts, encoded, mutated, restore
from PIL import Image

from xmodal_jax.cli import main
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.errors import UserError
from xmodal_jax.workdir import open_run

ROWS = 6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of small pictures 0.png, 1.png, ..."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(ROWS):
        Image.new("RGB", (6, 5), (40 * number, 9, 99)).save(folder / f"{number}.png")
    return folder


def described(kind: str) -> bytes:
    """A good file of one kind that names the pictures."""
    texts = [f"a bär of colour {number}" for number in range(ROWS)]
    if kind == "karpathy":

        def sentence(text):
            return {"raw": text, "tokens": text.split()}

        images = [
            {"filename": f"{n}.png", "split": ("train", "val")[n % 2], "sentences": [sentence(text)], "imgid": n}
            for n, text in enumerate(texts)
        ]
        return json.dumps({"images": images, "dataset": "made"}).encode()
    if kind == "csv":
        return b"filepath,title\n" + "".join(f"{n}.png,{text}\n" for n, text in enumerate(texts)).encode()

    def row(n):
        return {"image": f"{n}.png", "caption": [texts[n], "two"], "id": f"row{n}", "labels": ["x", n]}

    return "\n".join(json.dumps(row(n) | {"group": f"g{n}"}, ensure_ascii=False) for n in range(ROWS)).encode()


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("kind", ["jsonl", "karpathy", "csv"])
def test_a_damaged_file_is_read_or_refused(kind, count, pictures, tmp_path, capsys):
    """A mutated file gives a data set, or one sentence and no folder."""
    draw, whole, read = np.random.default_rng(11), described(kind), 0
    source = ["karpathy", "--images", str(pictures)] if kind == "karpathy" else ["jsonl", "--root", str(pictures)]
    for number in range(count):
        path, out = tmp_path / f"{number}.json", tmp_path / f"set{number}"
        path.write_bytes(mutated(whole, draw, TOKENS) if number else whole)
        code = main(["data", "prepare", *source, "--path", str(path), "--out", str(out), "--allow-bad"])
        check_answer(code, capsys.readouterr().err)
        assert out.exists() == (code == 0)
        read += code == 0
    assert kind == "csv" or read > count // 20
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF"])
@pytest.mark.parametrize("count", counts(20))
def test_a_set_with_damaged_pictures_is_prepared(kind, count, tmp_path, capsys):
    """`data prepare --allow-bad` reads or counts each picture: rows = records + skipped."""
    draw, rows = np.random.default_rng(7), []
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (24, 1))
    whole = encoded(Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], -1)), kind)
    for number in range(count):
        (tmp_path / f"{number}.png").write_bytes(whole if number % 4 == 0 else mutated(whole, draw))
        rows.append({"image": f"{number}.png", "caption": f"number {number}"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    code = main(
        [
            "data",
            "prepare",
            "jsonl",
            "--path",
            str(tmp_path / "pairs.jsonl"),
            "--out",
            str(tmp_path / "set"),
            "--held-out",
            "2",
            "--allow-bad",
        ]
    )
    printed = capsys.readouterr()
    check_answer(code, printed.err, (0,))
    records = sum(int(found) for found in re.findall(r": (\d+) records", printed.out))
    skipped = sum(int(found) for found in re.findall(r"skipped: (\d+) x", printed.out))
    assert records >= count // 4 and skipped > 0 and records + skipped == len(rows)


@pytest.mark.parametrize("count", counts())
def test_a_damaged_card(count, shapes_files, shapes_data, opened_run, tmp_path, capsys):
    """A card that was changed is refused by its field, by `prepare` and by what reads the pictures of a split."""
    folder = tmp_path / "set"
    shutil.copytree(shapes_data, folder)
    draw, card = np.random.default_rng(3), folder / "card.json"
    whole, config = card.read_bytes(), opened_run[0].config
    for _ in range(count):
        restore(card, mutated(whole, draw, TOKENS))
        code = main(["data", "prepare", "jsonl", "--path", str(shapes_files), "--out", str(folder)])
        check_answer(code, capsys.readouterr().err)
        try:
            found = eval_split(str(folder), "test", opened_run[0].specs, config.eval_data)
            next(found.left.blocks(4))
        except UserError as error:
            assert str(error)


@pytest.mark.parametrize("count", counts())
def test_damaged_records(count, shapes_data, opened_run, tmp_path):
    """A shard, a column of a sidecar or another file is changed: the split is read, or one sentence says why not."""
    folder = tmp_path / "set"
    shutil.copytree(shapes_data, folder)
    draw, config = np.random.default_rng(4), opened_run[0].config
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "card.json")
    originals = {path: path.read_bytes() for path in paths}
    for number in range(count):
        path = paths[number % len(paths)]
        restore(path, mutated(originals[path], draw))
        try:
            found = eval_split(str(folder), "test", opened_run[0].specs, config.eval_data)
            sum(1 for _ in found.left.blocks(4))
        except UserError as error:
            assert str(error)
        restore(path, originals[path])


@pytest.mark.parametrize("count", counts(40))
def test_a_damaged_run(count, tiny_run, tmp_path):
    """A file of the last checkpoint, or run.json, that was changed: the run is opened whole, or a sentence names it."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run[0], folder)
    draw = np.random.default_rng(8)
    paths = [path for path in sorted(pathlib.Path(folder, "checkpoints").rglob("*")) if path.is_file()]
    paths += [folder / "run.json", folder / "tokenizer-text.json"]
    originals = {path: path.read_bytes() for path in paths}
    for number in range(count):
        path = paths[(number * 7) % len(paths)]
        restore(path, mutated(originals[path], draw, TOKENS if path.suffix == ".json" else ()))
        try:
            open_run(folder)
        except UserError as error:
            assert str(error)
        for other in paths:  # a damaged checkpoint may have been set aside
            other.parent.mkdir(parents=True, exist_ok=True)
            restore(other, originals[other])
