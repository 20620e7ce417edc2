"""The table of pair losses inside the step: on one device and eight, through a restart, and in the log of a run."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from tiny import FACTS, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax import config as load_config
from xmodal_jax.config_file import freeze
from xmodal_jax.errors import UserError
from xmodal_jax.objectives import parts
from xmodal_jax.objectives.robust import UNSEEN
from xmodal_jax.training.loop import train
from xmodal_jax.training.step import create_state

PERIOD = 2
SECTION = {
    "refurbish": {"warmup": PERIOD, "period": PERIOD},
    "hinge": {"robust": "refurbish"},
    "itc": {"queue": 0, "alpha": 0.0, "student_keys": True, "robust": "refurbish"},
}


def pairs(*numbers):
    """A tiny batch with these numbers of pairs."""
    return tiny_batch(len(numbers) % 7) | {"pair": np.array(numbers, np.int32)}


BATCHES = (pairs(0, 1, 2, 3, 4, 5, 6, 7), pairs(8, 9, 2, 11, 12, 13, 6, 15), pairs(16, 1, 18, 3, 20, 21, 22, 63))


@pytest.fixture(scope="module")
def made():
    """The recipe of refurbished losses and its state before the first step."""
    recipe = tiny_recipe(tiny_config(objectives=SECTION, data={"unit": "pair"}))

    def fresh():
        return jax.tree.map(lambda x: x + 0.02, tiny_params(recipe.model, 0, parts(recipe.objectives)))

    return recipe, jax.tree.map(np.array, jax.jit(lambda: create_state(recipe, fresh(), 0))())


@pytest.fixture(scope="module")
def after(made, machine_of):
    """The states after three steps on one device and on eight; the second step ends a period."""
    return [machine_of(*made, *mesh).run(*BATCHES) for mesh in ((1, 1, 1), (2, 2, 2))]


def test_eight_devices_equal_one(after):
    (one, first), (eight, second) = after
    for name in ("loss", "loss/hinge", "loss/itc", "hinge/target", "refurbish/trusted", "refurbish/noisy_mean"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-5, err_msg=name)
    found = [jax.device_get(state.memory) for state in (one, eight)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *found)


def test_the_table_is_split_over_the_devices_that_split_the_batch(after):
    table = after[1][0].memory["refurbish"]["loss"]
    assert table.addressable_shards[0].data.shape == (len(table) // 4, 1)


def test_only_visited_pairs_have_losses_and_the_fit_is_that_of_the_period(after):
    (state, metrics), _ = after
    table = jax.device_get(state.memory["refurbish"])
    visited = np.unique(np.concatenate([batch["pair"] for batch in BATCHES]))
    others = np.setdiff1d(np.arange(len(table["loss"])), visited)
    assert (table["loss"][visited] >= 0).all() and (table["loss"][others] == UNSEEN).all()
    early = np.unique(np.concatenate([batch["pair"] for batch in BATCHES[:2]]))
    assert (table["clean"][np.setdiff1d(np.arange(FACTS.pairs), early)] == 1).all()  # not seen when the fit was made
    assert table["clean"][early].min() < 0.5 < table["clean"][early].max()
    assert 0 < metrics["hinge/target"] < 1 and "loss/refurbish" not in metrics  # it trains nothing


def test_a_step_that_is_not_finite_leaves_the_table(made, machine_of):
    bad = BATCHES[0] | {"image": np.full_like(BATCHES[0]["image"], np.nan)}
    state, metrics = machine_of(*made, 1, 1, 1).run(bad)
    assert metrics["skipped"] == 1 and (jax.device_get(state.memory["refurbish"]["loss"]) == UNSEEN).all()


def small(shapes_data, **more):
    """The tiny RCAR config on the coloured shapes: a period of three steps, which is an epoch of 24 pairs."""
    own = {
        "data.path": str(shapes_data),
        "data.eval_split": "test",
        "batch_size": 8,
        "steps": 8,
        "encoders.image.size": 16,
    } | more
    own |= {"objectives.refurbish.warmup": 3, "objectives.refurbish.period": "1 epoch", "eval.every": 4}
    return freeze(load_config("rcar", "tiny", own))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(shapes_data, tmp_path):
    config = small(shapes_data)
    whole = train(config, tmp_path / "whole")

    def stop(run, state, poll):
        os.kill(os.getpid(), signal.SIGTERM)
        poll()

    halfway = train(config, tmp_path / "stopped", stop, handle_signals=True)
    resumed = train(config, tmp_path / "stopped")
    assert (int(halfway.step), int(resumed.step)) == (4, 8)
    for a, b in zip(*map(jax.tree.leaves, map(jax.device_get, (whole, resumed))), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    notes = [line["eval"]["memory"]["refurbish"] for line in lines if "eval" in line]
    assert [note["seen"] for note in notes] == [1.0, 1.0] and sum(notes[0]["histogram"]["all"]) == 24
    np.testing.assert_allclose(sum(notes[-1]["mixture"]["share"]), 1.0, rtol=1e-5)


def test_a_run_does_not_go_on_with_the_pairs_of_another_split(shapes_data, tmp_path):
    train(small(shapes_data, steps=2), tmp_path)
    with pytest.raises(UserError, match="config.data.split is 'test', and config.objectives.hinge of the run in"):
        train(small(shapes_data, steps=4, **{"data.split": "test"}), tmp_path)
