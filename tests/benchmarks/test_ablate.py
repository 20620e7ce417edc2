"""The fusion table: rows are valid configs, a run becomes a line, a second start skips it, and the table adds up."""

import copy
import dataclasses
import json
import pathlib
import sys
import types

import ablate
import fusion_rows
import fusion_table
import jax
import numpy as np
import pytest
import runs
from fusion_rows import ROWS, command
from runs import Row

from xmodal_jax.assemble import abstract_params, assemble_without_data
from xmodal_jax.config_file import freeze, load
from xmodal_jax.errors import UserError, run_script
from xmodal_jax.models.vit import ViTConfig
from xmodal_jax.training.optimizer import check_patterns

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Rows name configs/ as the command line does, from the top of the repository."""
    monkeypatch.chdir(BENCHMARKS.parent)


@pytest.mark.parametrize("name", fusion_rows.BUDGET)
def test_every_row_is_a_valid_config_of_one_budget(name):
    configs = {}
    for row in ROWS:
        spec, overrides = command(row, name, "data", 1)
        configs[row] = freeze(load(spec, overrides))
        if name == "emoji_views":
            check_patterns(configs[row].optimizer, abstract_params(assemble_without_data(configs[row])))
    assert len({(config.steps, config.batch_size) for config in configs.values()}) == 1
    assert {config.seed for config in configs.values()} == {1}
    assert len(
        {
            json.dumps(config.objectives, sort_keys=True)
            + repr((config.bridge, config.teacher, config.encoders, config.joint, config.eval))
            for config in configs.values()
        }
    ) == len(ROWS)
    assert len({(row.system, row.name) for row in ROWS}) == len(ROWS)


@pytest.fixture
def one_row(monkeypatch, tmp_path, shapes_data):
    """A table of one tiny row on the shapes, as (run it, its .jsonl, its .md)."""
    row = Row("MTGFE", "full: the three and ITC", "configs/mtgfe.py:tiny")
    budget = ("steps=2", "batch_size=8", "log_every=1", "encoders.image.size=16", "eval.rerank=(4,)")
    monkeypatch.setattr(ablate, "TABLE", dataclasses.replace(ablate.TABLE, rows=(row,)))
    monkeypatch.setattr(fusion_rows, "BUDGET", {"emoji_views": budget})
    monkeypatch.setattr(fusion_rows, "EVERY", 1)
    monkeypatch.setattr(fusion_table, "BUDGET", {"emoji_views": budget})
    monkeypatch.setattr(fusion_table, "UNSEEN", {})
    monkeypatch.setattr(runs, "use_compile_cache", lambda: None)  # the tests have a compilation cache of their own
    out = tmp_path / "table"

    def run(seeds):
        arguments = ["--data", f"emoji_views={shapes_data}", "--seeds", str(seeds), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["ablate.py", *arguments])
        ablate.main()

    return run, out.with_suffix(".jsonl"), out.with_suffix(".md")


@pytest.mark.slow
def test_a_second_start_goes_on_after_the_last_line(one_row, capsys):
    run, lines, table = one_row
    run(1)
    first = lines.read_text()
    assert len(first.splitlines()) == 1 and "[1/1] emoji_views | MTGFE" in capsys.readouterr().err
    line = json.loads(first)
    assert line["config"] == "configs/mtgfe.py:tiny" and line["seed"] == 0 and "seed=0" in line["overrides"]
    assert set(line["mean"]) == {"itc", "rerank"} and line["seconds"]["train"] > 0
    assert all(-1e-5 < line["drift"][side] < 0.1 for side in ("image", "text"))
    assert not any(str(lines.parent) in str(value) for value in line.values())
    table.write_text(table.read_text() + "What was learned.\n")
    spec, overrides = ablate.TABLE.command(ablate.TABLE.rows[0], "emoji_views", "", 1)
    other = {"seed": 1, "overrides": overrides[1:], "digest": runs.digest(runs.frozen(spec, overrides))}
    second = copy.deepcopy(line) | other  # a second seed, without the minute that it takes
    second["mean"]["itc"]["rSum"] += 1.0
    lines.write_text(first + json.dumps(second) + "\n")
    run(2)
    assert "[1/" not in capsys.readouterr().err and len(lines.read_text().splitlines()) == 2
    text = table.read_text()
    assert "| full: the three and ITC | 2 |" in text and text.endswith("What was learned.\n")
    found = [json.loads(line)["mean"]["itc"]["rSum"] for line in lines.read_text().splitlines()]
    assert f"{sum(found) / 2:.1f} ±" in text


def test_a_stopped_run_is_no_line(one_row, monkeypatch):
    run, lines, table = one_row
    monkeypatch.setattr(runs, "train", lambda config, folder, **_: types.SimpleNamespace(step=1))
    with pytest.raises(SystemExit, match="stopped at step 1 of 2"):
        run(1)  # what a signal after the first step leaves
    assert not lines.exists() and not table.exists()


def test_a_line_of_another_budget_is_measured_again(monkeypatch):
    row = ROWS[3]
    spec, overrides = command(row, "emoji_views", "elsewhere", 2)
    line = runs.label(("emoji_views", row, 2)) | {"config": spec, "overrides": overrides[1:]}
    line["digest"] = runs.digest(runs.frozen(spec, overrides))
    assert ablate.TABLE.is_current(line)  # wherever the data lies
    assert not ablate.TABLE.is_current(line | {"row": "no longer there"})
    assert not ablate.TABLE.is_current(line | {"overrides": [*overrides[1:], "optimizer.lr=1.0"]})
    assert not ablate.TABLE.is_current(line | {"digest": "0" * 16})  # a weight in the config file was another
    monkeypatch.setitem(fusion_rows.BUDGET, "emoji_views", ("steps=90", "batch_size=128"))
    assert not ablate.TABLE.is_current(line)


def test_a_digest_is_of_what_a_config_sets():
    def config(*overrides, weight=1.0):
        values = load("configs/quickstart.py:tiny", ["data.path=here", *overrides])
        values.objectives.itc.weight = weight
        return freeze(values)

    found = runs.digest(config())
    assert found == runs.digest(config("data.path=there")) and found != runs.digest(config(weight=0.9))
    assert found != runs.digest(config("optimizer.lr=0.5")) and len(found) == 16

    @dataclasses.dataclass(frozen=True)
    class Newer(ViTConfig):
        """A kind with a field that is new in the package."""

        new: int = 0

    def with_image(**fields):
        own = config()
        image = Newer(**own.encoders["image"].__dict__ | fields)
        return runs.digest(dataclasses.replace(own, encoders=own.encoders | {"image": image}))

    assert with_image() == found != with_image(new=1) and found != with_image(kind="resnet")
    assert runs.unlike({"a": 1, "b": {"c": 2, "d": 3}, "new": 0}, {"a": 1, "b": {"c": 2, "d": 4}, "new": 0}) == {
        "b": {"d": 3}
    }


@pytest.fixture
def shared(monkeypatch, tmp_path):
    """A table of one row whose runs are `do(job)` and take no time, as (run it with `do` and seeds, its .jsonl)."""
    row = Row("MTGFE", "full: the three and ITC", "configs/mtgfe.py:tiny")
    table = dataclasses.replace(ablate.TABLE, rows=(row,), write=lambda lines, path: None)

    def run(do, seeds):
        monkeypatch.setattr(runs, "one_run", lambda table, job, data, keep: do(job))
        runs.run_all(table, {"emoji_views": "data"}, seeds, "", tmp_path / "table")

    return run, tmp_path / "table.jsonl"


def line_of(job):
    """What identifies a job's line."""
    spec, overrides = command(job[1], job[0], "data", job[2])
    made_by = {"config": spec, "overrides": overrides[1:], "digest": runs.digest(runs.frozen(spec, overrides))}
    return runs.label(job) | made_by


def test_a_row_that_another_process_measured_meanwhile_is_not_measured_again(shared):
    run, lines = shared

    def slow(job):  # while seed 0 runs, the other process writes seed 1
        assert job[2] == 0
        lines.write_text(json.dumps(line_of((*job[:2], 1))) + "\n")
        return line_of(job)

    run(slow, 2)
    assert [json.loads(line)["seed"] for line in lines.read_text().splitlines()] == [1, 0]


def test_a_torn_last_line_is_measured_again(shared):
    run, lines = shared
    run(line_of, 1)
    first = lines.read_text()
    lines.write_text(first + first[:40])
    run(line_of, 2)
    assert lines.read_text().startswith(first)
    assert [json.loads(line)["seed"] for line in lines.read_text().splitlines()] == [0, 1]


def test_a_row_that_two_processes_measured_at_once_is_one_line(shared):
    run, lines = shared

    def slow(job):  # the other process began the same row and ends first
        lines.write_text(json.dumps(line_of(job) | {"by": "the other"}) + "\n")
        return line_of(job)

    run(slow, 1)
    assert [json.loads(line)["by"] for line in lines.read_text().splitlines()] == ["the other"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "Recap"], "--only 'Recap' is no row; write one of quickstart"),
        (["--seeds", "0"], "--seeds is 0; write 1 or more"),
        (["--data", "emoji_views=there"], "--data names emoji_views twice"),
        (["--out", "nowhere/table"], "there is no folder 'nowhere'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--data", "emoji_views=here", "--out", "table", *arguments])
    with pytest.raises(UserError, match=said):
        ablate.main()
    assert not list(tmp_path.iterdir())


def test_drift_is_of_the_weights_alone(opened_run):
    assembly, params = opened_run
    image = params["image"] | {"head": jax.tree.map(lambda x: -x, params["image"]["head"])}
    turned = params | {"image": image}
    found = [ablate.encoder_drift(assembly, params, student) for student in (params, turned)]
    np.testing.assert_allclose([found[0]["image"], found[0]["text"]], 0.0, atol=1e-5)
    np.testing.assert_allclose([found[1]["image"], found[1]["text"]], [2.0, 0.0], atol=1e-5)


def test_spread_is_the_sample_deviation():
    assert fusion_table.spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert fusion_table.spread([5.0]) == "5.0"


def test_differences_are_by_seed():
    def line(row, seed, itc, reranked):
        tables = {"itc": {"rSum": itc}} | ({"rerank": {"rSum": reranked}} if reranked else {})
        return {"system": "ReCap", "row": row, "seed": seed, "mean": tables}

    own = [line("full", 0, 10.0, 20.0), line("full", 1, 12.0, 21.0), line("full", 2, 99.0, 99.0)]
    text = "\n".join(fusion_table.differences([*own, line("without ITM", 0, 9.0, 0), line("without ITM", 1, 9.0, 0)]))
    assert "| ReCap: ITM | +2.0 ± 1.4 |  |" in text and text.count("\n| ") == 3  # the head, its line and one row
    text = "\n".join(fusion_table.differences([*own[:2], line("momentum 0", 1, 13.0, 21.5)]))
    assert "| ReCap: the momentum's ramp over 0 | -1.0 | -0.5 |" in text
    assert fusion_table.differences(own) == []


def test_what_is_compared_is_in_the_table():
    rows = {(row.system, row.name) for row in ROWS}
    assert all({one, other} <= rows and one != other for _, one, other in fusion_table.COMPARED)
    assert len({said for said, _, _ in fusion_table.COMPARED}) == len(fusion_table.COMPARED)


def test_rows_are_compared_at_the_list_that_all_have():
    rows = [freeze(load(command(row, "emoji_views", "data", 0)[0])).eval.rerank for row in ROWS]
    shortest = {min(ks) for ks, row in zip(rows, ROWS, strict=True) if row.system != "quickstart"}
    assert shortest == {16} and len(set(rows)) > 1  # one config scores a longer list too
    found = ablate.summary({"itc": {}, "rerank": {16: {"R": 1}, 32: {"R": 2}}})
    assert found["rerank"] == {"R": 1}


@pytest.mark.parametrize("given", ["flickr", "emoji_views", "emoji_views="])
def test_an_unknown_set_is_one_sentence(given, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runs, "use_compile_cache", lambda: None)
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--data", given, "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stopped:
        run_script(ablate.main)
    assert stopped.value.code == 2 and f"--data is '{given}'; write SET=FOLDER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_with_fine_tuned_towers_run_once():
    jobs = list(ablate.TABLE.jobs(["flickr8k"], 3, "fine-tuned towers"))
    assert [(row.name.split(",")[0], seed) for _, row, seed in jobs] == [
        ("quickstart", 0),
        ("ReCap", 0),
        ("MTGFE", 0),
        ("Adequate Alignment", 0),
    ]
    assert len(list(ablate.TABLE.jobs(["flickr8k"], 3, "ReCap"))) == 3 * len(
        list(ablate.TABLE.jobs(["flickr8k"], 1, "ReCap"))
    )
