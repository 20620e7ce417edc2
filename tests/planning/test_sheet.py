"""The printed plan where the compiler refused, where no chip is known, and where loops or slices are involved."""

import dataclasses

import pytest

from xmodal_jax.assemble import assemble_without_data
from xmodal_jax.config_file import freeze, load
from xmodal_jax.parallel.chips import CHIPS, GIB, parse_topology
from xmodal_jax.planning.collectives import Collective
from xmodal_jax.planning.program import PARTS, Facts, Memory, device_bytes
from xmodal_jax.planning.sheet import sheet
from xmodal_jax.training.loop import make_run


@pytest.fixture(scope="module")
def run():
    """The tiny quickstart on the 8 devices."""
    return make_run(assemble_without_data(freeze(load("configs/quickstart.py:tiny", ["batch_size=64"]))))


@pytest.fixture(scope="module")
def facts(run):
    """Made-up facts of a compiled step that takes 2 GiB."""
    state = {name: device_bytes(getattr(run.abstract, name)) for name in PARTS} | {"rest": 0.0}
    seconds = {"tracing": 1.0, "compiling": 2.5}
    return Facts(8, seconds, 64e9, 96e9, 1e9, Memory(sum(state.values()), 2 * GIB), state, 400_000, 1e6, traffic=1e9)


LOCAL = parse_topology("local")


def test_a_refused_step_gets_three_changes_cheapest_first(run, facts):
    memory = Memory(1.0 * GIB, 17.75 * GIB, usable=15.75 * GIB, refused=True, largest=("6.00G f32[9] jit(step)/dot",))
    lines = list(sheet(run, dataclasses.replace(facts, memory=memory), LOCAL, CHIPS["v5e"]))
    verdict = next(number for number, line in enumerate(lines) if line.startswith("verdict"))
    assert lines[verdict].startswith("verdict     does not fit: 3.00 GiB too much") and "ESTIMATES" in lines[verdict]
    assert len(lines[verdict + 1 :]) == 3
    assert all(line.startswith("  --config.") and "saves about" in line for line in lines[verdict + 1 :])
    assert "batch_size=32" in lines[verdict + 1] and lines[-1].endswith("not enough alone")
    assert "  large buffer: 6.00G f32[9] jit(step)/dot" in lines
    assert not any(line.startswith(("roofline", "collectives")) for line in lines)  # nothing is known of them


def test_a_program_that_compiles_but_is_too_large_does_not_fit_either(run, facts):
    lines = list(sheet(run, dataclasses.replace(facts, memory=Memory(GIB, 20 * GIB)), LOCAL, CHIPS["v5e"]))
    assert any(line.startswith("verdict     does not fit: 5.25 GiB too much") for line in lines)
    assert any(line.startswith("roofline") for line in lines)


def test_without_a_chip_nothing_is_judged(run, facts):
    lines = list(sheet(run, facts, LOCAL, None))
    assert lines[-1].startswith("verdict     not judged") and "option 'chip'" in lines[-1]
    assert not any(line.startswith("roofline") for line in lines)


def test_work_is_per_pair_and_bounds_are_told(run, facts):
    lines = list(sheet(run, facts, LOCAL, CHIPS["v5e"]))
    assert "work        1 GFLOP per pair useful; 1.5 executed, recomputation included" in lines
    assert "roofline    arithmetic 0.0609 ms, memory 1.22 ms, network 0 ms" in lines
    assert any(line.endswith("bound by memory bandwidth") for line in lines)
    assert "time        tracing 1.0 s, compiling 2.5 s" in lines


def test_slices_and_unknown_loops_are_named(run, facts):
    far = Collective("all-reduce", 3, 512, 2e6, True, "f32[500000]", "jit(step)/transpose/reduce_sum")
    lines = list(sheet(run, dataclasses.replace(facts, collectives=(far,), unknown_loops=2), LOCAL, CHIPS["v6e"]))
    assert "  all-reduce               3      0.006 GB" in lines
    assert any("3 x all-reduce of 2 MB over 512 devices in several slices" in line for line in lines)
    assert any("2 loops with unknown trips" in line and "lower bounds" in line for line in lines)
