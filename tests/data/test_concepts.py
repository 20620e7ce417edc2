"""Concepts: mined from the training captions alone, marked on every record, carried by batches that ask for them."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import FACTS, input_specs, tiny_config

from xmodal_jax.assemble import assemble_without_data
from xmodal_jax.cli import main
from xmodal_jax.config_file import freeze, load
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.concepts import Concepts, finder, has_content, mine, read_concepts, write_concepts
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.fields import batch_fields
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

CAPTIONS = {  # {key: (split, captions)}
    "one": ("train", ["A dog runs on the grass.", "The DOG and a ball"]),
    "two": ("train", ["Two dogs, a ball and 3 men", "t-shirt on grass"]),
    "three": ("train", ["a ball", "a small traffic light"]),
    "four": ("train", ["a dog at a traffic light", "x"]),
    "five": ("test", ["a zebra and a dog", "A traffic-light!"]),
    "six": ("test", ["a zebra"]),
    "seven": ("val", ["grass"]),
}


def items(encoded, **more):
    picture = {"image": encoded(np.zeros((8, 8, 3), np.uint8))}
    captions = {key: (split, {"en": own}) for key, (split, own) in CAPTIONS.items()} | more
    return [Item(key, picture, own, group=key, split=split) for key, (split, own) in captions.items()]


@pytest.fixture
def folder(tmp_path, encoded):
    prepare(memory_source(items(encoded, mute=("train", {"de": ["ein Hund"]})), "few"), tmp_path / "set")
    return tmp_path / "set"


def marks(folder, split, name="concepts"):
    """{key: concepts} of a split, and whether they are known."""
    card = Card.load(folder)
    own = Sidecar(folder, card, split)
    found = Concepts(folder, card, name, own)
    named = {own.keys[row]: {found.names[place] for place in np.flatnonzero(found.row(row))} for row in range(len(own))}
    return named, {own.keys[row]: found.known(row) for row in range(len(own))}


def test_words_of_most_training_records_are_mined(folder):
    card = Card.load(folder)
    own = Sidecar(folder, card, "train")
    # "a" is a stop word; "3" and the "t" of a shirt are none; "dogs" is not "dog"; words of one record are left out
    assert mine(own, ("en",), 10) == ["ball", "dog", "grass", "light", "traffic"]
    assert mine(own, ("en",), 2) == ["ball", "dog"]
    assert mine(own, ("de",), 10) == []
    assert [has_content(word) for word in ("the", "12", "t", "dog", "犬")] == [False, False, False, True, True]


def test_words_in_most_captions_are_left_out_in_any_language(tmp_path, encoded):
    own = {f"{n}": ("train", {"de": ["ein Hund" if n % 2 else "ein Ball"]}) for n in range(8)}
    made = [item for item in items(encoded, **own) if "de" in item.captions]
    prepare(memory_source(made, "few"), tmp_path / "set")
    assert mine(Sidecar(tmp_path / "set", Card.load(tmp_path / "set"), "train"), ("de",), 9) == ["ball", "hund"]


def test_every_record_is_marked_with_words_of_the_training_captions(folder, capsys):
    assert main(["data", "concepts", "--data", str(folder), "--count", "4"]) == 0
    said = capsys.readouterr()
    assert said.out == f"concepts 'concepts': 4 in {folder} (ball, dog, grass, light, ...)\n"
    entry = Card.load(folder).concepts["concepts"]
    assert (entry["names"], entry["split"], entry["languages"]) == (["ball", "dog", "grass", "light"], "train", ["en"])
    train, known = marks(folder, "train")
    expected = {"one": "dog grass ball", "two": "ball grass", "three": "ball light", "four": "dog light", "mute": ""}
    assert train == {key: set(own.split()) for key, own in expected.items()}
    assert known == {key: key != "mute" for key in expected}, "a record without English captions has no known concepts"
    assert marks(folder, "test")[0] == {"five": {"dog", "light"}, "six": set()}, "zebras are no concept"
    assert marks(folder, "val")[0] == {"seven": {"grass"}}
    assert (folder / "concepts" / "concepts" / "train.bin").stat().st_size == 5, "a byte holds four concepts"


def test_a_list_of_ones_own_may_have_several_words(folder, tmp_path, caplog, capsys):
    (tmp_path / "words.txt").write_text("unicorn\n")
    how = ["data", "concepts", "--data", str(folder), "--words", str(tmp_path / "words.txt")]
    assert main(how) == 2
    assert "no caption of split 'train' in en has a concept of --words" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("\ufeffDog\n\nTraffic  light\nunicorn\n", "utf-8")
    assert main([*how, "--name", "own"]) == 0
    assert Card.load(folder).concepts["own"]["names"] == ["dog", "traffic light", "unicorn"]
    assert "no caption of split 'train' has 1 of the concepts: unicorn" in caplog.text
    assert marks(folder, "test", "own")[0] == {"five": {"dog", "traffic light"}, "six": set()}
    assert finder(["dog", "dog house"])("hot dog house") == {0, 1}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty; write one concept a line"),
        ("dog\n...\n", "line 2 has no word"),
        ("dog\ncat\n DOG\n", "line 3 is 'dog' again, as in line 1; write it once"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(tmp_path, text, complaint):
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_concepts(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--count", "0"], "--count is 0; write 1 or more concepts"),
        (["--split", "dev"], "no split 'dev': use one of test, train, val"),
        (["--languages", "en,fr"], "no captions in 'fr'; write some of en, de"),
        (["--name", "a/b"], "concepts name 'a/b': use a plain word"),
        (["--words", "missing.txt"], "--words missing.txt is no file"),
        (
            ["--split", "test", "--languages", "de"],
            "no word of split 'test' in de could be a concept; write your own with --words",
        ),
    ],
)
def test_bad_options_end_in_one_sentence(folder, capsys, monkeypatch, tmp_path, options, complaint):
    monkeypatch.chdir(tmp_path)
    before = (folder / CARD_FILE).read_bytes()
    assert main(["data", "concepts", "--data", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert (folder / CARD_FILE).read_bytes() == before and not (folder / "concepts").exists()


def test_a_name_that_is_taken_is_kept(folder):
    card = write_concepts(folder, count=3)
    assert write_concepts(folder, count=3) == card, "the same again changes nothing"
    with pytest.raises(UserError, match="has other concepts 'concepts': write another --name; nothing was overwritten"):
        write_concepts(folder, count=2)
    write_concepts(folder, "two", count=2)
    assert list(Card.load(folder).concepts) == ["concepts", "two"]


def test_remains_of_a_killed_run_are_replaced(folder):
    card = Card.load(folder)
    write_concepts(folder, count=3)
    card.save(folder)  # the files are there and the card does not know them
    (folder / "concepts" / ".concepts.part").mkdir()
    write_concepts(folder, count=2)
    assert len(Card.load(folder).concepts["concepts"]["names"]) == 2 and marks(folder, "test")[0]["six"] == set()


def test_a_data_set_that_is_made_anew_has_none(folder, encoded):
    write_concepts(folder, count=3)
    prepare(memory_source(items(encoded), "few"), folder, force=True)
    assert Card.load(folder).concepts == {} and not (folder / "concepts").exists()


def test_marks_of_other_captions_are_refused(folder):
    write_concepts(folder, count=3)
    content = json.loads((folder / CARD_FILE).read_text())
    content["concepts"]["concepts"]["fingerprint"] = "0"
    (folder / CARD_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="concepts 'concepts' of .* are of other captions"):
        marks(folder, "train")
    (folder / "concepts" / "concepts" / "test.bin").write_bytes(b"12")
    with pytest.raises(UserError, match="is damaged"):
        marks(folder, "test")


def test_marks_that_are_lost_are_mined_anew(folder):
    write_concepts(folder, count=3)
    (folder / "concepts" / "concepts" / "train.bin").unlink()
    with pytest.raises(UserError, match="cannot be read .*; mine them anew: xmodal data concepts .* --name ANOTHER"):
        marks(folder, "train")


def test_a_card_from_before_concepts_is_read(folder):
    content = json.loads((folder / CARD_FILE).read_text())
    del content["concepts"], content["without_pixels"]
    (folder / CARD_FILE).write_text(json.dumps(content))
    assert Card.load(folder).concepts == {} and Card.load(folder).without_pixels == []


@pytest.fixture
def batch_of(tiny_set, tokenizer, tmp_path, tiny_items):
    """The function (config of data) -> the first batch of a data set with concepts and labels."""
    folder = tmp_path / "set"
    prepare(memory_source(tiny_items(), "tiny"), folder)
    with pytest.raises(UserError, match="no word of split 'train' in en could be a concept; write your own"):
        write_concepts(folder)
    write_concepts(folder, listed=("number", "thing"))

    def first(**fields):
        dataset = train_dataset(folder, "train", input_specs(tokenizer), DataConfig(**fields), 0, 6)
        batch = dataset.batch_at(0)
        dataset.close()
        return batch

    return first


def test_batches_carry_what_the_config_asks_for(batch_of):
    assert "concepts" not in batch_of()
    batch = batch_of(concepts="concepts")
    assert batch["concepts"].shape == (6, 2) and batch["concepts"].dtype == np.float32
    assert batch["concepts/valid"].tolist() == [True] * 6 and batch["labels"].shape == (6, 3), "labels stay labels"
    config = tiny_config(data={"concepts": "concepts", "features": ()}, image={"kind": "vit", "size": 16})
    told = batch_fields(config, dataclasses.replace(FACTS, concepts=2))
    assert {name: told[name] for name in ("concepts", "concepts/valid")} == {
        name: (batch[name].shape[1:], batch[name].dtype.name) for name in ("concepts", "concepts/valid")
    }
    assert "concepts" not in batch_fields(tiny_config(), dataclasses.replace(FACTS, concepts=2))
    with pytest.raises(UserError, match=r"no concepts 'more': it has concepts; .*`xmodal data concepts`"):
        batch_of(concepts="more")


def test_a_plan_without_data_has_as_many_as_the_command_makes():
    planned = ["data.concepts=concepts", "objectives.multilabel={}"]
    assembly = assemble_without_data(freeze(load("quickstart:tiny", ["data.path=nowhere", *planned])))
    assert assembly.facts.concepts == 300 and assembly.model.classes == (("concepts", 300),)
    with pytest.raises(UserError, match=r"reads 'concepts' of the batch.*write config.data.concepts=NAME, made by"):
        assemble_without_data(freeze(load("quickstart:tiny", ["data.path=nowhere", planned[1]])))
    with pytest.raises(UserError, match="config.data.fields has 'concepts', which every batch has of its own"):
        freeze(load("quickstart:tiny", ["data.fields.concepts={'of': 'text'}"]))
