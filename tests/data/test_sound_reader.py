"""The reader of sound: batches, evaluation, blanked copies, queries from files, corrupt records."""

import dataclasses
import logging

import numpy as np
import pytest
from sounds import noise, pcm_of, tone, wav_of

from xmodal_jax.config_build import build
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.readers import InputSpec, reader_classes
from xmodal_jax.data.sound import Sound, pack_sound, unpack_sound, waves
from xmodal_jax.data.sound_reader import SoundReader
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.spectrogram import LogMel, Segments, segments
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

FORM = Segments(3, 16, 1, LogMel(16_000, 128, 64, 8))
ROWS = 12


def sound_of(number):
    """A sound of 0.2 s, or of 0.6 s, which has more segments than are taken; every third record has two views."""
    seconds = 0.6 if number % 4 == 3 else 0.1
    return Sound(16_000, pcm_of(noise(seconds, seed=number) + tone(seconds, hertz=(200.0 * (number + 1),))))


def items():
    """Records of which every third lacks its sound; every fourth has another view too, of 22,050 Hz."""
    found = []
    for number in range(ROWS):
        own = {"cs": pack_sound(sound_of(number))}
        if number % 4 == 0:
            own["nl"] = pack_sound(Sound(22_050, pcm_of(noise(0.1, 22_050, 2, seed=99))))
        media = {} if number % 3 == 2 else {"audio": own}
        captions = {"en": [f"sound number {number}"], "de": [f"Ton Nummer {number}"]}
        found.append(Item(f"row-{number}", {}, captions, media=media))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The prepared data set."""
    out = tmp_path_factory.mktemp("sounds") / "set"
    prepare(memory_source(items(), "sounds", "none"), out)
    return out


def config(folder, **fields):
    """The section `data` with some fields."""
    fields = {"audio": {"required": False}, "text": {}} | fields
    return build(DataConfig, {"path": str(folder), "fields": fields}, "config.data")


def specs(folder, form=FORM):
    """What the encoders take."""
    return {"audio": InputSpec(form=form), "text": InputSpec(8, load_tokenizer("data", folder))}


def batch_of(folder, data, form=FORM, number=0, seed=0):
    """One batch of all rows."""
    dataset = train_dataset(folder, "train", specs(folder, form), data, seed, ROWS)
    try:
        return dataset.batch_at(number)
    finally:
        dataset.close()


def expected(number, form=FORM, view="cs"):
    """The segments of a record."""
    return segments(waves(unpack_sound(items()[number].media["audio"][view]), form.mel.rate), form)


def test_a_batch_has_the_segments_of_each_record(folder):
    batch = batch_of(folder, config(folder))
    assert batch["audio"].shape == (ROWS, 3, 8, 16) and batch["audio"].dtype == np.float16
    for place, number in enumerate(batch["index"]):
        there = number % 3 != 2
        assert batch["audio/valid"][place] == there and batch["audio"][place].any() == there
        if there and number % 4 in (1, 2):  # one view, not longer than the segments
            np.testing.assert_array_equal(batch["audio"][place], expected(number))


def test_views_and_segments_are_drawn_in_training(folder):
    data, seen, drawn = config(folder), set(), set()
    for number in range(12):
        batch = batch_of(folder, data, number=number)
        both = batch["audio"][list(batch["index"]).index(4)]
        seen.add(next(view for view in ("cs", "nl") if np.array_equal(both, expected(4, view=view))))
        drawn.add(batch["audio"][list(batch["index"]).index(3)].tobytes())
    assert seen == {"cs", "nl"} and len(drawn) > 4


def test_a_batch_is_the_same_each_time(folder):
    data = config(folder, audio2={"of": "audio"})
    one, two = (batch_of(folder, data, number=3) for _ in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_another_view_of_a_record_is_the_same_sound_blanked(folder):
    form = dataclasses.replace(FORM, mel=dataclasses.replace(FORM.mel, mels=40))
    batch = batch_of(folder, config(folder, audio2={"of": "audio"}), form)
    np.testing.assert_array_equal(batch["audio2/valid"], batch["audio/valid"])
    for place, number in enumerate(batch["index"]):
        own, other = batch["audio"][place], batch["audio2"][place]
        if number % 3 == 2:
            assert not other.any()
        elif number % 4 in (1, 2):
            np.testing.assert_array_equal(own, expected(number, form))
            assert own.any((1, 2)).tolist() == other.any((1, 2)).tolist() and (own != other).any()


def test_a_field_that_shows_others_changes_no_draw_of_theirs(folder):
    one, two = batch_of(folder, config(folder)), batch_of(folder, config(folder, audio2={"of": "audio"}))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_evaluation_takes_the_first_view_whole(folder):
    data = config(folder, audio2={"of": "audio"})
    for field in ("audio", "audio2"):
        split = eval_split(folder, "train", specs(folder), data, pair=(field, "text"))
        there = [number for number in range(ROWS) if number % 3 != 2]
        rows = np.concatenate([block[field] for block in split.left.blocks(4)])[: len(there)]
        np.testing.assert_array_equal(rows, np.stack([expected(number) for number in there]))


def test_what_is_speech_goes_by_medium_and_view(folder):
    form = dataclasses.replace(FORM, labelled=True, wordless=("audio/nl",))
    for number in range(4):
        batch = batch_of(folder, config(folder), form, number)
        for place, row in enumerate(batch["index"]):
            if row % 3 != 2:
                told, plain = batch["audio"][place, 0, :, 16], batch["audio"][place, :, :, :16]
                dutch = row % 4 == 0 and np.array_equal(plain, expected(row, view="nl"))
                assert (told == (0.0 if dutch else 1.0)).all()


def test_a_query_is_read_from_a_file(tmp_path):
    path = tmp_path / "query.wav"
    path.write_bytes(wav_of(noise(0.1)))
    stored = pack_sound(Sound(16_000, pcm_of(noise(0.1))))
    assert SoundReader.packed(path) == stored
    found = SoundReader.of_file(path, InputSpec(form=FORM))
    np.testing.assert_array_equal(found, segments(waves(unpack_sound(stored), 16_000), FORM))
    told = SoundReader.of_file(path, InputSpec(form=dataclasses.replace(FORM, labelled=True)))
    assert (told[0, :, 16] == 0.5).all()
    path.write_bytes(b"no sound")
    for read in (SoundReader.packed, lambda own: SoundReader.of_file(own, InputSpec(form=FORM))):
        with pytest.raises(UserError, match="query.wav' is no sound that can be read"):
            read(path)
    with pytest.raises(UserError, match="takes no sound; write an encoder of kind 'spectrogram'"):
        SoundReader.of_file(path, InputSpec())


def test_an_encoder_of_pictures_takes_no_sound(folder):
    with pytest.raises(UserError, match="config.encoders.audio takes no sound"):
        batch_of(folder, config(folder), form=None)


def test_the_reader_is_found_by_its_name(folder):
    found = reader_classes(config(folder, other={"medium": "effect", "reader": "audio", "encoder": "audio"}).fields)
    assert found["audio"] is SoundReader and found["other"] is SoundReader
    with pytest.raises(UserError, match="reader is 'audi'; .*did you mean 'audio'"):
        reader_classes(config(folder, other={"medium": "effect", "reader": "audi", "encoder": "audio"}).fields)


def test_a_record_that_holds_no_sound_is_replaced_and_named(tmp_path, caplog):
    rows = [Item(f"r{number}", {}, {"en": [f"a {number}"]}, media={"audio": {"x": b"??"}}) for number in range(1)]
    rows += [
        Item(f"s{number}", {}, {"en": [f"b {number}"]}, media={"audio": {"x": pack_sound(sound_of(number))}})
        for number in range(120)
    ]
    prepare(memory_source(rows, "sounds", "none"), tmp_path / "set")
    dataset = train_dataset(tmp_path / "set", "train", specs(tmp_path / "set"), config(tmp_path / "set"), 0, 121)
    with caplog.at_level(logging.WARNING):
        batch = dataset.batch_at(0)
    dataset.close()
    assert 0 not in batch["index"] and batch["audio/valid"].all()
    assert "unreadable row 0 of split 'train' replaced by the next one: not msgpack" in caplog.text or (
        "replaced by the next one: a sound is a dict" in caplog.text
    )
