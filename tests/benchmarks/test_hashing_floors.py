"""Linear hashing floors: CMFH's alternating minimisation, and both methods on the shapes."""

import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import hashing_floors


def objective(xs, bases, maps, v, share, m, g):
    """CMFH's objective as the paper writes it."""
    fit = sum(w * np.square(x - u @ v).sum() for w, x, u in zip((share, 1 - share), xs, bases, strict=True))
    linear = m * sum(np.square(v - p @ x).sum() for p, x in zip(maps, xs, strict=True))
    return fit + linear + g * sum(np.square(a).sum() for a in (*bases, *maps, v))


def test_cmfh_lowers_its_objective_and_ends_where_no_part_can_improve():
    draw = np.random.default_rng(3)
    shared = draw.normal(size=(40, 4))
    left, right = (shared @ draw.normal(size=(4, d)) + 0.1 * draw.normal(size=(40, d)) for d in (9, 7))
    settings = dict(share=0.5, m=1.0, g=0.1)

    def value(rounds):
        maps = hashing_floors.cmfh(left, right, 8, rounds=rounds, **settings)
        v = np.mean([p @ x.T for p, x in zip(maps, (left, right), strict=True)], axis=0)
        bases = [x.T @ v.T @ np.linalg.inv(v @ v.T + 0.2 * np.eye(8)) for x in (left, right)]
        return objective((left.T, right.T), bases, maps, v, **settings)

    first, late, later = value(1), value(60), value(120)
    assert later <= late * 1.001 < first


def test_lines_of_both_methods(shapes_data, tmp_path, capsys):
    out = tmp_path / "floors.json"
    hashing_floors.main([str(shapes_data), "--bits", "8", "16", "--size", "16", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["method"], row["bits"]) for row in rows] == [
        (name, bits) for bits in (8, 16) for name in ("CCA signs", "CMFH")
    ]
    assert len(capsys.readouterr().out.splitlines()) == 4
    for row in rows:
        assert 0 <= row["rSum"] <= 600
        for side in row["labels"].values():
            assert side["MAP@ALL"] > 0.8 * side["MAP@ALL random"] > 0


def test_fewer_variates_than_bits_are_filled_up(shapes_data):
    train = hashing_floors.read(hashing_floors.argparse.Namespace(
        data=str(shapes_data), train_split="train", eval_split="test", language="en", size=16, towers=""))[0]  # fmt: skip
    code = hashing_floors.cca_codes(train, 512, 0.3)
    assert code(train.text, "text").shape == (len(train.text), 512)
    assert (code(train.text, "text")[:, -1] == -1).all()


def test_the_labels_are_those_of_the_records(shapes_data):
    labels = hashing_floors.read_labels(str(shapes_data), "test")
    assert labels.any(1).all() and set(np.unique(labels)) == {0.0, 1.0}
