"""The mean of the last checkpoints' weights, as an opened run uses it."""

import jax
import numpy as np
import pytest
from test_loop import PLAIN, tiny

from xmodal_jax.errors import UserError
from xmodal_jax.training.loop import train
from xmodal_jax.workdir import open_run


@pytest.fixture(scope="module")
def states(shapes_data, tmp_path_factory):
    """(workdir, states after steps 1 to 3 as NumPy arrays) of a run that keeps them all."""
    workdir, found = tmp_path_factory.mktemp("several") / "run", []

    def keep(run, state, poll):
        found.append(jax.tree.map(np.array, (state.params, state.teacher)))
        return {"itc": {"i2t": {}, "t2i": {}, "rSum": 0.0}}

    changed = ("steps=3", "checkpoint.every=1", "checkpoint.keep=3", "eval.every=1", "teacher.momentum=0.5")
    train(tiny(PLAIN, shapes_data, *changed), workdir, keep)
    return workdir, found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_mean_of_the_last_students(states, count):
    workdir, found = states
    _, params, step = open_run(workdir, {"eval": {"average": count, "params": "student"}})
    assert step == 3
    last = [params for params, _ in found[-count:]]
    want = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), 0, np.float32), *last)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(want), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=str(path))


def test_teachers_are_averaged_by_default(states):
    workdir, found = states
    _, params, _ = open_run(workdir, {"eval": {"average": 2}})
    word = "text/tower/embed/word"
    want = (found[1][1][word] + found[2][1][word]) / 2
    np.testing.assert_allclose(params["text"]["tower"]["embed"]["word"], want, rtol=1e-6, atol=1e-7)
    assert np.abs(want - found[2][1][word]).max() > 1e-6


def test_more_than_there_are_is_refused(states):
    with pytest.raises(
        UserError, match=r"config.eval.average is 4, and '.*' has 3 checkpoints; write at most so many, or"
    ):
        open_run(states[0], {"eval": {"average": 4}})
