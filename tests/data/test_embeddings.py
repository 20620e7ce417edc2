"""Embeddings of a teacher line up with pictures and captions, survive interruption, and never replace another's."""

import dataclasses
import shutil

import numpy as np
import pytest
from tiny import input_specs

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.embeddings import Embeddings
from xmodal_jax.data.features import write_features
from xmodal_jax.data.image import AugmentConfig, eval_image
from xmodal_jax.data.readers import readers_of
from xmodal_jax.data.records import CorruptRecord, RecordWriter, open_records, pack
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.split import Split
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.encode.embed_data import Encoders, write_embeddings
from xmodal_jax.errors import UserError

LENGTH = 8
FIELDS = {"image": "image", "text": "text"}
CFG = DataConfig(languages=("en", "fr"), augment=AugmentConfig(flip=0.5))


def seen(images):
    """uint8 [b,S,S,3] -> [b,4]: the mean colour, and the mean red of the left half (a mirror image has another)."""
    left = images[:, :, : images.shape[2] // 2, 0].astype(float) - 100
    return np.stack([*(images.mean((1, 2)) - 100).T, left.mean((1, 2))], 1)


def said(ids):
    """Captions as token ids [b,L] -> [b,4]: lengths, sums and last tokens."""
    return np.array([[(row != 0).sum(), row.sum() % 97, row[row != 0][-2], 1.0] for row in ids])


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Counted:
    """The teacher, which counts its blocks and fails at one of them."""

    def __init__(self, fail_at=0):
        self.blocks, self.fail_at = [], fail_at

    def image(self, images):
        self.blocks.append(len(images))
        if len(self.blocks) == self.fail_at:
            raise KeyboardInterrupt
        return unit(seen(images))

    def encoders(self, text=lambda ids: unit(said(ids)), **changes):
        encode = {"image": self.image, "text": text}
        plain = Encoders("counted", "0123", "8 px", 4, FIELDS, encode)
        return dataclasses.replace(plain, **changes)


def write(folder, teacher=None, cfg=CFG, **options):
    options = {"name": "old", "batch": 4} | options
    encoders = teacher if isinstance(teacher, Encoders) else (teacher or Counted()).encoders()
    specs = input_specs(load_tokenizer("data", folder, ("en", "fr")), 8, LENGTH, bool(cfg.features))

    def opened(split):
        source = Split(folder, split, cfg)
        return source, readers_of(source, specs)

    return write_embeddings(folder, options.pop("name"), encoders, opened, **options)


def pair(found, row, view, caption, languages=("en",)):
    """The vectors of a picture and of a caption by its place in these languages."""

    def text(own, place):
        return [data for code in languages for data in own.get(code, [])][place]

    picks = {"image": ("image", lambda own, view: own[view][0], view), "text": ("text", text, caption)}
    return tuple(found.vectors(row, picks).values())


def test_a_field_that_is_missing_has_zeros(own_set):
    card = write(own_set)
    found = Embeddings(own_set, card, "old", "train", ["png"], ["en"])
    np.testing.assert_array_equal(found.vectors(0, {"image": ("image", None, None)})["image"], np.zeros(4, np.float32))
    found.close()


def test_each_picture_and_caption_has_its_own(own_set):
    teacher = Counted()
    card = write(own_set, teacher)
    assert card == Card.load(own_set)
    entry = card.embedding("old") | {"files": sorted(card.embeddings["old"]["files"])}
    assert entry == {
        "teacher": "counted",
        "weights": "0123",
        "reads": "8 px",
        "width": 4,
        "media": ["image", "text"],
        "views": ["png", "jpeg"],
        "languages": ["en", "fr"],
        "dtype": "float32",
        "files": ["test", "train"],
    }
    assert set(teacher.blocks) == {4}, "always full blocks of one shape"
    for split in ("train", "test"):
        found = Embeddings(own_set, card, "old", split, ["png", "jpeg"], ["fr", "en"])
        sidecar, tokenizer = Sidecar(own_set, card, split), load_tokenizer("data", own_set, ("en", "fr"))
        with open_records(own_set, split) as records:
            for row, record in enumerate(records):
                captions = sidecar.captions(row)["fr"] + sidecar.captions(row)["en"]
                for view, data in record["media"]["image"].items():
                    for number, caption in enumerate(captions):
                        image, text = pair(found, row, view, number, ("fr", "en"))
                        np.testing.assert_allclose(image, unit(seen(eval_image(8)(data)[None]))[0], rtol=1e-6)
                        np.testing.assert_allclose(text, unit(said(tokenizer.encode([caption], LENGTH)))[0], rtol=1e-6)
        found.close()


def test_batches_carry_those_of_the_view_and_caption_that_were_drawn(own_set, tokenizer):
    write(own_set)
    cfg = dataclasses.replace(CFG, languages=("en",), embeddings="old", augment=AugmentConfig(1.0, flip=0.0))
    dataset = train_dataset(own_set, "train", input_specs(tokenizer, 8, LENGTH), cfg, 0, 18)
    batch = dataset.batch_at(1)
    dataset.close()
    assert batch["image/teacher"].dtype == batch["text/teacher"].dtype == np.float32
    np.testing.assert_allclose(batch["image/teacher"], unit(seen(batch["image"])), rtol=1e-5)
    theirs = load_tokenizer("data", own_set, ("en", "fr")).encode(
        [tokenizer.decode(ids) for ids in batch["text"]], LENGTH
    )
    np.testing.assert_allclose(batch["text/teacher"], unit(said(theirs)), rtol=1e-5)
    plain = train_dataset(
        own_set, "train", input_specs(tokenizer, 8, LENGTH), dataclasses.replace(cfg, embeddings=""), 0, 18
    )
    without = plain.batch_at(1)
    plain.close()
    assert all(np.array_equal(without[name], batch[name]) for name in without)


def test_cached_tokens_are_what_a_teacher_of_tokens_sees(own_set):
    write_features(own_set, "mean", lambda images: images.mean((1, 2))[:, None], 8)
    cfg = dataclasses.replace(CFG, features=("mean",))
    encode = {"image": lambda rows: unit(rows[:, 0].astype(np.float32)), "text": lambda ids: unit(said(ids)[:, :3])}
    tokens = Encoders("t", "0", "mean", 3, FIELDS, encode)
    card = write(own_set, tokens, cfg)
    found = Embeddings(own_set, card, "old", "test", ["png"], ["en"])
    with open_records(own_set, "test") as records:
        colour = eval_image(8)(records[2]["media"]["image"]["png"]).mean((0, 1)).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(pair(found, 2, "png", 0)[0], unit(colour), rtol=1e-6)
    found.close()


def test_half_the_bytes_are_of_unit_length_again(own_set):
    write(own_set)
    card = write(own_set, name="half", dtype="float16")
    exact, half = (Embeddings(own_set, card, name, "train", ["png"], ["en"]) for name in ("old", "half"))
    for row in range(18):
        for one, other in zip(pair(exact, row, "png", 0), pair(half, row, "png", 0), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)
            np.testing.assert_allclose(np.linalg.norm(other), 1.0, rtol=1e-6)
    exact.close()
    half.close()


def test_what_was_not_embedded_is_refused(own_set, tokenizer):
    def start(**changes):
        return train_dataset(
            own_set, "train", input_specs(tokenizer, 8, LENGTH), dataclasses.replace(CFG, **changes), 0, 2
        )

    with pytest.raises(UserError, match=r"no embeddings 'old': it has \(none\).*xmodal data embed"):
        start(embeddings="old")
    write(own_set, cfg=dataclasses.replace(CFG, languages=("en",)))
    with pytest.raises(
        UserError, match=r"embeddings: 'old' of .* has no \['fr'\]; write config.data.languages with .* en,"
    ):
        start(embeddings="old")
    card = Card.load(own_set)
    entry = card.embeddings["old"] | {"views": ["jpeg"]}
    dataclasses.replace(card, embeddings={"old": entry}).save(own_set)
    with pytest.raises(UserError, match=r"has no \['png'\]; write config.data.views with some of jpeg"):
        start(embeddings="old", languages=("en",))
    start(embeddings="old", languages=("en",), views=("jpeg",)).close()
    folder = own_set / "embeddings" / "old"
    shutil.copy(next(folder.glob("test-*")), folder / "train-00000-of-00001.arrayrecord")
    with pytest.raises(UserError, match="have 6 rows for 18 records"):
        start(embeddings="old", languages=("en",), views=("jpeg",))


def test_a_damaged_row_is_replaced_by_the_next(own_set, tokenizer, monkeypatch):
    monkeypatch.setattr("xmodal_jax.data.train.BAD_SHARE", 0.1)
    card = write(own_set)
    with open_records(own_set / "embeddings" / "old", "train") as rows:
        content = list(rows)
    content[7]["text"]["en"] = []
    content[8]["image"]["png"] = [b"1234"]
    with RecordWriter(own_set / "embeddings" / "old", "train") as writer:
        for row in content:
            writer.write(pack(row))
    found = Embeddings(own_set, card, "old", "train", ["png"], ["en"])
    for row in (7, 8):
        with pytest.raises(CorruptRecord, match=f"row {row} of embeddings 'old'"):
            pair(found, row, "png", 0)
    found.close()
    cfg = dataclasses.replace(CFG, embeddings="old", views=("jpeg",), languages=("en",))
    dataset = train_dataset(own_set, "train", input_specs(tokenizer, 8, LENGTH), cfg, 0, 18)
    assert 7 not in dataset.batch_at(0)["id"] and dataset.bad.rows == {7}
    dataset.close()


def test_the_same_again_encodes_nothing_and_another_is_refused(own_set):
    first, again = write(own_set), Counted()
    assert write(own_set, again) == first and again.blocks == []
    for changes in ({"weights": "4567"}, {"name": "x"}, {"reads": "16 px"}):
        with pytest.raises(UserError, match="already has embeddings 'old' made with .*nothing was overwritten"):
            write(own_set, again.encoders(**changes))
    with pytest.raises(UserError, match=r"made with languages \['en', 'fr'\]"):
        write(own_set, again, dataclasses.replace(CFG, languages=("en",)))
    assert again.blocks == []


def test_an_interrupted_run_goes_on_at_the_split_it_was_in(own_set):
    with pytest.raises(KeyboardInterrupt):
        write(own_set, Counted(fail_at=6))  # test: 2 blocks of 4 records and one of 2 with 4 pictures; then train
    assert Card.load(own_set).embeddings == {} and not (own_set / "embeddings" / "old").exists()
    with pytest.raises(UserError, match="holds an interrupted run made with weights '0123'"):
        write(own_set, Counted().encoders(weights="4567"))
    before, teacher = Card.load(own_set), Counted()
    done = write(own_set, teacher)
    assert len(teacher.blocks) == 9, "only the unfinished split: 18 records of two pictures in blocks of 4"
    before.save(own_set)  # as if it had died before the card
    again = Counted()
    assert write(own_set, again) == done and again.blocks == []


def test_bad_teachers_records_and_names_are_refused(own_set):
    wide = Counted().encoders(width=5)
    with pytest.raises(UserError, match=r"returned \(4, 4\) for 4 rows, not \[4,5\]"):
        write(own_set, wide)
    shutil.rmtree(own_set / "embeddings")
    with pytest.raises(UserError, match="not finite"):
        write(own_set, Counted().encoders(text=lambda texts: said(texts) * np.nan))
    for name in ("../up", "..", ".hidden"):
        with pytest.raises(UserError, match="use a plain word"):
            write(own_set, name=name)
    for options, words in (({"batch": 0}, "the batch is 0"), ({"dtype": "int8"}, "the dtype is 'int8'")):
        with pytest.raises(UserError, match=words):
            write(own_set, **options)
    with pytest.raises(UserError, match="config.data.languages"):
        write(own_set, cfg=dataclasses.replace(CFG, languages=("de",)))
    with open_records(own_set, "test") as records:
        content = list(records)
    content[2]["media"]["image"]["png"] = b"torn"
    with RecordWriter(own_set, "test") as writer:
        for record in content:
            writer.write(pack(record))
    with pytest.raises(UserError, match="row 2 of split 'test' cannot be read"):
        write(own_set)
    assert Card.load(own_set).embeddings == {}


def test_of_two_at_once_on_a_name_the_second_is_refused(own_set):
    def texts(block):
        with pytest.raises(UserError, match="another process is adding embeddings '.*' to '.*set'; wait"):
            write(own_set)
        return said(block)

    assert write(own_set, Counted().encoders(text=texts)) == Card.load(own_set)


@pytest.mark.parametrize("flags, words", [(["--batch", "0"], "the batch is 0"), (["--name", ".x"], "use a plain word")])
def test_flags_are_looked_at_before_a_teacher_is_loaded(own_set, capsys, flags, words):
    command = ["data", "embed", "--data", str(own_set), "--name", "x", "--workdir", "nowhere"]
    assert main([*command, *flags]) == 2
    assert words in capsys.readouterr().err
