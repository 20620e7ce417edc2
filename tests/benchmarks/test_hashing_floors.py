"""Linear hashing floors: CMFH's alternating minimisation, and both methods on the shapes."""

import argparse
import json

import hashing_floors
import numpy as np
import pytest

from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError


def objective(xs, bases, maps, v, share, m, g, ridge):
    """CMFH's objective as the paper writes it, but for the ridge of the maps."""
    fit = sum(w * np.square(x - u @ v).sum() for w, x, u in zip((share, 1 - share), xs, bases, strict=True))
    linear = m * sum(np.square(v - p @ x).sum() for p, x in zip(maps, xs, strict=True))
    small = sum(m * ridge * np.square(x).sum() / len(x) * np.square(p).sum() for x, p in zip(xs, maps, strict=True))
    return fit + linear + small + g * sum(np.square(a).sum() for a in (*bases, v))


def test_cmfh_lowers_its_objective_and_ends_where_no_part_can_improve():
    draw = np.random.default_rng(3)
    shared = draw.normal(size=(40, 4))
    left, right = (shared @ draw.normal(size=(4, d)) + 0.1 * draw.normal(size=(40, d)) for d in (9, 7))
    settings = dict(share=0.5, m=1.0, g=0.1, ridge=0.01)

    def value(rounds):
        maps = hashing_floors.cmfh(left, right, 8, rounds=rounds, **settings)
        v = np.mean([p @ x.T for p, x in zip(maps, (left, right), strict=True)], axis=0)
        bases = [x.T @ v.T @ np.linalg.inv(v @ v.T + 0.2 * np.eye(8)) for x in (left, right)]
        return objective((left.T, right.T), bases, maps, v, **settings)

    first, late, later = value(1), value(60), value(120)
    assert later <= late * 1.001 < first


@pytest.fixture(scope="module")
def shapes(shapes_data):
    """Hand features of both splits of the shapes, with labels."""
    given = argparse.Namespace(
        data=str(shapes_data),
        train_split="train",
        eval_split="test",
        language="en",
        size=16,
        towers="",
        train_views=[],
        views=[],
        flip=True,
    )
    return hashing_floors.read(given)


def test_lines_of_all_methods_and_what_they_were_made_of(shapes_data, tmp_path, capsys):
    out = tmp_path / "floors.json"
    hashing_floors.main([str(shapes_data), "--bits", "8", "16", "--size", "16", "--views", "filled", "--out", str(out)])
    told = json.loads(out.read_text())
    assert told["of"]["labels"] == len(Card.load(shapes_data).label_names) > 0
    assert set(told["of"]["records"]) == {"train", "test"}
    assert told["views"] == ["filled"] and told["train_views"] == [] and told["language"] == "en" and told["flip"]
    rows = told["rows"]
    assert [(row["method"], row["bits"]) for row in rows] == [
        (name, bits) for name in ("CCA signs", "CMFH", "label codes") for bits in (8, 16)
    ]
    assert len(capsys.readouterr().out.splitlines()) == 6
    for row in rows:
        assert 0 <= row["rSum"] <= 600 and row["ridge"] in hashing_floors.RIDGES
        for side in row["labels"].values():
            assert side["MAP@ALL"] > 0.8 * side["MAP@ALL random"] > 0


def test_regression_to_label_codes_is_the_normal_equations(shapes):
    train, ridge = shapes[0], 0.3
    code = hashing_floors.label_codes(train, 16, ridge)
    sides, record = hashing_floors.paired(train)
    x = sides["text"] - sides["text"].mean(0)
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), (train.labels.shape[1], 16))
    y = train.labels[record] @ signs
    penalty = ridge * np.square(x).sum() / x.shape[1]
    weights = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1])) @ x.T @ (y - y.mean(0))
    np.testing.assert_allclose(code(sides["text"], "text"), x @ weights, atol=1e-3)


def test_a_ridge_is_chosen_on_records_that_were_not_fitted(shapes, monkeypatch):
    seen = []

    def method(train, bits, ridge):
        seen.append(set(train.features.owner.tolist()))
        return hashing_floors.cca_codes(train, bits, ridge)

    monkeypatch.setitem(hashing_floors.METHODS, "CCA signs", method)
    assert hashing_floors.choose_ridge("CCA signs", shapes[0], 8) in hashing_floors.RIDGES
    assert all(not {record for record in own if record % 5 == 0} and len(own) > 4 for own in seen)


def test_views_that_are_not_there_are_refused(shapes):
    features = shapes[0].features
    assert list(hashing_floors.with_views(features, ["filled"], False).image) == ["filled"]
    with pytest.raises(UserError, match="has no view 'noto'; it has filled, outline"):
        hashing_floors.with_views(features, ["noto"], True)


def test_fewer_variates_than_bits_are_filled_up(shapes):
    train, text = shapes[0], shapes[0].features.text
    code = hashing_floors.cca_codes(train, 512, 0.3)
    assert code(text, "text").shape == (len(text), 512)
    assert (code(text, "text")[:, -1] == -1).all()


def test_the_labels_are_those_of_the_records(shapes_data):
    labels = hashing_floors.read_labels(str(shapes_data), "test")
    assert labels.any(1).all() and set(np.unique(labels)) == {0.0, 1.0}
