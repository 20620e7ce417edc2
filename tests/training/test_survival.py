"""A run that is killed, damaged or out of disk, as its user sees it: real processes, real signals, real faults."""

import contextlib
import gc
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from host import small_files

from xmodal_jax.cli import main

ROOT = pathlib.Path(__file__).parents[2]
SAVES = ("checkpoint.every=2", "log_every=1")
LIGHT = "objectives={'itc': {'queue': 16}}"  # state of every kind, and a process starts in a third of the time


def start(arguments: list[str]) -> subprocess.Popen:
    """`xmodal` in a process of its own, on one device."""
    extra = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "xmodal_jax.cli", *arguments]
    return subprocess.Popen(
        command, env=os.environ | extra, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(arguments: list[str]) -> tuple[int, str]:
    """(exit code, what it printed) of a process left alone."""
    process = start(arguments)
    said = process.communicate(timeout=600)[0]
    return process.returncode, said


def wait_for(process: subprocess.Popen, happened, pause: float = 0.001) -> bool:
    """Whether `happened()` before the process ended."""
    while not happened():
        if process.poll() is not None:
            return False
        time.sleep(pause)
    return True


def kill_once(arguments: list[str], workdir: pathlib.Path, draw: random.Random, moment: str) -> str:
    """Start the run and SIGKILL it at about `moment`. Returns that, and whether a save was in flight."""
    folder, log = workdir / "checkpoints", workdir / "metrics.jsonl"

    def unfinished():
        return {(path.name, path.stat().st_ctime) for path in folder.glob("*tmp*")}

    def lines():
        return log.read_bytes().count(b"\n") if log.exists() else 0

    before, written = unfinished(), lines()  # what the last one left behind is no save of this one
    process = start(arguments)

    def saving():
        return bool(exists(unfinished) - before)

    if moment == "start":
        time.sleep(draw.uniform(0, 6))
    elif moment == "steps":
        wait_for(process, lambda: lines() > written + draw.choice((0, 1, 2)))
    else:
        wait_for(process, saving)
        if moment == "commit":  # the folder gets its name, the oldest goes
            wait_for(process, lambda: not saving())
            time.sleep(draw.uniform(0, 0.01))
        else:
            time.sleep(draw.uniform(0, 0.15))
    hit = f"{moment}, {'in' if saving() else 'outside'} a save"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was hit: give it more steps"
    return hit


def exists(look):
    """What `look()` returns, tried again when a file it looks at goes away."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return look()


def storm(arguments, workdir: pathlib.Path, kills: int, seed: int) -> list[str]:
    """Kill the run `kills` times, then let it end. Returns where it was hit."""
    draw = random.Random(seed)
    moments = ("save", "commit", "steps", "save", "start")
    hits = [kill_once(arguments, workdir, draw, moments[number % 5]) for number in range(kills)]
    code, said = ended(arguments)
    assert code == 0, said
    return hits


def leaves_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """{path: array} of the newest checkpoint, read without our own code."""
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    folder, state = workdir / "checkpoints" / str(newest), {}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def as_saved(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    for item in ("params", "teacher", "rest"):
        saved = ocp.StandardCheckpointHandler().metadata(folder / item).tree
        with ocp.StandardCheckpointer() as reader:
            state[item] = reader.restore(folder / item, jax.tree.map(as_saved, saved))
    state |= state.pop("rest")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def told(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl without what the clock or the machine decides."""
    plain = ("step", "pairs", "loss", "grad_norm", "skipped", "skips_in_row", "eval")
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name in plain or "/" in name} for record in records]


def refuse_difference(whole: pathlib.Path, killed: pathlib.Path) -> None:
    """Every leaf, every metric and every other file of the two work directories is the same."""
    one, other = leaves_of(whole), leaves_of(killed)
    assert one.keys() == other.keys()
    for group in (".params", ".teacher", ".opt_state", ".memory", ".cursor", ".key"):
        assert any(name.startswith((group, f"['{group[1:]}']")) for name in one), group
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert told(whole) == told(killed) and len(told(whole)) >= len({record["step"] for record in told(whole)})
    for name in ("run.json", "tokenizer-text.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()

    def names(folder):
        return sorted(path.name for path in folder.iterdir())

    assert names(whole / "checkpoints") == names(killed / "checkpoints")
    assert names(whole) == names(killed), "nothing is left over"


def test_a_killed_run_equals_a_whole_one(train_tiny, tmp_path):
    changes = (*SAVES, LIGHT, "steps=16", "eval.every=0")
    assert ended(train_tiny(tmp_path / "whole", *changes))[0] == 0
    hits = storm(train_tiny(tmp_path / "killed", *changes), tmp_path / "killed", 1, seed=0)
    refuse_difference(tmp_path / "whole", tmp_path / "killed")
    assert any(hit.endswith(" in a save") for hit in hits), hits


def test_a_damaged_checkpoint_and_a_full_disk_cost_the_steps_since_the_last_good_one(
    train_tiny, tmp_path, caplog, capfd
):
    arguments = train_tiny(tmp_path / "run", LIGHT, "checkpoint.every=2", "eval.every=0")
    assert main(arguments) == 0
    whole, said = leaves_of(tmp_path / "run"), told(tmp_path / "run")
    data = max(
        (tmp_path / "run" / "checkpoints" / "4").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size
    )
    os.truncate(data, 1000)
    caplog.clear()
    with small_files(100_000):  # smaller than the arrays of a checkpoint, larger than any other file
        assert main(arguments) == 2
    gc.collect()  # tasks that orbax forgot would speak now
    assert not [record for record in caplog.records if record.name in ("asyncio", "absl") and record.exc_info]
    (warning,) = [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    name = data.relative_to(tmp_path / "run" / "checkpoints" / "4").as_posix()
    assert warning.startswith(f"checkpoint 4 is damaged ({name} has 1000 bytes") and warning.endswith(
        "going on from step 2"
    )
    sentence = capfd.readouterr().err.splitlines()[-1]
    assert (
        sentence.startswith("xmodal: checkpoint 4 could not be saved in ") and "the last good one is step 2" in sentence
    )
    assert main(arguments) == 0
    assert "at step 2 of 4" in capfd.readouterr().out
    now = leaves_of(tmp_path / "run")
    assert whole.keys() == now.keys() and all(np.array_equal(whole[name], now[name]) for name in whole)
    assert told(tmp_path / "run") == said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "4", "damaged-4"]


@pytest.mark.slow  # 7.5 minutes of CPU time; 17 minutes on two busy cores
def test_a_run_killed_twenty_times_equals_a_whole_one(train_tiny, tmp_path):
    changes = (*SAVES, "steps=140", "eval.every=20")
    assert ended(train_tiny(tmp_path / "whole", *changes))[0] == 0
    hits = storm(train_tiny(tmp_path / "killed", *changes), tmp_path / "killed", 20, seed=1)
    print(hits)
    refuse_difference(tmp_path / "whole", tmp_path / "killed")
    assert all(sum(hit.endswith(f"{side} a save") for hit in hits) >= 5 for side in (" in", "outside")), hits
