"""SCAN's folders: regions without pictures are trained on, evaluated, indexed and shown; bad files are a sentence."""

import json
import re

import numpy as np
import pytest
from tiny import input_specs

from xmodal_jax.api import load
from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.features import GivenFeatures
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import open_records, pictures
from xmodal_jax.data.source import Item, Skip, memory_source
from xmodal_jax.data.sources.scan import scan_source
from xmodal_jax.data.split import Split
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

REGIONS, WIDTH = 4, 6
COUNTS = {"train": 24, "dev": 4, "test": 8}
COLOURS = ("red", "green", "blue", "grey", "black", "white", "pink", "brown")
CFG = DataConfig(features=("regions",))


def regions(start, count):
    """float32 [count,N,D]: one region says the colour, and the others are small noise."""
    draw = np.random.default_rng(len(start))
    found = 0.1 * draw.normal(size=(count, REGIONS, WIDTH)).astype(np.float32)
    for number in range(count):
        found[number, number % REGIONS] = np.unpackbits(np.uint8([number % 8]), bitorder="little")[:WIDTH] * 4.0
    return found


def captions(count):
    """Five captions of each picture."""
    words = [COLOURS[number % 8] for number in range(count)]
    return [f"{text} {word} thing" for word in words for text in ("a", "one", "the", "some", "this")]


def write(folder, start, rows, texts):
    np.save(folder / f"{start}_ims.npy", rows)
    (folder / f"{start}_caps.txt").write_text("\n".join(texts) + "\n")


@pytest.fixture
def scan(tmp_path):
    """A folder with a row for each training and test picture, and five for each of "dev"."""
    folder = tmp_path / "scan_precomp"
    folder.mkdir()
    for start, count in COUNTS.items():
        rows = regions(start, count)
        write(folder, start, np.repeat(rows, 5, axis=0) if start == "dev" else rows, captions(count))
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The data set of such a folder, with concepts."""
    folder = tmp_path_factory.mktemp("scan")
    for start, count in COUNTS.items():
        write(folder, start, regions(start, count), captions(count))
    assert main(["data", "prepare", "scan", "--path", str(folder), "--out", str(folder / "set")]) == 0
    assert main(["data", "concepts", "--data", str(folder / "set"), "--count", "6"]) == 0
    return folder / "set"


def test_rows_and_captions_become_items(scan):
    source = scan_source(scan)
    items = list(source.items())
    assert source.total == len(items) == 36 and {item.split for item in items} == {"train", "val", "test"}
    for start, split in (("train", "train"), ("dev", "val"), ("test", "test")):
        own = [item for item in items if item.split == split]
        assert [item.key for item in own] == [f"{split}-{number}" for number in range(COUNTS[start])]
        found = np.stack([item.features["regions"]["regions"] for item in own])
        np.testing.assert_array_equal(found, regions(start, COUNTS[start]))
        assert [text for item in own for text in item.captions["en"]] == captions(COUNTS[start])


@pytest.mark.parametrize("repeats", [1, 5])
def test_ids_name_the_pictures(scan, repeats):
    names = [f"{number}.jpg" for number in range(COUNTS["test"])]
    (scan / "test_ids.txt").write_text("\n".join(np.repeat(names, repeats)))
    keys = [item.key for item in scan_source(scan).items() if item.split == "test"]
    assert keys == [f"test-{name}" for name in names]


def test_empty_captions_are_left_out_and_cocos_second_test_split_is_read(scan):
    write(scan, "testall", regions("testall", 2), ["", *captions(2)[1:5], *[" "] * 5])
    found = [item for item in scan_source(scan).items() if isinstance(item, Skip) or item.split == "testall"]
    assert [one.reason for one in found if isinstance(one, Skip)] == ["empty caption"] * 6
    assert [len(one.captions["en"]) for one in found if isinstance(one, Item)] == [4]


def nan(folder):
    rows = regions("train", COUNTS["train"])
    rows[3, 1, 2] = np.nan
    np.save(folder / "train_ims.npy", rows)


def cut(folder):
    data = (folder / "train_ims.npy").read_bytes()
    (folder / "train_ims.npy").write_bytes(data[: len(data) // 2])


def other_rows(folder):
    rows = np.repeat(regions("dev", 4), 5, axis=0)
    rows[7] += 1.0
    np.save(folder / "dev_ims.npy", rows)


BAD = {
    "gone": (lambda f: (f / "dev_ims.npy").unlink(), r"array of features .*dev_ims.npy does not exist"),
    "no captions": (lambda f: (f / "test_caps.txt").unlink(), r"list of captions .*test_caps.txt does not exist"),
    "nothing": (lambda f: [path.unlink() for path in f.iterdir()], "has no train_ims.npy, dev_ims.npy or test_ims.npy"),
    "fewer lines": (
        lambda f: (f / "train_caps.txt").write_text("a\n" * 119),
        "train_caps.txt has 119 lines and train_ims.npy 24 rows; 5 lines belong to each picture",
    ),
    "one line a row": (
        lambda f: (f / "train_caps.txt").write_text("a\n" * 24),
        "has 24 lines and train_ims.npy 24 rows",
    ),
    "flat": (
        lambda f: np.save(f / "test_ims.npy", np.zeros((8, 6), np.float32)),
        r"test_ims.npy is float32 \[8, 6\]; it must be floating-point \[pictures, regions, width\]",
    ),
    "whole numbers": (
        lambda f: np.save(f / "test_ims.npy", np.zeros((8, 4, 6), np.int32)),
        r"test_ims.npy is int32 \[8, 4, 6\]",
    ),
    "objects": (
        lambda f: np.save(f / "test_ims.npy", np.array([None] * 8, object)),
        "test_ims.npy cannot be read as an array of numbers",
    ),
    "cut": (cut, "train_ims.npy cannot be read as an array of numbers"),
    "text": (lambda f: (f / "train_ims.npy").write_text("hello"), "train_ims.npy cannot be read as an array"),
    "another width": (
        lambda f: np.save(f / "test_ims.npy", np.zeros((8, 4, 5), np.float32)),
        r"test_ims.npy has float32 \[8, 4, 5\] and train_ims.npy float32 \[24, 4, 6\]",
    ),
    "few ids": (lambda f: (f / "dev_ids.txt").write_text("1\n2\n"), "dev_ids.txt has 2 lines for 4 pictures"),
    "equal ids": (lambda f: (f / "dev_ids.txt").write_text("1\n" * 4), "dev_ids.txt names two pictures alike"),
    "not finite": (nan, "train_ims.npy: row 3 has NaN or infinite numbers"),
    "too large": (
        lambda f: np.save(f / "train_ims.npy", regions("train", 24) + 1e6),
        "features 'regions' of 'train-0': a token is not finite in float16",
    ),
    "rows that differ": (other_rows, "dev_ims.npy has a row for each caption, so the 5 rows from 5 on"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_end_in_one_sentence(scan, capsys, fault):
    spoil, complaint = BAD[fault]
    spoil(scan)
    assert main(["data", "prepare", "scan", "--path", str(scan), "--out", str(scan.parent / "set")]) == 2
    error = capsys.readouterr().err
    told = [line for line in error.splitlines() if line.startswith("xmodal: ")]
    assert len(told) == 1 and not (scan.parent / "set").exists()
    assert re.search(complaint, told[0]), told[0]


def test_the_two_sources_of_folders_called_precomp_name_each_other(scan, capsys):
    assert main(["data", "prepare", "precomp", "--path", str(scan), "--out", str(scan.parent / "set")]) == 2
    assert "holds features of pictures, as SCAN's folders do; write the source `scan`" in capsys.readouterr().err
    for path in scan.iterdir():
        path.unlink()
    (scan / "train_filename.txt").write_text("a.jpg\n")
    with pytest.raises(UserError, match="give their folder; for lists of pictures and captions write `precomp`"):
        scan_source(scan)


def test_regions_lie_in_a_cache_and_records_have_no_pictures(prepared):
    card = Card.load(prepared)
    entry = {"tower": "regions", "size": 0, "tokens": REGIONS, "width": WIDTH, "views": ["plain"], "dtype": "float16"}
    entry |= {"medium": "image", "parts": 1, "pool": ""}
    assert {key: value for key, value in card.features["regions"].items() if key != "files"} == entry
    assert (card.views, card.without_pixels, card.copies) == (["regions"], ["regions"], {})
    with open_records(prepared, "train") as records:
        assert all(pictures(record) == {} for record in records)
        assert records[0]["media"] == {"image": {"regions": b""}}
    split = Split(prepared, "val", CFG)
    np.testing.assert_array_equal(split.tokens(2, "regions", True), regions("dev", 4)[2].astype(np.float16))
    assert split.record(2)["key"] == "val-2"
    split.close()


def test_regions_are_trained_on_and_evaluated_as_cached_grids_are(prepared):
    specs = input_specs(load_tokenizer("data", prepared), cached=True)
    dataset = train_dataset(prepared, "train", specs, CFG, 0, 6)
    batch, expected = dataset.batch_at(0), regions("train", 24).astype(np.float16)
    np.testing.assert_array_equal(batch["image"], expected[batch["index"]])
    dataset.close()
    (found,) = eval_split(prepared, "test", specs, CFG).left.blocks(8)
    np.testing.assert_array_equal(found["image"], regions("test", 8).astype(np.float16))


def test_an_encoder_of_pixels_is_told_what_to_write(prepared):
    specs = input_specs(load_tokenizer("data", prepared))
    for read in (
        lambda: train_dataset(prepared, "train", specs, DataConfig(), 0, 6),
        lambda: eval_split(prepared, "test", specs, DataConfig()),
    ):
        with pytest.raises(
            UserError,
            match=r"no pictures of the view 'regions', only features of them; write "
            r"config.encoders.image.kind='features' and config.data.features=\('reg",
        ):
            read()


def test_features_of_pictures_that_are_not_there_cannot_be_made(prepared, capsys):
    assert main(["data", "features", "--data", str(prepared)]) == 2
    assert "has no pictures, only features of them (regions); others are made of pictures" in capsys.readouterr().err


def test_prepared_again_it_is_kept_until_a_file_changes(scan, capsys):
    how = ["data", "prepare", "scan", "--path", str(scan), "--out", str(scan.parent / "set")]
    assert main(how) == 0 and main(how) == 0
    assert "no pictures of regions, but features of them: 'regions' 4 x 6" in capsys.readouterr().out
    write(scan, "test", regions("test", 8) + 1.0, captions(8))
    assert main(how) == 2
    assert "is older than its source: files of its source are 1 replaced" in capsys.readouterr().err
    assert main([*how, "--force"]) == 0
    split = Split(scan.parent / "set", "test", CFG)
    np.testing.assert_array_equal(split.tokens(0, "regions", False), (regions("test", 8)[0] + 1.0).astype(np.float16))
    split.close()


def test_some_records_may_have_features_and_others_pictures(tmp_path, encoded):
    """A cache has a row for each record; a view counts as without pixels if one record has features of it alone."""
    picture, tokens = encoded(np.zeros((8, 8, 3), np.uint8)), np.ones((2, 3), np.float32)
    items = [
        Item("a", {"seen": picture}, {"en": ["a"]}),
        Item("b", {}, {"en": ["b"]}, features={"own": {"told": tokens}}),
        Item("c", {"seen": picture}, {"en": ["c"]}, features={"own": {"seen": 2 * tokens}}),
        Item("d", {"seen": picture}, {"en": ["d"]}, split="test"),
    ]
    card = prepare(memory_source(items, "mixed"), tmp_path / "set")
    assert card.without_pixels == ["told"] and card.views == ["seen", "told"]
    with open_records(tmp_path / "set" / "features" / "own", "train") as rows:
        assert [list(row["tokens"]) for row in rows] == [[], ["told"], ["seen"]]
    with open_records(tmp_path / "set" / "features" / "own", "test") as rows:
        assert [row["tokens"] for row in rows] == [{}]


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        (np.ones(3, np.float32), r"features 'own' of 'a' are float32 \[3\]; give floating-point numbers"),
        (np.ones((2, 3), np.int64), r"are int64 \[2, 3\]"),
        (np.ones((2, 4), np.float32), r"have the shape \[2, 4\], others \[2, 3\]"),
    ],
)
def test_tokens_of_a_source_must_be_alike(tmp_path, tokens, complaint):
    writer = GivenFeatures(tmp_path, 1 << 20)
    writer.add(Item("z", {}, {}, features={"own": {"v": np.ones((2, 3), np.float16)}}), 0)
    with pytest.raises(UserError, match=complaint):
        writer.add(Item("a", {}, {}, features={"own": {"v": tokens}}), 1)
    writer.abort()
    with pytest.raises(UserError, match="features name 'a/b': use a plain word"):
        GivenFeatures(tmp_path, 1).add(Item("a", {}, {}, features={"a/b": {"v": np.ones((2, 3), np.float32)}}), 0)


@pytest.fixture(scope="session")
def region_run(prepared, tmp_path_factory):
    """A run on regions with concepts as a second task."""
    workdir = tmp_path_factory.mktemp("runs") / "regions"
    overrides = {
        "data.path": prepared,
        "data.features": "('regions',)",
        "data.concepts": "concepts",
        "encoders.image": "{'kind':'features','pool':'gpo'}",
        "encoders.text.tokenizer": "data",
        "objectives": "{'itc':{'queue':0},'multilabel':{}}",
        "batch_size": "8",
        "steps": "4",
        "eval.rerank": "()",
        "optimizer.warmup": "0",
    }
    changed = [f"--config.{name}={value}" for name, value in overrides.items()]
    assert main(["train", "--config", "quickstart:tiny", "--workdir", str(workdir), *changed]) == 0
    return workdir


def test_a_run_on_regions_trains_evaluates_and_is_indexed(region_run, capsys):
    lines = [json.loads(line) for line in (region_run / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "loss/multilabel" in line]
    assert told and all(np.isfinite(line["loss/multilabel"]) for line in told)
    assert {"multilabel/image", "multilabel/text_f1"} <= set(told[0])
    assert main(["eval", "--workdir", str(region_run)]) == 0
    out = region_run / "index"
    assert main(["index", "--workdir", str(region_run), "--out", str(out)]) == 0
    assert main(["search", "--index", str(out), "a red thing", "-k", "2"]) == 0
    assert "test-" in capsys.readouterr().out


def test_the_order_of_regions_means_nothing(region_run):
    run, draw = load(region_run), np.random.default_rng(0)
    assert run.config.encoders["image"].groups == (REGIONS,), "one set, pooled together"
    rows = regions("test", 8).astype(np.float16)
    mixed = np.stack([row[draw.permutation(REGIONS)] for row in rows])
    one, two = (run.embedder.rows("image", own).embed for own in (rows, mixed))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.abs(one[0] - one[1]).max() > 1e-3


def test_where_pictures_are_asked_for_it_is_said_that_there_are_none(region_run, tmp_path, encoded, capsys):
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    how = ["encode", "--workdir", str(region_run), "--out", str(tmp_path / "a.npy")]
    assert main([*how, str(tmp_path / "a.png")]) == 2
    assert "the run reads the features 'regions' that came with its data set" in capsys.readouterr().err
    assert main([*how, "--field", "text", "a red thing"]) == 0
    assert main(["eval", "--workdir", str(region_run), "--floor"]) == 2
    assert "split 'train' has no pictures; this floor is between pictures" in capsys.readouterr().err
    assert main(["eval", "--workdir", str(region_run)]) == 0
    pytest.importorskip("matplotlib")
    assert main(["report", "--workdir", str(region_run)]) == 0
    page = (region_run / "report.html").read_text("utf-8")
    assert "features of its pictures and not the pictures" in page and "data:image" in page
