"""A data set appears complete or not at all, and everything left out is counted and named."""

import logging

import numpy as np
import pytest

from xmodal_jax.data.card import Card
from xmodal_jax.data.image import verify
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import open_records
from xmodal_jax.data.source import Item, Skip, Source, memory_source
from xmodal_jax.errors import UserError


def test_card_and_records_hold_what_the_source_gave(tiny_set, tiny_items):
    card = Card.load(tiny_set)
    assert (card.name, card.source, card.licence) == ("set", "memory", "none")
    assert card.languages == ["en", "fr"] and card.views == ["png", "jpeg"]
    assert card.label_names == ["even", "odd", "strange"] and card.skipped == {}
    counts = {"records": 18, "captions": 48, "groups": 12}
    assert {name: card.splits["train"][name] for name in counts} == counts
    assert card.splits["test"]["records"] == 6 and card.splits["test"]["groups"] == 6
    with open_records(tiny_set, "train") as records:
        wanted = [item for item in tiny_items() if item.split == "train"]
        for record, item in zip(records, wanted, strict=True):
            assert record["images"] == item.images and record["captions"] == item.captions
            assert (record["key"], record["group"]) == (item.key, item.group)
            assert [card.label_names[label] for label in record["labels"]] == list(item.labels)


def test_ceiling_counts_the_repeated_captions(tiny_set):
    # train: 12 of the 18 images have "a thing" besides their own name
    ceiling = Card.load(tiny_set).ceiling["train"]
    assert ceiling["t2i"]["R@1"] == pytest.approx(100 * (18 + 12 / 12) / 30, abs=0.01)
    assert ceiling["t2i"]["R@10"] == pytest.approx(100 * (18 + 12 * 10 / 12) / 30, abs=0.01)
    assert ceiling["i2t"]["R@1"] == 100.0


def test_the_same_again_is_already_prepared(own_set, tiny_items):
    before = {path: path.stat().st_mtime_ns for path in own_set.iterdir()}
    assert prepare(memory_source(tiny_items(), "tiny", "none"), own_set) == Card.load(own_set)
    assert {path: path.stat().st_mtime_ns for path in own_set.iterdir()} == before


def test_another_set_is_never_overwritten(own_set, tiny_items):
    before = Card.load(own_set)
    with pytest.raises(UserError, match="prepared with another content: .*nothing was overwritten"):
        prepare(memory_source(tiny_items(8), "tiny"), own_set)
    with pytest.raises(UserError, match="another max_size"):
        prepare(memory_source(tiny_items(), "tiny"), own_set, max_size=8)
    assert Card.load(own_set) == before


def test_a_folder_of_something_else_is_not_touched(tmp_path, tiny_items):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a data set: choose another --out"):
        prepare(memory_source(tiny_items(4)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_used(tmp_path, tiny_items):
    (tmp_path / "new").mkdir()
    assert prepare(memory_source(tiny_items(4)), tmp_path / "new").splits["test"]["records"] == 1


def test_a_source_that_dies_leaves_nothing(tmp_path, tiny_items):
    def items():
        yield from tiny_items(3)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        prepare(Source("x", "x", "", items, {}), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def bad_items(good, encoded):
    """`good` good items and one of each kind that cannot be used."""
    torn = encoded(np.zeros((64, 64, 3), np.uint8))[:60]
    return [
        *good,
        Skip("broken JSON line", "line 12"),
        Item("torn", {"image": torn}, {"en": ["x"]}),
        Item("half", {"a": good[0].images["png"], "b": b"no picture"}, {"en": ["x"]}),
        Item(good[0].key, good[0].images, {"en": ["twice"]}),
        Item("mute", good[0].images, {"en": []}),
    ]


def test_over_one_percent_of_bad_rows_stops_the_build(tmp_path, tiny_items, encoded):
    source = memory_source(bad_items(tiny_items(), encoded))
    with pytest.raises(UserError, match=r"5 of 29 pairs .*2 x corrupt image.*more than 1 %.*--allow-bad"):
        prepare(source, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_counted_named_and_left_out(tmp_path, tiny_items, encoded, caplog):
    with caplog.at_level(logging.WARNING):
        card = prepare(memory_source(bad_items(tiny_items(), encoded)), tmp_path / "set", allow_bad=True)
    assert card.skipped == {"broken JSON line": 1, "corrupt image": 2, "key occurs twice": 1} | {
        "no image or no caption": 1
    }
    assert sum(split["records"] for split in card.splits.values()) == 24
    for name in ("line 12", "torn (image)", "half (b)", "thing-0", "left out 5 of 29"):
        assert name in caplog.text


def test_one_percent_is_still_good_and_ten_are_named(tmp_path, tiny_items, caplog):
    good = [Item(f"k{n}", tiny_items(1)[0].images, {"en": ["x"]}) for n in range(1188)]
    skips = [Skip("empty caption", f"row {n}") for n in range(12)]
    with caplog.at_level(logging.WARNING):
        card = prepare(memory_source([*good, *skips]), tmp_path / "set")
    assert card.skipped == {"empty caption": 12}
    assert "row 9" in caplog.text and "row 10" not in caplog.text


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(UserError, match="gave no usable pair: 1 x no caption"):
        prepare(memory_source([Skip("no caption", "k")]), tmp_path / "set", allow_bad=True)
    with pytest.raises(UserError, match="it is empty"):
        prepare(memory_source([]), tmp_path / "set")


def test_large_pictures_are_re_encoded_only_on_request(tmp_path, encoded, rng):
    large = encoded(rng.integers(0, 255, (40, 80, 3), dtype=np.uint8))
    items = [Item("k", {"image": large}, {"en": ["x"]})]
    prepare(memory_source(items), tmp_path / "as-it-comes")
    prepare(memory_source(items), tmp_path / "small", max_size=20)
    with open_records(tmp_path / "as-it-comes", "train") as records:
        assert records[0]["images"]["image"] == large
    with open_records(tmp_path / "small", "train") as records:
        assert verify(records[0]["images"]["image"]) == (20, 10)


def test_many_shards_read_as_one_split(tmp_path, tiny_items):
    card = prepare(memory_source(tiny_items()), tmp_path / "set", shard_bytes=2000)
    assert len(card.splits["train"]["files"]) > 3
    with open_records(tmp_path / "set", "train") as records:
        assert [record["key"] for record in records] == [f"thing-{n}" for n in range(24) if n % 4]
