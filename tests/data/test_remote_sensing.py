"""Text layout and ALBEF-style lists of remote-sensing sets, on made-up files; Karpathy JSON with their quirks."""

import json

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.source import Item, Skip
from xmodal_jax.data.sources.karpathy import karpathy_source
from xmodal_jax.data.sources.remote_sensing import albef_source, precomp_source
from xmodal_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, encoded):
    """A folder with six TIFF pictures in `images`."""
    (tmp_path / "images").mkdir()
    for n in range(6):
        (tmp_path / "images" / f"field_{n}.tif").write_bytes(encoded(np.full((8, 8, 3), 30 * n, np.uint8), "TIFF"))
    return tmp_path


def texts(n):
    return [f"a field number {n}", f"a green field {n}", "many trees", "some fields", f"plot {n}"]


@pytest.fixture
def precomp(folder):
    """Training names once each, test names once per caption."""
    caps, names = [text for n in range(4) for text in texts(n)], [f"field_{n}.tif" for n in range(4)]
    (folder / "train_caps.txt").write_text("\n".join(caps) + "\n")
    (folder / "train_filename.txt").write_text("\n".join(names) + "\n")
    caps, names = [text for n in (4, 5) for text in texts(n)], [f"field_{n}.tif" for n in (4, 5) for _ in range(5)]
    (folder / "test_caps.txt").write_text("\r\n".join(caps) + "\r\n")
    (folder / "test_filename.txt").write_text("\r\n".join(names))
    return folder


def test_names_given_once_and_names_given_per_caption(precomp):
    items = list(precomp_source(precomp).items())
    assert [(item.key, item.split) for item in items] == [
        (f"field_{n}.tif", "train" if n < 4 else "test") for n in range(6)
    ]
    assert all(item.captions == {"en": texts(n)} for n, item in enumerate(items))


def test_validation_lists_of_amfmn_take_the_place_of_the_plain_ones(precomp):
    for split, pictures in (("train", (0, 1, 2)), ("val", (3,))):
        caps = [text for n in pictures for text in texts(n)]
        (precomp / f"{split}_caps_verify.txt").write_text("\n".join(caps) + "\n")
        names = [f"field_{n}.tif" for n in pictures]
        (precomp / f"{split}_filename_verify.txt").write_text("\n".join(names) + "\n")
    found = [(item.key, item.split) for item in precomp_source(precomp).items()]
    splits = ("train", "train", "train", "val", "test", "test")
    assert found == [(f"field_{n}.tif", split) for n, split in enumerate(splits)]


def test_empty_captions_are_dropped_and_counted(precomp, tmp_path):
    lines = (precomp / "train_caps.txt").read_text().split("\n")
    lines[5:10], lines[19] = [""] * 5, " "  # a whole picture, and the last caption of the file
    (precomp / "train_caps.txt").write_text("\n".join(lines))
    found = list(precomp_source(precomp).items())
    assert [item.reason for item in found if isinstance(item, Skip)] == ["empty caption"] * 6
    kept = {item.key: item.captions["en"] for item in found if isinstance(item, Item)}
    assert "field_1.tif" not in kept and kept["field_3.tif"] == texts(3)[:4] and kept["field_2.tif"] == texts(2)
    assert (
        main(["data", "prepare", "precomp", "--path", str(precomp), "--out", str(tmp_path / "s"), "--allow-bad"]) == 0
    )
    assert Card.load(tmp_path / "s").skipped == {"empty caption": 6}


@pytest.mark.parametrize("drop", [1, 4])
def test_any_other_ratio_is_refused_by_name(precomp, drop):
    lines = (precomp / "train_caps.txt").read_text().splitlines()
    (precomp / "train_caps.txt").write_text("\n".join(lines[drop:]))
    with pytest.raises(UserError, match=rf"train_caps\.txt has {20 - drop} lines and train_filename\.txt 4;"):
        precomp_source(precomp)


def test_missing_lists_are_refused(precomp):
    (precomp / "test_filename.txt").unlink()
    with pytest.raises(UserError, match=r"list of file names .*test_filename\.txt does not exist"):
        precomp_source(precomp)
    for name in ("train_caps.txt", "test_caps.txt"):
        (precomp / name).unlink()
    with pytest.raises(UserError, match=r"has no train_caps\.txt, val_caps\.txt or test_caps\.txt"):
        precomp_source(precomp)
    (precomp / "val_caps.txt").write_bytes(b"caf\xe9")
    (precomp / "val_filename.txt").write_text("a")
    with pytest.raises(UserError, match=r"val_caps\.txt is not UTF-8"):
        precomp_source(precomp)


def test_prepare_prints_what_can_be_reached(precomp, tmp_path, capsys):
    assert main(["data", "prepare", "precomp", "--path", str(precomp), "--out", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    # test: "many trees" and "some fields" on both pictures: (3 + 2 / 2) / 5 of the queries, 8 texts of 10
    assert "test: 2 records, 10 captions" in said
    assert "text to image 80.0 / 100.0 / 100.0" in said
    assert "'en' captions: 10, 8 different, 5.00 different per picture, 40.0 % shared by pictures" in said


# --- ALBEF-style lists ----------------------------------------------------------------------------------------------


@pytest.fixture
def albef(folder):
    """One row per caption in training, one per picture in validation and test, as in RSITMD's lists."""
    train = [
        {"caption": text, "image": f"field_{n}.tif", "image_id": n, "label_name": "field", "label": 3}
        for n in range(4)
        for text in texts(n)
    ]
    (folder / "rsitmd_train.json").write_text(json.dumps(train))
    for n, split in ((4, "val"), (5, "test")):
        rows = [{"image": f"field_{n}.tif", "caption": texts(n)}]
        (folder / f"rsitmd_{split}.json").write_text(json.dumps(rows))
    return folder


def test_rows_of_one_picture_are_one_item(albef):
    items = list(albef_source(albef).items())
    assert [item.key for item in items] == [f"field_{n}.tif" for n in range(6)]
    assert [item.split for item in items] == ["train"] * 4 + ["val", "test"]
    assert all(item.captions == {"en": texts(n)} for n, item in enumerate(items))
    assert [item.labels for item in items] == [("field",)] * 4 + [()] * 2


def test_two_sets_in_a_folder_are_told_apart_by_name(albef):
    (albef / "rsicd_test.json").write_text(json.dumps([{"image": "field_0.tif", "caption": "a"}]))
    with pytest.raises(
        UserError, match=r"holds rsicd_test\.json and rsitmd_test\.json; .*.option 'name'., such as 'rsitmd'"
    ):
        albef_source(albef)
    (item,) = albef_source(albef, name="rsicd").items()
    assert item.captions == {"en": ["a"]} and item.split == "test"
    with pytest.raises(UserError, match=r"has no ucm_train\.json"):
        albef_source(albef, name="ucm")


def test_broken_rows_and_empty_captions_are_counted(albef):
    rows = [{"image": "field_0.tif", "caption": ["", None, "a"]}, {"caption": "lost"}, 3, {"image": 3, "caption": "b"}]
    (albef / "rsitmd_test.json").write_text(json.dumps(rows))
    found = [item for item in albef_source(albef).items() if isinstance(item, Skip) or item.split == "test"]
    assert [item.reason for item in found[:-1]] == ["broken row"] * 3 + ["empty caption"] * 2
    assert found[0].where == "rsitmd_test.json: row 1" and found[-1].captions == {"en": ["a"]}


@pytest.mark.parametrize(("content", "words"), [("{", "is not JSON"), ("{}", "is not a JSON list of rows")])
def test_files_that_are_no_lists_are_refused(albef, content, words):
    (albef / "rsitmd_val.json").write_text(content)
    with pytest.raises(UserError, match=rf"rsitmd_val\.json {words}"):
        albef_source(albef)


# --- Karpathy JSON --------------------------------------------------------------------------------------------------


def test_karpathy_json_with_keywords_and_without_raw(folder):
    sentences = [
        {"tokens": ["many", "trees"], "keywords": ["tree", "green"]},
        {"raw": "a field .", "keywords": "green, field"},
        {"raw": ""},
    ]
    rows = [
        {"filename": "field_0.tif", "split": "train", "sentences": sentences},
        {"filename": "field_1.tif", "split": "test", "sentences": [{"raw": "b"}], "keywords": ["plot"]},
        {"filename": "field_2.tif", "split": "test", "sentences": ["b"]},
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": rows, "dataset": "rsitmd"}))
    empty, first, second, broken = karpathy_source(folder / "dataset.json").items()
    assert empty.reason == "empty caption" and broken.reason == "broken row"
    assert first.captions == {"en": ["many trees", "a field ."], "en-keywords": ["tree, green, field"]}
    assert second.captions == {"en": ["b"], "en-keywords": ["plot"]}
