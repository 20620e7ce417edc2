"""Batches are a pure function of (seed, number, process, count) and hold what the records hold."""

import collections
import contextlib
import dataclasses
import logging
import os
import threading

import numpy as np
import pytest
from tiny import input_specs

from xmodal_jax.data.card import Card
from xmodal_jax.data.config import PAIR, DataConfig, FieldConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.features import write_features
from xmodal_jax.data.image import AugmentConfig, decode, resize
from xmodal_jax.data.loader import Loader
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import CorruptRecord, RecordWriter, encode_record, open_records, pack
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.split import Split, multi_hot, split_captions
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import BadRows, train_dataset
from xmodal_jax.errors import UserError

PLAIN = DataConfig(augment=AugmentConfig(crop_min_area=1.0, flip=0.0))
RANDOM = dataclasses.replace(PLAIN, augment=AugmentConfig(crop_min_area=0.4, flip=0.5, jitter=0.2))

TWO_VIEWS = dict.fromkeys(PAIR, FieldConfig()) | {"image2": FieldConfig(of="image")}


@pytest.fixture
def make(tiny_set, tokenizer):
    """Makes training data sets over `tiny_set` and closes them in the end."""
    made = []

    def dataset(cfg=PLAIN, seed=0, batch_size=6, folder=tiny_set, split="train", length=8):
        made.append(
            train_dataset(folder, split, input_specs(tokenizer, 16, length, bool(cfg.features)), cfg, seed, batch_size)
        )
        return made[-1]

    yield dataset
    for dataset in made:
        dataset.close()


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_fields_have_the_shapes_and_types_of_a_batch(make):
    batch = make().batch_at(0)
    assert {name: (rows.shape, rows.dtype.name) for name, rows in batch.items()} == {
        "image": ((6, 16, 16, 3), "uint8"),
        "text": ((6, 8), "int32"),
        "id": ((6,), "int32"),
        "text/key": ((6,), "int32"),
        "index": ((6,), "int32"),
        "labels": ((6, 3), "float32"),
    }


def test_with_pairs_as_units_an_epoch_visits_each_caption_once(make, tiny_set, tokenizer):
    own = Sidecar(tiny_set, Card.load(tiny_set), "train")
    english = own.all_pairs(("en",)).tolist()
    dataset = make(dataclasses.replace(PLAIN, unit="pair"), batch_size=len(english))
    assert dataset.steps_per_epoch == 1.0
    for number in range(3):
        batch = dataset.batch_at(number)
        assert sorted(batch["pair"].tolist()) == english
        for row, pair in enumerate(batch["pair"]):
            assert batch["index"][row] == batch["id"][row] == own.owner[pair]
            assert tokenizer.decode(batch["text"][row]) == own.texts[pair]
            assert batch["text/key"][row] == own.number[pair]
    assert not np.array_equal(batch["pair"], dataset.batch_at(0)["pair"])  # another order


def test_pairs_of_two_languages_are_all_visited(make, tiny_set):
    own = Sidecar(tiny_set, Card.load(tiny_set), "train")
    both = dataclasses.replace(PLAIN, unit="pair", languages=("fr", "en"))
    batch = make(both, batch_size=len(own.owner)).batch_at(0)
    assert sorted(batch["pair"].tolist()) == list(range(len(own.owner)))


def test_units_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="config.data.unit is 'caption'; write 'record' or 'pair'"):
        DataConfig(unit="caption")
    with pytest.raises(UserError, match="config.data.fields has none of captions; write 'record'"):
        DataConfig(unit="pair", fields={"image": FieldConfig()})


def test_an_example_is_a_picture_and_a_caption_of_its_record(make, tiny_set, tokenizer):
    views, texts, numbers = set(), set(), collections.defaultdict(set)
    own = Sidecar(tiny_set, Card.load(tiny_set), "train")
    with open_records(tiny_set, "train") as records:
        for number in range(20):
            batch = make().batch_at(number)
            for row in range(6):
                record = records[batch["index"][row]]
                pictures = {view: decode(data) for view, data in record["media"]["image"].items()}
                (view,) = [view for view, picture in pictures.items() if np.array_equal(picture, batch["image"][row])]
                text = tokenizer.decode(batch["text"][row])
                assert text in own.captions(batch["index"][row])["en"] and batch["id"][row] == batch["index"][row]
                assert np.flatnonzero(batch["labels"][row]).tolist() == sorted(own.labels(batch["index"][row]))
                views.add(view)
                texts.add(text == "a thing")
                numbers[int(batch["text/key"][row])].add(text)
    assert all(len(own) == 1 for own in numbers.values()) and len(numbers) == 19, "a number for each text"
    assert views == {"png", "jpeg"} and texts == {True, False}


def test_an_epoch_holds_every_record_once_and_the_next_has_another_order(make):
    dataset = make()
    assert dataset.steps_per_epoch == 3
    epochs = [np.concatenate([dataset.batch_at(3 * epoch + n)["id"] for n in range(3)]).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(18)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_is_a_function_of_seed_and_number(make):
    assert same(make(RANDOM, 1).batch_at(5), make(RANDOM, 1).batch_at(5))
    assert not same(make(RANDOM, 1).batch_at(5), make(RANDOM, 2).batch_at(5))
    assert not same(make(RANDOM, 1).batch_at(5), make(RANDOM, 1).batch_at(6))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_together_see_the_batch_of_one(make, count):
    dataset = make(RANDOM)
    whole = dataset.batch_at(4)
    parts = [dataset.batch_at(4, process, count) for process in range(count)]
    assert same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


def test_augmentation_differs_between_epochs(make):
    dataset = make(RANDOM, batch_size=18)
    first, second = dataset.batch_at(0), dataset.batch_at(1)
    by_id = [
        {key: image for key, image in zip(batch["id"].tolist(), batch["image"], strict=True)}
        for batch in (first, second)
    ]
    assert sum(np.array_equal(by_id[0][key], by_id[1][key]) for key in by_id[0]) < 4


def test_views_and_languages_are_those_asked_for(make, tiny_set, tokenizer):
    batch = make(dataclasses.replace(PLAIN, views=("png",), languages=("fr",))).batch_at(0)
    own = Sidecar(tiny_set, Card.load(tiny_set), "train")
    with open_records(tiny_set, "train") as records:
        for row, index in enumerate(batch["index"]):
            np.testing.assert_array_equal(batch["image"][row], decode(records[index]["media"]["image"]["png"]))
            assert tokenizer.encode(own.captions(index)["fr"], 8).tolist() == [batch["text"][row].tolist()]


def test_the_second_view_is_another_picture_of_the_record_and_changes_nothing_else(make, tiny_set):
    cfg = dataclasses.replace(PLAIN, fields=TWO_VIEWS)
    with open_records(tiny_set, "train") as records:
        for number in range(4):
            batch = make(cfg, batch_size=18).batch_at(number)
            for row, index in enumerate(batch["index"]):
                png, jpeg = (decode(records[index]["media"]["image"][view]) for view in ("png", "jpeg"))
                first = np.array_equal(batch["image"][row], png)
                np.testing.assert_array_equal(batch["image2"][row], jpeg if first else png)
    for base in (PLAIN, RANDOM):
        one, two = make(base).batch_at(3), make(dataclasses.replace(base, fields=TWO_VIEWS)).batch_at(3)
        assert two["image2"].shape == two["image"].shape and same(one, {name: two[name] for name in one})
        assert list(one) == [name for name in two if name != "image2"]


def test_with_one_view_the_second_is_another_augmentation_of_it(make):
    cfg = dataclasses.replace(PLAIN, fields=TWO_VIEWS, views=("png",))
    batch = make(cfg).batch_at(0)
    np.testing.assert_array_equal(batch["image"], batch["image2"])
    batch = make(dataclasses.replace(RANDOM, fields=TWO_VIEWS, views=("png",))).batch_at(0)
    assert all(not np.array_equal(*pair) for pair in zip(batch["image"], batch["image2"], strict=True))


def test_second_views_of_cached_tokens_flip_by_themselves(make, own_set):
    def halves(images):
        return np.stack([images[:, :, :4].mean((1, 2)), images[:, :, 4:].mean((1, 2))], 1)

    write_features(own_set, "halves", halves, 8)
    cfg = dataclasses.replace(PLAIN, features=("halves",), fields=TWO_VIEWS, augment=AugmentConfig(flip=0.5))
    dataset = make(cfg, folder=own_set, batch_size=18)
    turned = {"image": [], "image2": []}
    for number in range(4):
        batch = dataset.batch_at(number)
        assert batch["image2"].dtype == np.float16
        for field, found in turned.items():  # the green of a picture's left half is lower: see `plain_colour`
            found.extend(batch[field][:, 0, 1] > batch[field][:, 1, 1])
        np.testing.assert_allclose(batch["image"].sum(1), batch["image2"].sum(1), atol=20)  # PNG and JPEG of one record
    assert {*zip(turned["image"], turned["image2"], strict=True)} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    batch = make(dataclasses.replace(cfg, views=("png",)), folder=own_set, batch_size=18).batch_at(0)
    sides = [batch[field][:, 0, 1] > batch[field][:, 1, 1] for field in ("image", "image2")]
    assert (sides[0] != sides[1]).all() and len(set(sides[0])) == 2  # one view: the other is its mirror image
    write_features(own_set, "plain", halves, 8, flip=False)
    cfg = dataclasses.replace(cfg, features=("plain",), views=("png",))
    batch = make(cfg, folder=own_set).batch_at(0)
    np.testing.assert_array_equal(batch["image"], batch["image2"])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"views": ("png", "oil")}, r"config.data.views: .* has no \['oil'\]; write some of png, jpeg"),
        ({"languages": ("de",)}, r"config.data.languages: .* has no \['de'\]"),
        ({"features": ("grid",)}, "no features 'grid'"),
    ],
)
def test_what_the_card_does_not_have_is_refused(make, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        make(dataclasses.replace(PLAIN, **changes))


def test_impossible_numbers_are_refused(make):
    with pytest.raises(UserError, match="no split 'val'"):
        make(split="val")
    with pytest.raises(UserError, match="batch_size is 0"):
        make(batch_size=0)
    with pytest.raises(UserError, match="batch_size 6 must be a multiple of the 4 processes"):
        make().batch_at(0, 0, 4)
    for name in ("threads", "prefetch"):
        with pytest.raises(UserError, match=f"config.data.{name} is 0; write"):
            DataConfig(**{name: 0})
    with pytest.raises(UserError, match="config.data.languages is empty"):
        DataConfig(languages=())


def spoil(folder, rows):
    """Rewrite the train split so that the given rows hold a torn picture."""
    with open_records(folder, "train") as records:
        content = list(records)
    for row in rows:
        media = content[row]["media"]
        media["image"] = {view: data[:40] for view, data in media["image"].items()}
    with RecordWriter(folder, "train") as writer:
        for record in content:
            writer.write(encode_record(record))


def test_a_torn_row_is_replaced_by_the_next_and_named(make, own_set, caplog, monkeypatch):
    monkeypatch.setattr("xmodal_jax.data.train.BAD_SHARE", 0.1)
    clean = [make(folder=own_set).batch_at(number) for number in range(3)]
    spoil(own_set, [7])
    with caplog.at_level(logging.WARNING):
        dataset = make(folder=own_set)
        batches = [dataset.batch_at(number) for number in range(3)]
    ids = np.concatenate([batch["id"] for batch in batches])
    expected = np.concatenate([batch["id"] for batch in clean])
    np.testing.assert_array_equal(ids, np.where(expected == 7, 8, expected))
    assert dataset.bad.rows == {7} and caplog.text.count("unreadable row 7 of split 'train'") == 1


def test_over_one_percent_of_torn_rows_stops_the_run(make, own_set):
    spoil(own_set, [7])
    dataset = make(folder=own_set)
    with pytest.raises(UserError, match=r"1 of 18 rows of split 'train' cannot be read \(row 7: .*more than 1 %"):
        for number in range(3):
            dataset.batch_at(number)


@pytest.fixture
def sharded(own_set):
    """The files of a train split of 18 rows in 3 shards (of a card that does not mind)."""
    with open_records(own_set, "train") as records:
        rows = [pack(record | {"more": bytes(range(256)) * 40}) for record in records]
        (whole,) = records.files
    whole.unlink()
    with RecordWriter(own_set, "train", shard_bytes=6 * len(rows[0]) + 2000) as writer:
        for row in rows:
            writer.write(row)
    files = [own_set / name for name in writer.files]
    assert len(files) == 3
    return files


def overwritten(path):
    with path.open("r+b") as file:
        file.write(bytes(200_000))


@pytest.mark.parametrize(
    ("fault", "opened", "why"),
    [
        (overwritten, True, "hash mismatch"),
        (lambda path: os.truncate(path, 100), True, "cut short"),
        (lambda path: os.truncate(path, 100), False, "at least 64KB"),
        (lambda path: path.unlink(), False, "No such file"),
    ],
    ids=["overwritten", "truncated", "truncated-unopened", "deleted-unopened"],
)
def test_a_shard_lost_while_the_run_reads_is_counted_and_replaced(
    make, own_set, sharded, monkeypatch, fault, opened, why
):
    monkeypatch.setattr("xmodal_jax.data.train.BAD_SHARE", 0.4)
    clean = [make(folder=own_set, batch_size=18).batch_at(0) for _ in range(2)]
    assert same(*clean)
    dataset, again = make(folder=own_set, batch_size=18), make(folder=own_set, batch_size=18)
    for row in range(18) if opened else ():
        dataset.split.records[row], again.split.records[row]
    fault(sharded[1])
    with Loader(dataset, threads=1) as loader:
        batch = next(loader)
        assert loader.bad_rows == len(dataset.bad.rows) == 6
    assert same(batch, again.batch_at(0)), "the same rows come in place of the lost ones"
    want = clean[0]["id"]
    lost = np.isin(want, sorted(dataset.bad.rows))
    np.testing.assert_array_equal(batch["id"], np.where(lost, max(dataset.bad.rows) + 1, want))
    with pytest.raises(CorruptRecord, match=why):
        dataset.split.records[min(dataset.bad.rows)]


def test_a_lost_shard_stops_the_run_at_one_percent(make, own_set, sharded):
    dataset = make(folder=own_set)
    sharded[1].unlink()
    with (
        Loader(dataset) as loader,
        pytest.raises(UserError, match=r"rows of split 'train' cannot be read.*more than 1 %"),
    ):
        for _ in range(3):
            next(loader)
    dataset.close()  # closing what could not be opened is no second error
    with pytest.raises(UserError, match=r"lacks shard \[1\] of 3"):
        make(folder=own_set)


def test_a_shard_deleted_while_it_is_open_loses_nothing(make, own_set, sharded):
    clean, dataset = make(folder=own_set, batch_size=18), make(folder=own_set, batch_size=18)
    want = clean.batch_at(0)
    dataset.batch_at(0)
    for path in sharded:
        path.unlink()
    assert same(dataset.batch_at(0), want) and not dataset.bad.rows


def test_a_damaged_feature_cache_is_counted_too(make, own_set, tokenizer, monkeypatch):
    monkeypatch.setattr("xmodal_jax.data.train.BAD_SHARE", 0.1)
    write_features(own_set, "mean", lambda images: images.mean((1, 2))[:, None], 8, tower="mean")
    with open_records(own_set / "features" / "mean", "train") as cache:
        rows = list(cache)
    rows[7]["shape"] = [2, 3]
    with RecordWriter(own_set / "features" / "mean", "train") as writer:
        for row in rows:
            writer.write(pack(row))
    cfg = dataclasses.replace(PLAIN, features=("mean",))
    dataset = make(cfg, folder=own_set, batch_size=18)
    assert 7 not in dataset.batch_at(0)["id"] and dataset.bad.rows == {7}
    with pytest.raises(UserError, match="row 7 cannot be read .*cache 'mean' has no tokens"):
        list(eval_split(own_set, "train", input_specs(tokenizer, cached=True), cfg).left.blocks(18))


def test_bad_rows_count_each_row_once():
    bad = BadRows(300, "split 'x'")
    for row in (1, 2, 3, 3, 3):
        bad.add(row, ValueError("torn"))
    with pytest.raises(UserError, match="4 of 300 rows"):
        bad.add(4, ValueError("torn"))


def test_loader_gives_the_batches_in_order_from_its_cursor(make):
    dataset = make(RANDOM)
    with Loader(dataset, cursor=5 * 6, threads=3, prefetch=4) as loader:
        for number in range(5, 12):
            assert loader.cursor == number * 6
            assert same(next(loader), dataset.batch_at(number))
        assert loader.cursor == 12 * 6 and loader.wait_seconds > 0


def test_another_batch_size_goes_on_with_the_next_example(make):
    """24 examples in batches of 6 and 9 and 3 are the 24 of four batches of 6: none twice, none left out."""
    whole, cursor, parts = [make(RANDOM).batch_at(number) for number in range(4)], 0, []
    for size, batches in ((6, 1), (9, 1), (3, 3)):
        with Loader(make(RANDOM, batch_size=size), cursor=cursor, threads=1, prefetch=1) as loader:
            parts += [next(loader) for _ in range(batches)]
            cursor = loader.cursor
    assert cursor == 24

    def joined(batches):
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    assert same(joined(whole), joined(parts))


def test_positions_beyond_32_bits_give_whole_epochs(make):
    dataset = make()
    for far in (2**31, 2**32, 2**40):
        first = -(-far // len(dataset.split)) * len(dataset.split) - 6  # one batch before an epoch begins
        rows = [dataset.batch_from(first + 6 * number)["index"] for number in range(4)]
        assert sorted(np.concatenate(rows[1:]).tolist()) == list(range(len(dataset.split)))


def test_loader_gives_a_process_its_rows(make):
    dataset = make(RANDOM)
    with Loader(dataset, process=1, count=2) as loader:
        assert same(next(loader), dataset.batch_at(0, 1, 2))


def test_closing_a_loader_ends_its_threads(make):
    before = threading.active_count()
    loader = Loader(make(), threads=3)
    next(loader)
    assert threading.active_count() > before
    loader.close()
    assert threading.active_count() == before


def test_an_error_in_a_thread_reaches_the_caller(make, own_set):
    spoil(own_set, [0, 5, 11])
    with Loader(make(folder=own_set)) as loader, pytest.raises(UserError, match="cannot be read"):
        for _ in range(3):
            next(loader)


def test_evaluation_reads_each_picture_and_caption_once(tiny_set, tokenizer, plain_colour):
    split = eval_split(tiny_set, "test", input_specs(tokenizer), PLAIN)
    assert split.view == "png" and split.keys == [f"thing-{n}" for n in range(0, 24, 4)]
    assert split.right.words == [f"thing number {n}" for n in range(0, 24, 4)]
    assert split.right.owner.tolist() == split.rows.tolist() == list(range(6))
    assert split.labels.tolist() == [[1.0, 0.0, 0.0]] * 6
    np.testing.assert_array_equal(split.right.ids, tokenizer.encode(split.right.words, 8))
    first, second = split.left.blocks(4)
    assert first["image"].shape == second["image"].shape == (4, 16, 16, 3) and second["id"].tolist() == [4, 5, -1, -1]
    for row, number in enumerate(range(0, 16, 4)):
        np.testing.assert_array_equal(first["image"][row], plain_colour(number))
    assert not second["image"][2:].any()


def test_captions_keep_their_owner_and_texts_are_padded(tiny_set, tokenizer):
    split = eval_split(tiny_set, "train", input_specs(tokenizer), PLAIN, view="jpeg")
    assert len(split.right.words) == 30 and len(split.keys) == 18
    for caption, owner in zip(split.right.words, split.right.owner, strict=True):
        assert caption in ("a thing", f"thing number {split.keys[owner].split('-')[1]}")
    things = [key for key, caption in zip(split.right.numbers, split.right.words, strict=True) if caption == "a thing"]
    assert len(set(things)) == 1 and len(things) == 12
    assert len(set(split.right.numbers.tolist())) == 19
    batches = list(split.right.blocks(8))
    assert [batch["text"].shape for batch in batches] == [(8, 8)] * 4
    assert np.concatenate([batch["id"] for batch in batches]).tolist() == [*range(30), -1, -1]
    np.testing.assert_array_equal(np.concatenate([batch["text"] for batch in batches])[:30], split.right.ids)


def test_evaluation_resizes_the_whole_picture(tiny_set, tokenizer, plain_colour):
    split = eval_split(tiny_set, "test", input_specs(tokenizer, 10), PLAIN)
    np.testing.assert_array_equal(next(split.left.blocks(1))["image"][0], resize(plain_colour(0), 10))


def test_evaluation_refuses_a_torn_record_rather_than_leave_it_out(own_set, tokenizer):
    spoil(own_set, [3])
    split = eval_split(own_set, "train", input_specs(tokenizer), PLAIN)
    with pytest.raises(UserError, match="row 3 cannot be read"):
        list(split.left.blocks(6))


def test_records_without_the_view_are_left_out_and_said(tmp_path, tiny_items, tokenizer, caplog):
    items = tiny_items()
    del items[3].images["png"]  # row 2 of the train split
    prepare(memory_source(items), tmp_path / "set")
    with caplog.at_level(logging.WARNING):
        split = eval_split(tmp_path / "set", "train", input_specs(tokenizer), PLAIN, view="png")
    assert len(split.keys) == 17 and 2 not in split.rows and "1 of 18 records" in caplog.text


def test_captions_of_a_split_come_in_row_order(tiny_set):
    assert split_captions(tiny_set, "test") == [f"thing number {n}" for n in range(0, 24, 4)]
    assert split_captions(tiny_set, "test", ("fr", "en"))[:2] == ["la chose 0", "thing number 0"]


def test_multi_hot_marks_each_label():
    assert multi_hot([[0, 2], [], [1]], 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_labels_can_be_left_out_of_batches_and_evaluation(tiny_set, tokenizer):
    config = DataConfig(path=str(tiny_set), labels=False)
    data = train_dataset(tiny_set, "train", input_specs(tokenizer), config, seed=0, batch_size=2)
    assert "labels" not in data.batch_at(0)
    data.close()
    assert eval_split(tiny_set, "test", input_specs(tokenizer), config).labels is None


def test_pairs_can_match_by_their_labels(make, tiny_set):
    by_labels = dataclasses.replace(PLAIN, positives="labels", labels=False)  # the labels need not be in the batch
    plain, matched = make().batch_at(0), make(by_labels).batch_at(0)
    np.testing.assert_array_equal(matched["index"], plain["index"])
    sidecar = Sidecar(tiny_set, Card.load(tiny_set), "train")
    own = [frozenset(sidecar.labels(row)) for row in matched["index"]]
    for i in range(6):
        for j in range(6):
            assert (matched["id"][i] == matched["id"][j]) == (own[i] == own[j] and (bool(own[i]) or i == j))
    assert len(set(own)) < 6, "no two rows share their labels: the test would say nothing"


def test_cut_training_captions_are_counted_on_a_sample(make, tokenizer, tiny_set, monkeypatch):
    captions = split_captions(tiny_set, "train")
    lengths = tokenizer.lengths(captions)
    found = make(length=5).cut()["text"]
    assert found["share"] == round(100 * np.mean(lengths > 5), 4) and 0 < found["share"] < 100
    assert found["longest"] == max(lengths)
    monkeypatch.setattr("xmodal_jax.data.train.SAMPLED", 2)
    own = Sidecar(tiny_set, Card.load(tiny_set), "train")
    ends = [text for row in (0, 17) for text in own.captions(row)["en"]]
    assert make(length=5).cut()["text"]["share"] == round(100 * np.mean(tokenizer.lengths(ends) > 5), 4)


def test_label_keys_are_of_sets_and_never_an_empty_place(tmp_path, encoded, plain_colour):
    sets = [(), ("a", "b"), ("b", "a"), ("a",), ("a", "a"), ("b",), ()]
    images = {"image": encoded(plain_colour(0))}
    items = [Item(str(n), images, {"en": ["x"]}, labels) for n, labels in enumerate(sets)]
    prepare(memory_source(items), tmp_path / "set")
    with contextlib.closing(Split(tmp_path / "set", "train", PLAIN)) as split:
        keys = [split.label_key(row) for row in range(len(split))]
    assert keys[0] == -2 and keys[6] == -8 and min(keys[1:6]) >= 0 and keys[1].dtype == np.int32
    for one, left in enumerate(sets):
        for other, right in enumerate(sets):
            assert (keys[one] == keys[other]) == (set(left) == set(right) and (bool(left) or one == other))


def test_captions_are_the_same_in_training_only_if_their_text_is(tmp_path, encoded, plain_colour):
    """Not if their tokens are: the end may be cut, and unknown words all have one id."""
    texts = [
        "a b c d e f one",
        "a b c d e f two",
        "日 a",
        "本 a",
        "A  b c d e f ONE",
        "café a",
        "cafe a",
        "cafe\u0301 a",
    ]
    images = {"image": encoded(plain_colour(0))}
    items = [Item(str(n), images, {"en": [text], "fr": [text, "autre"]}) for n, text in enumerate(texts)]
    items += [Item("plain", images, {"en": ["one two"]}), Item("test", images, {"en": texts}, split="test")]
    prepare(memory_source(items), tmp_path / "set")
    tokenizer = load_tokenizer("data", tmp_path / "set")
    with contextlib.closing(
        train_dataset(tmp_path / "set", "train", input_specs(tokenizer, 16, 6), PLAIN, 0, 9)
    ) as data:
        batch = data.batch_at(0)
    order = np.argsort(batch["index"])[:8]
    keys, ids = batch["text/key"][order], batch["text"][order]
    assert all(np.array_equal(ids[one], ids[other]) for one, other in ((0, 1), (5, 6)))
    same = {frozenset((one, other)) for one in range(8) for other in range(one) if keys[one] == keys[other]}
    assert same == {frozenset((0, 4)), frozenset((5, 7))}
    with contextlib.closing(Split(tmp_path / "set", "test", PLAIN)) as held:
        own = held.sidecar
        assert own.number[own.pairs(0, ("en",))].tolist() == keys.tolist(), "one number in all splits"
    french = dataclasses.replace(PLAIN, languages=("fr", "en"))
    with contextlib.closing(Split(tmp_path / "set", "train", french)) as split:
        pairs = split.sidecar.pairs(2, french.languages)
        own = split.sidecar.number[pairs].tolist()
        assert own[0] == own[2] == keys[2] and own[1] not in keys, "and in all languages"
        assert [split.sidecar.texts[pair] for pair in pairs] == ["日 a", "autre", "日 a"]


def test_matching_by_labels_needs_labels(tiny_items, tmp_path, make, tokenizer):
    prepare(memory_source(dataclasses.replace(item, labels=()) for item in tiny_items()), tmp_path)
    with pytest.raises(UserError, match="config.data.positives is 'labels', and .* has none; write 'record'"):
        make(dataclasses.replace(PLAIN, positives="labels"), folder=tmp_path)
    assert eval_split(
        tmp_path, "test", input_specs(tokenizer), dataclasses.replace(PLAIN, positives="labels")
    ).keys  # of training alone
    with pytest.raises(UserError, match="config.data.positives is 'label'; write 'record' or 'labels'"):
        dataclasses.replace(PLAIN, positives="label")
