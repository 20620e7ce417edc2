"""The linear floor of a data set: measured on the shapes against plain linear algebra, written, read and compared."""

import dataclasses
import datetime
import io
import json
import shutil

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from xmodal_jax.data import prepare, source
from xmodal_jax.data.captions import normal_caption
from xmodal_jax.errors import UserError
from xmodal_jax.eval import floor, hand_features, tables
from xmodal_jax.report.floors import floors_of

VIEWS = ["filled", "outline", "mean of the views"]


@pytest.fixture(scope="module")
def sides(shapes_data):
    """Both splits of the shapes."""
    return [hand_features.read_side(shapes_data, split, ("en",)) for split in ("train", "test")]


@pytest.fixture(scope="module")
def data(shapes_data, tmp_path_factory):
    """A copy of the shapes that has a floor, and its rows as `write_floor` returned them."""
    folder = tmp_path_factory.mktemp("floor") / "shapes"
    shutil.copytree(shapes_data, folder)
    said = []
    rows = floor.write_floor(folder, "test", say=said.append)
    assert said == ["hand features of split 'train'", "hand features of split 'test'", "CCA between them"]
    return folder, rows


def picture(colour, size=32):
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def prepared(folder, items):
    """A prepared data set of (split, images, captions)."""
    made = [
        source.Item(f"{split}{i}", images, captions, group=f"{split}{i}", split=split)
        for i, (split, images, captions) in enumerate(items)
    ]
    prepare.prepare(source.memory_source(made, folder.name), folder)
    return folder


def recall_by_hand(queries, gallery, right, k):
    """Percent of queries with a right one among the first `k` of the gallery, expected over ties, one at a time."""
    hits = []
    for query, own in zip(queries, right, strict=True):
        scores = gallery @ query
        best = scores[own].max()
        above, tied = (scores > best + 1e-6).sum(), np.abs(scores - best) <= 1e-6
        places, missed = int(np.clip(k - above, 0, tied.sum())), 1.0
        for j in range(places):
            missed *= max(0, tied.sum() - tied[own].sum() - j) / (tied.sum() - j)
        hits.append(1 - missed)
    return 100 * np.mean(hits)


def cca_by_hand(image, text, dim, ridge):
    """Projections of explicit pairs [p,D], [p,D'] by the generalised eigenproblem, in float64."""
    x, y = image - image.mean(0), text - text.mean(0)
    cxx, cyy, cxy = x.T @ x / len(x), y.T @ y / len(x), x.T @ y / len(x)
    cxx += ridge * np.trace(cxx) / len(cxx) * np.eye(len(cxx))
    cyy += ridge * np.trace(cyy) / len(cyy) * np.eye(len(cyy))
    squared, vectors = scipy.linalg.eigh(cxy.T @ np.linalg.solve(cxx, cxy), cyy)
    text_matrix = vectors[:, ::-1][:, :dim]
    correlation = np.sqrt(squared[::-1][:dim])
    image_matrix = np.linalg.solve(cxx, cxy @ text_matrix) / correlation

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return (
        lambda rows: unit((rows - image.mean(0)) @ image_matrix * correlation),
        lambda rows: unit((rows - text.mean(0)) @ text_matrix * correlation),
    )


def test_the_floor_agrees_with_the_eigenproblem_on_explicit_pairs(sides):
    """Everything after the features, computed in another way: pairs as rows, eigenvectors, a loop over queries."""
    train, test = hand_features.hand_features(*sides)
    assert sorted(test.rows) == VIEWS[:2] and train.text.shape[0] == test.text.shape[0] == 24
    rows = {row["view"]: row for row in floor.measure("hand", train, test, dim=4, regularisation=0.3)}
    pairs = [
        (train.image[view][i].astype(float), train.text[j].astype(float))
        for view in VIEWS[:2]
        for i, record in enumerate(train.rows[view])
        for j in np.flatnonzero(train.owner == record)
    ]
    assert len(pairs) == rows["filled"]["train_pairs"] == 48
    images, texts = (np.array(side) for side in zip(*pairs, strict=True))
    of_image, of_text = cca_by_hand(images, texts, 4, 0.3)
    text = of_text(test.text.astype(float))
    for view in VIEWS[:2]:
        image, own = of_image(test.image[view].astype(float)), [np.flatnonzero(test.owner == i) for i in range(12)]
        for k in (1, 5, 10):
            assert rows[view]["i2t"][f"R@{k}"] == pytest.approx(recall_by_hand(image, text, own, k))
            back = recall_by_hand(text, image, test.owner[:, None], k)
            assert rows[view]["t2i"][f"R@{k}"] == pytest.approx(back)
    for side in ("i2t", "t2i"):
        mean = (rows["filled"][side]["R@5"] + rows["outline"][side]["R@5"]) / 2
        assert rows["mean of the views"][side]["R@5"] == pytest.approx(mean)


def test_tf_idf_by_the_formula(sides):
    train, test = hand_features.hand_features(*sides)
    captions = [normal_caption(text).split() for text in sides[0].captions]
    count = {word: sum(word in caption for caption in captions) for caption in captions for word in caption}
    words = {word: np.log(25 / (1 + times)) + 1 for word, times in count.items() if times > 1}
    found = hand_features.TfIdf(sides[0].captions)
    assert set(found.column) == set(words)
    for row, caption in zip(test.text, sides[1].captions, strict=True):
        own = {word: words[word] for word in normal_caption(caption).split() if word in words}
        length = np.sqrt(sum(value**2 for value in own.values()))
        for word, column in found.column.items():
            assert row[column] == pytest.approx(own.get(word, 0) / length, abs=1e-6)
    # equally frequent words stand in the order of the captions, whatever the hashes of this process
    letters = [chr(ord("a") + i) * 3 for i in range(20)]
    assert list(hand_features.TfIdf([" ".join(letters)] * 2, size=12).column) == letters[:12]


def test_rows_are_written_and_read(data):
    folder, rows = data
    lines = (folder / "floors.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert [row["name"] for row in rows] == [f"CCA on hand features, {view}" for view in VIEWS]
    assert [row["view"] for row in rows] == VIEWS
    today = datetime.date.today().isoformat()
    for row in rows:
        assert row["split"] == "test" and (row["records"], row["captions"], row["train_records"]) == (12, 24, 12)
        assert row["origin"].endswith(f"measured on 12 records of split 'test', {today}") and row["date"] == today
        assert "fitted on 12 of the 12 records of split 'train'" in row["origin"]
        assert row["regularisation"] in floor.REGULARISATIONS and 0 < row["rSum"] <= 600
    found = floor.floor_rows(folder, "test")
    assert [(row.view, row.name) for row in found] == [(view, "CCA on hand features") for view in VIEWS]
    assert [row.summary for row in found] == rows
    assert floor.floor_rows(folder, "train") == []
    cells = tables.retrieval_cells(found[0], ["R@1"])
    assert cells[:3] == ["filled", "CCA on hand features", f"{rows[0]['i2t']['R@1']:.1f}"] and cells[-1] == ""
    right = np.arange(12)[:, None], np.arange(12)[:, None]
    reported = floors_of(folder, "test", ["R@1"], right)[1:]
    wanted = [f"CCA on hand features, {row['view']}" for row in rows]
    assert [own.name for own in reported] == wanted, "the report reads the same lines"
    assert reported[0].i2t["R@1"] == rows[0]["i2t"]["R@1"]


def test_again_is_the_same_and_other_lines_stay(data, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(data[0], folder)
    path, before = folder / "floors.jsonl", data[1]
    other = json.dumps({"features": "frozen towers", "view": "filled", "split": "test", "i2t": {"R@1": 1.0}})
    elsewhere = json.dumps(before[0] | {"split": "val"})
    earlier = json.dumps(before[0] | {"name": "CCA on hand features, gone", "fingerprint": "of data made anew since"})
    changed = [json.dumps(row | {"rSum": 0.0}) for row in before]
    path.write_text("\n".join([other, *changed, elsewhere, earlier, '{"features": "ha']))
    rows = floor.write_floor(folder, "test")
    assert rows == before
    assert path.read_text().splitlines() == [other, elsewhere, '{"features": "ha', *map(json.dumps, before)]
    assert [entry.name for entry in folder.iterdir() if "part" in entry.name] == []


def test_lines_that_are_none_are_passed_over(data, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(data[0], folder)
    good = {"features": "hand", "view": "filled", "split": "test", "i2t": {"R@1": 2.5}, "t2i": {"R@1": 3.5}}
    wrong = [{"view": 3}, {"i2t": None}, {"t2i": {}}, {"t2i": {"R@1": "x"}}, {"split": "val"}, {"fingerprint": "other"}]
    lines = [*(json.dumps(good | change) for change in wrong), json.dumps(good | {"i2t": {"R@1": float("nan")}})]
    lines += ["[]", "3", '{"features": "ha', "", json.dumps(good | {"seconds": 3.5})]
    (folder / "floors.jsonl").write_text("\n".join(lines))
    (row,) = floor.floor_rows(folder, "test")
    assert (row.view, row.name) == ("filled", "CCA on hand") and "seconds" not in row.summary
    assert row.summary["rSum"] == 6.0 and row.summary["mR"] == 3.0
    (folder / "floors.jsonl").unlink()
    assert floor.floor_rows(folder, "test") == []


def result_of(views, total=300.0, **changes):
    """An evaluation whose every view has the same numbers."""
    side = {"R@1": 40.0, "R@5": 50.0, "R@10": 60.0}
    own = {"itc": {"i2t": side, "t2i": side, "mR": total / 6, "rSum": total}}
    return {"split": "test", "languages": ["en"], "views": dict.fromkeys(views, own), "mean": own} | changes


def floor_of(view, total=120.0, **facts):
    side = {"R@1": 12.34, "R@5": 20.0, "R@10": 27.66}
    summary = {"i2t": side, "t2i": side, "rSum": total, "origin": "measured somehow", "languages": ["en"]}
    return tables.Row(view, "CCA on hand features", summary | facts)


def test_floors_are_put_beside_the_run():
    line, origin = floor.floor_lines(result_of(["image"]), [floor_of("image")])
    assert line == (
        "CCA on hand features (this data set): i2t R@1 12.3, t2i R@1 12.3, rSum 120.0; "
        "this run: i2t R@1 40.0, t2i R@1 40.0, rSum 300.0 (2.5 times)"
    )
    assert origin == "Floor: measured somehow."
    (low, _) = floor.floor_lines(result_of(["image"], 60.0), [floor_of("image")])
    assert low.endswith("rSum 60.0 (0.50 times, below the floor)")
    (none, _) = floor.floor_lines(result_of(["image"]), [floor_of("image", 0.0)])
    assert none.endswith("rSum 300.0")


def test_floors_of_something_else_are_left_out():
    rows = [floor_of(view) for view in VIEWS]
    lines = floor.floor_lines(result_of(VIEWS[:2]), rows)
    heads = [line.split(" (this data set)")[0] for line in lines[:-1]]
    assert heads == [f"CCA on hand features, {view}" for view in VIEWS]
    # one view of two: no mean of other views; other languages and another pair of fields: nothing
    assert len(floor.floor_lines(result_of(["filled"]), rows)) == 2
    assert len(floor.floor_lines(result_of([*VIEWS[:2], "photo"]), rows)) == 3
    assert floor.floor_lines(result_of(VIEWS[:2], languages=["de"]), rows) == []
    assert floor.floor_lines(result_of(VIEWS[:2], pair=["depth", "text"]), rows) == []
    assert floor.floor_lines(result_of(VIEWS[:2]), []) == []
    own = floor.floor_lines(result_of(["filled"], relevance="own"), rows[:1])
    assert "the run its own alone" in own[1]


def test_a_set_without_pictures_is_refused_in_a_sentence(tmp_path):
    items = [
        source.Item(
            f"{i}", {}, {"en": [f"a thing {i}"]}, group=str(i), split=split, media={"depth": {"": picture("red")}}
        )
        for i, split in enumerate(["train", "test"] * 12)
    ]
    prepare.prepare(source.memory_source(items, "deep"), tmp_path / "deep")
    with pytest.raises(UserError, match="split 'train' has no pictures; this floor is between pictures and captions"):
        floor.write_floor(tmp_path / "deep", "test")
    assert not (tmp_path / "deep" / "floors.jsonl").exists()


def test_what_cannot_be_measured_is_refused(shapes_data, sides):
    with pytest.raises(UserError, match="split 'test' has no captions in 'de'; it has some in en"):
        hand_features.read_side(shapes_data, "test", ("en", "de"))
    with pytest.raises(UserError, match="the floor is fitted on split 'train'"):
        floor.write_floor(shapes_data, "train")
    train, test = hand_features.hand_features(*sides)
    few = np.arange(12) < 9
    with pytest.raises(UserError, match="9 training records have a picture and a caption; a linear floor needs 10"):
        floor.measure("hand", train.subset(few), test)
    with pytest.raises(UserError, match="1 words occur in two or more training captions"):
        floor.measure("hand", dataclasses.replace(train, text=train.text[:, :1]), test)
    alike = dataclasses.replace(train, text=np.ones_like(train.text))
    with pytest.raises(UserError, match="nothing in common: all training pictures, or all"):
        floor.measure("hand", alike, test)
    with pytest.raises(UserError, match="No record of the split has both"):
        floor.measure("hand", train, dataclasses.replace(test, owner=test.owner + 100))
    assert not (shapes_data / "floors.jsonl").exists()


def test_a_limit_takes_records_with_both_spread_evenly(sides, shapes_data):
    side = hand_features.read_side(shapes_data, "train", ("en",), limit=4)
    assert side.records == 4 and len(side.captions) == 8
    for view in VIEWS[:2]:
        np.testing.assert_array_equal(side.pixels[view], sides[0].pixels[view][[0, 3, 7, 11]])
        np.testing.assert_array_equal(side.rows[view], np.arange(4))
    np.testing.assert_array_equal(side.owner, np.repeat(np.arange(4), 2))
    assert list(side.captions)[:2] == list(sides[0].captions)[:2] and list(side.captions)[-1] == sides[0].captions[23]


COLOURS = ("red", "green", "blue", "black")


def test_galleries_are_of_records_with_both(tmp_path):
    """One colour a picture, some records without a caption in the language, some without a view."""
    items = []
    for i in range(40):
        colour = COLOURS[i % 4]
        images = {"one": picture(colour)} | ({"two": picture(colour, 16)} if i % 3 else {})
        captions = {"en": [f"all {colour}"]} if i % 5 else {}
        captions |= {"de": [f"ganz {colour}", f"nur {colour}"]}
        items.append(("train" if i < 30 else "test", images, captions))
    folder = prepared(tmp_path / "colours", items)
    rows = floor.write_floor(folder, "test")
    assert [(row["view"], row["records"]) for row in rows] == [("one", 8), ("two", 5), ("mean of the views", 8)]
    assert rows[0]["name"] == "CCA on hand features, one, captions in en" and rows[0]["captions"] == 8
    # pictures of one colour tell the colours apart, and every picture of the colour is right
    assert all(row["i2t"]["R@1"] == row["t2i"]["R@1"] == 100 for row in rows) and list(rows[0]["i2t"])[1] == "R@5"
    both = floor.write_floor(folder, "test", ("en", "de", "en"))
    assert both[0]["name"].endswith("captions in en + de") and both[0]["records"] == 10 and both[0]["captions"] == 28
    assert len(floor.floor_rows(folder, "test")) == 6
    result = result_of(["one"], languages=["de", "en"])
    assert floor.floor_lines(result, floor.floor_rows(folder, "test"))[1] == f"Floor: {both[0]['origin']}."
