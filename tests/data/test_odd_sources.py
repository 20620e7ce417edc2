"""Files as people have them: other formats and encodings, broken texts, pictures that are missing, rows of one id."""

import csv
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import CorruptRecord, open_records, pack
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, Skip, split_groups
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.data.sources.karpathy import karpathy_source
from xmodal_jax.data.sources.remote_sensing import albef_source, precomp_source
from xmodal_jax.data.textfile import mended, read_text, wide_encoding
from xmodal_jax.errors import UserError

HALF = "\ud83d"  # of an emoji
CAPTIONS = ["a dog", "un café", "犬", "a cat"]


@pytest.fixture
def pictures(tmp_path, encoded):
    """A folder with 40 whole pictures 0.png to 39.png."""
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(encoded(np.full((4, 4, 3), number, np.uint8)))
    return tmp_path


def lines(path, rows, **encoding):
    path.write_text("".join(json.dumps(row, **encoding) + "\n" for row in rows), "utf-8")
    return path


def found(source, kind=Item):
    return [item for item in source.items() if isinstance(item, kind)]


# --- half an emoji --------------------------------------------------------------------------------------------------


def test_half_an_emoji_becomes_a_replacement_mark_and_a_whole_one_stays():
    assert mended(f"a {HALF} b{HALF}") == "a \ufffd b\ufffd" and mended("\ude00") == "\ufffd"
    assert mended("\ud83d\ude00 café 犬") == "\U0001f600 café 犬"
    assert mended("plain") == "plain"


def test_half_an_emoji_anywhere_in_a_row_costs_no_other_row(pictures):
    rows = [
        {"image": "0.png", "caption": f"nice dog {HALF}"},
        {"image": "1.png", "caption": "in the id", "id": f"s{HALF}"},
        {"image": "2.png", "caption": "in a label", "labels": [HALF]},
        {"image": "3.png", "caption": "in the group", "group": f"g{HALF}"},
        {"image": "4.png", "caption": "in the split", "split": HALF},
        {"image": f"{HALF}.png", "caption": "in the path"},
        {"views": {HALF: "6.png"}, "caption": {HALF: "in a view and a language"}},
        {"image": "7.png", "caption": "whole \U0001f600"},
    ]
    path = lines(pictures / "rows.jsonl", rows)  # json.dumps writes surrogates as escapes
    card = prepare(jsonl_source(path, held_out=2), pictures / "out", allow_bad=True)
    assert card.skipped == {"split that is no plain name": 1, "missing image": 1}
    records = {}
    for split in ("train", "test"):
        own = Sidecar(pictures / "out", card, split)
        records |= {own.keys[row]: (own.captions(row), own.groups[row], own.views(row)) for row in range(len(own))}
    assert set(records) == {"0.png", "s\ufffd", "2.png", "3.png", "6.png", "7.png"}
    assert records["0.png"][0] == {"en": ["nice dog \ufffd"]}
    assert records["3.png"][1] == "g\ufffd" and card.label_names == ["\ufffd"]
    assert records["6.png"] == ({"\ufffd": ["in a view and a language"]}, "6.png", ["\ufffd"])
    assert records["7.png"][0] == {"en": ["whole \U0001f600"]}
    assert Card.load(pictures / "out") == card


def test_a_text_that_no_file_can_hold_is_no_record():
    with pytest.raises(CorruptRecord, match=r"half a surrogate pair: 'a\\ud83d'"):
        pack({"captions": {"en": [f"a{HALF}"]}})


def test_a_split_that_is_no_file_name_is_one_skip(pictures):
    rows = [
        {"image": f"{n}.png", "caption": "x", "split": split} for n, split in enumerate(("train", "a/b", "s" * 300))
    ]
    card = prepare(jsonl_source(lines(pictures / "x.jsonl", rows)), pictures / "out", allow_bad=True)
    assert card.skipped == {"split that is no plain name": 2} and list(card.splits) == ["train"]


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "cp1252"])
@pytest.mark.parametrize("kind", ["jsonl", "karpathy", "albef", "precomp"])
def test_another_encoding_is_named_with_the_command_that_converts_it(pictures, encoding, kind):
    captions = [caption for caption in CAPTIONS if encoding != "cp1252" or caption != "犬"]
    rows = [{"image": f"{n}.png", "caption": caption + " é"} for n, caption in enumerate(captions)]

    def dump(content):
        return json.dumps(content, ensure_ascii=False)

    sentences = [{"filename": row["image"], "split": "train", "sentences": [{"raw": row["caption"]}]} for row in rows]
    name, text, make = {
        "jsonl": ("x.jsonl", "\n".join(map(dump, rows)), lambda: jsonl_source(pictures / "x.jsonl")),
        "karpathy": ("x.json", dump({"images": sentences}), lambda: karpathy_source(pictures / "x.json", pictures)),
        "albef": ("train.json", dump(rows), lambda: albef_source(pictures, pictures)),
        "precomp": ("train_caps.txt", "".join(row["caption"] + "\n" for row in rows), None),
    }[kind]
    if kind == "precomp":
        (pictures / "train_filename.txt").write_text("".join(row["image"] + "\n" for row in rows))

        def make():
            return precomp_source(pictures, pictures)

    (pictures / name).write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="UTF-8.*iconv") as error:
        make()
    command = str(error.value)[str(error.value).index("iconv") :]
    subprocess.run(command, shell=True, check=True, cwd=pictures)
    converted = pictures / command.split(" > ")[1]
    assert converted.name == f"{(pictures / name).stem}-utf8{(pictures / name).suffix}"
    converted.replace(pictures / name)
    assert [item.captions["en"] for item in found(make())] == [[row["caption"]] for row in rows]


def test_a_byte_order_mark_and_old_line_ends_are_no_fault(pictures):
    rows = [{"image": f"{n}.png", "caption": caption} for n, caption in enumerate(CAPTIONS)]
    for end in ("\n", "\r\n", "\r"):
        text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
        (pictures / "x.jsonl").write_bytes(text.encode("utf-8-sig"))
        got = found(jsonl_source(pictures / "x.jsonl"))
        assert [item.captions["en"] for item in got] == [[caption] for caption in CAPTIONS]


def test_a_few_lines_of_another_encoding_are_skips(pictures):
    rows = [json.dumps({"image": f"{n}.png", "caption": "é"}, ensure_ascii=False).encode() for n in range(8)]
    rows[3] = rows[3].decode().encode("latin-1")
    (pictures / "x.jsonl").write_bytes(b"\n".join(rows))
    source = jsonl_source(pictures / "x.jsonl")
    assert found(source, Skip) == [Skip("line that is not UTF-8 (iconv converts it)", "line 4")]
    assert len(found(source)) == 7


def test_wide_texts_are_known_by_their_first_bytes():
    for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert wide_encoding("{}".encode(name)) == name.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert [wide_encoding(data) for data in (b"", b"a", b"{}", b"\0\0\0\0", "犬犬".encode(), b"PAR1")] == [""] * 6


def test_text_that_may_hold_any_bytes_is_read_leniently(tmp_path):
    (tmp_path / "tags.txt").write_bytes(b"caf\xe9\r\nsky")
    assert read_text(tmp_path / "tags.txt", lenient=True) == "caf\ufffd\nsky"
    with pytest.raises(UserError, match=r"tags.txt is not UTF-8 text \(line 1 has the byte 0xe9\)"):
        read_text(tmp_path / "tags.txt")


# --- other formats --------------------------------------------------------------------------------------------------


def rows_of(count=6):
    return [{"image": f"{n}.png", "caption": f'the "picture", {n} é'} for n in range(count)]


def table(path, dialect, names):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, dialect)
        writer.writerows([names, *([row["image"], row["caption"]] for row in rows_of())])


def coco():
    images = [{"id": 7 + n, "file_name": row["image"]} for n, row in enumerate(rows_of())]
    notes = [{"id": n, "image_id": 7 + n, "caption": row["caption"]} for n, row in enumerate(rows_of())]
    return {"info": {}, "images": images, "annotations": notes}


@pytest.mark.parametrize(
    ("name", "words", "write"),
    [
        (
            "pairs.tsv",
            "TSV with the columns filepath, title",
            lambda path: table(path, "excel-tab", ("filepath", "title")),
        ),
        ("my pairs.csv", "CSV with the columns image, text", lambda path: table(path, "excel", ("image", "text"))),
        ("blip.json", "BLIP and ALBEF.*source `albef` reads", lambda path: path.write_text(json.dumps(rows_of()))),
        ("long.json", "one JSON list", lambda path: path.write_text(json.dumps(rows_of(), indent=1))),
        ("captions_val.json", "COCO's list of captions", lambda path: path.write_text(json.dumps(coco()))),
    ],
)
@pytest.mark.parametrize("make", [jsonl_source, karpathy_source])
def test_a_known_format_is_named_with_the_command_that_converts_it(pictures, name, words, write, make):
    write(pictures / name)
    with pytest.raises(UserError, match=words) as error:
        make(pictures / name)
    message = str(error.value)
    command = message[message.index("python -c") :]
    subprocess.run(f"{sys.executable}{command.removeprefix('python')}", shell=True, check=True, cwd=pictures)
    (written,) = pictures.glob("*.jsonl")
    got = found(jsonl_source(written))
    assert [item.captions["en"] for item in got] == [[row["caption"]] for row in rows_of()]
    assert [item.images["image"] for item in got] == [(pictures / row["image"]).read_bytes() for row in rows_of()]


def test_what_has_no_command_is_named_too(pictures, encoded):
    def tar(path):
        import tarfile

        with tarfile.open(path, "w") as file:
            file.add(pictures / "0.png", "0.png")

    (pictures / "shards").mkdir()
    tar(pictures / "shards" / "00000.tar")
    for name in ("tables", "albef", "empty"):
        (pictures / name).mkdir()
    (pictures / "tables" / "0.parquet").write_bytes(b"PAR1")
    (pictures / "albef" / "coco_karpathy_train.json").write_text("[]")
    (pictures / "x.parquet").write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    (pictures / "x.gz").write_bytes(b"\x1f\x8b\x08" + bytes(20))
    lines(pictures / "keys.jsonl", [{"file_name": "0.png", "text": "x"}] * 3)
    lines(pictures / "silent.jsonl", [{"image": "0.png", "text": "x"}] * 3)
    (pictures / "words.txt").write_text("nothing\nof the kind\n")
    karpathy = {"images": [{"filename": "0.png", "split": "train", "sentences": [{"raw": "x"}]}]}
    (pictures / "dataset_x.json").write_text(json.dumps(karpathy))
    for name, words in {
        "shards": "folder of tar archives, as WebDataset",
        "shards/00000.tar": "a tar archive, as WebDataset",
        "tables": "a folder of Parquet tables",
        "x.parquet": "a Parquet table",
        "x.gz": "compressed by gzip; unpack it with gunzip",
        "albef": "source `albef` reads those",
        "empty": "a folder; give a file",
        ".": "a folder that holds JSON Lines; give the file in it",
        "keys.jsonl": "JSON whose rows have the keys file_name, text",
        "silent.jsonl": "JSON whose rows have the keys image, text",
        "words.txt": "is not JSON Lines with rows as .*; give another file",
        "0.png": "a picture",
        "dataset_x.json": "a Karpathy file; source `karpathy` reads it",
    }.items():
        with pytest.raises(UserError, match=words):
            jsonl_source(pictures / name)
    lines(pictures / "pairs.jsonl", rows_of())
    with pytest.raises(UserError, match="but JSON Lines; source `jsonl` reads them"):
        karpathy_source(pictures / "pairs.jsonl")
    (pictures / "cut.json").write_text(json.dumps(karpathy)[:-20])
    with pytest.raises(UserError, match=r"cut\.json is not a Karpathy file .* but JSON that cannot be read"):
        karpathy_source(pictures / "cut.json")
    with pytest.raises(UserError, match="folder of JSON lists .* is no folder: give the path of an existing folder"):
        albef_source(pictures / "dataset_x.json")


# --- what is held out -----------------------------------------------------------------------------------------------


def damage(pictures, names):
    """Half of the pictures are gone, the others end early."""
    for number, name in enumerate(sorted(names)):
        (pictures / name).unlink() if number % 2 else (pictures / name).write_bytes(b"\x89PNG\r\n\x1a\n\0\0")


def test_the_number_asked_for_is_drawn_among_what_can_be_read(pictures, caplog):
    rows = [{"image": f"{n}.png", "caption": f"number {n}"} for n in range(40)]
    path = lines(pictures / "rows.jsonl", rows)
    first = {item.key for item in found(jsonl_source(path, held_out=10)) if item.split == "test"}
    assert first == {
        row["image"]
        for row, split in zip(rows, split_groups([row["image"] for row in rows], 10), strict=True)
        if split == "test"
    }, "whole pictures: by the hash of the groups"
    damage(pictures, first)
    card = prepare(jsonl_source(path, held_out=10), pictures / "out", allow_bad=True)
    assert card.splits["test"]["records"] == 10 and card.splits["train"]["records"] == 20
    assert card.skipped == {"missing image": 5, "corrupt image": 5} and "drew" not in caplog.text
    with open_records(pictures / "out", "test") as records:
        once = [record["key"] for record in records]
    again = [item.key for item in found(jsonl_source(path, held_out=10)) if item.split == "test"]
    assert sorted(once) == sorted(again) and not first & set(once)


def test_fewer_than_asked_for_are_said(pictures, caplog):
    rows = [{"image": f"{n}.png", "caption": "x", "group": f"g{n // 2}"} for n in range(6)]
    source = jsonl_source(lines(pictures / "rows.jsonl", rows), held_out=5)
    with caplog.at_level(logging.WARNING):
        splits = [item.split for item in found(source)]
    assert splits.count("test") == 4 and "drew 4 of the 5 records asked for" in caplog.text


# --- rows of one id, and what an id is ------------------------------------------------------------------------------


def test_rows_of_one_id_and_picture_are_one_item_with_all_captions(pictures):
    rows = [
        {"id": 9, "image": "0.png", "caption": "one"},
        {"id": 8, "image": "1.png", "caption": "other"},
        {"id": 9.0, "image": "0.png", "caption": {"en": "two", "de": "zwei"}, "labels": ["x"]},
        {"id": "9", "image": "0.png", "caption": "three", "labels": ["x", "y"]},
        {"id": 9, "image": "2.png", "caption": "another picture"},
    ]
    got = list(jsonl_source(lines(pictures / "rows.jsonl", rows)).items())
    assert [(item.key, item.captions, item.labels) for item in got[:2]] == [
        ("9", {"en": ["one", "two", "three"], "de": ["zwei"]}, ("x", "y")),
        ("8", {"en": ["other"]}, ()),
    ]
    assert got[2:] == [Skip("key occurs twice", "9 in line 5, first in line 1")]


def test_a_field_is_a_text_or_a_number_or_nothing(pictures):
    nan = float("nan")
    rows = [
        {"id": nan, "image": "0.png", "caption": "x", "group": 0, "labels": [None, nan, 2.0, "x"]},
        {"id": "b", "image": "1.png", "caption": "x", "group": 0, "labels": nan, "split": 3},
        {"id": [1], "image": "2.png", "caption": "x"},
        {"id": True, "image": "3.png", "caption": "x"},
        {"id": "e", "image": "4.png", "caption": "x", "labels": {"a": 1}},
    ]
    one, other, *rest = jsonl_source(lines(pictures / "rows.jsonl", rows)).items()
    assert (one.key, one.labels, one.group) == ("0.png", ("2", "x"), "0")
    assert (other.key, other.labels, other.group, other.split) == ("b", (), "0", "3"), "group 0 is a group"
    where = ["line 3: list", "line 4: bool", "line 5: dict"]
    reason = "id, label, group or split that is no text"
    assert rest == [Skip(reason, f"{start} where a text must be") for start in where]


def test_deep_and_long_values_are_broken_lines(pictures):
    rows = [
        "[" * 100_000,
        '{"image": "0.png", "caption": "x", "id": ' + "9" * 5000 + "}",
        '{"image": "0.png", "caption": "y"}',
    ]
    (pictures / "rows.jsonl").write_text("\n".join(rows))
    skips = found(jsonl_source(pictures / "rows.jsonl"), Skip)
    assert skips == [Skip("broken JSON line", "line 1"), Skip("broken JSON line", "line 2")]
    (pictures / "x.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"x\.json is not a Karpathy file"):
        karpathy_source(pictures / "x.json", pictures)


# --- Karpathy -------------------------------------------------------------------------------------------------------


def test_one_file_name_in_two_folders_is_two_pictures(pictures, encoded):
    sentences = [{"raw": "x"}]
    rows = [{"filename": "only.png", "filepath": "a", "split": "train", "sentences": sentences}]
    for folder, split in (("a", "train"), ("b", "test")):
        (pictures / folder).mkdir()
        for number in range(3):
            (pictures / folder / f"{number}.png").write_bytes(
                encoded(np.full((2, 2, 3), ord(folder) + number, np.uint8))
            )
            rows.append({"filename": f"{number}.png", "filepath": folder, "split": split, "sentences": sentences})
    (pictures / "a" / "only.png").write_bytes(encoded(np.zeros((2, 2, 3), np.uint8)))
    (pictures / "x.json").write_text(json.dumps({"images": rows}))
    got = found(karpathy_source(pictures / "x.json", pictures))
    keys = ["only.png", *(f"{folder}/{number}.png" for folder in "ab" for number in range(3))]
    assert [item.key for item in got] == keys
    assert [item.images["image"] for item in got[1:]] == [(pictures / key).read_bytes() for key in keys[1:]]


def test_a_sentence_without_words_of_its_own_is_its_tokens(pictures):
    sentences = [
        {"raw": None, "tokens": ["a", "dog"]},
        {"raw": " ", "tokens": ["a", "cat"]},
        {"raw": "A cow .", "tokens": ["a", "cow"]},
        {"tokens": "a hen"},
        {"raw": "An ox", "tokens": None},
    ]
    rows = [{"filename": "0.png", "filepath": None, "split": "train", "sentences": sentences}]
    (pictures / "x.json").write_text(json.dumps({"images": rows}))
    (item,) = karpathy_source(pictures / "x.json", pictures).items()
    assert item.captions == {"en": ["a dog", "a cat", "A cow .", "a hen", "An ox"]}


def test_rows_of_nested_lists_are_broken_rows(pictures):
    deep = "[" * 900 + "]" * 900  # as deep as the parser goes, or nearly
    for field in ("filename", "split", "filepath", "sentences", "keywords"):
        row = {"filename": "0.png", "split": "train", "filepath": "", "sentences": [{"raw": "x"}], "keywords": []}
        text = json.dumps({"images": [row | {field: "DEEP"}, row]}).replace('"DEEP"', deep)
        (pictures / "x.json").write_text(text)
        skip, item = karpathy_source(pictures / "x.json", pictures).items()
        assert skip.reason == "broken row" and item.key == "0.png"


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--max-size", "--held-out"])
def test_impossible_numbers_are_refused_before_the_file_is_read(tmp_path, capsys, option):
    assert (
        main(["data", "prepare", "jsonl", "--path", "nowhere.jsonl", "--out", str(tmp_path / "o"), option, "-2"]) == 2
    )
    assert f"{option} is -2; write a whole number, and at least 0" in capsys.readouterr().err


def test_a_foreign_folder_is_refused_before_the_file_is_read(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["data", "prepare", "jsonl", "--path", "nowhere.jsonl", "--out", str(tmp_path)]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_folder_where_a_file_must_be_is_said(pictures, capsys):
    assert main(["data", "prepare", "jsonl", "--path", str(pictures), "--out", str(pictures / "out")]) == 2
    assert "a folder of pictures; write a file with one line" in capsys.readouterr().err
