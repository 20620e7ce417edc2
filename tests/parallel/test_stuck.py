"""A process that is stopped or hangs is named by the others, which end with code 75: real processes and signals."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from host import free_port

from xmodal_jax.cli import main
from xmodal_jax.errors import UserError
from xmodal_jax.parallel import stuck
from xmodal_jax.parallel.processes import GONE, heartbeat_for, refuse_loopback
from xmodal_jax.parallel.stuck import ENDED, Job

ROOT = pathlib.Path(__file__).parents[2]
STALL = 12.0
MEMBER = """
import sys, time
import jax
from xmodal_jax.parallel import processes, stuck

process, count, stall, where = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
processes.initialize(sys.argv[1], count, process, heartbeat_seconds=processes.heartbeat_for(stall), wait_seconds=200)
from jax.experimental.multihost_utils import sync_global_devices

with processes.leaving_at_once(where), processes.watching(stall, where):
    for step in range(10_000):
        stuck.at(f"the batch of step {step}")
        if step == 1 and process == 2:
            print("here", file=sys.stderr, flush=True)
            time.sleep(600)  # where the signal finds it, or where it hangs
        stuck.at(f"step {step}")
        sync_global_devices(str(step))
"""


@pytest.fixture
def members(tmp_path):
    """`members()`: four processes of a job, each at its end killed whatever it is at."""
    running = []

    def start() -> list[subprocess.Popen]:
        address, environment = f"127.0.0.1:{free_port()}", os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        for process in range(4):
            command = [sys.executable, "-c", MEMBER, address, str(process), "4", str(STALL), str(tmp_path)]
            running.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            )
        return running

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow  # its times are those of a machine that is not overloaded
@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "hangs"])
def test_a_stuck_process_is_named_with_its_stage_and_ends_the_job(members, stopped):
    """Process 2 of 4 is stopped with all its threads, or hangs in one thread, which it finds out by itself too."""
    processes = members()
    while (line := processes[2].stderr.readline()) != "here\n":
        assert line, "process 2 ended"
    time.sleep(2 * STALL / stuck.BEATS)  # it tells what it is at
    if stopped:
        processes[2].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    own = [processes[number] for number in ((0, 1, 3) if stopped else range(4))]
    said = [process.communicate(timeout=100)[1] for process in own]
    assert time.monotonic() - began < STALL + 20  # for the processes to end, on a busy machine too
    assert [process.returncode for process in own] == [GONE] * len(own), said
    for text in said:
        assert "process 2 of 4" in text and "is stuck: " in text and "last at: the batch of step 1" in text, text
        assert "nothing was saved yet; start all processes again with the same command" in text


def beats(job: Job, **at: tuple) -> None:
    """Beats of processes p0, p1, ... as (beat, stages, stage)."""
    job.beats |= {int(name[1:]): beat for name, beat in at.items()}


def test_silence_is_counted_in_looks_and_an_ended_process_may_be_silent():
    job = Job(0, 3)
    for look in range(1, 6):
        beats(job, p0=(look, 1, "step 1"), p1=(1, 1, "step 1"), p2=(1, 0, ENDED))
        job.look(True)
    assert job.stuck(4, 2.0) == "process 1 of 3 is stuck: silent for 8 s, last at: step 1"
    assert job.stuck(5, 2.0) == ""
    beats(job, p1=(2, 1, "step 1"))
    job.look(True)
    assert job.stuck(1, 2.0) == "" and job.silent[1] == 0


def test_who_is_at_an_earlier_stage_than_others_is_waited_for():
    job = Job(1, 3)
    for look in range(1, 8):
        beats(job, p0=(look, 4, "step 2"), p1=(look, 3, "the batch of step 2"), p2=(look, 4, "step 2"))
        job.look(True)
    assert (
        job.stuck(6, 1.0)
        == "process 1 of 3, this one, is stuck: the others have waited for it for 6 s, last at: the batch of step 2"
    )
    beats(job, p0=(8, 4, "step 2"), p1=(8, 4, "step 2"), p2=(8, 4, "step 2"))
    job.look(True)
    assert job.stuck(1, 1.0) == ""


def test_a_long_start_or_a_long_step_of_all_is_not_stuck():
    job = Job(0, 2)
    for look in range(1, 50):
        beats(job, p0=(look, 2, "step 1"), p1=(look, 0, "starting"))
        job.look(True)
    assert job.stuck(1, 1.0) == ""
    for look in range(50, 99):
        beats(job, p0=(look, 2, "step 1"), p1=(look, 2, "step 1"))
        job.look(True)
    assert job.stuck(1, 1.0) == ""


def test_a_store_that_does_not_answer_is_process_0_and_says_nothing_of_the_others():
    job = Job(2, 3)
    for look in range(3):
        beats(job, p0=(look, 5, "step 3"), p1=(look, 5, "step 3"), p2=(look, 5, "step 3"))
        job.look(True)
    for _ in range(6):
        job.look(False)
    assert job.stuck(6, 0.5) == "process 0 of 3 is stuck: silent for 3 s, last at: step 3"
    assert not any(job.silent.values())


def test_without_a_watch_nothing_is_noted():
    stuck.at("step 1")
    assert stuck.suspect() == "" and heartbeat_for(0) == 100 and heartbeat_for(180) > 180


def test_a_stall_time_that_cannot_be_meant_is_refused(tmp_path, capsys):
    config = ["--config", str(ROOT / "tests" / "launch" / "small.py"), "--config.data.path=none"]
    assert main(["train", *config, "--workdir", str(tmp_path / "run"), "--stall", "0.5"]) == 2
    assert "--stall is 0.5; write seconds from 1 to 86400 (a day), or 0 for off" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.3.2.1:1", "[::1]:1", "LOCALHOST:1"])
@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_NODES": "2"},
        {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
        {"TPU_WORKER_HOSTNAMES": "t0,t1"},
    ],
    ids=lambda found: next(iter(found)),
)
def test_a_loopback_address_is_refused_where_there_are_several_hosts(address, environment):
    with pytest.raises(
        UserError, match=r"is reached from one machine only, and .* tells of several hosts; write a name"
    ):
        refuse_loopback(address, environment)
    refuse_loopback("node1:1", environment)
    refuse_loopback("10.0.0.1:1", environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "4"},  # a step on one node of an allocation of four
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
        {"TPU_WORKER_HOSTNAMES": "t0"},
    ],
)
def test_a_loopback_address_is_fine_on_one_host(environment):
    refuse_loopback("127.0.0.1:1", environment)
