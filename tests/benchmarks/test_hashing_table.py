"""The hashing table: its rows are valid configs, runs become lines, tables and a plot, and the cells are the lines'."""

import dataclasses
import json
import pathlib
import sys

import hashing
import hashing_rows
import hashing_table
import numpy as np
import pytest
import report
import runs
from hashing_rows import ROWS, command
from runs import Row

from xmodal_jax.config_file import freeze, load
from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError
from xmodal_jax.eval.retrieval import TIE_RULE
from xmodal_jax.objectives import build_objectives
from xmodal_jax.workdir import open_run

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Rows name configs/ as the command line does, from the top of the repository."""
    monkeypatch.chdir(BENCHMARKS.parent)


@pytest.mark.parametrize("name", hashing_rows.BUDGET)
def test_every_row_is_a_valid_config_of_one_budget(name):
    rows = [row for row in ROWS if name in row.sets]
    configs = [freeze(load(*command(row, name, "data", 2))) for row in rows]
    named = list(zip(rows, configs, strict=True))
    assert len({(own.steps, own.batch_size) for row, own in named if "1,500 steps" not in row.name}) == 1
    other = ("from scratch", "two input sizes")  # what reads other features says so
    assert len({own.data.features for row, own in named if not any(words in row.name for words in other)}) == 1
    assert all(config.seed == 2 and build_objectives(config.objectives, config.batch_size) for config in configs)
    assert len(set(configs)) == len(rows) == len({(row.system, row.name) for row in rows})
    assert {config.joint.bits for config in configs} == set(
        hashing_rows.BITS if name == "flickr8k" else hashing_rows.LABEL_BITS
    )


TINY = "configs/vit2cmh.py:tiny"
FEW = (
    Row("ViT2CMH", "nested: one model for all lengths", TINY, ("joint.bits=32", "joint.nested=(8,)"), ("flickr8k",)),
    Row("ViT2CMH", "8 bits alone", TINY, ("joint.bits=8",), ("flickr8k",), seeds=1),
    Row("CMHR-DRN", "8 bits", TINY, ("joint.bits=8",), ("emoji_views",)),
)


@pytest.fixture(scope="module")
def few(shapes_data, tmp_path_factory):
    """A table of three tiny rows on the shapes in two roles, run once and kept: the path of its lines."""
    budget, out = ("steps=2", "batch_size=8", "log_every=1", "encoders.image.size=16"), tmp_path_factory.mktemp("few")
    data = [word for name in ("flickr8k", "emoji_views") for word in ("--data", f"{name}={shapes_data}")]
    (out / "hashing_floors-emoji_views.json").write_text(json.dumps(linear_floors(shapes_data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(BENCHMARKS.parent)
        patch.setattr(hashing_rows, "BUDGET", dict.fromkeys(("flickr8k", "emoji_views"), budget))
        patch.setattr(hashing_table, "BUDGET", hashing_rows.BUDGET)
        patch.setattr(hashing_table, "ROWS", FEW)
        patch.setattr(hashing, "TABLE", dataclasses.replace(hashing.TABLE, rows=FEW))
        patch.setattr(runs, "use_compile_cache", lambda: None)  # the tests have a compilation cache of their own
        patch.setattr(sys, "argv", ["hashing.py", *data, "--out", str(out / "table"), "--keep", str(out / "kept")])
        hashing.main()
        yield out / "table.jsonl"


def linear_floors(folder):
    """What hashing_floors.py writes of the shapes, with values made up."""
    floor = {side: {"MAP@ALL": 0.1, "MAP@ALL random": 0.05} for side in ("i2t", "t2i")}
    made = {"language": "en", "views": [], "train_views": [], "flip": True}
    return made | {
        "rows": [{"method": "CCA signs", "bits": 8, "labels": floor}],
        "of": report.data_facts(Card.load(folder)),
    }


def lines_of(path):
    """The lines of a table."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_runs_become_tables_and_a_plot(few):
    lines = lines_of(few)
    assert [(line["set"], line["row"], sorted(line["codes"])) for line in lines] == [
        ("flickr8k", "nested: one model for all lengths", ["32", "8"]),
        ("flickr8k", "8 bits alone", ["8"]),
        ("emoji_views", "8 bits", ["8"]),
    ]
    assert not any("curves" in own for line in lines for own in line["codes"].values())
    text = few.with_suffix(".md").read_text()
    nested, alone = lines[0]["codes"]["8"], lines[1]["codes"]["8"]
    row = next(line for line in text.splitlines() if line.startswith("| 8 bits | 1 |"))
    bounds = f"{lines[0]['relaxed']['8']['mR']:.1f} | {lines[0]['itc']['mR']:.1f} |"
    assert row.split("|")[3].strip() == f"{nested['i2t']['R@1']:.1f}"
    assert row.endswith(f"| {nested['mR']:.1f} | {bounds}")
    behind = text.split("**ViT2CMH**, a model for each length")[1]
    assert f"| {alone['t2i']['R@10']:.1f} | {alone['mR']:.1f} |" in behind.splitlines()[4]
    assert behind.splitlines()[5].startswith("| chance | 0 |")
    assert "| float32 | 64 |" in text and "| int8 | 16 |" in text and "| chance | 0 |" in text
    found = lines[2]["labels"]["8"]
    assert "| CCA signs | 8 |  | 0.100 | 0.100 | 0.050 | 0.050 |  |" in text
    assert f"| {found['i2t']['MAP@ALL'] / 0.1:.2f} / {found['t2i']['MAP@ALL'] / 0.1:.2f} |" in text
    assert few.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"views": ["noto"]}, r"has \['noto'\] as views, the runs have \[\]; make it again"),
        ({"flip": False}, "has False as flip, the runs have True"),  # without the mirrored copies that are trained on
        ({"of": {"labels": 99}}, "'labels': 99.* as of, the runs have"),  # prepared with other labels
    ],
)
def test_floors_of_other_data_are_refused(few, shapes_data, tmp_path, changed, words):
    (tmp_path / "hashing_floors-emoji_views.json").write_text(json.dumps(linear_floors(shapes_data) | changed))
    with pytest.raises(UserError, match=words):
        hashing_table.floors(tmp_path, "emoji_views", lines_of(few)[2])


@pytest.mark.slow
def test_linear_floors_stand_below_the_recall_of_pairs(few, shapes_data, tmp_path):
    recall = {side: dict.fromkeys(("R@1", "R@5", "R@10"), value) for side, value in (("i2t", 12.5), ("t2i", 25.0))}
    row = {"method": "CCA signs", "bits": 8, "mR": 18.75, "ties": TIE_RULE} | recall
    pairs = linear_floors(shapes_data) | {"rows": [row]}
    (tmp_path / "hashing_floors-flickr8k.json").write_text(json.dumps(pairs))
    text = "\n".join(hashing_table.pair_section("flickr8k", lines_of(few)[:1], tmp_path))
    assert "| 8 bits | 1 | 12.5 | 12.5 | 12.5 | 25.0 | 25.0 | 25.0 | 18.8 |" in text.split("**CCA signs**, linear")[1]
    hashing_table.storage_plot(lines_of(few)[:2], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() != few.with_suffix(".png").read_bytes()
    (tmp_path / "hashing_floors-flickr8k.json").write_text(
        json.dumps(pairs | {"rows": [row | {"ties": "expected rank over ties"}]})
    )
    with pytest.raises(UserError, match=r"counts ties by another rule \(expected rank over ties\); make it again"):
        hashing_table.floors(tmp_path, "flickr8k", lines_of(few)[0])


@pytest.mark.slow
def test_a_run_measured_by_another_rule_for_ties_is_measured_again(few):
    """Of codes that find the very pair; the MAP of codes of labels never was."""
    pairs, _, labels = lines_of(few)
    for line in (pairs, labels):
        assert hashing.TABLE.is_current(line)
        for own in line["codes"].values():
            own["ties"] = "expected rank over ties"
    assert not hashing.of_this_tie_rule(pairs) and not hashing.TABLE.is_current(pairs)
    assert hashing.TABLE.is_current(labels)


@pytest.mark.slow
def test_two_systems_with_a_model_for_each_length(few, tmp_path):
    both = hashing_table.pair_section("flickr8k", lines_of(few), tmp_path)
    assert [line for line in both if "a model for each length" in line] == [
        f"\n**{system}**, a model for each length; seeds: 1" for system in ("ViT2CMH", "CMHR-DRN")
    ]
    first = lines_of(few)[0]
    twice = "\n".join(hashing_table.pair_section("flickr8k", [first, first | {"seed": 1}], tmp_path))
    assert "seeds: 2" in twice and f"{first['codes']['8']['i2t']['R@1']:.1f} ± 0.0" in twice


@pytest.mark.slow
def test_a_row_alone_is_run_once(few):
    todo = runs.missing(hashing.TABLE, hashing.TABLE.jobs(["flickr8k"], 2, "ViT2CMH"), few)
    assert [(job[1].name, job[2]) for job in todo] == [(FEW[0].name, 1)]


@pytest.mark.slow
def test_kept_runs_are_those_of_their_rows(few, shapes_data):
    """A row that sets something else is trained anew, not taken from the folder of what it was."""
    kept = few.parent / "kept"
    folders = sorted(kept.iterdir())
    assert [folder.name.rsplit("-", 1)[0] for folder in folders] == [
        "emoji-views-cmhr-drn-8-bits-0",
        "flickr8k-vit2cmh-8-bits-alone-0",
        "flickr8k-vit2cmh-nested-one-model-for-all-lengths-0",
    ]
    assert open_run(folders[0])[0].config.joint.bits == 8
    changed = dataclasses.replace(FEW[2], overrides=("joint.bits=8", "optimizer.lr=0.5"))
    runs.one_run(hashing.TABLE, ("emoji_views", changed, 0), str(shapes_data), kept)
    (added,) = set(kept.iterdir()) - set(folders)
    assert open_run(added)[0].config.optimizer.lr == 0.5


def test_the_curve_is_bytes_against_the_mean_of_both_directions():
    def side(value):
        return {"i2t": {"R@10": value}, "t2i": {"R@10": value + 2}}

    line = {"itc": side(50), "int8": side(48), "codes": {"8": side(10), "16": side(20) | {"float_bytes": 64}}}
    assert hashing_table.curve([line], lambda words: "bits" in words) == [(1, 11.0), (2, 21.0)]
    assert hashing_table.curve([line], lambda words: words == "int8") == [(16, 49.0)]
    np.testing.assert_allclose(hashing_table.curve([line, line], lambda words: words == "float32"), [(64, 51.0)])
