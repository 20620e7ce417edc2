import json
import pathlib
import shutil

import numpy as np
import pytest
from tiny import changed

from xmodal_jax.data.card import Card
from xmodal_jax.data.fingerprint import fingerprint as fingerprint_of
from xmodal_jax.errors import UserError
from xmodal_jax.retrieve import origin
from xmodal_jax.search import writer
from xmodal_jax.search.index import Index


def copied(run: pathlib.Path, path: pathlib.Path, other: bool = False) -> pathlib.Path:
    """A copy of a run; `other` weights of the same checkpoint make it another one."""
    shutil.copytree(run, path)
    if other:
        told = json.loads((path / "run.json").read_text())
        told["config"]["eval"]["params"] = {"teacher": "student", "student": "teacher"}[
            told["config"]["eval"]["params"]
        ]
        (path / "run.json").write_text(json.dumps(told))
    return path


def index_of(run: pathlib.Path | str, path: pathlib.Path, model: str) -> None:
    writer.write(path, np.eye(4), [{}] * 4, model=model, extra=origin.remembered_run(run, path))


def test_a_run_is_found_from_its_index_before_another_one_where_it_was(tiny_run, opened_run, tmp_path, monkeypatch):
    run, model = tiny_run[0], origin.model_of(*opened_run)
    here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.chdir(copied(run, here / "run"))
    index_of(".", pathlib.Path("../index"), model)
    monkeypatch.chdir(tmp_path)
    here.rename(there)
    copied(run, here / "run", other=True)
    assert origin.model_of(*origin.open_origin(Index.open(there / "index"))) == model
    # the other way round: what lies beside the index is another run, and the old place has the right one
    shutil.rmtree(there / "run")
    (here / "run").rename(there / "run")
    copied(run, here / "run")
    opened = Index.open("there/index")
    assert origin.model_of(*origin.open_origin(opened)) == model
    shutil.rmtree(here)
    told = rf"'{there / 'run'}' is another run.*; '{here / 'run'}' is gone: name the run that made it .option 'workdir'"
    with pytest.raises(UserError, match=told):
        origin.open_origin(opened)
    with pytest.raises(UserError, match="'there' holds no run"):
        origin.open_origin(opened, "there")
    assert origin.model_of(*origin.open_origin(opened, run)) == model


def test_an_index_is_not_of_weights_that_read_otherwise(opened_run):
    assembly, params = opened_run
    longer = changed(assembly, text={"length": 10})
    assert origin.model_of(assembly, params) == origin.model_of(assembly, dict(params))
    assert origin.model_of(longer, params) != origin.model_of(assembly, params)


def test_links_to_an_index_and_its_run_are_followed(tmp_path):
    """From the folder of the links the run does not lie as it does from the index itself."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    index_of(tmp_path / "run", tmp_path / "deep" / "er" / "index", "0123")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er" / "index")
    opened = Index.open(tmp_path / "link")
    found = origin._places(opened, opened.extra["workdir_from_index"], "gone")
    assert [pathlib.Path(place).resolve() for place in found][0] == (tmp_path / "run").resolve()


def test_an_index_without_a_run_asks_for_one(tmp_path):
    opened = Index.open(writer.write(tmp_path / "index", np.eye(4), None))
    with pytest.raises(UserError, match="names no work directory; name its run .option 'workdir'"):
        origin.open_origin(opened)


@pytest.fixture
def sets(shapes_data, tmp_path):
    """(own, other): the card of a data set, and that of another one."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        told = json.loads((shapes_data / "card.json").read_text())
        if name == "other":
            told["splits"]["test"]["digest"] = "0" * 32
        told["fingerprint"] = fingerprint_of(told["splits"])
        (tmp_path / name / "card.json").write_text(json.dumps(told))
    assert Card.load(tmp_path / "own").fingerprint != Card.load(tmp_path / "other").fingerprint
    return tmp_path / "own", tmp_path / "other"


def test_a_data_set_is_the_one_with_its_fingerprint(sets, tmp_path, monkeypatch):
    own, other = sets
    told = origin.remembered_set(own, tmp_path / "index")
    opened = Index.open(writer.write(tmp_path / "index", np.eye(4), None, extra={"sets": told}))
    assert list(told) == [str(own)]
    assert origin.open_set(opened, str(own)) == str(own)
    assert origin.open_set(opened, str(own), other) == str(own)  # what is given is not it
    own.rename(tmp_path / "moved")
    other.rename(own)
    with pytest.raises(UserError, match=f"'{own}' is another data set.*: write the folder where the data set"):
        origin.open_set(opened, str(own))
    assert origin.open_set(opened, str(own), tmp_path / "moved") == str(tmp_path / "moved")
