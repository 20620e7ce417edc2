"""The fingerprint of a data set is that of its splits, keys, captions and views, and of nothing else."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.card import Card
from xmodal_jax.data.fingerprint import FOLDER, fingerprint, load_digests, record_digest
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, Source
from xmodal_jax.errors import UserError

ITEMS = [("a", "a red circle", "train"), ("b", "a blue bar", "train"), ("c", "a green square", "test")]


def made(folder, items=ITEMS, views=("image",), captions=None):
    """The card of a data set of three records."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "png")
    pictures = {view: file.getvalue() for view in views}
    found = [Item(key, pictures, captions or {"en": [text]}, split=split) for key, text, split in items]
    return prepare(Source("own", "here", "none", lambda: iter(found), {}), folder)


def test_the_same_records_have_the_same_fingerprint_wherever_they_lie(tmp_path):
    first, again = made(tmp_path / "one"), made(tmp_path / "two")
    assert len(first.fingerprint) == 32 and first.fingerprint == again.fingerprint
    assert json.loads((tmp_path / "one" / "card.json").read_text("utf-8"))["fingerprint"] == first.fingerprint
    assert Card.load(tmp_path / "one").fingerprint == fingerprint(first.splits) == first.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"items": [*ITEMS[:2], ("c", "a green square", "train")]},
        {"items": [*ITEMS[:2], ("d", "a green square", "test")]},
        {"items": [*ITEMS[:2], ("c", "a green squares", "test")]},
        {"items": [ITEMS[1], ITEMS[0], ITEMS[2]]},
        {"views": ("image", "outline")},
        {"captions": {"de": ["ein Kreis"]}},
    ],
)
def test_another_split_key_caption_order_view_or_language_is_another_set(tmp_path, changes):
    assert made(tmp_path / "one").fingerprint != made(tmp_path / "two", **changes).fingerprint


def test_the_digests_of_a_split_are_those_of_its_rows(tmp_path):
    rows = Sidecar(tmp_path / "set", made(tmp_path / "set"), "train")
    own = [record_digest(rows.keys[row], rows.captions(row)) for row in range(len(rows))]
    found = load_digests(tmp_path / "set", "train", 2)
    assert found.dtype == np.uint64 and found.tolist() == own and len(set(own)) == 2


def test_digests_that_are_gone_cut_or_of_another_split_are_refused(tmp_path):
    made(tmp_path / "set")
    path = tmp_path / "set" / FOLDER / "train.npy"
    with pytest.raises(UserError, match="not of the 3 records .* prepare the data set again"):
        load_digests(tmp_path / "set", "train", 3)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="train.npy' cannot be read"):
        load_digests(tmp_path / "set", "train", 2)
    path.unlink()
    with pytest.raises(UserError, match="train.npy' cannot be read"):
        load_digests(tmp_path / "set", "train", 2)
