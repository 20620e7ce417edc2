"""A data set appears complete or not at all, and everything left out is counted and named."""

import contextlib
import dataclasses
import io
import itertools
import json
import logging
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.card import Card, report
from xmodal_jax.data.image import verify
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import open_records
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, Skip, Source, memory_source
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.errors import UserError


def test_card_and_records_hold_what_the_source_gave(tiny_set, tiny_items):
    card = Card.load(tiny_set)
    assert (card.name, card.source, card.licence) == ("set", "memory", "none")
    assert card.languages == ["en", "fr"] and card.views == ["png", "jpeg"]
    assert card.label_names == ["even", "odd", "strange"] and card.skipped == {}
    counts = {"records": 18, "captions": 48, "groups": 12}
    assert {name: card.splits["train"][name] for name in counts} == counts
    assert card.splits["test"]["records"] == 6 and card.splits["test"]["groups"] == 6
    wanted, sidecar = [item for item in tiny_items() if item.split == "train"], Sidecar(tiny_set, card, "train")
    with open_records(tiny_set, "train") as records:
        for row, (record, item) in enumerate(zip(records, wanted, strict=True)):
            assert record == {"key": item.key, "media": item.stored} and sidecar.captions(row) == item.captions
            assert (sidecar.keys[row], sidecar.groups[row]) == (item.key, item.group)
            assert [card.label_names[label] for label in sidecar.labels(row)] == list(item.labels)
            assert sidecar.views(row) == list(item.images)


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
        prepare(memory_source(tiny_items(8), "tiny", "none"), own_set)
    with pytest.raises(UserError, match="another max_size"):
        prepare(memory_source(tiny_items(), "tiny", "none"), own_set, max_size=8)
    assert Card.load(own_set) == before


def test_a_folder_of_something_else_is_not_touched(tmp_path, tiny_items):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a data set: choose another folder"):
        prepare(memory_source(tiny_items(4)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_used(tmp_path, tiny_items):
    (tmp_path / "new").mkdir()
    assert prepare(memory_source(tiny_items(4)), tmp_path / "new").splits["test"]["records"] == 1


def test_the_current_folder_is_used(tmp_path, tiny_items, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost+found").mkdir()  # a new file system has one
    card = prepare(memory_source(tiny_items(4)), ".")
    assert card == Card.load(tmp_path) and card.name == tmp_path.name
    assert not list(tmp_path.glob(".prepare*"))


def test_a_mount_point_is_used(tmp_path, tiny_items):
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path]).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        for force in (False, True):
            prepare(memory_source(tiny_items(4)), tmp_path, force=force)
            with open_records(tmp_path, "train") as records:
                assert len(records) == 3
    finally:
        subprocess.run(["umount", tmp_path], check=True)


KILLED = """
import os, sys
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import Item, Source
def items():
    yield Item("a", {"image": open(sys.argv[1], "rb").read()}, {"en": ["x"]})
    os.kill(os.getpid(), 9)
prepare(Source("x", "x", "", items, {}), sys.argv[2])
"""


def test_what_a_killed_one_left_is_removed_by_the_next(tmp_path, tiny_items):
    (tmp_path / "a.png").write_bytes(tiny_items(1)[0].images["png"])
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.png", tmp_path / "set"], capture_output=True)
    assert killed.returncode == -9 and os.listdir(tmp_path / "set" / ".prepare.part")
    prepare(memory_source(tiny_items(4)), tmp_path / "set")
    assert not list(tmp_path.glob("**/.*")) and len(Card.load(tmp_path / "set").splits) == 2


def test_of_two_at_once_the_second_is_refused_before_its_work(tmp_path, tiny_items):
    def items():
        yield from tiny_items(4)
        with pytest.raises(UserError, match="another process is preparing a data set in '.*set'; wait"):
            prepare(Source("second", "x", "", None, {}), tmp_path / "set")

    card = prepare(Source("x", "x", "", items, {}), tmp_path / "set")
    assert card == Card.load(tmp_path / "set") and not list((tmp_path / "set").glob(".*"))


@pytest.mark.parametrize("moved", range(6))
def test_one_that_is_killed_while_it_replaces_another_is_finished_by_the_next(own_set, tiny_items, monkeypatch, moved):
    (own_set / "features").mkdir()
    (own_set / "tokenizer.json").write_text("of the old captions")
    new, move, count = memory_source(tiny_items(8), "new"), os.replace, itertools.count()

    def interrupted(source, target):
        if source.parent.name == ".prepare.part" and target.parent == own_set and next(count) == moved:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with contextlib.suppress(KeyboardInterrupt):  # there are five things to move, and the card
        prepare(new, own_set, force=True, shard_bytes=2000)
    monkeypatch.undo()
    card = prepare(new, own_set)
    assert card.splits["train"]["records"] == 6 and len(card.splits["train"]["files"]) > 1
    with open_records(own_set, "train") as records:
        assert [record["key"] for record in records] == [f"thing-{n}" for n in range(8) if n % 4]
    files = {file for split in card.splits.values() for file in split["files"]}
    assert set(os.listdir(own_set)) == files | {"card.json", "digests", "files.jsonl.gz", "sidecar"}


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, encoded, rng):
    noise = [encoded(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(30)]
    items = [Item(str(n), {"image": data}, {"en": ["x"]}) for n, data in enumerate(noise)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"set/.prepare.part': split 'train' cannot be written \(File too large\)"):
            prepare(memory_source(items), tmp_path / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert prepare(memory_source(items), tmp_path / "set").splits["train"]["records"] == 30


@pytest.fixture
def files(tmp_path, tiny_items):
    """A JSONL file of eight pictures, one of which is not there, and what prepares it to `set`."""
    for number, item in enumerate(tiny_items(7)):
        (tmp_path / f"{number}.png").write_bytes(item.images["png"])
    rows = [{"image": f"{number}.png", "caption": "x", "split": "train"} for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return lambda **how: prepare(jsonl_source(tmp_path / "rows.jsonl"), tmp_path / "set", allow_bad=True, **how)


def test_files_that_are_the_same_are_not_prepared_again(files, tmp_path):
    card = files()
    assert card.skipped == {"missing image": 1}
    path = tmp_path / "3.png"
    os.utime(path, ns=(1, 1))
    path.write_bytes(path.read_bytes())
    assert files() == card


def test_a_set_that_is_older_than_its_source_says_what_has_changed(files, tmp_path):
    before = files()
    (tmp_path / "7.png").write_bytes((tmp_path / "6.png").read_bytes())
    with pytest.raises(UserError, match=f"older than its source: .* 1 new .{tmp_path}/7.png.; prepare it again"):
        files()
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / "5.png").read_bytes())
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="1 gone .*0.png.*, 2 replaced .*1.png first.*, 1 new .*7.png"):
        files()
    assert Card.load(tmp_path / "set") == before, "nothing was changed"
    after = files(force=True)
    assert after.splits["train"]["records"] == 7 and after.skipped == {"missing image": 1}
    assert files() == after


def test_force_replaces_what_is_no_longer_read(files, tmp_path):
    files()
    card = tmp_path / "set" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format": 1}))
    with pytest.raises(UserError, match="'format' is 1"):
        files()
    (tmp_path / "set" / "starts").mkdir()  # heads that were made of the old pictures
    assert files(force=True).format > 1 and not (tmp_path / "set" / "starts").exists()


def copied(tiny_items):
    """Items of which two test pictures are in train too: one byte for byte, one in a file of another compression."""
    items, again = tiny_items(12), io.BytesIO()
    Image.open(io.BytesIO(items[4].images["png"])).save(again, "PNG", compress_level=0)
    assert again.getvalue() != items[4].images["png"]
    other = {number: dict(items[number].images) for number in (1, 2)}
    other[1]["jpeg"] = items[0].images["jpeg"]
    other[2]["png"] = again.getvalue()
    return [dataclasses.replace(item, images=other.get(number, item.images)) for number, item in enumerate(items)]


def test_copies_in_train_are_counted_and_left_out_on_request(tmp_path, tiny_items):
    source = memory_source(copied(tiny_items))
    card = prepare(source, tmp_path / "with")
    assert card.copies == {"test": 2} and card.splits["train"]["records"] == 9
    assert any("2 of its records have a picture that is in train too" in line for line in report(card))
    card = prepare(source, tmp_path / "without", drop_copies=True)
    assert card.copies == {} and card.splits["train"]["records"] == 7 and card.splits["test"]["records"] == 3
    assert card.skipped == {"copy of a held-out picture": 2}, "and that is no bad source"
    with open_records(tmp_path / "without", "train") as records:
        assert not {"thing-1", "thing-2"} & {record["key"] for record in records}


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
    with pytest.raises(UserError, match=r"5 of 29 pairs .*2 x corrupt image.*more than 1 %.*'allow_bad'"):
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


MAP = {"map": b"1234"}
BROKEN_MEDIA = [
    ({"media": {"depth": {"map": b""}}}, "medium without bytes", "odd (depth/map)"),
    ({"media": {"depth": {"map": "1234"}}}, "medium without bytes", "odd (depth/map)"),
    ({"media": {"depth": MAP, "a/b": MAP}}, "medium that has no name, or one with '/'", "odd: depth, a/b"),
    ({"media": {"": MAP}}, "medium that has no name, or one with '/'", "odd"),
    ({"images": {}, "captions": {"en": ["alone"]}}, "no image or no caption", "odd"),
    ({"images": {}, "captions": {"en": ["alone"], "fr": []}}, "no image or no caption", "odd"),
    ({"images": {}, "captions": {}}, "no image or no caption", "odd"),
    ({"images": {}, "captions": {"en": ["x"]}, "media": {"depth": {}}}, "no image or no caption", "odd"),
    ({"images": {}, "captions": {}, "media": {"depth": MAP}}, "no image or no caption", "odd"),
]


@pytest.mark.parametrize(("fields", "reason", "where"), BROKEN_MEDIA)
def test_items_with_broken_media_are_counted_and_named(tmp_path, tiny_items, caplog, fields, reason, where):
    odd = dataclasses.replace(tiny_items(1)[0], key="odd", **fields)
    card = prepare(memory_source([*tiny_items(4), odd]), tmp_path / "set", allow_bad=True)
    assert card.skipped == {reason: 1} and f"left out: {reason}: {where}" in caplog.text
    assert sum(split["records"] for split in card.splits.values()) == 4


def test_media_of_which_an_item_has_nothing_are_left_out(tmp_path, tiny_items):
    first, second, *_ = tiny_items(4)
    items = [dataclasses.replace(first, media={"depth": {}}), dataclasses.replace(second, media={"depth": MAP})]
    card = prepare(memory_source(items), tmp_path / "set")
    having = [Sidecar(tmp_path / "set", card, split).having_medium("depth").tolist() for split in ("test", "train")]
    assert card.media == ["depth"] and having == [[False], [True]]


def test_a_set_without_captions_is_prepared_and_told(tmp_path, tiny_items):
    bare = [dataclasses.replace(item, captions={}, media={"depth": MAP}) for item in tiny_items(8)]
    card = prepare(memory_source(bare), tmp_path / "set")
    assert card == prepare(memory_source(bare), tmp_path / "set") and card.languages == [] and card.words == {}
    assert report(card) == [
        "beside pictures and captions: depth",
        "test: 2 records, 0 captions, 2 groups",
        "train: 6 records, 0 captions, 4 groups",
    ]


def test_no_ceiling_is_told_of_splits_without_captions_and_of_sets_without_pictures(tmp_path, tiny_items):
    """Records of the test split have captions in another language alone; then none have pictures."""
    items = [dataclasses.replace(item, media={"depth": MAP}) for item in tiny_items(8)]
    german = [dataclasses.replace(item, captions={"de": ["das"]}) if item.split == "test" else item for item in items]
    said = report(prepare(memory_source(german), tmp_path / "german"))
    begun = ["  'en' captions: 0", "  best possible R@", "  'en' captions: 1"]
    assert [line[:18] for line in said if line.startswith("  ")] == begun
    said = report(prepare(memory_source([dataclasses.replace(item, images={}) for item in items]), tmp_path / "set"))
    assert not any("image" in line for line in said)
    assert "  'en' captions: 10, 7 different, 1.67 different per record, 40.0 % shared by records" in said


def test_names_of_media_and_of_their_views_are_mended(tmp_path, tiny_items):
    item = dataclasses.replace(tiny_items(1)[0], media={"depth\ud83d": {"a\udc00": b"1234"}})
    card = prepare(memory_source([item]), tmp_path / "set")
    assert card.media == ["depth\ufffd"] and Card.load(tmp_path / "set") == card
    with open_records(tmp_path / "set", "test") as records:
        assert records[0]["media"]["depth\ufffd"] == {"a\ufffd": b"1234"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"media": {"image": MAP}}, "source memory: 'odd' has 'image' among its media; give it as `images`, or"),
        ({"media": {"text": MAP}}, "source memory: 'odd' has 'text' among its media; give it as `captions`, or"),
        ({"captions": {"en": "a dog"}}, "source memory gave 'odd', which is no .* .'a dog' where a list of texts"),
        ({"labels": "dog"}, "is no xmodal_jax.data.source.Item as that says .'dog' where a list of texts must be"),
        ({"key": 7}, "source memory gave 7, which is no xmodal_jax.data.source.Item"),
    ],
)
def test_what_no_source_should_give_is_one_sentence(tmp_path, tiny_items, fields, sentence):
    odd = dataclasses.replace(tiny_items(1)[0], **({"key": "odd"} | fields))
    with pytest.raises(UserError, match=sentence):
        prepare(memory_source([*tiny_items(4), odd]), tmp_path / "set")
    for drop_copies in (False, True):
        with pytest.raises(UserError, match="source memory gave 3, which is no xmodal_jax.data.source.Item"):
            prepare(memory_source([3]), tmp_path / "set", drop_copies=drop_copies)
    assert list(tmp_path.iterdir()) == []


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
        assert records[0]["media"]["image"]["image"] == large
    with open_records(tmp_path / "small", "train") as records:
        assert verify(records[0]["media"]["image"]["image"]) == (20, 10)


def test_many_shards_read_as_one_split(tmp_path, tiny_items):
    card = prepare(memory_source(tiny_items()), tmp_path / "set", shard_bytes=2000)
    assert len(card.splits["train"]["files"]) > 3
    with open_records(tmp_path / "set", "train") as records:
        assert [record["key"] for record in records] == [f"thing-{n}" for n in range(24) if n % 4]


def test_another_licence_is_told_and_a_path_that_is_no_text_is_the_same_path(tiny_items, tmp_path):
    source = dataclasses.replace(memory_source(tiny_items(4)), arguments={"path": "d\udce9"})
    prepare(source, tmp_path / "set")
    assert prepare(source, tmp_path / "set").arguments["path"] == "d\ufffd"
    with pytest.raises(UserError, match="prepared with another licence: choose another folder"):
        prepare(dataclasses.replace(source, licence="MIT"), tmp_path / "set")


def test_damaged_states_of_the_source_files_are_one_sentence(files, tmp_path):
    files()
    states = tmp_path / "set" / "files.jsonl.gz"
    whole = states.read_bytes()
    for at in range(10, len(whole), 3):
        states.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            files()
        except UserError as error:
            assert str(error)
