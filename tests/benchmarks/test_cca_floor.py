import io
import json

import cca_floor
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from PIL import Image

from xmodal_jax.data import prepare, source
from xmodal_jax.errors import UserError

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
}
SHAPES = ("square", "bar", "column", "frame")


def draw(colour, shape, rng):
    """A noisy 32 px picture of a coloured shape on grey."""
    image = np.full((32, 32, 3), 128.0)
    box = {"square": (8, 24, 8, 24), "bar": (12, 20, 2, 30), "column": (2, 30, 12, 20), "frame": (2, 30, 2, 30)}[shape]
    image[box[0] : box[1], box[2] : box[3]] = COLOURS[colour]
    if shape == "frame":
        image[8:24, 8:24] = 128.0
    file = io.BytesIO()
    noisy = np.clip(image + rng.normal(scale=8, size=image.shape), 0, 255)
    Image.fromarray(noisy.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set of 80 training and 20 test pictures in two views: every colour with every shape."""
    rng = np.random.default_rng(0)
    items = []
    for split, copies in (("train", 4), ("test", 1)):
        for number in range(copies * 20):
            colour, shape = list(COLOURS)[number % 5], SHAPES[number // 5 % 4]
            images = {view: draw(colour, shape, rng) for view in ("first", "second")}
            key = f"{split}{number}"
            items.append(source.Item(key, images, {"en": [f"A {colour} {shape}."]}, group=key, split=split))
    path = tmp_path_factory.mktemp("data") / "shapes"
    prepare.prepare(source.memory_source(items, "shapes"), path)
    return path


def test_cca_is_the_solution_of_its_eigenproblem(rng):
    """Against the generalised eigenvalue form, on explicit pairs."""
    image, text = rng.normal(size=(30, 5)), rng.normal(size=(40, 4))
    text[:30, :2] += image[:, :2]
    rows, columns = rng.integers(0, 30, 60), rng.integers(0, 40, 60)
    rows[:30], columns[:30] = np.arange(30), np.arange(30)
    pairs = scipy.sparse.csr_array((np.ones(60), (rows, columns)), (30, 40))
    x, y = image[rows] - image[rows].mean(0), text[columns] - text[columns].mean(0)
    cxx, cyy, cxy = x.T @ x / 60, y.T @ y / 60, x.T @ y / 60
    cxx += 0.3 * np.trace(cxx) / 5 * np.eye(5)
    cyy += 0.3 * np.trace(cyy) / 4 * np.eye(4)
    squared = scipy.linalg.eigh(cxy @ np.linalg.solve(cyy, cxy.T), cxx, eigvals_only=True)[::-1]
    image_side, text_side, correlations = cca_floor.fit_cca(image, text, pairs, 3, 0.3)
    np.testing.assert_allclose(correlations**2, squared[:3], rtol=1e-9)
    # projections have unit regularised variance times the correlation, and the correlations between them
    np.testing.assert_allclose(image_side[1].T @ cxx @ image_side[1], np.diag(correlations**2), atol=1e-12)
    np.testing.assert_allclose(image_side[1].T @ cxy @ text_side[1], np.diag(correlations**3), atol=1e-12)


def test_hand_features_see_what_they_should():
    image = np.zeros((2, 64, 64, 3), np.uint8)
    image[0, :, 32:] = 255  # a vertical edge: gradients across
    image[1, 32:] = 255  # a horizontal one
    across, down = cca_floor.gradient_histogram(image).reshape(2, 8, 8, 9).sum(axis=(1, 2))
    assert across.argmax() == 0
    assert down.argmax() in (4, 5)
    histogram = cca_floor.colour_histogram(image)
    np.testing.assert_allclose((histogram**2).sum(axis=1), 1.0)
    np.testing.assert_allclose(histogram[:, [0, -1]] ** 2, 0.5)
    np.testing.assert_allclose(cca_floor.thumbnail(image)[0].reshape(8, 8, 3)[0, :, 0], [0, 0, 0, 0, 1, 1, 1, 1])


def test_tf_idf_prefers_rare_words_and_forgets_single_ones():
    words = cca_floor.TfIdf(["a dog", "a dog", "a cat", "a cat", "a zebra"])
    assert set(words.column) == {"a", "dog", "cat"}
    row = words(["A dog!", "unknown"])
    assert row[0, words.column["dog"]] > row[0, words.column["a"]] > 0
    np.testing.assert_allclose(np.linalg.norm(row, axis=1), [1, 0], atol=1e-6)


def test_hand_features_retrieve_shapes_and_colours(folder, capsys):
    cca_floor.main([str(folder), "--regularisation", "auto", "--dim", "8"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["view"] for row in rows] == ["first", "second", "mean of the views"]
    assert rows[2]["rSum"] == pytest.approx((rows[0]["rSum"] + rows[1]["rSum"]) / 2)
    assert all(row["i2t"]["R@1"] > 50 and row["t2i"]["R@1"] > 50 for row in rows)
    assert rows[0]["train_pairs"] == 160


def test_towers_are_read_from_a_file(folder, tmp_path, capsys):
    """Perfect towers: the same one-hot vector of the concept on both sides."""
    arrays = {}
    for split, count in (("train", 80), ("test", 20)):
        concept = np.eye(20)[np.arange(count) % 20]
        arrays |= {f"{split}.image.first": concept, f"{split}.image.second": concept, f"{split}.text": concept}
    arrays["train.image.first.flip"] = arrays["train.image.first"]
    np.savez(tmp_path / "pooled.npz", **arrays)
    cca_floor.main([str(folder), "--towers", str(tmp_path / "pooled.npz"), "--dim", "19"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    towers = [row for row in rows if row["features"] == "frozen towers"]
    assert [row["view"] for row in towers] == ["first", "second", "mean of the views"]
    assert all(row["rSum"] == pytest.approx(600.0) for row in towers)
    assert towers[0]["train_pairs"] == 240
    np.savez(tmp_path / "short.npz", **(arrays | {"test.text": np.ones((3, 20))}))
    with pytest.raises(UserError, match="'test.text' has 3 rows, the data 20"):
        cca_floor.main([str(folder), "--towers", str(tmp_path / "short.npz")])
    del arrays["train.text"]
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(UserError, match="no array 'train.text'"):
        cca_floor.main([str(folder), "--towers", str(tmp_path / "less.npz")])
