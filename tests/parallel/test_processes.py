"""Joining and leaving a job of several processes. Their losses: tests/training/test_across_processes.py."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from xmodal_jax.cli import main
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.processes import GONE, again, agree, initialize, is_first, leaving_at_once, verdict

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["--config", str(ROOT / "tests" / "launch" / "small.py"), "--config.data.path=none"]
GLOO = "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:14002: Connection reset by peer"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--processes", "2"], "--coordinator, --process is missing"),
        (["--coordinator", "here:1"], "--processes, --process is missing"),
        (["--distributed", "--process", "0"], "--distributed finds --process by itself"),
        (["--coordinator", "here", "--processes", "2", "--process", "0"], "--coordinator is 'here'; write HOST:PORT"),
        (["--coordinator", "a:99999", "--processes", "2", "--process", "0"], "write HOST:PORT"),
        (["--coordinator", "a:1", "--processes", "-2", "--process", "0"], "--processes is -2"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "2"], "--process is 2; write 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, words, tmp_path, capsys):
    assert main(["train", *SMALL, "--workdir", str(tmp_path / "run"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_process_needs_nothing(tmp_path):
    initialize()
    agree({"anything": object()})
    assert is_first() and not jax.distributed.is_initialized()
    with pytest.raises(ZeroDivisionError), leaving_at_once(tmp_path):
        raise ZeroDivisionError


def test_errors_have_codes_that_say_what_to_do(tmp_path):
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "4").mkdir()
    (tmp_path / "checkpoints" / "14.orbax-checkpoint-tmp").mkdir()
    code, said = verdict(jax.errors.JaxRuntimeError(GLOO), tmp_path)
    assert code == GONE and "Connection reset by peer" in said and "the last save is step 12" in said
    assert verdict(UserError("write 3"), tmp_path) == (2, "xmodal: write 3")
    assert verdict(KeyboardInterrupt(), tmp_path) == (130, "")
    code, said = verdict(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), tmp_path)
    assert code == 1 and "out of memory" in said
    assert verdict(ValueError(GLOO), tmp_path)[0] == 1  # not from the runtime
    assert again(tmp_path / "empty").startswith("nothing was saved yet; ")


def start(*flags: str) -> subprocess.Popen:
    """A process of `xmodal train` with a config that is wrong in its data set only."""
    command = [sys.executable, "-m", "xmodal_jax.cli", "train", *SMALL, "--workdir", "none", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def flags(port: int, process: int) -> tuple[str, ...]:
    """The flags of one of two processes."""
    return ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(process))


def test_a_job_that_cannot_start_ends_with_a_sentence():
    """A port in use, a peer that does not come, no cluster, and two processes of which one has another seed."""
    with socket.socket() as free, socket.socket() as unused:
        free.bind(("127.0.0.1", 0))
        unused.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in (free, unused)]
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy, alone = start(*flags(port, 0)), start(*flags(ports[0], 1), "--wait", "2")
        pair = [start(*flags(ports[1], 0)), start(*flags(ports[1], 1), "--config.seed=3")]
        nowhere = start("--distributed")
        said = [process.communicate(timeout=120)[0] for process in (busy, alone, nowhere, *pair)]
    assert busy.returncode == 2 and f"the port of --coordinator 127.0.0.1:{port} is in use" in said[0]
    assert alone.returncode == GONE and "was not complete after 2 s" in said[1]
    assert nowhere.returncode == 2 and "--distributed found no TPU pod, SLURM or Open MPI job" in said[2]
    for process, text in zip(pair, said[3:], strict=True):
        assert process.returncode == 2
        assert "process 1 was started with another config.seed than process 0" in text
