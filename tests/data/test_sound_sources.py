"""Sounds in the sources: JSON Lines, spoken stamps and effects, the dialogues of Fish Fillets."""

import json
import logging

import numpy as np
import pytest
from sounds import encoded as sound_file
from sounds import film, noise, pcm_of, wav_of

from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.sound import unpack_sound
from xmodal_jax.data.source import Item, Skip
from xmodal_jax.data.sources import make_source
from xmodal_jax.data.sources.fillets import fillets_source
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.data.sources.stamps import stamps_source
from xmodal_jax.errors import UserError


def rows_of(folder, *rows):
    """A JSON Lines file."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    """Sound files in a folder."""
    (tmp_path / "a.wav").write_bytes(wav_of(noise(0.5)))
    (tmp_path / "b.flac").write_bytes(sound_file(noise(0.25, 22_050, 2), "flac", 22_050))
    (tmp_path / "c.mp4").write_bytes(film(0.5, noise(0.5)))
    (tmp_path / "mute.mp4").write_bytes(film(0.5))
    (tmp_path / "half.wav").write_bytes(wav_of(noise(0.5))[:5000])
    (tmp_path / "none.wav").write_bytes(wav_of(np.zeros((0, 1))))
    return tmp_path


def test_a_row_of_json_lines_names_a_sound_instead_of_a_picture(files):
    path = rows_of(
        files,
        {"audio": "a.wav", "caption": "Hiss."},
        {"audio": {"left": "a.wav", "film": "c.mp4"}, "caption": {"en": ["Two."]}, "id": "two"},
        {"audio": "b.flac", "caption": "Stereo."},
    )
    one, two, three = jsonl_source(path, held_out=0).items()
    assert (one.key, one.images, one.captions) == ("a.wav", {}, {"en": ["Hiss."]})
    np.testing.assert_array_equal(unpack_sound(one.media["audio"]["audio"]).pcm, pcm_of(noise(0.5)))
    assert list(two.media["audio"]) == ["left", "film"] and two.key == "two"
    assert unpack_sound(three.media["audio"]["audio"]).pcm.shape == (round(0.25 * 22_050), 2)
    assert [state.path for state in two.files] == [str(files / "a.wav"), str(files / "c.mp4")]


def test_a_row_may_have_both(files, encoded):
    (files / "p.png").write_bytes(encoded(np.zeros((4, 6, 3), np.uint8)))
    path = rows_of(files, {"image": "p.png", "audio": "a.wav", "caption": "Both."})
    (item,) = jsonl_source(path, held_out=0).items()
    assert list(item.images) == ["image"] and list(item.media) == ["audio"] and len(item.files) == 2


def test_rows_of_one_sound_are_one_item_with_all_captions(files):
    path = rows_of(
        files,
        {"audio": "a.wav", "caption": "One."},
        {"audio": "a.wav", "caption": "Two."},
        {"audio": "b.flac", "caption": "Other.", "id": "a.wav"},
    )
    item, skip = jsonl_source(path, held_out=0).items()
    assert item.captions == {"en": ["One.", "Two."]} and skip.reason == "key occurs twice"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mute.mp4", "no sound in the file"),
        ("half.wav", "corrupt sound"),
        ("none.wav", "empty sound"),
        ("gone.wav", "missing sound"),
        ("rows.jsonl", "corrupt sound"),
        (".", "sound is no file"),
    ],
)
def test_a_sound_that_cannot_be_used_is_left_out_with_a_reason(files, name, reason):
    path = rows_of(files, {"audio": name, "caption": "x"}, {"audio": "a.wav", "caption": "y"})
    skip, item = jsonl_source(path, held_out=0).items()
    assert isinstance(skip, Skip) and skip.reason == reason and name in skip.where and isinstance(item, Item)
    card = prepare(jsonl_source(path, held_out=0), files / "set", allow_bad=True)
    assert card.skipped == {reason: 1} and card.media == ["audio"]


@pytest.mark.parametrize("audio", [3, {"x": 3}, "", [1]])
def test_what_is_no_path_is_left_out(files, audio):
    path = rows_of(files, {"audio": audio, "caption": "x"}, {"audio": "a.wav", "caption": "y"})
    found = list(jsonl_source(path, held_out=0).items())
    assert isinstance(found[0], Skip) and isinstance(found[1], Item)


def test_long_sounds_are_cut_and_the_log_says_so(files, caplog):
    path = rows_of(files, {"audio": "a.wav", "caption": "x"}, {"audio": "b.flac", "caption": "y"})
    with caplog.at_level(logging.WARNING):
        long, short = jsonl_source(path, held_out=0, seconds=0.3, rate=8000).items()
    assert unpack_sound(long.media["audio"]["audio"]).seconds == 0.3
    assert unpack_sound(short.media["audio"]["audio"]).rate == 8000
    assert caplog.text.count("is cut to its first 0.3 s") == 1 and "a.wav" in caplog.text


def test_the_options_are_arguments_only_where_they_are_given(files):
    path = rows_of(files, {"audio": "a.wav", "caption": "x"})
    plain, other = jsonl_source(path), make_source("jsonl", {"path": path, "rate": 16_000, "seconds": 5.0})
    assert other.arguments == plain.arguments | {"rate": 16_000, "seconds": 5.0}
    with pytest.raises(UserError, match="seconds is -1"):
        jsonl_source(path, seconds=-1)


@pytest.fixture
def stamps(tmp_path, encoded):
    """A dog with an effect and three spoken captions, one of them corrupt; a cat with a wav; a mouse with none."""
    root = tmp_path / "stamps" / "animals"
    root.mkdir(parents=True)
    picture = encoded(np.zeros((4, 6, 3), np.uint8))
    for name in ("dog", "cat", "mouse", "dog[1]"):
        (root / f"{name}.png").write_bytes(picture)
        (root / f"{name}.txt").write_text(f"A {name}.\nfr.utf8=Un {name}.\n")
    voice = sound_file(noise(0.2, 48_000), "ogg", 48_000)
    for name in (
        "dog.ogg",
        "dog_desc.ogg",
        "dog_desc_fr.ogg",
        "dog_desc_pt_BR.ogg",
        "dog_description.ogg",
        "dog_fr.ogg",
    ):
        (root / name).write_bytes(voice)
    (root / "dog_desc_ru.ogg").write_bytes(voice[:50])
    (root / "dog[1]_desc_es.ogg").write_bytes(voice)
    (root / "cat.wav").write_bytes(wav_of(noise(0.2)))
    return root.parent


def test_stamps_have_no_sounds_unless_they_are_asked_for(stamps):
    assert all(not item.media for item in stamps_source(stamps, held_out=0).items())
    assert not {"spoken", "effects", "seconds"} & set(stamps_source(stamps, held_out=0).arguments)


def test_spoken_captions_are_views_by_language_and_effects_a_medium_of_their_own(stamps):
    source = stamps_source(stamps, held_out=0, spoken=True, effects=True, rate=16_000)
    found = list(source.items())
    items, skips = (
        {one.key: one for one in found if isinstance(one, Item)},
        [one for one in found if isinstance(one, Skip)],
    )
    dog = items["animals/dog"]
    assert set(dog.media["audio"]) == {"en", "fr", "pt_BR"} and set(dog.media["effect"]) == {"effect"}
    assert unpack_sound(dog.media["audio"]["fr"]).rate == 16_000
    assert set(items["animals/cat"].media) == {"effect"} and not items["animals/mouse"].media
    assert set(items["animals/dog[1]"].media["audio"]) == {"es"}
    (skip,) = skips
    assert skip.reason == "corrupt sound" and skip.where.startswith("animals/dog (ru)")
    assert len(dog.files) == 1 + 4 + 1
    assert {"spoken": True, "effects": True, "rate": 16_000}.items() <= source.arguments.items()
    alone = {item.key: item for item in stamps_source(stamps, held_out=0, effects=True).items()}
    assert set(alone["animals/dog"].media) == {"effect"}


CZECH = """
dialogId("big-hello", "font_big", "Hello \\"you\\".")
dialogStr("Ahoj \\"ty\\".")


dialogId("small-long", "font_small", "A long line.")
dialogStr("Dlouhá "..
"řádka (se závorkou).")

dialogId("small-mute", "font_small", "Nobody says this.")
dialogStr("Nikdo to neříká.")

dialogId("big-empty", "font_big", "")
dialogStr("")
"""
GERMAN = 'dialogId("big-hello", "font_big", "Hello \\"you\\".")\ndialogStr("Hallo.")\n'


@pytest.fixture
def game(tmp_path):
    """Two scenes, of which one has two languages and voices in two, and a folder that scenes share."""
    root = tmp_path / "fillets-ng"
    for scene in ("cave", "reef", "share"):
        (root / "script" / scene).mkdir(parents=True)
    voice = sound_file(noise(0.2, 48_000), "ogg", 48_000)
    (root / "script/cave/dialogs_cs.lua").write_text(CZECH, "utf-8")
    (root / "script/cave/dialogs_de.lua").write_text(GERMAN, "utf-8")
    (root / "script/cave/dialogs.lua").write_text('dialogLoad("script/"..codename.."/")\n')
    (root / "script/reef/dialogs_cs.lua").write_text(
        'dialogId("r", "font_big", "Reef.")\ndialogStr("Útes.")\n', "utf-8"
    )
    (root / "script/share/black_dialogs_cs.lua").write_text(
        'dialogId("b", "f", "Black.")\ndialogStr("Černý.")\n', "utf-8"
    )
    for name in ("cave/cs/big-hello", "cave/nl/big-hello", "cave/cs/small-long", "cave/cs/big-empty", "cave/cs/unknown",
                 "reef/cs/r", "share/blackjokes/cs/b", "share/sp-dead"):  # fmt: skip
        (root / f"sound/{name}.ogg").parent.mkdir(parents=True, exist_ok=True)
        (root / f"sound/{name}.ogg").write_bytes(voice)
    return root


def test_spoken_lines_have_their_texts_in_all_languages(game):
    source = fillets_source(game, held_out=0, rate=16_000)
    hello, long, reef, shared = source.items()
    assert hello.key == "cave/big-hello" and hello.group == "cave" and source.total == 4
    assert hello.captions == {"en": ['Hello "you".'], "cs": ['Ahoj "ty".'], "de": ["Hallo."]}
    assert set(hello.media["audio"]) == {"cs", "nl"} and unpack_sound(hello.media["audio"]["nl"]).rate == 16_000
    assert long.captions == {"en": ["A long line."], "cs": ["Dlouhá řádka (se závorkou)."]}
    assert (reef.key, shared.key, shared.captions["cs"]) == ("reef/r", "share/b", ["Černý."])


def test_scenes_stay_whole_and_voices_can_be_chosen(game):
    splits = {item.key: item.split for item in fillets_source(game, held_out=2).items()}
    assert splits["cave/big-hello"] == splits["cave/small-long"]
    assert list(splits.values()).count("test") == 2
    (only,) = fillets_source(game, voices="nl", held_out=0).items()
    assert set(only.media["audio"]) == {"nl"}
    with pytest.raises(UserError, match="has no spoken line in fr; voices are in"):
        fillets_source(game, voices="fr")
    with pytest.raises(UserError, match="apt-get install fillets-ng-data"):
        fillets_source(game / "script")


def test_a_corrupt_voice_is_counted_and_its_line_left_out(game):
    (game / "sound/reef/cs/r.ogg").write_bytes(b"OggS")
    found = list(fillets_source(game, held_out=0).items())
    (skip,) = [one for one in found if isinstance(one, Skip)]
    assert skip.reason == "corrupt sound" and skip.where.startswith("reef/r (cs)") and len(found) == 4


def test_the_data_set_has_the_medium(game, tmp_path):
    card = prepare(fillets_source(game, held_out=1), tmp_path / "set")
    assert (
        card.media == ["audio"] and set(card.languages) == {"en", "cs", "de"} and set(card.splits) == {"train", "test"}
    )
