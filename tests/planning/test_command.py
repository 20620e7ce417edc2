"""`xmodal plan` as a user meets it: the plan of the local devices, the rules, bad input, and a TPU where libtpu is."""

import importlib.util

import pytest

from xmodal_jax.cli import main, parser
from xmodal_jax.parallel.chips import parse_topology
from xmodal_jax.planning.command import ask_child, child_command, child_environment

QUICK = (
    "--config.objectives={'itc': {'queue': 64}}",
    "--config.encoders.text.vocab_size=64",
    "--config.encoders.image.layers=1",
    "--config.encoders.text.layers=1",
    "--config.encoders.image.size=16",
    "--config.mesh.fsdp=4",
    "--config.mesh.data=2",
)
CONFIG = ["plan", "--config", "configs/quickstart.py:tiny"]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """(the plan's lines, the progress, the HLO) of a step of ITC on the 8 devices, judged as v5e."""
    import contextlib
    import io

    folder, out, err = tmp_path_factory.mktemp("plan"), io.StringIO(), io.StringIO()
    files = [f"--out={folder / 'plan.txt'}", f"--hlo={folder / 'step.hlo'}"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main([*CONFIG, "--topology", "local", "--chip", "v5e", *files, *QUICK]) == 0
    kept = (folder / "plan.txt").read_text()
    assert out.getvalue() == kept + f"wrote {folder / 'plan.txt'}\n"
    return kept.splitlines(), err.getvalue().splitlines(), (folder / "step.hlo").read_text()


def line(lines, start):
    """The first line that starts so."""
    return next(text for text in lines if text.strip().startswith(start))


def test_the_plan_names_devices_batch_and_model(printed):
    lines = printed[0]
    assert lines[0] == "plan of quickstart-tiny on local, judged as v5e"
    assert "data 2 x fsdp 4 x tensor 1 = 8 devices" in line(lines, "mesh")
    assert "16 pairs, 2 on each of 8 devices" in line(lines, "batch") and "itc" in line(lines, "objectives")


def test_memory_adds_up_and_fits(printed):
    lines = printed[0]
    parameters, teacher, optimizer = (
        float(line(lines, name).split()[1]) for name in ("student", "teacher", "optimizer")
    )
    assert parameters == teacher > 0 and abs(optimizer / teacher - 2) < 0.05  # Adam's two slots
    assert "of 15.75 GiB usable" in line(lines, "total") and line(lines, "verdict").startswith("verdict     fits")


def test_work_collectives_and_roofline_are_told(printed):
    lines = printed[0]
    assert "GFLOP per pair useful" in line(lines, "work") and "XLA counts" in line(lines, "XLA")
    count, size, unit = line(lines, "all-gather").split()[1:]
    assert int(count) > 0 and float(size) > 0 and unit == "GB"
    assert "bound by" in line(lines, "at least") and "arithmetic" in line(lines, "roofline")


def test_progress_is_a_line_per_phase_apart_from_the_plan(printed):
    told = [text for text in printed[1] if ":" in text]
    assert [text.split(":")[0] for text in told[-4:]] == ["tracing", "lowering", "compiling", "reading the program"]
    assert "compiling" in line(printed[0], "time") and printed[2].startswith("HloModule")


def test_explain_compiles_nothing(capsys):
    assert main([*CONFIG, "--explain", *QUICK]) == 0
    said = capsys.readouterr()
    assert "embed/word$  (tensor, fsdp)" in said.out and "replicated:" in said.out and "compiling" not in said.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--topology", "v9x:4x4"], "'v9x' is not a chip to plan for"),
        (["--topology", "v5e:16"], "torus of 2 axes"),
        (["--topology", "local", "--chip", "v9"], "there is no chip 'v9'"),
        (["--topology", "local", "--config.batch_size=3"], "config.batch_size is 3"),
        (["--topology", "local", "--out", "nowhere/plan.txt"], "there is no folder 'nowhere'"),
        (["--topology", "v5e:4x4", "--hlo", "nowhere/step.hlo"], "--hlo 'nowhere/step.hlo'"),
        (["--topology", "local", "--out", "tests"], "is a folder; write a file in it"),
        (["--topology", "local", "--config.encoders.text.vocab=3"], "'vocab' is not a field of config.encoders.text"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(given, words, capsys):
    assert main([*CONFIG, *given]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("xmodal: ") and words in said[0]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_the_command_to_install_it_is_told(capsys):
    assert main([*CONFIG, "--topology", "v5e:4x4"]) == 2
    assert "needs the TPU compiler" in (said := capsys.readouterr().err) and "pip install -e '.[plan]'" in said


def test_the_child_gets_the_same_question_and_an_environment_of_its_own():
    args = parser().parse_args([*CONFIG, "--topology", "v5p:8x8x8", "--out", "p.txt", "--explain"])
    command = child_command(args, ["mesh.fsdp=16"])
    again = parser().parse_args(command[3:-1])
    assert command[-1] == "--config.mesh.fsdp=16" and vars(again) == vars(args)
    environment = child_environment(parse_topology("v5p:8x8x8"))
    assert environment["TPU_ACCELERATOR_TYPE"] == "v5p-1024" and environment["JAX_PLATFORMS"] == "cpu"


def test_what_the_child_has_told_is_not_told_again(capfd):
    """Its own process refuses three pairs for 8 devices (or, without libtpu, the topology)."""
    args = parser().parse_args([*CONFIG, "--topology", "v5e:2x4"])
    with pytest.raises(SystemExit) as ended:
        ask_child(args, ["batch_size=3"], parse_topology("v5e:2x4"))
    said = capfd.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and len(said) == 1 and said[0].startswith("xmodal: ")


@pytest.mark.slow
def test_a_topology_that_is_not_here(capfd):
    pytest.importorskip("libtpu")
    assert main([*CONFIG, "--topology", "v5e:2x4", *QUICK]) == 0
    said = capfd.readouterr().out
    assert "on v5e:2x4" in said and "verdict     fits" in said and "= 8 devices" in said
