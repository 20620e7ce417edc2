"""What is advised when a step does not fit: the order, and the estimates on shapes."""

import dataclasses

import numpy as np
import pytest

from xmodal_jax.assemble import assemble_without_data
from xmodal_jax.config_file import freeze, load
from xmodal_jax.planning.advice import (
    MORE,
    Change,
    Stack,
    accepted,
    candidates,
    changes,
    stacks,
    state_with,
    wider_fsdp,
)
from xmodal_jax.planning.program import PARTS, Facts, Memory, device_bytes
from xmodal_jax.training.loop import make_run

GB = 1e9


def run_of(overrides):
    """The tiny quickstart's run on 8 devices, refused where the program refuses it."""
    return make_run(assemble_without_data(freeze(load("configs/quickstart.py:tiny", list(overrides)))))


def prepared(*overrides: str):
    """(run, facts) of the tiny quickstart on 8 devices, 1 GB of temporaries."""
    run = run_of(overrides)
    state = {name: device_bytes(getattr(run.abstract, name)) for name in PARTS}
    return run, Facts(8, {}, 0.0, 0.0, 0.0, Memory(sum(state.values()), GB), state, 0, 1e6)


@pytest.fixture(scope="module")
def tiny():
    """The tiny run with matching over the whole batch."""
    return prepared("batch_size=64")


def names(found):
    """The fields that the changes change."""
    return [one.override.split("=")[0] for one in found]


def test_the_cheapest_that_suffice_come_first(tiny):
    found = changes(*tiny, missing=1.0)
    assert len(found) == 3 and all(one.saves >= 1 for one in found)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    assert set(names(found)) == {"dtype", "objectives.itm.group", "mesh.data"}  # free ones, then the cheap one


def test_what_is_not_enough_alone_comes_last_and_largest(tiny):
    found = changes(*tiny, missing=0.4 * GB)
    assert names(found)[0] == "batch_size" and found[0].saves >= 0.4 * GB
    assert all(one.saves < 0.4 * GB for one in found[1:])
    assert len(set(names(found))) == 3


def test_no_change_is_advised_that_is_made_already():
    run, facts = prepared(
        "batch_size=64",
        "dtype=bfloat16",
        "objectives.itm.group=8",
        "mesh.data=1",
        "mesh.fsdp=8",
        "encoders.image.remat=full",
        "encoders.text.remat=full",
        "fusion.remat=full",
    )
    every = set(names(changes(run, facts, 1.0)))
    assert not every & {"dtype", "objectives.itm.group", "mesh.data", "encoders.image.remat", "encoders.text.remat"}


@pytest.mark.parametrize(
    ("given", "chunk"),
    [
        (("batch_size=64",), "chunk=16 objectives.itm.group=2"),  # a chunk needs a group
        (("batch_size=24",), None),  # 3 rows a device: a chunk of one row has no negative
        (("batch_size=96", "objectives.itm.every=3"), "chunk=48 objectives.itm.group=6"),
        (("batch_size=64", "objectives.itm.group=4", "chunk=32"), "chunk=16 objectives.itm.group=2"),
        (("batch_size=48", "objectives={'itc': {'queue': 64}}"), "chunk=16"),  # 6 rows: 3 pieces, nothing to group
    ],
)
def test_what_is_advised_is_what_the_program_takes(given, chunk):
    run, facts = prepared(*given)
    found = [one.override.split(MORE) for one in candidates(run, facts) if accepted(run, one)]
    assert [" ".join(fields) for fields in found if "chunk" in fields[0]] == [chunk] * (chunk is not None)
    assert len(found) == len(candidates(run, facts))  # each is repaired as it is made
    for fields in found:
        if fields[0].split("=")[0] in ("chunk", "batch_size", "objectives.itm.group"):
            made = run_of([*given, *fields])
            itm, rows = made.assembly.objectives.get("itm"), made.assembly.config.batch_size
            assert itm is None or itm.group_size(rows) > itm.negatives


@pytest.mark.parametrize(
    "override",
    ["chunk=16", "chunk=24", "chunk=4", "batch_size=36", "mesh.data=3", "objectives.itm.group=5"],
)
def test_what_the_program_refuses_is_not_accepted(tiny, override):
    assert not accepted(tiny[0], Change(override, "", 1.0, 0.0))


def test_the_state_over_more_devices_is_what_the_rules_say(tiny):
    run, facts = tiny
    options = list(wider_fsdp(run, facts))
    assert [one.override for one in options] == [
        "mesh.data=4 --config.mesh.fsdp=2",
        "mesh.data=2 --config.mesh.fsdp=4",
        "mesh.data=1 --config.mesh.fsdp=8",
    ]
    wide, _ = prepared("batch_size=64", "mesh.data=1", "mesh.fsdp=8")
    now, then = device_bytes(run.abstract), device_bytes(wide.abstract)
    np.testing.assert_allclose(options[-1].saves, now - then, rtol=1e-3)
    np.testing.assert_allclose(state_with(wide, wide.mesh), then)


def test_a_stack_keeps_less_the_more_it_recomputes():
    base = Stack("text", 2, 8, 32, 2, tokens=100, length=4, remat="full")
    assert base.kept == base.full() == 2 * 100 * 8
    dots, none = (dataclasses.replace(base, remat=name) for name in ("dots", "none"))
    assert base.kept < dots.kept == 2 * 100 * (8 + 40 + 32) < none.kept


def test_stacks_count_the_passes_of_the_objectives():
    config = freeze(load("configs/quickstart.py:tiny", ["objectives.itm.every=2"]))
    found = {stack.section: stack.tokens for stack in stacks(config, rows=8)}
    assert found == {"encoders.image": 8 * 17, "encoders.text": 3 * 8 * 12, "fusion": (1.5 + 2) * 8 * 12}
