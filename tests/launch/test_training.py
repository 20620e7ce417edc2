"""Training through the launchers equals training in one process, whatever dies and however many processes there are.

The quick version kills one of two processes; `bash launch/test.sh -m slow` also runs 4 -> 2 -> 1, 1 -> 4 and SLURM.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest
from test_scripts import TASKS

from xmodal_jax.cli import main

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("small.py")
STEPS = 12


@pytest.fixture(scope="session")
def arguments(shapes_data):
    """`arguments(workdir, steps)` of `xmodal train` for the small config."""

    def make(workdir: pathlib.Path, steps: int = STEPS) -> list[str]:
        flat = ("optimizer.warmup=2", "optimizer.end_lr=1.0")  # a learning rate that does not depend on `steps`
        changed = [f"--config.{item}" for item in (f"data.path={shapes_data}", f"steps={steps}", *flat)]
        return ["--config", str(CONFIG), *changed, "--workdir", str(workdir)]

    return make


def losses(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """{step: what does not depend on time} of metrics.jsonl."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keep = ("loss", "itc/", "grad_norm", "teacher/", "skipped")
    return {row["step"]: {k: v for k, v in row.items() if k.startswith(keep)} for row in records if "loss" in row}


@pytest.fixture(scope="session")
def whole(arguments, tmp_path_factory):
    """The losses of an uninterrupted run in this process."""
    workdir = tmp_path_factory.mktemp("whole")
    assert main(["train", *arguments(workdir)]) == 0
    found = losses(workdir)
    assert list(found) == list(range(1, STEPS + 1)) and len(found[1]) > 3
    return found


def equal(workdir: pathlib.Path, whole: dict[int, dict[str, float]]) -> None:
    """Every step's losses equal those of one process to 1e-6, the other numbers to 1e-5 (relative).

    Other processes sum in another order; in the norm over all gradients the rounding of twelve steps reaches 1e-6.
    """
    found = losses(workdir)
    assert list(found) == list(whole)
    for step, values in whole.items():
        for name, value in values.items():
            limit = 1e-6 if name.startswith("loss") else 1e-5
            assert found[step][name] == pytest.approx(value, rel=limit, abs=1e-6), (step, name)


def command_of(process: int, workdir: pathlib.Path) -> int:
    """The id of the process that trains in `workdir` as number `process`."""
    marks = (str(workdir), "--process\0" + str(process))
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(mark in line for mark in marks) and "local.sh" not in line:
            return int(path.parent.name)
    raise AssertionError(f"process {process} of '{workdir}' is not there")


def wait_for(path: pathlib.Path, job: subprocess.Popen) -> None:
    """Wait until `path` is there, while the job runs."""
    while not path.exists():
        assert job.poll() is None, job.stdout.read()
        time.sleep(0.02)


def test_a_killed_process_costs_the_steps_since_the_last_save_only(environment, arguments, whole, tmp_path):
    command = ["bash", ROOT / "launch" / "local.sh", "-n", "2", "--restarts", "1", "--", "train", *arguments(tmp_path)]
    job = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(tmp_path / "checkpoints" / "2", job)
    os.kill(command_of(1, tmp_path), signal.SIGKILL)
    said, _ = job.communicate(timeout=280)
    assert job.returncode == 0, said
    # What process 0 says of it depends on where it was: in a save it waits for its peer, and the launcher ends it.
    assert "process 1 of 2 ended with signal 9" in said and "starting again from the last save" in said
    assert "resuming" in said and f"{STEPS}/{STEPS}" in said
    equal(tmp_path, whole)


def moment_of(moment: str, workdir: pathlib.Path, job: subprocess.Popen) -> None:
    """Wait for a step after the first save, a save that is being written, or a batch that the loader is making."""
    wait_for(workdir / "checkpoints" / "2", job)
    while moment == "save" and not list(workdir.glob("checkpoints/*tmp*")):
        assert job.poll() is None, job.stdout.read()
        time.sleep(0.001)
    if moment == "loader":
        before = len(losses(workdir))
        while len(losses(workdir)) == before:
            time.sleep(0.05)
        time.sleep(4)  # of the 10 s that the next batch takes; each process has told that it waits for it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "stage"),
    [("step", "(step|the batch of step|the save of step)"), ("loader", "the batch of step"), ("save", "(the|step)")],
)
def test_a_stopped_process_is_named_and_ends_the_job(environment, arguments, tmp_path, moment, stage):
    """One of four processes is stopped; the others name it within `--stall` seconds, and the launcher ends the rest."""
    command = [
        "bash",
        ROOT / "launch" / "local.sh",
        "-n",
        "4",
        "--",
        "train",
        *arguments(tmp_path, 4000),
        "--stall",
        "25",
    ]
    slow = {"SLOW_LOADER": "10"} if moment == "loader" else {}
    if slow:
        command += ["--config.data.threads=1", "--config.data.prefetch=1"]
    job = subprocess.Popen(
        command, env=environment | slow, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    moment_of(moment, tmp_path, job)
    os.kill(command_of(2, tmp_path), signal.SIGSTOP)
    began = time.monotonic()
    said, _ = job.communicate(timeout=100)
    assert time.monotonic() - began < 25 + 8, "and the launcher waits 5 s for the stopped one"
    assert job.returncode == 75, said
    named = re.findall(rf"process [013] of 4: process 2 of 4 is stuck: silent for \d+ s, last at: {stage}", said)
    assert named and "the last save is step" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(4, 2, 1), (1, 4)], ids=lambda counts: "-".join(map(str, counts)))
def test_the_number_of_processes_may_change(launch, arguments, whole, tmp_path, counts):
    """Each part of the run ends at a step of its own and the next goes on from its save with other processes."""
    for part, count in enumerate(counts, 1):
        workdir, until = tmp_path / "run", STEPS * part // len(counts)
        code, said = launch(
            "bash", ROOT / "launch" / "local.sh", "-n", count, "--", "train", *arguments(workdir, until)
        )
        assert code == 0, said
    equal(tmp_path / "run", whole)


@pytest.mark.slow
def test_the_slurm_script_trains(launch, program, arguments, whole, tmp_path):
    program("srun", TASKS)
    command = ["bash", ROOT / "launch" / "slurm.sbatch", *arguments(tmp_path / "run")]
    code, said = launch(*command, SLURM_SUBMIT_DIR=ROOT, SLURM_JOB_ID=7)
    assert code == 0 and "tasks ended with 0 and 0" in said, said
    equal(tmp_path / "run", whole)
