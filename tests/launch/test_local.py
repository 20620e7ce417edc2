"""local.sh with programs that end as told: codes, deaths, restarts and signals. Training with it: test_training.py."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
ENDS = r"""
me=${@: -1:1} ends=($2)
echo "here is $me of ${@: -3:1} at ${@: -5:1}"
trap 'echo saved; kill $!; exit 0' TERM
trap 'kill $!; exit 130' INT
case ${ends[$me]} in
  wait) sleep 15 & wait ;;
  late) sleep 2 ;;
  -*) kill "${ends[$me]}" $$ ;;
  *) exit "${ends[$me]}" ;;
esac
"""


@pytest.fixture(scope="session")
def ends(program):
    """A program whose process i ends as the i-th word of its second argument says."""
    return program("ends", ENDS)


@pytest.fixture
def local(launch, ends):
    """`local(words, restarts)`: (exit code, what was said) of two processes that end as told."""
    return lambda words, restarts=0: launch(
        "bash", LAUNCH / "local.sh", "-n", 2, "--restarts", restarts, "--", "train", words, XMODAL=ends
    )


def test_all_processes_run_as_one_job(local):
    code, said = local("0 0")
    assert code == 0
    lines = sorted(said.splitlines())
    assert len(lines) == 2 and lines[0].startswith("[0] here is 0 of 2 at 127.0.0.1:")
    assert lines[1] == lines[0].replace("[0]", "[1]").replace("is 0", "is 1")


@pytest.mark.parametrize(
    ("words", "code", "how"), [("late 2", 2, "code 2"), ("-KILL late", 137, "signal 9"), ("0 75", 75, "code 75")]
)
def test_the_first_failure_ends_the_job_and_is_named(local, words, code, how):
    ended, said = local(words)
    failed = words.split().index(next(word for word in words.split() if word not in ("0", "late")))
    assert ended == code
    assert f"process {failed} of 2 ended with {how} after" in said


def test_a_job_that_died_starts_again_but_not_after_bad_input(local):
    code, said = local("-KILL late", restarts=2)
    assert code == 137 and said.count("starting again from the last save") == 2 and "(2 of 2)" in said
    ports = {line.split()[-1] for line in said.splitlines() if "here is" in line}
    assert len(ports) > 1  # the old one may still be in use
    code, said = local("2 late", restarts=2)
    assert code == 2 and "starting again" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_are_passed_on_and_end_the_job(environment, ends, number, code):
    # In the background of a script Ctrl-C is switched off for all that it starts; a user's terminal does not do that.
    plain = ["env", "--default-signal=INT", "bash"]
    command = [*plain, LAUNCH / "local.sh", "-n", "2", "--restarts", "3", "--", "train", "wait wait"]
    job = subprocess.Popen(
        command, env=environment | {"XMODAL": str(ends)}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    said = [job.stdout.readline(), job.stdout.readline()]
    time.sleep(0.2)
    os.kill(job.pid, number)
    rest, _ = job.communicate(timeout=15)
    assert job.returncode == code and all("here is" in line for line in said)
    assert rest.count("saved") == (2 if number == signal.SIGTERM else 0)


def test_wrong_arguments_are_refused(launch):
    for arguments in (["-n", "0", "--", "train"], ["-n", "2"], ["--restarts", "x", "train"]):
        code, said = launch("bash", LAUNCH / "local.sh", *arguments)
        assert code == 2 and said.startswith("usage: bash launch/local.sh -n N")
