import base64
import contextlib
import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import changed

from xmodal_jax import api
from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.records import pictures
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedded, Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.retrieve import build
from xmodal_jax.retrieve.origin import model_of
from xmodal_jax.retrieve.pipeline import SearchPipeline
from xmodal_jax.search import codes, writer
from xmodal_jax.search.index import Index

PICTURES = build.Kind("image", "pictures", False, ("image", "text"))


def test_every_picture_of_every_view_is_a_row(tiny_index, tiny_run, opened_run):
    opened = Index.open(tiny_index, model=model_of(*opened_run))
    assert (opened.count, opened.width, opened.bits) == (24, 16, 16)
    items = [opened.item(row) for row in range(24)]
    assert [item["view"] for item in items] == ["filled"] * 12 + ["outline"] * 12
    assert items[0]["key"] == items[12]["key"] and items[0]["split"] == "test"
    assert all(f"a {' '.join(item['key'].split('-'))}" == item["captions"][0] for item in items)
    assert opened.extra["workdir"] == str(tiny_run[0])
    card = Card.load(tiny_run[1])
    assert opened.extra["data"] == str(tiny_run[1])
    assert opened.extra["sets"][str(tiny_run[1])]["fingerprint"] == card.fingerprint


def test_rows_are_the_model_s_embeddings_and_codes(tiny_index, opened_run):
    assembly, params = opened_run
    found = eval_split(assembly.config.data.path, "test", assembly.specs, assembly.config.data, "outline")
    coded = Embedder(assembly.model, params).side(found.left, 64)
    opened = Index.open(tiny_index)
    np.testing.assert_allclose(opened.vectors()[12:], coded.embed, atol=1e-5)
    np.testing.assert_array_equal(opened.vectors("codes")[12:], codes.pack(coded.codes))


def test_thumbnails_show_the_pictures_without_the_data(tiny_index):
    opened = Index.open(tiny_index)
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "green": (0, 128, 0)}
    for row in range(12):
        item = opened.item(row)
        picture = Image.open(io.BytesIO(base64.b64decode(item["thumbnail"])))
        assert max(picture.size) <= build.THUMBNAIL
        colour = item["key"].split("-")[0]
        if colour in colours:
            assert picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2)) == colours[colour]


def test_large_pictures_become_small_thumbnails(opened_run, tmp_path):
    Image.effect_noise((300, 150), 50).convert("RGB").save(tmp_path / "large.png")
    (tmp_path / "pairs.jsonl").write_text('{"image": "large.png", "caption": {"fr": "du bruit"}, "split": "train"}')
    out = tmp_path / "other"
    assert main(["data", "prepare", "jsonl", "--path", str(tmp_path / "pairs.jsonl"), "--out", str(out)]) == 0
    path, count = build.build_index(*opened_run, "run", str(tmp_path / "index"), str(out), "train")
    assert count == 1
    item = Index.open(path).item(0)  # another data set: its own views and languages
    assert item["captions"] == ["du bruit"] and item["view"] == "image"
    assert Image.open(io.BytesIO(base64.b64decode(item["thumbnail"]))).size == (96, 48)


def test_a_taken_folder_is_refused_before_anything_is_encoded(tiny_index, opened_run, tmp_path):
    before = (tiny_index / "index.json").read_bytes()
    with pytest.raises(UserError, match="already holds an index"):
        build.build_index(*opened_run, "run", str(tiny_index), "no such data")
    assert (tiny_index / "index.json").read_bytes() == before
    with pytest.raises(UserError, match="no data set at"):
        build.build_index(*opened_run, "run", str(tmp_path / "new"), str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="has no split 'none'"):
        build.build_index(*opened_run, "run", str(tmp_path / "new"), "", "none")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_appended_is_refused_before_anything_is_encoded(tiny_index, opened_run, tmp_path):
    copy = shutil.copytree(tiny_index, tmp_path / "index")
    before = (copy / "index.json").read_bytes()
    vectors, items = Index.open(copy).vectors(), [{"key": "x"}] * 24
    writer.write(tmp_path / "other", vectors, items, model="0123")
    writer.write(tmp_path / "bare", vectors, None, model=Index.open(copy).model)
    block = shutil.copytree(copy, tmp_path / "torn") / "codes-00000.npy"
    block.write_bytes(block.read_bytes()[:-1])
    for name, how, words in (
        ("index", build.IndexOptions(append=True, overwrite=True), "write one of them"),
        ("index", build.IndexOptions(append=True, codes_only=True), "has embeddings.*leave out 'codes_only'"),
        ("index", build.IndexOptions(append=True, dtype="int8"), "as float32.*leave out dtype 'int8'"),
        ("other", build.IndexOptions(append=True), "made by model 0123"),
        ("bare", build.IndexOptions(append=True), "has no items"),
        ("torn", build.IndexOptions(append=True), "codes-00000.npy is torn"),
        ("torn", build.IndexOptions(upsert=True), "codes-00000.npy is torn"),
        ("index", build.IndexOptions(upsert=True, overwrite=True), "'upsert' keeps what 'overwrite' replaces"),
        ("index", build.IndexOptions(upsert=True, duplicates=True), "write one of them"),
        ("none", build.IndexOptions(append=True), "is not an index"),
    ):
        with pytest.raises(UserError, match=words):
            build.build_index(*opened_run, "run", str(tmp_path / name), "no such data", how=how)
    assert (copy / "index.json").read_bytes() == before


def test_rows_are_appended_in_the_form_of_the_index(opened_run, tmp_path):
    first = build.IndexOptions(codes_only=True)
    path, count = build.build_index(*opened_run, "run", str(tmp_path / "index"), how=first)
    again = {"append": True, "codes_only": True, "dtype": "float32", "duplicates": True}
    for how in (build.IndexOptions(append=True), build.IndexOptions(**again)):
        path, count = build.build_index(*opened_run, "run", str(path), split="train", how=how)
    opened = Index.open(path)
    assert (count, opened.width, opened.bits) == (72, 0, 16)
    assert [opened.item(row)["split"] for row in (23, 24, 71)] == ["test", "train", "train"]


def test_several_splits_are_one_index(tiny_run, opened_run, tmp_path, capsys):
    """Each row has the picture, the captions and the row number that its own split's index has."""
    run, out = tiny_run[0], str(tmp_path / "both")
    assert main(["index", "--workdir", str(run), "--out", out, "--split", "train, test"]) == 0
    assert f"indexed 48 pictures in {out} (splits 'train', 'test' of {tiny_run[1]})" in capsys.readouterr().out
    both, start = Index.open(out), 0
    assert both.extra["split"] == "train,test"
    for split in ("train", "test"):
        alone = Index.open(build.build_index(*opened_run, str(run), str(tmp_path / split), split=split)[0])
        rows = range(start, start + alone.count)
        assert [both.item(row) for row in rows] == [alone.item(row) for row in range(alone.count)]
        np.testing.assert_allclose(both.vectors()[rows], alone.vectors(), atol=1e-5)
        np.testing.assert_array_equal(both.vectors("codes")[rows], alone.vectors("codes"))
        start += alone.count
    assert start == both.count == 48


def test_a_search_of_several_splits_finds_each_by_its_own_picture(tiny_run, tmp_path, capsys):
    """A stored picture asks for itself, also by the matching head, which reads the record again from its split."""
    run = api.load(tiny_run[0])
    index = run.index(tmp_path / "all", split="all")
    assert len(index) == 48
    for split in ("train", "test"):
        path = tmp_path / f"{split}.png"
        with contextlib.closing(Split(tiny_run[1], split, run.config.data)) as source:
            path.write_bytes(pictures(source.record(3))["filled"])
        best = index.search(path, k=48)[0]
        assert (best.item["split"], best.item["row"], best.item["view"]) == (split, 3, "filled")
        assert best.caption == "a {} {}".format(*best.key.split("-"))
    hits = index.search("a red circle", k=48, stages=SearchPipeline("dense", 0, 48))
    assert {hit.item["split"] for hit in hits} == {"train", "test"} and hits[0].kind == "match"
    assert main(["search", "--index", str(tmp_path / "all"), "a red circle", "-k", "48"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "cosine", "key", "split", "view", "caption"]
    assert {row.split()[3] for row in rows} == {"train", "test"}


def test_splits_are_named_in_a_text_or_a_list(opened_run):
    data = opened_run[0].config.data
    assert build.splits_of(data, "") == ("test",) and build.splits_of(data, "all") == ("test", "train")
    assert build.splits_of(data, "train,test,train") == build.splits_of(data, ["train", "test"]) == ("train", "test")
    with pytest.raises(UserError, match="has no split 'val': use one of test, train"):
        build.splits_of(data, "train,val")


def test_a_key_of_two_splits_is_refused(opened_run):
    assembly = opened_run[0]
    opened = {split: build.opened_views(assembly, assembly.config.data, split, PICTURES) for split in ("test", "train")}
    build.refuse_shared_keys(opened, "shapes")
    key = opened["test"][0].keys[2]
    opened["train"] = [dataclasses.replace(found, keys=[*list(found.keys)[1:], key]) for found in opened["train"]]
    with pytest.raises(UserError, match=f"splits 'test' and 'train' of shapes both have the key '{key}'"):
        build.refuse_shared_keys(opened, "shapes")


def test_pictures_are_encoded_a_block_at_a_time(opened_run):
    assembly, params = opened_run
    views = build.opened_views(assembly, assembly.config.data, "test", PICTURES)
    whole, parts = (
        list(build.encoded(Embedder(assembly.model, params), size, assembly.config.data, "test", views, PICTURES))
        for size in (assembly.config.eval.batch_size, 5)
    )
    assert [len(coded.embed) for coded, _ in parts] == [len(items) for _, items in parts] == [5, 5, 2] * 2
    assert [item for _, items in parts for item in items] == [item for _, items in whole for item in items]
    for name in ("embed", "codes"):
        one, other = (np.concatenate([getattr(coded, name) for coded, _ in found]) for found in (parts, whole))
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_moved_run_indexes_other_data_without_its_own(tiny_run, opened_run, tmp_path):
    """Its own set is gone; a run that keeps the tokens of its captions would look for them there."""
    assembly, params = opened_run
    gone = dataclasses.replace(assembly.config.data, path=str(tmp_path / "gone"))
    moved = changed(assembly, text={"cache_tokens": True})
    moved = dataclasses.replace(moved, config=dataclasses.replace(moved.config, data=gone))
    with pytest.raises(UserError, match="the run's data set is not at .*gone.*; write its folder now .option 'data'"):
        build.build_index(moved, params, "run", str(tmp_path / "index"))
    for side in ("image", "text"):
        out, how = tmp_path / side, build.IndexOptions(field=side)
        assert build.build_index(moved, params, "run", str(out), str(tiny_run[1]), how=how)[1] == 24


def test_the_split_and_how_many_rows_it_has_are_shown(opened_run, capsys, monkeypatch):
    monkeypatch.setattr("xmodal_jax.data.progress.LOG_SECONDS", 0)
    views = build.opened_views(opened_run[0], opened_run[0].config.data, "test", PICTURES)
    blocks = iter([(Embedded(np.zeros((20, 2))), []), (Embedded(np.zeros((4, 2))), [])])
    assert len(list(build.shown(blocks, "test", views, PICTURES))) == 2
    said = capsys.readouterr().err
    assert "index split 'test' [" in said and "20/24 pictures" in said and "24/24 pictures" in said


def test_a_picture_that_cannot_be_read_has_no_thumbnail(caplog):
    """Behind cached features nothing else decodes it."""
    assert build.thumbnail_of(b"no picture", "a") == {}
    assert caplog.messages[0].startswith("no thumbnail of 'a': ")
