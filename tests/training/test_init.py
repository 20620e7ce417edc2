"""A run starts from the weights of another one: leaves by path and shape, word tables by word, and only once."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_loop import PLAIN, tiny

from xmodal_jax.assemble import assemble
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.training.begin import with_kept_facts
from xmodal_jax.training.init import common_ids, left_out
from xmodal_jax.training.loop import make_run, train
from xmodal_jax.workdir import open_run


@pytest.fixture(scope="module")
def before(shapes_data, tmp_path_factory):
    """The work directory of a run of two steps."""
    workdir = tmp_path_factory.mktemp("before") / "run"
    train(tiny(PLAIN, shapes_data, "steps=2", "teacher.momentum=0.5"), workdir)
    return workdir


@pytest.fixture(scope="module")
def weights(before):
    """The weights of `before` that evaluation uses, by path."""
    return flat(open_run(before)[1])


def flat(tree) -> dict[str, np.ndarray]:
    """Leaves by path."""
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def started(config):
    """The state before the first step of a config, which starts as training does."""
    return make_run(assemble(config), jax.devices()[:1]).fresh()


def test_every_leaf_of_the_same_architecture_is_taken(before, weights, shapes_data, caplog):
    caplog.set_level("INFO", "xmodal_jax")
    state = started(tiny(PLAIN, shapes_data, "seed=7", f"init={before}"))
    found = flat(state.params)
    assert found.keys() == weights.keys()
    for path, leaf in weights.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
        if path in state.teacher:
            np.testing.assert_array_equal(state.teacher[path], leaf, err_msg=path)
    assert state.teacher and int(state.step) == 0
    assert f"starting from step 2 of '{before}': {len(found)} of {len(found)} leaves" in caplog.text
    assert "start anew" not in caplog.text


def test_another_shape_starts_anew_and_is_counted(before, weights, shapes_data, caplog):
    caplog.set_level("INFO", "xmodal_jax")
    found = flat(started(tiny(PLAIN, shapes_data, "joint.bits=24", f"init={before}")).params)
    other = {path for path, leaf in found.items() if path not in weights or weights[path].shape != leaf.shape}
    assert other and all("/hash/" in path for path in other)
    assert f"; {len(other)} start anew (" in caplog.text and sorted(other)[0] in caplog.text
    for path in found.keys() - other:
        np.testing.assert_array_equal(found[path], weights[path], err_msg=path)
    assert left_out(["a"]) == "; 1 start anew (a)" and left_out(list("abcdef")).endswith("(a, b, c, d, e, ...)")


def with_other_words(data, folder):
    """A copy of a data set whose vocabulary has two words swapped, one fewer and one more."""
    other = shutil.copytree(data, folder)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, second, gone = sorted(words)[-3:]
    words[first], words[second] = words[second], words[first]
    words["zebra"], words["zoo"] = words.pop(gone), len(words) + 1
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    return other, gone


def test_words_of_another_vocabulary_keep_their_rows(before, weights, shapes_data, tmp_path, caplog):
    caplog.set_level("INFO", "xmodal_jax")
    data, gone = with_other_words(shapes_data, tmp_path / "other")
    params = {True: f"init={before}", False: "init="}
    taken, fresh = (flat(started(tiny(PLAIN, data, params[how])).params) for how in (True, False))
    own, other = Tokenizer(data / "tokenizer.json"), Tokenizer(before / "tokenizer-text.json")
    ours, theirs = common_ids(own, other)
    path = "text/tower/embed/word"
    table, random, old = taken[path], fresh[path], weights[path]
    assert table.shape[0] == old.shape[0] + 1 and len(ours) == old.shape[0] - 1 and (ours != theirs).sum() == 2
    np.testing.assert_array_equal(table[ours], old[theirs])
    new = np.setdiff1d(np.arange(len(table)), ours)
    np.testing.assert_array_equal(table[new], random[new])
    assert len(new) == 2 and f"{len(ours)} rows by name" in caplog.text and gone not in caplog.text


def test_a_run_that_goes_on_does_not_read_the_start_again(before, shapes_data, tmp_path):
    start = shutil.copytree(before, tmp_path / "start")
    config = [tiny(PLAIN, shapes_data, f"steps={steps}", f"init={start}") for steps in (1, 2)]
    train(config[0], tmp_path / "run")
    shutil.rmtree(start)
    assert int(train(config[1], tmp_path / "run").step) == 2
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert kept["init"] == str(start)


def test_pictures_are_read_as_the_start_reads_them(before, shapes_data, tmp_path):
    told = json.loads((shutil.copytree(before, tmp_path / "start") / "run.json").read_text())
    told["config"]["encoders"]["image"] |= {"pixel_mean": [0.25] * 3, "pixel_std": [0.125] * 3}
    (tmp_path / "start" / "run.json").write_text(json.dumps(told))
    config = tiny(PLAIN, shapes_data, f"init={tmp_path / 'start'}")
    image = with_kept_facts(config, tmp_path / "new").encoders["image"]
    assert (image.pixel_mean, image.pixel_std) == ((0.25,) * 3, (0.125,) * 3)
    told["config"]["encoders"]["photo"] = told["config"]["encoders"].pop("image")
    (tmp_path / "start" / "run.json").write_text(json.dumps(told))
    for paths, mean in (("()", ()), ("(('image/','photo/'),)", (0.25,) * 3)):
        renamed = tiny(PLAIN, shapes_data, f"init={tmp_path / 'start'}", f"init_paths={paths}")
        assert with_kept_facts(renamed, tmp_path / "new").encoders["image"].pixel_mean == mean, "by the tower's path"


def test_what_cannot_start_is_refused(before, shapes_data, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(
        UserError, match=r"config.init is '.*none', which holds no run \(run.json is missing\); write the"
    ):
        train(tiny(PLAIN, shapes_data, f"init={tmp_path / 'none'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"config.init is '.*' and config.joint.start 'cca', and both start the heads"):
        tiny(PLAIN, shapes_data, f"init={before}", "joint.start=cca")
    wider = ("encoders.text.positions=99", "optimizer.freeze=^text/tower/")
    with pytest.raises(
        UserError, match=r"freezes 'text/tower/embed/position', which config.init='.*' does not have in"
    ):
        started(tiny(PLAIN, shapes_data, f"init={before}", *wider))
