"""The sidecar has all of a record but its pictures; a damaged one is refused; nobody reads records for captions."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from tiny import input_specs

from xmodal_jax.assemble import assemble, document_frequencies
from xmodal_jax.cli import main
from xmodal_jax.config_file import freeze, load
from xmodal_jax.data.card import Card
from xmodal_jax.data.columns import ColumnWriter, Texts, open_column
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.features import write_features
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import CorruptRecord, Records, RecordWriter, open_records, pack
from xmodal_jax.data.sidecar import COLUMNS, FOLDER, Sidecar, Sidecars
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.split import Split, split_captions
from xmodal_jax.data.text import load_tokenizer, used_ids
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

CFG = DataConfig()
ORDER = {"de": ["ein Bär", "zwei"], "en": ["A bear"], "fr": ["un"]}


@pytest.fixture
def opened(tmp_path, encoded, plain_colour):
    """A sidecar of three records: captions in an order of languages that is not the card's, one without labels."""
    png = encoded(plain_colour(0))
    items = [
        Item("a", {"x": png, "y": png}, {"en": ["one"]}, ("l1", "l2"), "g"),
        Item("b", {"y": png}, ORDER, (), "g"),
        Item("c", {"x": png}, {"en": ["a  BEAR", "one"], "de": ["Ein Ba\u0308r"]}, ("l2",), "h"),
    ]
    return Sidecar(tmp_path / "set", prepare(memory_source(items), tmp_path / "set"), "train")


def test_a_record_is_found_again_by_its_row(opened):
    assert opened.languages == ["en", "de", "fr"] and len(opened) == 3
    assert list(opened.keys) == ["a", "b", "c"] and list(opened.groups) == ["g", "g", "h"]
    assert [opened.views(row) for row in range(3)] == [["x", "y"], ["y"], ["x"]]
    assert [opened.labels(row) for row in range(3)] == [[0, 1], [], [1]] and len(set(opened.label_set.tolist())) == 3
    assert opened.captions(1) == ORDER and list(opened.captions(1)) == list(ORDER)
    assert opened.owner.tolist() == [0, 1, 1, 1, 1, 2, 2, 2] and opened.having("y").tolist() == [True, True, False]


def test_pairs_come_by_language_in_the_order_asked_for(opened):

    def said(pairs):
        return [opened.texts[pair] for pair in pairs]

    assert said(opened.pairs(1, ("fr", "de"))) == ["un", "ein Bär", "zwei"] and opened.pairs(0, ("de", "xx")) == []
    every = opened.all_pairs(("de", "en"))
    assert said(every) == ["one", "ein Bär", "zwei", "A bear", "Ein Ba\u0308r", "a  BEAR", "one"]
    assert every.tolist() == [pair for row in range(3) for pair in opened.pairs(row, ("de", "en"))]
    assert said(opened.all_pairs(("fr",))) == ["un"] and len(opened.all_pairs(("xx",))) == 0


def test_numbers_are_equal_for_the_same_text_alone(opened):
    number = dict(enumerate(opened.number.tolist()))
    same = {(one, other) for one in number for other in range(one) if number[one] == number[other]}
    assert same == {(5, 3), (6, 0), (7, 1)}  # "a bear", "one", "ein bär", whatever the case, spaces and Unicode form


def test_the_card_tells_the_captions_of_each_language(tiny_set, opened):
    entry = Card.load(tiny_set).splits["train"]
    assert entry["languages"] == {"en": 30, "fr": 18} and sum(entry["languages"].values()) == entry["captions"]
    assert sorted(entry["columns"]) == sorted(COLUMNS)
    sizes = {path.stem: path.stat().st_size for path in (tiny_set / FOLDER / "train").iterdir()}
    assert sizes == {name: facts["bytes"] for name, facts in entry["columns"].items()}


@pytest.fixture
def damaged(own_set):
    """A function (column, change of its bytes, or None to remove it) that damages the train split of `own_set`."""

    def damage(name, change):
        path = own_set / FOLDER / "train" / f"{name}.bin"
        content = path.read_bytes()
        path.unlink()
        if change is not None:
            path.write_bytes(change(content))
        return own_set

    return damage


@pytest.mark.parametrize("name", ["texts", "texts_starts", "owner", "keys", "label_set", "number"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (None, "cannot be read .No such file"),
        (lambda data: data[:-5], "is damaged"),
        (lambda data: data + b"\0\0\0\0", "is damaged"),
        (lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], "is damaged"),
        (lambda data: b"", "is damaged"),
    ],
    ids=["missing", "truncated", "longer", "a bit", "empty"],
)
def test_a_damaged_column_is_refused_by_name(damaged, tokenizer, name, change, why):
    folder = damaged(name, change)
    uses = (
        lambda: Split(folder, "train", CFG),
        lambda: split_captions(folder, "train"),
        lambda: eval_split(folder, "train", input_specs(tokenizer), CFG),
        lambda: train_dataset(folder, "train", input_specs(tokenizer), CFG, 0, 2),
    )
    for use in uses:
        with pytest.raises(
            UserError, match=rf"sidecar/train/{name}.bin' {why}.*prepare the data set again .option 'force'"
        ):
            use()


@pytest.mark.parametrize(
    "changes",
    [{"captions": 47}, {"records": 17}, {"languages": {"en": 30, "fr": 17}}],
)
def test_other_counts_than_the_card_says_are_refused(own_set, changes):
    content = json.loads((own_set / "card.json").read_text("utf-8"))
    content["splits"]["train"] |= changes
    (own_set / "card.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError, match=r"sidecar/train' does not have the 1[78] records and 4[78] captions.* again"):
        Split(own_set, "train", CFG)


@pytest.mark.parametrize(("field", "left"), [("languages", ["en"]), ("views", ["png"]), ("label_names", ["even"])])
def test_names_that_the_card_lacks_are_refused(own_set, field, left):
    content = json.loads((own_set / "card.json").read_text("utf-8")) | {field: left}
    (own_set / "card.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError, match="does not have .* languages, views and labels that the card says"):
        Split(own_set, "train", CFG)


def test_a_folder_or_card_without_a_sidecar_is_refused(own_set, tiny_items, capsys):
    card = json.loads((own_set / "card.json").read_text("utf-8"))
    del card["splits"]["train"]["columns"]["texts"]
    (own_set / "card.json").write_text(json.dumps(card), "utf-8")
    with pytest.raises(UserError, match="texts.bin' is damaged: it is not what the card says"):
        Split(own_set, "train", CFG)
    shutil.rmtree(own_set / FOLDER)
    with pytest.raises(UserError, match="prepare the data set again"):
        prepare(memory_source(tiny_items(), "tiny", "none"), own_set)  # it does not say "already prepared"
    assert main(["data", "features", "--data", str(own_set), "--size", "0"]) == 2
    prepare(memory_source(tiny_items(), "tiny", "none"), own_set, force=True)
    assert len(Sidecar(own_set, Card.load(own_set), "train")) == 18
    del card["splits"]["train"]["columns"]
    (own_set / "card.json").write_text(json.dumps(card), "utf-8")
    with pytest.raises(UserError, match="field 'splits.train.columns' must be a dict"):
        Split(own_set, "train", CFG)


def test_records_of_another_number_than_the_sidecar_are_refused(own_set, tmp_path, tiny_items):
    prepare(memory_source(tiny_items(8), "tiny", "none"), tmp_path / "small")
    (name,) = Card.load(own_set).splits["train"]["files"]
    shutil.copy(tmp_path / "small" / name, own_set / name)
    with pytest.raises(UserError, match="has 6 records and a sidecar of 18; prepare the data set again"):
        Split(own_set, "train", CFG)


@pytest.mark.parametrize("change", [{"key": "other"}, {"media": {"image": {"jpeg": b""}}}])
def test_a_record_of_another_row_is_corrupt(own_set, change):
    with open_records(own_set, "train") as records:
        rows = list(records)
    rows[3] |= change
    with RecordWriter(own_set, "train") as writer:
        for row in rows:
            writer.write(pack(row))
    with contextlib.closing(Split(own_set, "train", CFG)) as split:
        assert split.record(2)["key"] == "thing-3"
        with pytest.raises(CorruptRecord, match="row 3 is '.*' with views .*, not that of the sidecar"):
            split.record(3)


def test_a_column_that_changes_while_a_process_runs_is_seen(own_set, damaged):
    Split(own_set, "train", CFG).close()
    damaged("number", lambda data: data[::-1])
    with pytest.raises(UserError, match="number.bin' is damaged"):
        Split(own_set, "train", CFG)


@pytest.fixture
def reads(monkeypatch):
    """The rows that are read of any ArrayRecord file from here on."""
    rows, sized = [], Records.sized
    monkeypatch.setattr(Records, "sized", lambda own, row: rows.append(row) or sized(own, row))
    return rows


def loaded(name, folder, *changes):
    """The tiny config of a file of `configs` for a data set."""
    path = pathlib.Path(__file__).parents[2] / "configs" / f"{name}.py"
    return freeze(load(f"{path}:tiny", [f"data.path={folder}", "encoders.image.size=16", *changes]))


def test_a_run_starts_and_an_evaluation_opens_without_reading_a_record(shapes_data, tmp_path, reads):
    folder = tmp_path / "set"
    shutil.copytree(shapes_data, folder)
    words = ("encoders.text.tokenizer=data", "encoders.text.output_vocab=train")
    assembly = assemble(loaded("quickstart", folder, *words))
    captions = split_captions(folder, "train")
    assert list(assembly.model.output_ids) == used_ids(assembly.tokenizer, list(captions)).tolist()
    assert (folder / "tokenizer.json").is_file() and len(captions) == 24
    found = eval_split(folder, "test", assembly.specs, assembly.config.data)
    assert found.words_of(3)[0].startswith("a ") and len(found.right.ids) == 24 and found.labels.sum() == 12
    with contextlib.closing(train_dataset(folder, "train", assembly.specs, assembly.config.data, 0, 4)) as data:
        assert data.cut()["text"]["share"] == 0
        bags = assemble(loaded("cmhr_drn", folder))
        assert document_frequencies(bags)["text/tower/idf"].max() > 1
        assert reads == []
        data.batch_at(0)
        assert len(reads) == 4, "now for their pictures"
    next(found.left.blocks(5))
    assert len(reads) == 9


def test_cached_features_are_trained_on_without_reading_a_picture(own_set, tokenizer, reads):
    write_features(own_set, "mean", lambda images: images.mean((1, 2))[:, None], 8)
    reads.clear()
    cfg = dataclasses.replace(CFG, features=("mean",))
    with contextlib.closing(train_dataset(own_set, "train", input_specs(tokenizer, cached=True), cfg, 0, 6)) as data:
        index = data.batch_at(0)["index"]
    assert sorted(reads) == sorted(index.tolist()), "one row of the cache for each"


def test_the_same_captions_are_drawn_as_from_records(tiny_set, tokenizer):
    """The captions of a batch as they were drawn when records had captions."""
    cfg = dataclasses.replace(CFG, languages=("fr", "en"))
    with contextlib.closing(train_dataset(tiny_set, "train", input_specs(tokenizer), cfg, 3, 6)) as data:
        drawn = [tokenizer.decode(text) for text in data.batch_at(0)["text"]]
    assert drawn == ["[UNK] [UNK] 6", "[UNK] [UNK] 23", "thing number 22", "thing number 10", "a thing", "a thing"]


def test_a_split_may_have_no_caption_in_a_language_and_no_label(tmp_path, encoded, plain_colour):
    png = encoded(plain_colour(0))
    items = [Item("a", {"x": png}, {"en": ["one"]}), Item("b", {"x": png}, {"fr": ["un"]}, split="test")]
    card = prepare(memory_source(items), tmp_path / "set")
    assert card.splits["test"]["languages"] == {"fr": 1} and card.duplicates["test"]["captions"] == 0
    assert list(split_captions(tmp_path / "set", "test")) == []
    with contextlib.closing(Split(tmp_path / "set", "test", CFG)) as split:
        own = split.sidecar
        assert own.captions(0) == {"fr": ["un"]} and own.pairs(0, split.languages) == split.labels(0) == []
        assert split.label_key(0) == -2
    tokenizer = load_tokenizer("data", tmp_path / "set")
    with pytest.raises(UserError, match="no record with image and text .view 'x'"):
        eval_split(tmp_path / "set", "test", input_specs(tokenizer), CFG)


def test_texts_are_a_sequence(tmp_path):
    words = ["", "a", "日本", "\u0301", "b" * 300] * 2000
    dtypes = {"data": "u1", "starts": "<i8"}
    out = {name: ColumnWriter(tmp_path / name, dtype) for name, dtype in dtypes.items()}
    out["starts"].put(0)
    for word in words:
        out["data"].write(word.encode())
        out["starts"].put(out["data"].count)
    facts = {name: column.close() for name, column in out.items()}
    assert facts["starts"]["bytes"] == 8 * 10_001 == (tmp_path / "starts").stat().st_size
    texts = Texts(*(open_column(tmp_path / name, dtype, facts[name]) for name, dtype in dtypes.items()))
    assert len(texts) == 10_000 and texts == words and texts != words[:-1] and (texts == 3) is False
    assert texts[2] == "日本" and texts[-1] == "b" * 300 and texts[1:4] == words[1:4]
    some = texts.take(np.array([4, 2, 2]))
    assert some == ["b" * 300, "日本", "日本"] and some.take(np.array([1])) == ["日本"] and some[::-1][0] == "日本"
    for number in (3, -4):
        with pytest.raises(IndexError, match=f"text {number} of 3"):
            some[number]


def test_an_aborted_sidecar_leaves_no_open_file(tmp_path):
    sidecars = Sidecars(tmp_path)
    sidecars.add(Item("a", {"x": b""}, {"en": ["one"]}))
    before = len(os.listdir("/proc/self/fd"))
    sidecars.abort()
    assert len(os.listdir("/proc/self/fd")) == before - len(COLUMNS) - 1, "and scores"
