"""Sources yield what files say, and a Skip with the place for each row they cannot use."""

import collections
import inspect
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.cli import main
from xmodal_jax.data.source import Item, Skip, clean_captions, memory_source, split_groups
from xmodal_jax.data.sources import SOURCES
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.data.sources.karpathy import karpathy_source
from xmodal_jax.data.sources.tfds import tfds_source
from xmodal_jax.errors import UserError


def write_lines(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def items(source):
    return list(source.items())


@given(st.lists(st.integers(0, 8).map(str), max_size=40), st.integers(0, 20))
@settings(deadline=None)
def test_groups_stay_whole_and_no_more_rows_are_held_out_than_asked(groups, held_out):
    splits = split_groups(groups, held_out)
    assert len(splits) == len(groups) and splits.count("test") <= held_out
    assert len({*zip(groups, splits, strict=True)}) == len(set(groups)), "a group is in one split"
    left = collections.Counter(group for group, split in zip(groups, splits, strict=True) if split == "train")
    assert all(count > held_out - splits.count("test") for count in left.values()), "no further group would fit"


def test_groups_of_one_meet_the_number_exactly_whatever_the_order():
    groups = [str(number) for number in range(100)]
    held = {group for group, split in zip(groups, split_groups(groups, 25), strict=True) if split == "test"}
    backwards = {
        group for group, split in zip(groups[::-1], split_groups(groups[::-1], 25), strict=True) if split == "test"
    }
    assert len(held) == 25 and held == backwards


def test_captions_come_in_three_forms():
    assert clean_captions(" a  dog\n", "k") == ({"en": ["a dog"]}, [])
    assert clean_captions(["a", "b"], "k") == ({"en": ["a", "b"]}, [])
    assert clean_captions({"en": "a", "fr": ["b", " "]}, "k") == (
        {"en": ["a"], "fr": ["b"]},
        [Skip("empty caption", "k (fr)")],
    )
    assert clean_captions(None, "k") == ({}, [Skip("empty caption", "k (en)")])


@pytest.fixture
def karpathy(tmp_path, encoded):
    """Three good rows, one in a subfolder, one without its image, one with a broken row."""
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    picture = encoded(np.zeros((4, 4, 3), np.uint8))
    for name in ("a.png", "b.png", "val2014/c.png"):
        (tmp_path / "images" / name).write_bytes(picture)
    sentences = [{"raw": "A dog ."}, {"raw": "A  cat"}]
    rows = [
        {"filename": "a.png", "split": "train", "sentences": sentences},
        {"filename": "b.png", "split": "restval", "sentences": [{"raw": " "}, *sentences]},
        {"filename": "c.png", "filepath": "val2014", "split": "test", "sentences": sentences},
        {"filename": "lost.png", "split": "test", "sentences": sentences},
        {"filename": "d.png", "split": "test"},
    ]
    (tmp_path / "dataset_x.json").write_text(json.dumps({"images": rows}))
    return tmp_path / "dataset_x.json", picture


def test_karpathy_rows_become_items(karpathy):
    path, picture = karpathy
    source = karpathy_source(path)
    captions = {"en": ["A dog .", "A cat"]}
    assert items(source) == [
        Item("a.png", {"image": picture}, captions, group="a.png", split="train"),
        Skip("empty caption", "b.png (en)"),
        Item("b.png", {"image": picture}, captions, group="b.png", split="train"),
        Item("c.png", {"image": picture}, captions, group="c.png", split="test"),
        Skip("missing image", f"lost.png: {path.parent / 'images' / 'lost.png'}"),
        Skip("broken row", "images[4]: KeyError('sentences')"),
    ]
    assert source.total == 5 and items(source) == items(source)


def test_karpathy_refuses_what_is_no_karpathy_file(tmp_path):
    with pytest.raises(UserError, match="Karpathy file .* does not exist"):
        karpathy_source(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("[]")
    for content in ("[]", '{"images": 5}', '{"images": {"a": 1}}', '{"images": [{"filename": "a.png"}]}', "", "a,b"):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match="is not a Karpathy file .JSON with a list 'images'"):
            karpathy_source(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="image folder .*images does not exist"):
        karpathy_source(tmp_path / "x.json")


@pytest.mark.parametrize("split", [None, ["test"]])
def test_a_karpathy_row_whose_split_is_no_text_is_a_broken_row(karpathy, split):
    path, _ = karpathy
    row = {"filename": "a.png", "split": split, "sentences": [{"raw": "A dog ."}]}
    path.write_text(json.dumps({"images": [row]}))
    (found,) = items(karpathy_source(path))
    assert found.reason == "broken row" and found.where.startswith("images[0]: ")


def test_rows_of_translations_alone_have_an_id_of_all_their_texts_or_are_skipped(tmp_path):
    rows = [
        {"caption": {"en": "bank", "de": "Bank"}},
        {"caption": {"en": "bank", "de": "Ufer"}},
        {"caption": {"en": None, "de": "allein"}},
        {"caption": {"en": [["b"]], "de": {"a": 1}}},
        {"caption": {"en": ["", " "], "de": ""}},
    ]
    got = items(jsonl_source(write_lines(tmp_path / "rows.jsonl", [row | {"split": "val"} for row in rows])))
    kept = [item for item in got if isinstance(item, Item)]
    assert [item.key for item in kept] == ["bank / Bank", "bank / Ufer", "allein"]
    assert sum(isinstance(item, Skip) for item in got) >= 3


def test_jsonl_rows_become_items(tmp_path, encoded):
    picture = encoded(np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(picture)
    rows = [
        {"image": "a.png", "caption": "a dog", "split": "val"},
        "",
        "{broken",
        "[1]",
        {"caption": "no image", "split": "val"},
        {"views": {"x": "a.png", "y": "a.png"}, "caption": {"fr": "un chien"}, "id": 7, "labels": 3, "split": "val"},
        {"caption": {"en": "a cat", "fr": ["un chat"]}, "split": "val"},
        {"image": "a.png", "caption": [], "id": "none", "split": "val"},
        {"image": "lost.png", "caption": "x", "id": "lost", "split": "val"},
    ]
    got = items(jsonl_source(write_lines(tmp_path / "rows.jsonl", rows)))
    assert got == [
        Item("a.png", {"image": picture}, {"en": ["a dog"]}, group="a.png", split="val"),
        Skip("broken JSON line", "line 3"),
        Skip("broken JSON line", "line 4: not an object"),
        Skip("no image named", "line 5"),
        Item("7", {"x": picture, "y": picture}, {"fr": ["un chien"]}, ("3",), "7", "val"),
        Item("a cat / un chat", {}, {"en": ["a cat"], "fr": ["un chat"]}, (), "a cat / un chat", "val"),
        Skip("no caption", "none"),
        Skip("missing image", f"lost: {tmp_path / 'lost.png'}"),
    ]


def test_jsonl_rows_without_a_split_are_shared_out_by_group(tmp_path, encoded):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    rows = [{"image": "a.png", "caption": "x", "id": n, "group": f"g{n // 2}"} for n in range(40)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    got = items(jsonl_source(path, tmp_path / "images", held_out=10))
    assert sum(item.split == "test" for item in got) == 10
    assert len({(item.group, item.split) for item in got}) == 20
    assert sum(item.split == "test" for item in items(jsonl_source(path, tmp_path / "images"))) == 4, "a tenth"


def test_jsonl_keys_of_rows_without_an_id_are_their_image_paths(tmp_path, encoded):
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    (item,) = items(jsonl_source(write_lines(tmp_path / "r.jsonl", [{"image": "a.png", "caption": "x"}])))
    assert item.key == item.group == "a.png"


def test_jsonl_rows_of_one_picture_are_one_item_with_all_captions(tmp_path, encoded):
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    rows = [
        {"image": "a.png", "caption": "one", "id": None, "labels": "x", "split": "train"},
        {"image": "a.png", "caption": {"en": ["two"], "de": "zwei"}, "labels": ["y", "x"], "split": "train"},
        {"image": "a.png", "caption": "three", "id": "own", "split": "train"},
    ]
    found = items(jsonl_source(write_lines(tmp_path / "rows.jsonl", rows)))
    assert [(item.key, item.captions, item.labels) for item in found] == [
        ("a.png", {"en": ["one", "two"], "de": ["zwei"]}, ("x", "y")),
        ("own", {"en": ["three"]}, ()),
    ]


def test_jsonl_refuses_to_hold_out_everything(tmp_path, encoded):
    rows = [{"image": f"{i}.png", "caption": "x"} for i in range(3)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    for held_out in (3, -1):
        with pytest.raises(UserError, match=f"held_out is {held_out}, but .* has 3 pictures"):
            jsonl_source(path, held_out=held_out)


def test_a_changed_file_is_another_source(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"image": "a.png", "caption": "x"}] * 2)
    before = jsonl_source(path).arguments
    write_lines(path, [{"image": "a.png", "caption": "y"}] * 2)
    assert jsonl_source(path).arguments != before


def test_captions_of_a_wrong_type_are_skips_not_crashes(tmp_path):
    row = {"image": "a.png", "caption": 5, "id": "n"}
    assert items(jsonl_source(write_lines(tmp_path / "rows.jsonl", [row])))[0] == Skip("empty caption", "n (en)")
    row = {"image": "a\0.png", "caption": "x", "id": "n"}
    assert items(jsonl_source(write_lines(tmp_path / "rows.jsonl", [row])))[0].reason == "missing image"


def test_memory_sources_differ_by_content():
    one, other = (memory_source([Item(key, {"image": b""}, {"en": ["x"]})]) for key in "ab")
    assert one.arguments != other.arguments and one.total == 1


@pytest.mark.parametrize("name", SOURCES)
def test_every_parameter_of_a_source_is_an_option_of_its_command(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "prepare", name, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "UserError" not in said
    for option in inspect.signature(SOURCES[name]).parameters:
        assert f"--{option.replace('_', '-')}" in said


@pytest.fixture(scope="module")
def builder(tmp_path_factory, encoded):
    """A TFDS data set of our own, built with array_record files: 4 train and 2 validation pairs."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Pairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(6, 6, 3), encoding_format="png"),
                    "captions": {"text": tfds.features.Sequence(tfds.features.Text())},
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4), "validation": self._generate_examples(2)}

        def _generate_examples(self, count):
            for number in range(count):
                image = io.BytesIO(encoded(np.full((6, 6, 3), number, np.uint8)))  # arrays would need TensorFlow
                yield number, {"image": image, "captions": {"text": [f"pair {number}", ""]}, "label": number % 2}

    folder = tmp_path_factory.mktemp("tfds")
    built = Pairs(data_dir=folder, file_format="array_record")
    built.download_and_prepare()
    return folder


def test_tfds_examples_become_items(builder):
    from xmodal_jax.data.image import decode

    source = tfds_source("pairs", builder, text_key="captions.text", label_key="label")
    got = items(source)
    pairs = [item for item in got if isinstance(item, Item)]
    assert source.total == len(pairs) == 6 and len(got) == 12, "each example has one empty caption"
    assert collections.Counter(item.split for item in pairs) == {"train": 4, "val": 2}
    for item in pairs:
        (caption,) = item.captions["en"]
        number = int(caption.split()[1])
        assert (decode(item.images["image"]) == number).all() and item.labels == (["cat", "dog"][number % 2],)
    assert len({item.key for item in pairs}) == 6


def test_tfds_refuses_unknown_names_and_keys(builder, tmp_path):
    with pytest.raises(UserError, match="TFDS has no data set 'nothing_here'"):
        tfds_source("nothing_here", tmp_path)
    with pytest.raises(UserError, match="features have no key 'captions.words'"):
        tfds_source("pairs", builder, text_key="captions.words")
