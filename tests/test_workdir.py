"""Opening a run: the weights that evaluation uses, on all devices, and nothing else of the checkpoint."""

import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from xmodal_jax.cli import main
from xmodal_jax.config_file import freeze, load
from xmodal_jax.eval.evaluate import evaluate
from xmodal_jax.parallel.mesh import mesh_of
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.training.checkpoint import Checkpoints, named_shapes
from xmodal_jax.workdir import open_run, open_start

EXCLUDED = "^match|/hash/"
PARTS = "objectives={'itc': {'queue': 16}, 'itm': {}, 'hash': {}}"


def newest(workdir: pathlib.Path) -> pathlib.Path:
    """The folder of the newest checkpoint of a run."""
    return max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A copy of the tiny run to damage."""
    return shutil.copytree(tiny_run[0], tmp_path / "run")


@pytest.fixture(scope="module")
def part_run(train_tiny, tmp_path_factory):
    """A run whose teacher leaves parts out."""
    workdir = tmp_path_factory.mktemp("runs") / "part"
    assert main(train_tiny(workdir, PARTS, f"teacher.exclude={EXCLUDED}", "teacher.momentum=0.5")) == 0
    return workdir


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_evaluation_reads_nothing_of_the_optimizer(copied, which):
    """Most of the checkpoint's bytes are gone, and every number is the same."""
    asked = {"eval": {"params": which}}
    tables = [evaluate(*open_run(copied, asked)[:2])]
    folder = newest(copied)
    shutil.rmtree(folder / "rest")
    if which == "student":
        shutil.rmtree(folder / "teacher")
    assert json.loads((folder / "checksums.json").read_text())["files"].keys() > {"rest/_METADATA"}
    tables.append(evaluate(*open_run(copied, asked)[:2]))
    for table in tables:
        table.pop("views")  # they have the seconds that re-ranking took
        for row in table["mean"]["rerank"].values():
            row.pop("seconds")
    assert tables[0] == tables[1]


def test_the_optimizer_is_most_of_a_checkpoint(tiny_run):
    folder = newest(tiny_run[0])
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["params", "rest", "teacher"]
    with Checkpoints(tiny_run[0], read_only=True) as checkpoints:
        _, found = checkpoints.shapes(("params", "rest"))
    numbers = {item: sum(math.prod(shape) for shape in named_shapes(tree).values()) for item, tree in found.items()}
    assert numbers["rest"] > 1.5 * numbers["params"]  # of arrays: files of so few have more overhead than contents


def test_a_teacher_is_its_own_leaves_and_the_students_where_it_has_none(part_run):
    opened = [open_run(part_run, {"eval": {"params": own}}) for own in ("teacher", "student")]
    (_, teacher, step), (_, student, _) = opened
    teacher, student = (flatten_dict(tree, sep="/") for tree in (teacher, student))
    assert step == 4 and teacher.keys() == student.keys()
    shared = {path for path in teacher if re.search(EXCLUDED, path)}
    assert shared and len(shared) < len(teacher)
    for path in shared:
        np.testing.assert_array_equal(teacher[path], student[path], err_msg=path)
    kernels = {path for path in teacher if path.endswith("tower/patch/kernel") or path.endswith("embed/word")} - shared
    assert kernels and all((np.asarray(teacher[path]) != np.asarray(student[path])).any() for path in kernels)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 4}])
def test_weights_lie_on_all_devices_by_the_rules_of_training(tiny_run, mesh):
    assembly, params, _ = open_run(tiny_run[0], {"mesh": mesh})
    own = mesh_of(params)
    assert dict(own.shape) == {"data": 8, "fsdp": 1, "tensor": 1} | mesh and own.size == len(jax.local_devices())
    assert jax.tree.all(jax.tree.map(lambda leaf, place: leaf.sharding == place, params, shardings(params, own)))
    word = params["text"]["tower"]["embed"]["word"]
    assert word.addressable_shards[0].data.shape[1] * own.shape["fsdp"] == word.shape[1]


def test_the_start_of_a_config_lies_on_all_devices(train_tiny, tmp_path):
    arguments = train_tiny(tmp_path)
    overrides = [item.removeprefix("--config.") for item in arguments if item.startswith("--config.")]
    _, params = open_start(freeze(load(arguments[2], overrides)))
    assert mesh_of(params).size == 8


def test_the_mesh_of_an_evaluation_is_an_option(copied, capsys):
    def tables(*overrides: str) -> dict:
        assert main(["eval", "--workdir", str(copied), "--config.eval.rerank=(4,)", *overrides]) == 0
        return json.loads((copied / "eval-test.json").read_text("utf-8"))["mean"]["itc"]

    assert tables("--config.mesh.data=2", "--config.mesh.fsdp=4") == tables()
    assert main(["eval", "--workdir", str(copied), "--config.mesh.data=3"]) == 2
    assert "config.mesh asks for data=3" in capsys.readouterr().err


def test_a_run_of_another_format_is_refused_everywhere(copied, train_tiny, capsys):
    told = json.loads((copied / "run.json").read_text("utf-8"))
    (copied / "run.json").write_text(json.dumps({name: told[name] for name in told if name != "format"}), "utf-8")
    for command in (["eval", "--workdir", str(copied)], train_tiny(copied, "steps=6")):
        assert main(command) == 2
        assert (
            "run.json' is not of the format that this version of the program reads (1); train"
            in capsys.readouterr().err
        )
    assert len(list((copied / "checkpoints").iterdir())) >= 1 and not list(copied.glob("checkpoints/damaged-*"))
