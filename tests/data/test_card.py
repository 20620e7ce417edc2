"""The card is checked field by field; the ceiling is what the best model reaches."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.data.captions import caption_keys
from xmodal_jax.data.card import CARD_FILE, Card, ceiling, duplicates, report
from xmodal_jax.errors import UserError

SPLITS = {"train": {"records": 2, "captions": 4, "groups": 2, "files": ["a"], "digest": "0a"}}
SPLITS["train"] |= {"languages": {"en": 4}, "columns": {"owner": {"bytes": 16, "crc": 7}}}


def owned(captions):
    """(owner, number) of captions [image][caption], as the sidecar has them."""
    owner = np.repeat(np.arange(len(captions), dtype=np.int32), list(map(len, captions)))
    return owner, caption_keys([text for own in captions for text in own])


def card(**changes):
    fields = {"name": "set", "source": "s", "licence": "l", "languages": ["en"], "views": ["image"], "label_names": []}
    return Card(**(fields | {"splits": SPLITS} | changes))


def written(folder, **changes):
    content = dataclasses.asdict(card()) | changes
    (folder / CARD_FILE).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def test_a_card_comes_back_as_it_was(tmp_path):
    entry = {"tower": "t", "size": 8, "tokens": 4, "width": 2, "views": ["plain"], "dtype": "float16", "files": {}}
    entry |= {"medium": "image", "parts": 1, "pool": ""}
    old = {"teacher": "t", "weights": "0", "width": 2, "media": [], "views": [], "languages": [], "dtype": "float32"}
    old["files"] = {}
    full = card(
        features={"grid": entry}, embeddings={"old": old}, skipped={"corrupt image": 1}, languages=["en", "日本"]
    )
    full.save(tmp_path)
    assert Card.load(tmp_path) == full
    assert [path.name for path in tmp_path.iterdir()] == [CARD_FILE]


def test_a_folder_without_a_card_says_what_to_write(tmp_path):
    with pytest.raises(UserError, match="no data set at .*xmodal data prepare"):
        Card.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 1}, "'format' is 1, this version reads 4"),
        ({"licence": None}, "field 'licence' is missing"),
        ({"copies": None}, "field 'copies' is missing"),
        ({"languages": "en"}, "field 'languages' must be a list"),
        ({"splits": {"train": {"records": "2"}}}, "field 'splits.train.records' must be a int"),
        ({"features": {"grid": {"tower": "t"}}}, "field 'features.grid.size' must be a int"),
        ({"embeddings": {"old": {"teacher": "t"}}}, "field 'embeddings.old.weights' must be a str"),
        ({"colour": "red"}, "unknown field colour"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        Card.load(written(tmp_path, **changes))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(UserError, match="JSON"):
        Card.load(tmp_path)


def test_a_bad_card_is_not_saved(tmp_path):
    card().save(tmp_path)
    with pytest.raises(UserError, match=r"splits\.val"):
        card(splits={"val": {}}).save(tmp_path)
    assert Card.load(tmp_path) == card()


def test_unknown_splits_and_features_list_the_known_ones():
    with pytest.raises(UserError, match="no split 'val': use one of train"):
        card().split("val")
    with pytest.raises(UserError, match=r"no features 'grid': it has \(none\).*xmodal data features"):
        card().feature("grid")
    with pytest.raises(UserError, match=r"no embeddings 'old': it has \(none\).*xmodal data embed"):
        card().embedding("old")


def test_ceiling_without_repeated_captions_is_100():
    assert ceiling(*owned([["a", "b"], ["c"]]), (1,)) == {"i2t": {"R@1": 100.0}, "t2i": {"R@1": 100.0}}


def test_ceiling_of_a_caption_that_three_images_share():
    got = ceiling(*owned([["A flower."], ["a  flower."], ["a flower."], ["a tree"]]), (1, 2, 5))
    # one of the three queries that are alike finds its own image first; one of three candidates that tie is each place
    assert got["t2i"] == {"R@1": 50.0, "R@2": 75.0, "R@5": 100.0}
    assert got["i2t"] == {"R@1": 50.0, "R@2": 75.0, "R@5": 100.0}


def test_an_image_with_one_unique_caption_is_found_by_it():
    got = ceiling(*owned([["a flower", "a rose"], ["a flower"]]), (1,))
    assert got["i2t"] == {"R@1": 75.0}  # the first; the second's only caption is first in one of two orders
    assert got["t2i"] == {"R@1": 66.67}


def test_a_caption_that_an_image_has_twice_is_still_one_image():
    assert ceiling(*owned([["a", "a"], ["b"]]), (1,)) == {"i2t": {"R@1": 100.0}, "t2i": {"R@1": 100.0}}
    # three queries and candidates that tie, two of them the first image's: the one that answers most queries goes first
    tied = owned([["a", "a"], ["a"]])
    assert ceiling(*tied, (1,)) == {"i2t": {"R@1": 50.0}, "t2i": {"R@1": 66.67}}  # (2/3 + 1/3) / 2
    assert ceiling(*tied, (2,)) == {"i2t": {"R@2": 83.33}, "t2i": {"R@2": 100.0}}  # (1 + 2/3) / 2
    assert ceiling(*owned([["a"] * 4, ["a"]]), (1,))["t2i"] == {"R@1": 80.0}


def test_a_caption_that_occurs_twice_is_found_first_half_the_time():
    """As sorting gives it where the order of the files is nothing to the pictures."""
    assert ceiling(*owned([["a", "b"], ["b", "a"]]))["i2t"] == {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0}
    assert ceiling(*owned([["a"]] * 1000), (1, 10))["i2t"] == {"R@1": 0.1, "R@10": 1.0}  # k of 1,000 in %


def test_ceiling_of_nothing_is_zero():
    assert ceiling(*owned([]), (1,)) == {"i2t": {"R@1": 0.0}, "t2i": {"R@1": 0.0}}


def best_of_all_orders(captions, k):
    """R@k of the best model, by trying every order of the images for each text, and each text for every image."""
    rows = [(text, owner) for owner, own in enumerate(captions) for text in own]
    hits = 0
    for text in {text for text, _ in rows}:
        orders = itertools.permutations(range(len(captions)))
        hits += max(sum(owner in order[:k] for other, owner in rows if other == text) for order in orders)
    found = 0.0
    for image, own in enumerate(captions):
        texts = sorted({text for text, _ in rows})
        # every order of the texts, whose copies tie, and every two of them that tie with each other
        levels = [
            dict(zip(texts, order, strict=True)) for order in itertools.product(range(len(texts)), repeat=len(texts))
        ]
        found += max(share_of_hits(rows, image, level, k) for level in levels) if own else 0.0
    return 100 * found / len(captions), 100 * hits / len(rows)


def share_of_hits(rows, image, level, k):
    """Count orders of the captions, sorted by the level of their text, with one of the image's own in the first k."""
    orders = np.array(list(itertools.permutations(range(len(rows)))))
    scores, own = np.array([level[text] for text, _ in rows]), np.array([owner == image for _, owner in rows])
    ranked = np.take_along_axis(orders, np.argsort(scores[orders], axis=1, kind="stable"), axis=1)
    return own[ranked[:, :k]].any(axis=1).mean()


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=2), min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_no_model_is_above_the_ceiling_and_the_best_one_is_there(captions, k):
    got = ceiling(*owned(captions), (k,))
    assert (got["i2t"][f"R@{k}"], got["t2i"][f"R@{k}"]) == pytest.approx(best_of_all_orders(captions, k), abs=0.01)


def test_duplicates_by_hand():
    got = duplicates(*owned([["A flower.", "a rose", "a rose"], ["a  flower."], ["A tree"], []]), 4)
    # five captions, three texts; "a flower." belongs to two images, "a rose" twice to one
    assert got == {"captions": 5, "unique": 3, "unique_per_image": 1.0, "shared": 40.0}
    assert duplicates(*owned([]), 0) == {"captions": 0, "unique": 0, "unique_per_image": 0.0, "shared": 0.0}


def test_a_set_like_ucm_captions():
    """21 classes of 10 images: four captions of the class and an own one each, so nearly all queries are ambiguous."""
    classes = [[f"class {c} template {t}" for t in range(4)] for c in range(21)]
    captions = [[*classes[c], f"own words {c} {i}"] for c in range(21) for i in range(10)]
    got = duplicates(*owned(captions), 210)
    assert got == {"captions": 1050, "unique": 21 * 4 + 210, "unique_per_image": 5.0, "shared": 80.0}
    assert ceiling(*owned(captions))["t2i"] == {"R@1": 28.0, "R@5": 60.0, "R@10": 100.0}  # (4 k/10 + 1) / 5
    assert ceiling(*owned(captions))["i2t"]["R@1"] == 100.0


def test_the_report_says_what_can_be_reached():
    own = owned([["a"], ["a"], ["b"]])
    made = card(ceiling={"train": ceiling(*own)}, duplicates={"train": duplicates(*own, 3)}, skipped={"torn": 2})
    assert report(made) == [
        "train: 2 records, 4 captions, 2 groups",
        "  best possible R@1/5/10 where its own captions alone are right: image to text 66.7 / 100.0 / 100.0, "
        "text to image 66.7 / 100.0 / 100.0",
        "  'en' captions: 3, 2 different, 1.00 different per picture, 66.7 % shared by pictures",
        "skipped: 2 x torn",
    ]
    worded = dataclasses.replace(made, words={"en": {"median": 3, "99 %": 9, "longest": 40}}, skipped={})
    assert report(worded)[-1] == "words of a caption in 'en': half have 3 or fewer, 99 % 9, the longest 40"
