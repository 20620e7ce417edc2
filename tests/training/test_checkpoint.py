"""Checkpoints: restored as saved, on any mesh; damage is found and stepped over; a save that failed says so."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host import free_port, small_files
from tiny import input_specs

from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError
from xmodal_jax.training import checksums, store
from xmodal_jax.training.checkpoint import ITEMS, Checkpoints, read_run, reason, write_run
from xmodal_jax.training.quiet import quiet_orbax
from xmodal_jax.training.state import TrainState

PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])

# Of reads that orbax leaves unfinished when one fails; they are collected in any later test.
pytestmark = pytest.mark.filterwarnings(r"ignore:.*_read_array_index:pytest.PytestUnraisableExceptionWarning")


def state_at(step: int, size: int = 512) -> TrainState:
    """A small state whose numbers depend on the step and do not compress."""
    draw = np.random.default_rng(step)

    def number(value):
        return jnp.asarray(value, jnp.int32)

    def rows(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    return TrainState(
        step=number(step),
        params={"image": {"kernel": rows(size, 8)}, "scale": rows()},
        teacher={"image/kernel": rows(size, 8)},
        memory={"keys": {"image": rows(4, 8), "id": jnp.arange(4) + step, "cursor": number(1)}},
        cursor=number(step),
        opt_state=({"mu": rows(size, 8)}, number(step)),
        key=jax.random.key_data(jax.random.key(step)),
        skipped=number(0),
        skips_in_row=number(0),
    )


def shapes_of(state: TrainState) -> TrainState:
    """The state's shapes on one device."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=PLACE), state)


def same(one, other) -> None:
    """Every leaf is equal, bit by bit."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))


def restored(workdir, read_only: bool = False) -> TrainState:
    """The newest good state of a work directory."""
    with Checkpoints(workdir, read_only=read_only) as checkpoints:
        return checkpoints.restore(shapes_of(state_at(0)))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A work directory with the checkpoints 4 and 6 (2 was removed for them)."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest() is None
        for step in (2, 4, 6):
            checkpoints.save(state_at(step))
    return workdir


@pytest.fixture
def own(saved, tmp_path):
    """A copy of `saved` to damage."""
    shutil.copytree(saved, tmp_path / "own")
    return tmp_path / "own"


def files_of(folder: pathlib.Path) -> list[str]:
    """The files of a checkpoint, by their names inside it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_restored_is_what_was_saved(saved):
    same(restored(saved), state_at(6))
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.steps() == [4, 6] and checkpoints.latest() == 6


def test_a_step_is_saved_once_and_the_run_goes_on_after_a_restore(own):
    with Checkpoints(own) as checkpoints:
        state = checkpoints.restore(shapes_of(state_at(0)))
        checkpoints.save(state)  # it is there already
        checkpoints.save(state_at(8))
        checkpoints.save(state_at(8))
        checkpoints.wait()
        assert checkpoints.steps() == [6, 8]
    same(restored(own), state_at(8))


def damage(path: pathlib.Path, how: str) -> None:
    """Remove a file, cut it in half, or flip one bit in its middle."""
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_any_damaged_file_of_the_newest_is_found_and_the_one_before_is_taken(saved, tmp_path, caplog, how):
    names = [name for name in files_of(saved / "checkpoints" / "6") if name not in (checksums.FILE, *checksums.AFTER)]
    assert len(names) > 8 and any("/d/" in name for name in names)
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        damage(workdir / "checkpoints" / "6" / name, how)
        caplog.clear()
        same(restored(workdir), state_at(4))
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith(f"checkpoint 6 is damaged ({name} ") and said.endswith("going on from step 4")
        assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "damaged-6"]


@pytest.mark.parametrize("name", checksums.AFTER)
def test_a_lost_mark_of_a_finished_save_is_damage_too(own, caplog, name):
    (own / "checkpoints" / "6" / name).unlink()
    same(restored(own), state_at(4))
    assert f"checkpoint 6 is damaged ({name} is missing)" in caplog.text


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_record_is_not_believed(own, caplog, how):
    damage(own / "checkpoints" / "6" / checksums.FILE, how)
    same(restored(own), state_at(4))
    assert f"checkpoint 6 is damaged ({checksums.FILE} is damaged)" in caplog.text


def test_an_emptied_folder_is_damage(own, caplog):
    shutil.rmtree(own / "checkpoints" / "6")
    (own / "checkpoints" / "6").mkdir()
    same(restored(own), state_at(4))
    assert "checkpoint 6 is damaged" in caplog.text


def test_a_checkpoint_without_its_record_is_damage(own, caplog):
    (own / "checkpoints" / "6" / checksums.FILE).unlink()
    same(restored(own), state_at(4))
    assert "checkpoint 6 is damaged (checksums.json cannot be read (No such file or directory))" in caplog.text


def test_a_damaged_checkpoint_is_never_counted_again(own):
    damage(own / "checkpoints" / "6" / "params" / "_METADATA", "missing")
    with Checkpoints(own) as checkpoints:
        checkpoints.restore(shapes_of(state_at(0)))
        assert checkpoints.latest() == 4
        checkpoints.save(state_at(6))  # the same step again, this time whole
    same(restored(own), state_at(6))
    damage(own / "checkpoints" / "6" / "params" / "_METADATA", "missing")
    same(restored(own), state_at(4))
    names = sorted(path.name for path in (own / "checkpoints").iterdir())
    assert names == ["4", "damaged-6", "damaged-6-again"]


def test_a_reader_falls_back_but_renames_and_removes_nothing(own, caplog):
    (own / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    damage(own / "checkpoints" / "6" / "params" / "_METADATA", "truncated")
    same(restored(own, read_only=True), state_at(4))
    assert "left as it is; going on from step 4" in caplog.text
    assert sorted(path.name for path in (own / "checkpoints").iterdir()) == ["4", "6", "8.orbax-checkpoint-tmp"]
    with Checkpoints(own, read_only=True) as checkpoints, pytest.raises(UserError, match="for reading only"):
        checkpoints.save(state_at(8))


def test_a_run_without_a_good_checkpoint_never_starts_again_from_nothing(own):
    for step in (4, 6):
        damage(own / "checkpoints" / str(step) / "teacher" / "_METADATA", "missing")
    for _ in range(2):  # being asked twice changes nothing
        with Checkpoints(own) as checkpoints:
            assert checkpoints.latest() == 6
            with pytest.raises(UserError, match=r"is good \(6: teacher/_METADATA is missing; 4: teacher/_METADATA i"):
                checkpoints.restore(shapes_of(state_at(0)))
    for step in (4, 6):
        (own / "checkpoints" / str(step)).rename(own / "checkpoints" / f"damaged-{step}")
    with (
        Checkpoints(own) as checkpoints,
        pytest.raises(UserError, match="no good checkpoint left, only damaged-4, dam"),
    ):
        checkpoints.latest()


def test_an_empty_work_directory_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="there is no checkpoint in"):
        checkpoints.restore(shapes_of(state_at(0)))
    assert Checkpoints(tmp_path / "nowhere", read_only=True).latest() is None
    assert not (tmp_path / "nowhere").exists()


def test_another_architecture_is_refused_by_name_and_is_no_damage(own):
    other = shapes_of(state_at(0, size=256))
    with (
        Checkpoints(own) as checkpoints,
        pytest.raises(UserError, match=r"'params/image/kernel' is \(512, 8\) there and \(2"),
    ):
        checkpoints.restore(other)
    assert sorted(path.name for path in (own / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.parametrize("name", ["[2024] photos", "a*b", "what?"])
def test_a_folder_whose_name_is_a_pattern_holds_checkpoints(tmp_path, name):
    """Orbax finds no parts below such a folder by itself: see training/store.py."""
    with Checkpoints(tmp_path / name / "run") as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(state_at(step))
    same(restored(tmp_path / name / "run"), state_at(6))
    (tmp_path / name / "run").rename(tmp_path / "moved")
    same(restored(tmp_path / "moved"), state_at(6))
    assert sorted(path.name for path in (tmp_path / "moved" / "checkpoints").iterdir()) == ["4", "6"]


def test_a_save_whose_parts_are_not_merged_is_no_save(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "plain_name", contextlib.nullcontext)  # what orbax makes of such a name alone
    failed = pytest.raises(UserError, match="checkpoint 2 could not be saved .*parts were not merged.*no earlier one")
    with failed, Checkpoints(tmp_path / "[1]") as checkpoints:
        checkpoints.save(state_at(2))
    assert Checkpoints(tmp_path / "[1]", read_only=True).steps() == []


def test_a_name_that_cannot_be_worked_around_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OPEN_FILES", tmp_path / "not on this system")
    with pytest.raises(UserError, match=r"one of the characters \[ \* \? in its name; write another work directory"):
        Checkpoints(tmp_path / "run[1]")
    assert list(tmp_path.iterdir()) == []
    Checkpoints(tmp_path / "run")


def sum_again(folder: pathlib.Path) -> None:
    """Record the files of a checkpoint as they are now."""
    (folder / checksums.FILE).unlink()
    checksums.write(folder)


def test_parts_that_were_never_merged_are_damage_whatever_the_checksums_say(own, caplog):
    folder = own / "checkpoints" / "6"
    (folder / "teacher" / "manifest.ocdbt").unlink()
    sum_again(folder)
    same(restored(own), state_at(4))
    assert "checkpoint 6 is damaged (teacher/manifest.ocdbt is missing: its parts were not merged)" in caplog.text


def test_arrays_that_are_not_listed_are_named(saved, tmp_path):
    folder = shutil.copytree(saved / "checkpoints" / "6", tmp_path / "6")
    assert store.unmerged(folder, ITEMS) == ""
    described = json.loads((folder / "params" / "_METADATA").read_text("utf-8"))
    extra = next(name for name in described["tree_metadata"] if "kernel" in name)
    described["tree_metadata"][extra.replace("kernel", "lost")] = json.loads(
        json.dumps(described["tree_metadata"][extra]).replace("kernel", "lost")
    )
    (folder / "params" / "_METADATA").write_text(json.dumps(described), "utf-8")
    fault = store.unmerged(folder, ITEMS)
    assert fault.startswith("params cannot be listed: ") and ".lost/" in fault
    assert store.unmerged(folder, ("teacher", "rest")) == ""


def spoil(workdir: pathlib.Path) -> None:
    """Spoil the arrays of the newest checkpoint so that its sums do not tell, and take the one before away."""
    data = max((workdir / "checkpoints" / "6").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    data.write_bytes(b"x" * data.stat().st_size)
    sum_again(workdir / "checkpoints" / "6")
    shutil.rmtree(workdir / "checkpoints" / "4")


def test_a_checkpoint_that_cannot_be_read_is_one_sentence(own):
    spoil(own)
    with pytest.raises(UserError, match="checkpoints/6' cannot be read"):
        restored(own)


UNREAD = """
import sys
from test_checkpoint import *
from xmodal_jax.training.quiet import quiet_orbax

def go(workdir):
    try:
        restored(pathlib.Path(workdir))
    except UserError as error:
        return str(error)

with quiet_orbax():  # orbax leaves the reads of the other arrays unfinished, and Python would say so
    said = go(sys.argv[1])
sys.exit(said)
"""


def test_a_process_that_cannot_read_says_one_sentence(own):
    spoil(own)
    ended = subprocess.run(
        [sys.executable, "-c", UNREAD, str(own)], env=own_path(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr[-3000:]
    assert "checkpoints/6' cannot be read" in ended.stderr


def some(workdir: pathlib.Path, wanted: dict) -> tuple[int, dict]:
    """The leaves `wanted` of the newest checkpoint that has them whole, opened as a reader does."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_some(wanted)


def test_the_leaves_that_are_asked_for_are_those_of_the_state(own):
    shapes, state = shapes_of(state_at(0)), state_at(6)
    step, found = some(own, {"params": shapes.params})
    assert step == 6 and list(found) == ["params"]
    same(found["params"], state.params)
    _, found = some(own, {"params": {"scale": shapes.params["scale"]}, "teacher": shapes.teacher})
    same(found, {"params": {"scale": state.params["scale"]}, "teacher": state.teacher})
    with pytest.raises(UserError, match="'params/image/kernel' is .512, 8"):
        some(own, {"params": shapes_of(state_at(0, size=256)).params})
    with pytest.raises(UserError, match="'teacher/image/bias' is None there"):
        some(own, {"teacher": {"image/bias": shapes.params["scale"]}})


def test_items_that_are_not_asked_for_may_be_gone(own, caplog):
    shapes, folder = shapes_of(state_at(0)), own / "checkpoints" / "6"
    shutil.rmtree(folder / "rest")
    damage(folder / "params" / "_METADATA", "truncated")
    same(some(own, {"teacher": shapes.teacher})[1], {"teacher": state_at(6).teacher})
    assert caplog.records == []
    step, found = some(own, {"params": shapes.params})  # its own damage counts, as everywhere
    assert step == 4 and "checkpoint 6 is damaged (params/_METADATA has" in caplog.text
    same(found["params"], state_at(4).params)


def test_a_state_without_a_teacher_has_no_item_of_it(tmp_path):
    state = state_at(2).replace(teacher={})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    assert not (tmp_path / "checkpoints" / "2" / "teacher").exists()
    with Checkpoints(tmp_path) as checkpoints:
        same(checkpoints.restore(shapes_of(state)), state)
        with pytest.raises(UserError, match="'teacher/image/kernel' is None there and"):
            checkpoints.restore(shapes_of(state_at(2)))


def test_what_a_killed_save_left_is_removed_and_never_counted(own):
    folder = own / "checkpoints"
    shutil.copytree(folder / "6", folder / "8.orbax-checkpoint-tmp")
    with Checkpoints(own) as checkpoints:
        assert checkpoints.latest() == 6 and checkpoints.steps() == [4, 6]
    assert sorted(path.name for path in folder.iterdir()) == ["4", "6"]


def test_an_old_checkpoint_half_removed_is_removed_with_the_next_save(own):
    folder = own / "checkpoints"
    shutil.rmtree(folder / "4" / "rest")
    (folder / "4" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(own) as checkpoints:
        same(checkpoints.restore(shapes_of(state_at(0))), state_at(6))
        checkpoints.save(state_at(8))
    assert sorted(path.name for path in folder.iterdir()) == ["6", "8"]


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str):
    """A real file system of `size` at `folder`; gives a function that remounts it with other options."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.decode().strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def refuse_silence(checkpoints: Checkpoints, cause: str, size: int) -> None:
    """A save that fails is an error in the end, is never counted, and leaves the one before as it was."""
    with pytest.raises(
        UserError, match=rf"checkpoint 2 could not be saved in .*\({cause}\); the last good one is ste.* 1:"
    ):
        checkpoints.save(state_at(2, size))
        checkpoints.wait()
    assert checkpoints.steps() == [1] and checkpoints.latest() == 1
    same(checkpoints.restore(shapes_of(state_at(1))), state_at(1))


def test_a_full_disk_ends_the_save_and_spares_the_one_before(tmp_path):
    with small_disk(tmp_path / "disk", "2m"), Checkpoints(tmp_path / "disk") as checkpoints:
        checkpoints.save(state_at(1))
        checkpoints.wait()
        refuse_silence(checkpoints, "No space left on device", 2**16)
        for left in checkpoints.folder.glob("2.*"):
            shutil.rmtree(left)  # room again
        checkpoints.save(state_at(3))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]


def test_a_disk_that_became_read_only_ends_the_save_and_spares_the_one_before(tmp_path):
    with small_disk(tmp_path / "disk", "8m") as remount, Checkpoints(tmp_path / "disk") as checkpoints:
        checkpoints.save(state_at(1))
        checkpoints.wait()
        remount("ro")
        refuse_silence(checkpoints, "Read-only file system", 512)
        remount("rw")


def test_a_file_size_limit_ends_the_save_and_spares_the_one_before(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1))
        checkpoints.wait()
        with small_files(2**20):
            refuse_silence(checkpoints, "File too large", 2**16)


def test_a_failed_save_surfaces_at_the_next_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1))
        checkpoints.wait()
        with small_files(2**20), pytest.raises(UserError, match="checkpoint 2 could not be saved"):
            checkpoints.save(state_at(2, 2**16))
            checkpoints.save(state_at(3))
        assert checkpoints.steps() == [1]


def test_a_failed_save_surfaces_at_the_end(tmp_path):
    failed = pytest.raises(UserError, match="checkpoint 2 could not be saved.*there is no earlier one")
    with small_files(2**20), failed, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(2, 2**16))


FULL = """
import sys
from test_checkpoint import *
from xmodal_jax.training.quiet import quiet_orbax

def go(workdir):
    many = {str(number): jnp.full((50, 8), number + 0.5) * jnp.arange(8) for number in range(100)}
    try:
        with small_files(2**17), Checkpoints(workdir) as checkpoints:
            checkpoints.save(state_at(2, 2**14).replace(params=many))
    except UserError as error:
        return str(error)

with quiet_orbax():
    said = go(sys.argv[1])
sys.exit(said)
"""


def test_a_process_that_cannot_save_says_one_sentence(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], env=own_path(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr[-3000:]
    assert "(File too large); there is no earlier one" in ended.stderr


def test_a_write_that_nobody_waited_for_says_nothing(tmp_path, caplog):
    """asyncio logs a future whose exception was never taken; the machine's load decides whether there is one."""
    with quiet_orbax():
        for text, said in ((f"Error writing in {tmp_path}/2.orbax-checkpoint-tmp/state", 0), ("another", 1)):
            error = ValueError(text)
            logging.getLogger("asyncio").error("never retrieved", exc_info=(ValueError, error, None))
            assert len(caplog.records) == said


def test_a_failed_save_does_not_hide_what_ended_the_run(tmp_path, caplog):
    stopped = pytest.raises(UserError, match="the loss of itc is not finite")
    with small_files(2**20), stopped, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(2, 2**16))
        raise UserError("the loss of itc is not finite")
    assert "checkpoint 2 could not be saved" in caplog.text


def test_the_reason_is_found_in_chained_and_grouped_errors():
    inner = OSError(28, "No space left on device")
    try:
        raise RuntimeError("commit failed") from ExceptionGroup("several", [KeyError("x"), inner])
    except RuntimeError as error:
        assert reason(error) == "No space left on device"
    assert reason(ValueError("one\ntwo")) == "one" and reason(ValueError()) == "ValueError"


def own_path() -> dict[str, str]:
    """The environment of a process that imports the package and these tests."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, pathlib.Path(__file__).parents[:3]))}


def run_peers(count: int, *arguments: str) -> list[dict]:
    """What `count` processes of one job (peer.py) printed, each a JSON line."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name("peer.py")), str(free_port())]
    peers = [
        subprocess.Popen(
            [*command, str(number), str(count), *arguments],
            env=own_path(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    said = [peer.communicate(timeout=300) for peer in peers]
    assert [peer.returncode for peer in peers] == [0] * count, "\n".join(err for _, err in said)[-3000:]
    return [json.loads(out.splitlines()[-1]) | {"err": err} for out, err in said]


def test_two_processes_save_agree_on_the_fallback_and_share_the_batches(tmp_path, shapes_data):
    tmp_path = tmp_path / "[2] a*b?"  # names that orbax takes for patterns
    told = run_peers(2, str(tmp_path), str(shapes_data))
    assert all(one["steps"] == [2, 4] for one in told)
    assert ["checkpoint 4 is damaged" in one["err"] for one in told] == [True, False], "one process says it, once"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "damaged-4"]
    same(restored(tmp_path), state_at(4))  # on one process and one device
    dataset = train_dataset(
        shapes_data, "train", input_specs(load_tokenizer("data", shapes_data), 8, 6), DataConfig(), 0, 8
    )
    for number in range(3):
        parts = [one["ids"][number] for one in told]
        assert parts[0] + parts[1] == dataset.batch_at(number)["id"].tolist()
    dataset.close()


def test_a_description_is_replaced_whole(tmp_path):
    write_run(tmp_path, {"config": {}, "data": 1})
    write_run(tmp_path, {"config": {}, "data": "ü"})
    assert read_run(tmp_path) == {"format": 1, "config": {}, "data": "ü"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "run.json").write_text('{"a": ')
    with pytest.raises(UserError, match="is not valid JSON"):
        read_run(tmp_path)


@pytest.mark.parametrize("change", [{"format": 0}, {"format": None}, {"data": None}])
def test_a_description_of_another_format_is_refused(tmp_path, change):
    whole = {"format": 1, "config": {}, "data": {}} | change
    (tmp_path / "run.json").write_text(json.dumps({name: value for name, value in whole.items() if value is not None}))
    with pytest.raises(UserError, match=r"reads \(1\); train again in another work directory"):
        read_run(tmp_path)
