"""Noise of three kinds: as much as asked for, told in a column, repeatable, and only where it was asked for."""

import collections
import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import input_specs

from xmodal_jax.cli import main
from xmodal_jax.data.captions import caption_keys, normal_caption, words
from xmodal_jax.data.card import Card
from xmodal_jax.data.concepts import write_concepts
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.features import write_features
from xmodal_jax.data.noise import WORDS_FILE, add_noise
from xmodal_jax.data.noise_draws import OwnTexts, permuted, restored
from xmodal_jax.data.noise_words import WordSwapper, mined_nouns, spans
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import RecordWriter, open_records, pack
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError
from xmodal_jax.origin import describe, refuse_other_data

THINGS = ("dog", "horse", "boat", "child", "bird", "lamp", "hat")
PLACES = ("beach", "field", "street", "roof", "lake")
COLOURS = ("red", "old", "grey")


def captions_of(number):
    """Three English captions, the third of which other records have too, and a French one."""
    thing, place, colour = THINGS[number % 7], PLACES[number % 5], COLOURS[number % 3]
    english = [f"A {colour} {thing} waits by the {place} {number}.", f"the {thing} of a {place}, no. {number}"]
    return {"en": [*english, f"two {colour} things"], "fr": [f"il y a {number} choses ici"]}


@pytest.fixture(scope="module")
def items(encoded, plain_colour):
    """60 train records and 10 test records of a picture and four captions each, and a train record without captions."""
    pictures = [{"photo": encoded(plain_colour(number))} for number in range(30)]
    found = [
        Item(f"thing-{number}", pictures[number % 30], captions_of(number), split="train" if number < 60 else "test")
        for number in range(70)
    ]
    return [*found, Item("mute", pictures[0], {}, media={"sound": {"left": b"hum"}})]


@pytest.fixture(scope="module")
def clean(items, tmp_path_factory):
    """The data set of `items`, with cached features."""
    folder = tmp_path_factory.mktemp("clean") / "set"
    prepare(memory_source(items, "things", "none"), folder)
    write_features(folder, "mean", lambda images: images.mean((1, 2))[:, None], 8)
    return folder


@pytest.fixture
def noisy(clean, tmp_path):
    """A function (options) -> (summary, sidecar before, sidecar after); the set is at `tmp_path / "out"`."""

    def make(kind, rate=0.4, out="out", **options):
        summary = add_noise(clean, tmp_path / out, kind=kind, rate=rate, **options)
        return summary, opened(clean), opened(tmp_path / out)

    return make


def opened(folder, split="train"):
    return Sidecar(folder, Card.load(folder), split)


def told_wrong(own):
    """The captions that the column `changed` marks."""
    assert own.changed is not None and own.changed.dtype == np.uint8 and len(own.changed) == len(own.texts)
    return np.flatnonzero(own.changed == 1).tolist()


def wrong_rows(before, after):
    """The captions, counted from two sidecars alone, that are no text that their record had."""
    truth = [{normal_caption(text) for own in before.captions(row).values() for text in own} for row in range(60)]
    return [row for row, text in enumerate(after.texts) if normal_caption(text) not in truth[before.owner[row]]]


def differing(before, after):
    """The captions that are another text."""
    return [row for row, (one, other) in enumerate(zip(before.texts, after.texts, strict=True)) if one != other]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rate", [0.2, 0.6, 1.0])
def test_complete_noise_is_a_permutation_with_the_rate_that_was_asked_for(noisy, rate, seed):
    summary, before, after = noisy("complete", rate, seed=seed)
    wrong = wrong_rows(before, after)
    assert differing(before, after) == wrong == told_wrong(after)
    assert (summary.captions, summary.wrong_captions, summary.real_rate) == (240, len(wrong), len(wrong) / 240)
    assert summary.real_rate == rate or rate == 1.0 and summary.real_rate > 0.9, "a third of them are of a few texts"
    for language in range(2):
        mine = np.flatnonzero(before.language == language)
        texts = [collections.Counter(own.texts.take(mine)) for own in (before, after)]
        assert texts[0] == texts[1], "each in its language"
    assert np.array_equal(before.owner, after.owner) and np.array_equal(before.language, after.language)
    assert summary.wrong_records == len(set(before.owner[wrong].tolist())) and summary.records == 60


def test_half_of_the_captions_of_some_records_are_those_of_others(noisy):
    summary, before, after = noisy("captions", 0.5)
    wrong = wrong_rows(before, after)
    assert differing(before, after) == wrong == told_wrong(after)
    of_record = collections.Counter(before.owner[wrong].tolist())
    assert summary.real_rate == len(of_record) / 60 and abs(summary.real_rate - 0.5) <= 0.05
    assert max(of_record.values()) == 2 and len(wrong) == summary.wrong_captions > 45, "two of four"
    assert collections.Counter(before.texts) == collections.Counter(after.texts)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_partial_noise_changes_the_share_of_words_and_keeps_the_length(noisy, share, tmp_path):
    summary, before, after = noisy("partial", share=share)
    wrong = wrong_rows(before, after)
    assert differing(before, after) == wrong == told_wrong(after)
    assert summary.wrong_captions == len(wrong) == 96, "0.4 of 180 and of 60"
    known = {word for text in before.texts for word in words(text)}
    nouns = set((tmp_path / "out" / WORDS_FILE).read_text("utf-8").split())
    assert nouns >= {*THINGS, *PLACES} and not nouns & {*COLOURS, "two", "the", "by", "waits"}
    replaced = total = 0
    for row in wrong:
        old, new = words(before.texts[row]), words(after.texts[row])
        other = [place for place, (one, two) in enumerate(zip(old, new, strict=True)) if one != two]
        replaced, total = replaced + len(other), total + len(old)
        assert 0 < len(other) <= max(1, round(share * len(old))) and set(new) <= known
        assert all((old[place] in nouns) == (new[place] in nouns) for place in other)
        if any(old[place] not in nouns for place in other) and before.language[row] == 0:
            left = [place for place, word in enumerate(old) if word in nouns and place not in other]
            assert share == 1.0 or left == [], "nouns first"
    assert summary.real_share == replaced / total and abs(summary.real_share - share) < 0.1
    assert Card.load(tmp_path / "out").noise["words"] == WORDS_FILE


def test_signs_and_the_capital_of_a_sentence_stay_where_they_are(noisy):
    _, before, after = noisy("partial", 1.0, share=0.6)
    for old, new in zip(before.texts, after.texts, strict=True):
        assert old[0].isupper() == new[0].isupper() or new[0].isdigit()
        assert [char for char in old if char in ",."] == [char for char in new if char in ",."]
        assert not any(word[0].isupper() for word in new.split()[1:])


def test_a_list_of_nouns_of_ones_own(noisy, tmp_path):
    (tmp_path / "nouns.txt").write_text("Dog\n\nhorse \nbird\n", "utf-8")
    summary, before, after = noisy("partial", 1.0, share=0.1, words=tmp_path / "nouns.txt")
    assert (tmp_path / "out" / WORDS_FILE).read_text("utf-8") == "bird\ndog\nhorse\n" and summary.nouns == 3
    swapped = [(words(before.texts[row]), words(after.texts[row])) for row in told_wrong(after)]
    named = {"dog", "horse", "bird"}
    assert sum(bool(named & set(old)) for old, _ in swapped) > 20
    for old, new in swapped:
        (pair,) = [(one, other) for one, other in zip(old, new, strict=True) if one != other]
        assert named.issuperset(pair) if named & set(old) else not named & set(pair)


@pytest.mark.parametrize("kind", ["complete", "partial", "captions"])
def test_numbers_are_equal_for_the_same_text_alone_and_other_splits_are_the_same_files(noisy, clean, tmp_path, kind):
    noisy(kind, 0.7)
    out, names = tmp_path / "out", ("train", "test")
    texts = [text for split in names for text in opened(out, split).texts]
    numbers = np.concatenate([opened(out, split).number for split in names])
    keys = caption_keys(texts)
    assert len(set(zip(keys.tolist(), numbers.tolist(), strict=True))) == len(set(keys.tolist())) == len({*numbers})
    same = [*clean.glob("*.arrayrecord"), *clean.glob("sidecar/test/*"), *clean.glob("features/mean/*.arrayrecord")]
    same += [clean / "digests" / "test.npy", clean / "sidecar" / "train" / "keys.bin"]
    assert len(same) > 20 and all(path.samefile(out / path.relative_to(clean)) for path in same)
    assert opened(out, "test").changed is None is opened(clean).changed
    before, after = Card.load(clean), Card.load(out)
    assert before.splits["test"] == after.splits["test"] and before.features == after.features
    assert before.fingerprint != after.fingerprint and after.name == "out" and before.noise == {}
    assert after.noise["source"] == {"name": "set", "fingerprint": before.fingerprint}
    assert "noise" not in json.loads((clean / "card.json").read_text("utf-8")), "an older version reads it"


@pytest.mark.parametrize("kind", ["complete", "partial"])
def test_the_card_is_that_of_a_set_prepared_with_these_captions(noisy, items, tmp_path, kind):
    _, _, after = noisy(kind, 0.7)
    train = iter(range(len(after)))
    changed = [
        dataclasses.replace(item, captions=after.captions(next(train))) if item.split == "train" else item
        for item in items
    ]
    card, made = prepare(memory_source(changed), tmp_path / "again"), Card.load(tmp_path / "out")
    assert (card.ceiling, card.duplicates, card.words) == (made.ceiling, made.duplicates, made.words)
    digests = [np.load(folder / "digests" / "train.npy") for folder in (tmp_path / "again", tmp_path / "out")]
    assert np.array_equal(*digests)


@pytest.mark.parametrize("kind", ["complete", "partial", "captions"])
def test_a_seed_is_one_set_and_another_seed_another(noisy, tmp_path, kind):
    for out, seed in (("one", 3), ("two", 3), ("three", 4)):
        noisy(kind, out=out, seed=seed)
    one, two, three = (opened(tmp_path / out) for out in ("one", "two", "three"))
    assert list(one.texts) == list(two.texts) != list(three.texts) and told_wrong(one) == told_wrong(two)
    prints = [Card.load(tmp_path / out).fingerprint for out in ("one", "two", "three")]
    assert prints[0] == prints[1] != prints[2]


def test_what_was_made_of_captions_is_left_out(clean, tmp_path):
    data, files = tmp_path / "set", {}
    shutil.copytree(clean, data)
    for name in ("texts", "starts"):
        (data / name).mkdir()
    (data / "tokenizer.json").write_text("of the old captions")
    (data / "taxonomy.json").write_text("{}")
    write_concepts(data)
    for name, media in (("photos", ["image"]), ("both", ["image", "text"])):
        for split in ("train", "test"):
            with RecordWriter(data / "embeddings" / name, split) as writer:
                writer.write(pack({"width": 2}))
            files[split] = writer.files
        entry = {"teacher": "t", "weights": "0", "width": 2, "media": media, "views": ["photo"], "dtype": "float32"}
        card = Card.load(data)
        made = card.embeddings | {name: entry | {"languages": ["en"] * (len(media) - 1), "files": dict(files)}}
        dataclasses.replace(card, embeddings=made).save(data)
    add_noise(data, tmp_path / "out", kind="complete", rate=0.5)
    assert set(Card.load(tmp_path / "out").embeddings) == {"photos"} and not Card.load(tmp_path / "out").concepts
    assert os.listdir(tmp_path / "out" / "embeddings") == ["photos"]
    shards = {path.name for path in clean.glob("*.arrayrecord")}
    parts = {"card.json", "digests", "embeddings", "features", "sidecar", "taxonomy.json"}
    assert set(os.listdir(tmp_path / "out")) == shards | parts


def test_files_are_copied_where_links_are_refused(noisy, clean, tmp_path, monkeypatch):
    def refused(*names):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    noisy("complete")
    (shard,) = clean.glob("train-*.arrayrecord")
    copy = tmp_path / "out" / shard.name
    assert not copy.samefile(shard) and copy.read_bytes() == shard.read_bytes()
    with open_records(tmp_path / "out", "train") as one, open_records(clean, "train") as other:
        assert list(one) == list(other)


def test_links_of_links_lead_to_the_file(clean, tmp_path):
    data = tmp_path / "set"
    shutil.copytree(clean, data)
    (shard,) = data.glob("train-*.arrayrecord")
    (data / "disk").mkdir()
    shard.rename(data / "disk" / "shard")
    shard.symlink_to("disk/shard")
    add_noise(data, tmp_path / "out", kind="complete", rate=0.5)
    assert (tmp_path / "out" / shard.name).samefile(data / "disk" / "shard")
    (data / "disk" / "shard").unlink()
    with pytest.raises(UserError, match="train-.*arrayrecord' is missing; copy it there, or prepare"):
        add_noise(data, tmp_path / "other", kind="complete", rate=0.5)
    assert not (tmp_path / "other").exists()


def test_an_interruption_leaves_nothing_and_what_was_complete_is_put_in_place(noisy, tmp_path, monkeypatch):
    place, save = tmp_path / "out", Card.save

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Card, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        noisy("complete")
    assert not place.exists()
    monkeypatch.setattr(Card, "save", save)
    monkeypatch.setattr("xmodal_jax.data.making.move_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        noisy("complete")
    assert not (place / "card.json").exists()
    monkeypatch.undo()
    with pytest.raises(UserError, match="holds a data set: choose another --out; nothing was overwritten"):
        noisy("partial")
    assert Card.load(place).noise["kind"] == "complete" and not list(place.glob(".*"))


def test_training_batches_have_the_new_captions(noisy, clean, tmp_path):
    _, before, after = noisy("complete", 1.0)
    tokenizer = load_tokenizer("data", clean)
    seen = 0
    with contextlib.closing(
        train_dataset(tmp_path / "out", "train", input_specs(tokenizer, length=16), DataConfig(), 0, 60)
    ) as data:
        batch = data.batch_at(0)
        assert not [name for name in batch if "changed" in name]
        for row, ids in zip(batch["index"].tolist(), batch["text"], strict=True):
            told = tokenizer.decode(ids)
            new = [tokenizer.decode(tokenizer.encode([text], 16)[0]) for text in after.captions(row)["en"]]
            old = [tokenizer.decode(tokenizer.encode([text], 16)[0]) for text in before.captions(row)["en"]]
            assert told in new
            seen += told not in old
    assert seen > 50


def test_a_run_does_not_go_on_with_the_noisy_set(tiny_run, opened_run, train_tiny, tmp_path, capsys):
    workdir, data = tiny_run
    add_noise(data, tmp_path / "out", kind="complete", rate=0.5)
    config, before = opened_run[0].config, {"data": describe(opened_run[0].config, workdir)}
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "out")))
    with pytest.raises(UserError, match="split 'train' has other keys, captions or views"):
        refuse_other_data(other, workdir, before)
    assert main(train_tiny(workdir, f"data.path={tmp_path / 'out'}", "steps=6")) == 2
    assert "is not the one that" in capsys.readouterr().err


def test_the_command_tells_the_real_rate_and_what_is_untouched(clean, tmp_path, capsys):
    command = ["data", "noise", "--data", str(clean), "--out", str(tmp_path / "out"), "--rate", "0.4", "--seed", "2"]
    assert main([*command, "--kind", "partial", "--share", "0.3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("train: 96 of 240 captions are wrong, of ") and said[0].endswith(" of 60 records")
    assert said[1] == "  real rate 0.4000 of the captions, 0.4 asked"
    assert "of their words replaced, 0.3 asked; " in said[2] and "nouns first (noise-words.txt)" in said[2]
    assert said[3:] == ["untouched: test", f"{tmp_path / 'out'} is ready"]
    kept = Card.load(tmp_path / "out").noise
    assert [kept[key] for key in ("kind", "split", "rate", "share", "seed")] == ["partial", "train", 0.4, 0.3, 2]
    with pytest.raises(SystemExit):
        main(["data", "noise", "--help"])
    assert "--kind complete --rate 0.4" in capsys.readouterr().out


def test_prepare_does_not_take_a_noisy_set_for_its_own(noisy, items, tmp_path):
    noisy("complete")
    with pytest.raises(
        UserError, match="prepared with another noise: choose another folder, or replace it .option 'force'"
    ):
        prepare(memory_source(items, "things", "none"), tmp_path / "out")
    noisy("partial", out="words")
    card = prepare(memory_source(items, "things", "none"), tmp_path / "words", force=True)
    assert card.noise == {} and not (tmp_path / "words" / WORDS_FILE).exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rate", "0"], "--rate is 0; write a share above 0 and at most 1, such as 0.4"),
        (["--rate", "1.01"], "--rate is 1.01; write"),
        (["--rate", "nan"], "--rate is nan; write"),
        (["--rate", "1e-6"], "made none of the 240 captions of split 'train' wrong"),
        (["--seed", "-1"], "--seed is -1; write a whole number, and at least 0"),
        (["--split", "val"], "has no split 'val': use one of test, train"),
        (["--data", "nowhere"], "no data set at nowhere"),
        (["--share", "0.5"], "--share goes with --kind partial only"),
        (["--words", "nouns.txt"], "--words goes with --kind partial only"),
        (["--kind", "partial", "--share", "0"], "--share is 0; write a share of the words above 0"),
        (["--kind", "partial", "--words", "none.txt"], "--words none.txt does not exist"),
        (["--kind", "partial", "--words", "empty.txt"], "--words empty.txt has no word; write one a line"),
        (["--kind", "partial", "--words", "two.txt"], "--words two.txt: line 2 is 'a cat'; write one word a line"),
    ],
)
def test_bad_flags_are_one_sentence(clean, tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "two.txt").write_text("dog\na cat\n")
    command = ["data", "noise", "--data", str(clean), "--out", "out", "--kind", "complete", "--rate", "0.5"]
    assert main([*command, *flags]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_is_there_a_second_noise_and_an_unknown_kind_are_refused(noisy, clean, tmp_path):
    noisy("complete")
    before = (tmp_path / "out" / "card.json").read_bytes()
    with pytest.raises(UserError, match="out holds a data set: choose another --out; nothing was overwritten"):
        noisy("complete", seed=1)
    assert (tmp_path / "out" / "card.json").read_bytes() == before
    with pytest.raises(UserError, match=r"has noise already \(complete, rate 0.4\); write --data with the data set"):
        add_noise(tmp_path / "out", tmp_path / "twice", kind="partial", rate=0.4)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="else exists and is not a data set: choose another folder"):
        noisy("complete", out="else")
    with pytest.raises(UserError, match="--kind is 'all'; write one of complete, partial, captions"):
        noisy("all", out="new")
    assert sorted(os.listdir(tmp_path)) == ["else", "out"]


def test_sets_with_nothing_to_exchange_are_refused(tmp_path, encoded, plain_colour):
    png = encoded(plain_colour(0))
    alone = [Item("a", {"x": png}, {"en": ["one", "two"]}), Item("b", {"x": png}, {"en": ["one"]}, split="test")]
    prepare(memory_source([*alone, Item("c", {"x": png}, {}, media={"sound": {"s": b"1"}})]), tmp_path / "alone")
    with pytest.raises(UserError, match="split 'train' of .* has 1 record with captions, and wrong ones come from oth"):
        add_noise(tmp_path / "alone", tmp_path / "out", kind="complete", rate=1.0)
    prepare(memory_source([Item(str(n), {"x": png}, {"en": ["Same"]}) for n in range(40)]), tmp_path / "same")
    for kind in ("complete", "captions", "partial"):
        with pytest.raises(UserError, match="none of the 40 captions .* or all are the same; write a higher --rate"):
            add_noise(tmp_path / "same", tmp_path / "out", kind=kind, rate=1.0)
    assert not (tmp_path / "out").exists()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=24), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_every_row_has_its_own_caption_or_one_that_is_new_to_its_record(captions, seed):
    owner, number = np.array(sorted(captions), np.int32).T
    rows, texts, truth = np.arange(len(owner)), OwnTexts(owner, number), set(captions)
    took = restored(rows, permuted(rows, texts, np.random.default_rng(seed)), texts)
    assert sorted(took.tolist()) == rows.tolist()
    assert all(one == row or (owner[row], number[one]) not in truth for row, one in enumerate(took.tolist()))


def test_all_rows_are_made_wrong_where_that_is_possible():
    """Two records of 50 captions each: the only way is to exchange all."""
    texts, rows = OwnTexts(np.repeat([0, 1], 50), np.arange(100)), np.arange(100)
    assert not any(texts.has(rows, permuted(rows, texts, np.random.default_rng(seed))).any() for seed in range(5))
    texts = OwnTexts(np.repeat(np.arange(1000), 5), np.arange(5000))
    rows = np.sort(np.random.default_rng(0).choice(5000, 2000, replace=False))
    assert not texts.has(rows, permuted(rows, texts, np.random.default_rng(0))).any()


def test_nouns_are_mined_by_what_stands_around_them():
    subjects = ("brown dog", "young man", "dog", "man", "small boat")
    told = [f"A {subject} runs past the {place}" for subject in subjects for place in ("red car", "car", "wide field")]
    told += [f"{many} {subject}s with a hat are on a field." for many in ("Two", "some") for subject in ("dog", "boat")]
    found = mined_nouns(told)
    assert {"car", "field", "hat", "dogs", "boats"} <= found
    assert not found & {"brown", "young", "red", "wide", "runs", "past", "a", "the", "with"}
    assert mined_nouns([]) == mined_nouns(["", "..."]) == frozenset()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A dog's t-shirt, 3 times!", ["A", "dog's", "t-shirt", "3", "times"]),
        ("l’été à Köln", ["l’été", "à", "Köln"]),
        ("犬がABC走る", ["犬", "が", "ABC", "走", "る"]),
        ("कुल पानी", ["कुल", "पानी"]),
        ("... !", []),
    ],
)
def test_words_are_found_in_any_script(text, found):
    assert [text[start:stop] for start, stop in spans(text)] == found


def test_a_caption_that_would_still_be_true_is_drawn_again_or_left():
    swapper, draws = WordSwapper(frozenset({"dog", "cat"}), 0.1, random.Random(0)), iter(["a dog", "a cat"] * 99)
    assert swapper.swapped("the dog", lambda: next(draws), lambda text: False) == "the cat"
    assert swapper.swapped("the dog", lambda: next(draws), lambda text: text == "the cat") is None
    assert swapper.swapped("!", lambda: next(draws), lambda text: False) is None
    assert swapper.swapped("the dog", lambda: "", lambda text: False) is None
    assert (swapper.replaced, swapper.seen) == (1, 2)
