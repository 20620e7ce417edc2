"""Feature caches line up with their records, survive interruption, and never replace another tower's."""

import dataclasses
import resource
import shutil

import numpy as np
import pytest
from tiny import input_specs

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.features import write_features
from xmodal_jax.data.image import AugmentConfig, eval_image
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import CorruptRecord, RecordWriter, open_records, pack
from xmodal_jax.data.source import memory_source
from xmodal_jax.data.split import Split
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

CFG = DataConfig(features=("mean",), augment=AugmentConfig(flip=0.5))


def halves(images):
    """uint8 [b,S,S,3] -> [b,2,3]: the mean colour of the left and the right half."""
    side = images.shape[2] // 2
    return np.stack([images[:, :, :side].mean((1, 2)), images[:, :, side:].mean((1, 2))], 1)


class Counted:
    """An encoder that counts its calls, and fails at one of them."""

    def __init__(self, fail_at=0):
        self.shapes, self.fail_at = [], fail_at

    def __call__(self, images):
        self.shapes.append(images.shape)
        if len(self.shapes) == self.fail_at:
            raise KeyboardInterrupt
        return halves(images)


def expected(record, view, size=8):
    return halves(eval_image(size)(record["media"]["image"][view])[None])[0].astype(np.float16)


def test_tokens_lie_beside_their_records(own_set, tokenizer):
    encode = Counted()
    card = write_features(own_set, "mean", encode, 8, batch=5, tower="halves")
    assert card == Card.load(own_set)
    entry = card.features["mean"] | {"files": sorted(card.features["mean"]["files"])}
    shape = {"tokens": 2, "width": 3, "dtype": "float16", "views": ["plain", "flip"]}
    shape |= {"medium": "image", "parts": 1, "pool": ""}
    assert entry == {"tower": "halves", "size": 8, "files": ["test", "train"]} | shape
    assert set(encode.shapes) == {(5, 8, 8, 3)} and len(encode.shapes) == 5 + 15, "always full batches of one shape"
    for split in ("train", "test"):
        with open_records(own_set, split) as records:
            for view in ("png", "jpeg"):
                evaluated = eval_split(own_set, split, input_specs(tokenizer, cached=True), CFG, view)
                (batch,) = evaluated.left.blocks(len(records))
                assert batch["image"].dtype == np.float16
                for row, record in enumerate(records):
                    np.testing.assert_array_equal(batch["image"][row], expected(record, view))


def test_training_reads_plain_and_mirrored_tokens(own_set, tokenizer):
    write_features(own_set, "mean", halves, 8)
    dataset = train_dataset(own_set, "train", input_specs(tokenizer, cached=True), CFG, 0, 18)
    mirrored = 0
    with open_records(own_set, "train") as records:
        batch = dataset.batch_at(0)
        for index, tokens in zip(batch["index"], batch["image"], strict=True):
            plain = [expected(records[index], view) for view in ("png", "jpeg")]
            mirror = any(np.array_equal(tokens, one[::-1]) for one in plain)
            assert mirror or any(np.array_equal(tokens, one) for one in plain)
            mirrored += mirror
    dataset.close()
    assert 3 < mirrored < 15


def test_caches_are_joined_along_the_tokens_and_flip_together(own_set, tokenizer):
    write_features(own_set, "mean", halves, 8)
    write_features(own_set, "fine", lambda images: halves(images)[:, [0, 1, 0]], 12)
    cfg = dataclasses.replace(CFG, features=("mean", "fine"))
    dataset = train_dataset(own_set, "train", input_specs(tokenizer, cached=True), cfg, 0, 18)
    tokens = dataset.batch_at(0)["image"]
    dataset.close()
    assert tokens.shape == (18, 5, 3)
    np.testing.assert_allclose(tokens[:, :2], tokens[:, 2:4], atol=2)
    assert len(Card.load(own_set).features) == 2


def test_caches_of_different_widths_do_not_join(own_set, tokenizer):
    write_features(own_set, "mean", halves, 8)
    write_features(own_set, "wide", lambda images: np.repeat(halves(images), 2, -1), 8)
    with pytest.raises(UserError, match="widths {'mean': 3, 'wide': 6} differ"):
        train_dataset(
            own_set,
            "train",
            input_specs(tokenizer, cached=True),
            dataclasses.replace(CFG, features=("mean", "wide")),
            0,
            2,
        )


def test_without_mirrored_copies_the_plain_ones_are_read(own_set, tokenizer):
    card = write_features(own_set, "mean", halves, 8, flip=False)
    assert card.features["mean"]["views"] == ["plain"]
    cfg = dataclasses.replace(CFG, augment=AugmentConfig(flip=1.0), views=("png",))
    dataset = train_dataset(own_set, "test", input_specs(tokenizer, cached=True), cfg, 0, 6)
    batch = dataset.batch_at(0)
    dataset.close()
    with open_records(own_set, "test") as records:
        for index, tokens in zip(batch["index"], batch["image"], strict=True):
            np.testing.assert_array_equal(tokens, expected(records[index], "png"))


def test_the_same_again_encodes_nothing_and_another_is_refused(own_set):
    first = write_features(own_set, "mean", halves, 8, tower="a")
    encode = Counted()
    assert write_features(own_set, "mean", encode, 8, tower="a") == first and encode.shapes == []
    for changes in ({"tower": "b"}, {"size": 16}, {"flip": False}):
        with pytest.raises(UserError, match="already has features 'mean' made with .*nothing was overwritten"):
            write_features(own_set, "mean", encode, **({"size": 8, "tower": "a"} | changes))


def test_an_interrupted_run_goes_on_at_the_split_it_was_in(own_set):
    with pytest.raises(KeyboardInterrupt):
        write_features(own_set, "mean", Counted(fail_at=5), 8, batch=8)  # test: 3 batches, train: 9
    assert Card.load(own_set).features == {} and not (own_set / "features" / "mean").exists()
    with pytest.raises(UserError, match="holds an interrupted run made with size 8"):
        write_features(own_set, "mean", halves, 16)
    encode = Counted()
    write_features(own_set, "mean", encode, 8, batch=8)
    assert len(encode.shapes) == 9, "only the unfinished split is encoded again"
    assert (own_set / "features" / "mean").is_dir()


def test_of_two_at_once_on_a_name_the_second_is_refused_and_two_names_both_get_into_the_card(own_set):
    def encode(images):
        with pytest.raises(UserError, match="another process is adding features 'mean' to '.*set'; wait"):
            write_features(own_set, "mean", halves, 8)
        if "other" not in Card.load(own_set).features:
            write_features(own_set, "other", halves, 8)
        return halves(images)

    write_features(own_set, "mean", encode, 8)
    assert set(Card.load(own_set).features) == {"mean", "other"}
    assert not list(own_set.glob("**/.*"))


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(own_set):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def wide(images):
        return np.repeat(halves(images), 300, -1)

    resource.setrlimit(resource.RLIMIT_FSIZE, (230_000, limits[1]))  # between 6 and 18 records of 14,400 bytes
    try:
        with pytest.raises(UserError, match=r".wide.part': split 'train' cannot be written \(File too large\)"):
            write_features(own_set, "wide", wide, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Card.load(own_set).features == {}
    left = {path.name for path in own_set.glob("features/.wide.part/*")}
    assert left == {"plan.json", "test-00000-of-00001.arrayrecord"}
    encode = Counted()
    card = write_features(own_set, "wide", lambda images: np.repeat(encode(images), 300, -1), 8, batch=8)
    assert card.features["wide"]["width"] == 900 and len(encode.shapes) == 9, "train alone"


def test_a_plan_that_is_damaged_is_named(own_set):
    folder = own_set / "features" / ".mean.part"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{")
    with pytest.raises(UserError, match="plan.json' is damaged .*; remove .*mean.part and start again"):
        write_features(own_set, "mean", halves, 8)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--size", "0"], "--size is 0; write the side of the pictures in pixels, 1 to 4096"),
        (["--size", "-64"], "--size is -64"),
        (["--size", "100000"], "--size is 100000"),
        (["--batch", "0"], "--batch is 0; write 1 or more"),
        (["--name", "a/b"], "features name 'a/b': use a plain word"),
        (["--data", "nowhere"], "no data set at nowhere"),
    ],
)
def test_flags_are_looked_at_before_a_tower_is_loaded(own_set, monkeypatch, capsys, flags, words):
    monkeypatch.setattr("xmodal_jax.encode.towers.tower_encoder", lambda name: pytest.fail("loaded"))
    assert main(["data", "features", "--data", str(own_set), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (own_set / "features").exists()


def test_a_run_that_died_before_the_card_is_adopted(own_set):
    before = Card.load(own_set)
    done = write_features(own_set, "mean", halves, 8)
    before.save(own_set)
    encode = Counted()
    assert write_features(own_set, "mean", encode, 8) == done and encode.shapes == []


def test_bad_towers_records_and_names_are_refused(own_set):
    with pytest.raises(UserError, match=r"returned \(64, 3\) for 64 images, not \[B,N,D\]"):
        write_features(own_set, "flat", lambda images: halves(images)[:, 0], 8)
    with pytest.raises(UserError, match="not finite in float16"):
        write_features(own_set, "loud", lambda images: halves(images) * 1e4, 8)
    for name in ("../up", "..", ".hidden"):
        with pytest.raises(UserError, match="use a plain word"):
            write_features(own_set, name, halves, 8)
    with open_records(own_set, "test") as records:
        content = list(records)
    content[2]["media"]["image"]["png"] = b"torn"
    with RecordWriter(own_set, "test") as writer:
        for record in content:
            writer.write(pack(record))
    with pytest.raises(UserError, match="row 2 cannot be read"):
        write_features(own_set, "mean", halves, 8)
    assert Card.load(own_set).features == {}


def bare(items, without):
    """Items of which those of some numbers have depth maps in place of pictures."""
    depth = {"media": {"depth": {"map": b"1234"}}}
    return [
        dataclasses.replace(item, **(depth | {"images": {}} if number in without else depth))
        for number, item in enumerate(items)
    ]


def test_records_without_pictures_have_rows_without_tokens(tmp_path, tiny_items):
    """Also the first of a split, the last, several in a row, and all of a split."""
    without = {0, 1, 4, 5, 6, 8, 11}  # the test split is 0, 4, 8
    prepare(memory_source(bare(tiny_items(12), without), "bare", "none"), tmp_path)
    encode = Counted()
    card = write_features(tmp_path, "mean", encode, 8, batch=3)
    assert (card.features["mean"]["tokens"], card.features["mean"]["width"]) == (2, 3)
    assert len(encode.shapes) == 7, "5 records of 2 views, plain and mirrored, 3 at a time"
    for split, count in (("train", 9), ("test", 3)):
        own = Split(tmp_path, split, CFG)
        assert len(own) == count
        for row in range(count):
            record = own.record(row)
            if record["media"].get("image"):
                np.testing.assert_array_equal(own.tokens(row, "png", False), expected(record, "png"))
            else:
                with pytest.raises(CorruptRecord, match=f"row {row} of cache 'mean' has no tokens of view 'png'"):
                    own.tokens(row, "png", False)
        own.close()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_picture_that_comes_again_is_encoded_once(tmp_path, tiny_items, batch):
    """As of several questions on it: twelve train records have four pictures in two views, and one has none."""
    first = [item for item in tiny_items(12) if item.split == "train"]
    items = [dataclasses.replace(first[n // 3], key=f"{n}", split="train") for n in range(12)]
    items[7] = dataclasses.replace(items[7], images={}, media={"sound": {"a": b"x"}})
    prepare(memory_source(items), tmp_path / "set")
    encode = Counted()
    write_features(tmp_path / "set", "mean", encode, 8, batch=batch)
    assert len(encode.shapes) == -(-5 * 2 * 2 // batch), "the third of the third is encoded anew"
    split = Split(tmp_path / "set", "train", CFG)
    for row, record in enumerate(split.records):
        for view in record["media"].get("image", {}):
            np.testing.assert_array_equal(split.tokens(row, view, False), expected(record, view))
            np.testing.assert_array_equal(split.tokens(row, view, True), expected(record, view)[::-1])
    assert split.caches["mean"][7]["tokens"] == {}
    split.close()


def test_a_set_without_any_picture_has_no_features(tmp_path, tiny_items, capsys):
    prepare(memory_source(bare(tiny_items(8), range(8)), "bare", "none"), tmp_path / "set")
    assert main(["data", "features", "--data", str(tmp_path / "set")]) == 2
    assert f"{tmp_path / 'set'} has no pictures to make features of" in capsys.readouterr().err
    assert not (tmp_path / "set" / "features").exists()


def test_a_cache_of_another_length_is_refused(own_set, tokenizer):
    write_features(own_set, "mean", halves, 8)
    folder = own_set / "features" / "mean"
    shutil.copy(next(folder.glob("test-*")), folder / "train-00000-of-00001.arrayrecord")
    with pytest.raises(UserError, match="has 6 rows for 18 records"):
        train_dataset(own_set, "train", input_specs(tokenizer, cached=True), CFG, 0, 2)
