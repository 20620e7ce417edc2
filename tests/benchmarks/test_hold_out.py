"""A development split: whole groups, nothing lost, caches row by row beside it."""

import dataclasses
import io
import shutil

import hold_out
import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.features import write_features
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.split import Split
from xmodal_jax.data.taxonomy import Taxonomy, folder_taxonomy
from xmodal_jax.errors import UserError

EMBEDDINGS = {
    "teacher": "t",
    "weights": "w",
    "width": 4,
    "media": ["depth"],
    "views": ["photo"],
    "languages": ["en"],
    "dtype": "float32",
    "files": {"train": ["x"]},
}


def picture(number):
    """A small PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_groups_stay_whole():
    groups = ["a", "b", "a", "c", "b", "d"]
    chosen = hold_out.held_out_groups(groups, 3, seed=0)
    assert 3 <= sum(group in chosen for group in groups) <= 4
    assert chosen == hold_out.held_out_groups(groups, 3, seed=0)


def test_the_new_splits_share_no_group_and_lose_nothing(shapes_data, tmp_path):
    source, out = tmp_path / "shapes", tmp_path / "dev"
    shutil.copytree(shapes_data, source)

    def mean(images):
        return images.reshape(len(images), 1, -1, 3).mean(2, dtype=np.float32)

    write_features(source, "mean", mean, size=16)
    hold_out.main([str(source), "--records", "4", "--name", "val", "--out", str(out)])
    config = DataConfig(path=str(out), features=("mean",))
    splits = {name: Split(out, name, config) for name in ("train", "val")}
    old = Split(source, "train", dataclasses.replace(config, path=str(source)))
    keys = {name: [split.record(i)["key"] for i in range(len(split))] for name, split in splits.items()}
    assert len(keys["val"]) == 4 and sorted(keys["train"] + keys["val"]) == sorted(
        old.record(i)["key"] for i in range(len(old))
    )
    row = next(i for i in range(len(old)) if old.record(i)["key"] == keys["val"][2])
    view = old.views[0]
    np.testing.assert_array_equal(splits["val"].tokens(2, view, True), old.tokens(row, view, True))
    assert Card.load(out).split("val")["records"] == 4
    for split in (*splits.values(), old):
        split.close()
    with pytest.raises(UserError, match="nothing was overwritten"):
        hold_out.main([str(source), "--records", "4", "--out", str(out)])


def test_media_labels_and_digests_come_along_and_embeddings_do_not(tmp_path):
    """Records with depth maps, some without pictures, some without captions; the digests are those of a set made so."""
    items = [
        Item(
            f"k{n}",
            {} if n % 3 == 0 else {"photo": picture(n)},
            {} if n in (1, 5) else {"en": [f"thing {n}"]},
            (f"label {n % 2}",),
            f"g{n}",
            media={"depth": {"map": bytes([n, 1]), "far": b"2"}},
        )
        for n in range(12)
    ]
    source, out = tmp_path / "set", tmp_path / "dev"
    card = prepare(dataclasses.replace(memory_source(items), taxonomy=folder_taxonomy({"label 0": ["a"]}, "x")), source)

    def mean(images):
        return images.reshape(len(images), 1, -1, 3).mean(2, dtype=np.float32)

    card = dataclasses.replace(write_features(source, "mean", mean, size=16), embeddings={"old": EMBEDDINGS})
    card.save(source)
    hold_out.main([str(source), "--records", "5", "--name", "val", "--out", str(out)])
    made = Card.load(out)
    assert (made.media, made.views, made.embeddings, made.label_names) == (["depth"], ["photo"], {}, card.label_names)
    assert made.duplicates["val"]["captions"] == made.splits["val"]["captions"] and Taxonomy.load(out).labels == [
        "label 0"
    ]
    by_key, moved = {item.key: item for item in items}, []
    for name in ("train", "val"):
        split = Split(out, name, DataConfig(path=str(out), features=("mean",)))
        assert split.sidecar.having_medium("depth").all()
        for row in range(len(split)):
            item = by_key[split.record(row)["key"]]
            assert split.record(row)["media"] == item.stored and split.sidecar.captions(row) == item.captions
            moved.append(dataclasses.replace(item, split=name))
            if item.images:
                assert split.tokens(row, "photo", False).shape == (1, 3)
        split.close()
    again = prepare(memory_source(moved), tmp_path / "again")
    assert len(moved) == 12 and again.fingerprint == made.fingerprint
