"""A run knows its data set: it finds it again, refuses another, and says what of a split it was trained on."""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.fingerprint import load_digests
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import evaluate
from xmodal_jax.eval.tables import as_text
from xmodal_jax.origin import (
    TRAINED_FILE,
    Origin,
    changes,
    describe,
    keep_trained,
    notes,
    refuse_other_data,
    refuse_trained,
    result_file,
)
from xmodal_jax.workdir import open_run


@pytest.fixture(scope="module")
def other_data(shapes_files, tmp_path_factory):
    """The same records prepared with other ones held out: of the 12 test records some were trained on."""
    rows = [json.loads(line) for line in shapes_files.read_text("utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["split"] = "test" if number % 2 else "train"
    path = shapes_files.with_name("other.jsonl")
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    folder = tmp_path_factory.mktemp("other") / "shapes"
    assert main(["data", "prepare", "jsonl", "--path", str(path), "--out", str(folder)]) == 0
    return folder


def keys_of(folder, split):
    from xmodal_jax.data.records import open_records

    with open_records(folder, split) as rows:
        return {row["key"] for row in rows}


def test_run_json_has_the_data_set_and_trained_npy_its_records(tiny_run):
    workdir, data = tiny_run
    card, kept = Card.load(data), json.loads((workdir / "run.json").read_text("utf-8"))["data"]
    assert kept["fingerprint"] == card.fingerprint and kept["path"] == str(data) == kept["absolute"]
    assert os.path.samefile(workdir / kept["from_workdir"], data)
    assert kept["splits"]["test"] == {"records": 12, "digest": card.splits["test"]["digest"]}
    np.testing.assert_array_equal(np.load(workdir / TRAINED_FILE), load_digests(data, "train", 12))


def test_trained_records_are_counted_in_any_data_set(tiny_run, opened_run, other_data):
    origin, data = opened_run[0].origin, tiny_run[1]
    assert (origin.trained(data, "test"), origin.trained(data, "train")) == (0, 12)
    both = len(keys_of(data, "train") & keys_of(other_data, "test"))
    assert 0 < both < 12 and origin.trained(other_data, "test") == both
    (origin.workdir / TRAINED_FILE).rename(origin.workdir / "away")
    try:
        with pytest.raises(UserError, match="trained.npy' cannot be read .* copy it from where the run was trained"):
            origin.trained(data, "test")
    finally:
        (origin.workdir / "away").rename(origin.workdir / TRAINED_FILE)


def test_a_run_that_goes_on_with_another_split_keeps_what_it_had(opened_run, tmp_path):
    config = opened_run[0].config
    keep_trained(config, tmp_path, True)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, split="test"))
    keep_trained(other, tmp_path, False)
    both = [load_digests(config.data.path, split, 12) for split in ("train", "test")]
    assert np.load(tmp_path / TRAINED_FILE).tolist() == sorted(np.concatenate(both).tolist())
    keep_trained(other, tmp_path, True)
    assert np.load(tmp_path / TRAINED_FILE).tolist() == both[1].tolist()
    (tmp_path / TRAINED_FILE).write_bytes(b"")  # what a power loss leaves
    with pytest.raises(UserError, match=f"{TRAINED_FILE}' cannot be read"):
        keep_trained(other, tmp_path, False)


def test_evaluating_what_was_trained_on_is_refused_unless_asked_for(opened_run, other_data):
    assembly, params = opened_run
    with pytest.raises(
        UserError, match="trained on 12 of the 12 records of split 'train' .* or allow it .option 'allow_trained'"
    ):
        evaluate(assembly, params, "train", quick=True)
    found = evaluate(assembly, params, "train", quick=True, allow_trained=True)
    assert (found["trained"], found["own_data"]) == (12, True)
    assert "The run was trained on 12 of these records." in as_text(found)
    moved = dataclasses.replace(
        assembly,
        config=dataclasses.replace(
            assembly.config, data=dataclasses.replace(assembly.config.data, path=str(other_data))
        ),
    )
    with pytest.raises(UserError, match="of the 12 records of split 'test'"):
        evaluate(moved, params, quick=True)
    found = evaluate(moved, params, quick=True, allow_trained=True)
    assert found["fingerprint"] == Card.load(other_data).fingerprint
    assert as_text(found).splitlines()[-1] == "This is not the data set that the run was trained on."
    assert notes(evaluate(assembly, params, quick=True)) == []


def test_other_records_are_not_gone_on_with(opened_run, other_data):
    config = opened_run[0].config
    before = {"data": describe(config, opened_run[0].origin.workdir)}
    refuse_other_data(config, pathlib.Path("runs/mine"), before)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(other_data)))
    with pytest.raises(
        UserError,
        match=r"is not the one that 'runs/mine' was trained on "
        r"\(split 'test' has other keys, captions or views, split 't",
    ):
        refuse_other_data(other, pathlib.Path("runs/mine"), before)
    one = {"records": 2, "digest": "a"}
    assert changes({"train": one, "val": one}, {"train": one | {"records": 3}, "test": one}) == (
        " (split 'test' is new, split 'train' has 3 records and had 2, split 'val' is gone)"
    )


def test_a_resumed_run_refuses_another_hold_out(tiny_run, train_tiny, other_data, capsys):
    workdir = tiny_run[0]
    before = (workdir / "run.json").read_bytes()
    assert main(train_tiny(workdir, f"data.path={other_data}", "steps=6")) == 2
    assert "is not the one that" in capsys.readouterr().err
    assert (workdir / "run.json").read_bytes() == before


def test_the_data_set_is_found_from_anywhere(tiny_run, other_data, tmp_path, monkeypatch):
    project = tmp_path / "project"
    shutil.copytree(tiny_run[1], project / "data" / "mine")
    (project / "runs" / "one").mkdir(parents=True)
    kept = json.loads((tiny_run[0] / "run.json").read_text("utf-8"))["data"]
    kept |= {"path": "data/mine", "from_workdir": "../../data/mine", "absolute": str(project / "data" / "mine")}
    origin = Origin(project / "runs" / "one", kept)
    monkeypatch.chdir(project)
    assert origin.locate() == pathlib.Path("data/mine")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(other_data, elsewhere / "data" / "mine")  # another project, another data set at the same path
    monkeypatch.chdir(elsewhere)
    assert origin.locate().samefile(project / "data" / "mine")
    project.rename(tmp_path / "moved")  # the run and its data together
    origin = dataclasses.replace(origin, workdir=tmp_path / "moved" / "runs" / "one")
    assert origin.locate().samefile(tmp_path / "moved" / "data" / "mine")
    shutil.rmtree(tmp_path / "moved" / "data")
    assert origin.locate() == pathlib.Path("data/mine"), "the only one there is; it is called another in every table"
    shutil.rmtree(elsewhere / "data")
    assert origin.locate() is None
    with pytest.raises(
        UserError, match="looked for 'data/mine', '.*moved.* write the folder where it is now .option 'data'"
    ):
        origin.refuse_missing("data/mine")


def test_tables_of_other_data_or_languages_have_files_of_their_own(opened_run):
    origin = opened_run[0].origin
    own = origin.data["fingerprint"]

    def name(*arguments):
        return result_file(origin, *arguments).name

    assert name("eval", "test", own) == name("eval", "test", own, ["en"]) == "eval-test.json"
    assert name("eval", "train", own, ["en"]) == "eval-train.json"
    assert name("eval", "test", own, ["en", "de"]) == "eval-test-en+de.json"
    assert name("classify", "test", "0123456789abcdef", ["a/b"]) == "classify-test-a_b-01234567.json"
    many = [f"l{number:02d}" for number in range(78)]  # joined, they are longer than a file's name may be
    long, other = name("eval", "test", own, many), name("eval", "test", own, many[::-1])
    assert long.startswith("eval-test-78-languages-") and len(long) < 50 and other != long


def test_eval_of_other_data_leaves_the_runs_own_table(tiny_run, other_data, capsys):
    workdir, _ = tiny_run
    before = (workdir / "eval-test.json").read_bytes()
    command = ["eval", "--workdir", str(workdir), "--data", str(other_data), "--config.eval.rerank=()"]
    assert main(command) == 2
    assert "option 'allow_trained'" in capsys.readouterr().err
    assert main([*command, "--allow-trained"]) == 0
    said = capsys.readouterr().out
    assert "This is not the data set that the run was trained on." in said
    written = workdir / f"eval-test-{Card.load(other_data).fingerprint[:8]}.json"
    assert said.splitlines()[-1] == f"wrote {written}" and json.loads(written.read_text("utf-8"))["trained"] > 0
    assert (workdir / "eval-test.json").read_bytes() == before
    written.unlink()


def test_what_needs_no_data_works_when_it_is_gone(tiny_run, shapes_files, tmp_path, capsys, monkeypatch):
    workdir = shutil.copytree(tiny_run[0], tmp_path / "run")
    description = json.loads((workdir / "run.json").read_text("utf-8"))
    description["data"] |= {"path": "gone", "absolute": "/gone/for/good", "from_workdir": "gone"}
    description["config"]["data"]["path"] = "gone"
    (workdir / "run.json").write_text(json.dumps(description), "utf-8")
    picture = str(next(shapes_files.parent.glob("red-*.png")))
    assert main(["caption", picture, "--workdir", str(workdir), "--beam", "1"]) == 0
    for command in (["eval"], ["caption"], ["index", "--out", str(tmp_path / "index")]):
        assert main([*command, "--workdir", str(workdir)]) == 2
        said = capsys.readouterr().err
        assert (
            "the data set of the run" in said
            and "'/gone/for/good'); write the folder where it is now (option 'data', or config.data.path)" in said
        )
    assert main(["report", "--workdir", str(workdir)]) == 0
    page = (workdir / "report.html").read_text("utf-8")
    assert "the data set is not at &#x27;gone&#x27; now" in page and "Words to pictures" not in page
    index = ["index", "--workdir", str(workdir), "--out", str(tmp_path / "index"), "--data", str(tiny_run[1])]
    assert main(index) == 0
    assert "indexed 24 pictures" in capsys.readouterr().out
    assert open_run(workdir)[0].origin.locate() is None


def test_a_run_of_a_users_own_objective_is_used_without_it(tiny_run, tmp_path):
    workdir = shutil.copytree(tiny_run[0], tmp_path / "run")
    description = json.loads((workdir / "run.json").read_text("utf-8"))
    for fields in description["config"]["objectives"].values():
        fields["kind"] = "registered_in_a_config_file"
    (workdir / "run.json").write_text(json.dumps(description), "utf-8")
    (assembly, params, step), known = open_run(workdir), open_run(tiny_run[0])
    assert step == 4 and assembly.objectives == {} and assembly.parts == known[0].parts
    assert assembly.hardness == known[0].hardness > 0
    found = [evaluate(*run, quick=True)["mean"]["itc"] for run in ((assembly, params), known[:2])]
    assert found[0] == found[1]


def test_records_of_a_run_in_training_are_not_asked_after():
    assert refuse_trained(None, "nowhere", "train", False) == {}
