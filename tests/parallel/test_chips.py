"""Names of topologies and chips: what they mean, and what is refused."""

import jax
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.parallel.chips import CHIPS, GIB, chip_of, local_chip, parse_topology


def test_a_topology_is_a_chip_and_the_shape_of_a_slice():
    v5e = parse_topology("v5e:16x16")
    assert (v5e.chip.name, v5e.shape, v5e.slices, v5e.per_slice, v5e.local) == ("v5e", (16, 16), 1, 256, False)
    assert (v5e.compiler_name, v5e.accelerator_type) == ("v5e:16x16", "v5litepod-256")


def test_v5p_has_another_name_and_counts_cores():
    v5p = parse_topology("v5p:8x8x8")
    assert (v5p.compiler_name, v5p.accelerator_type) == ("v5:8x8x8", "v5p-1024")


def test_slices_are_counted_after_the_shape():
    two = parse_topology("v6e:16x16x2slices")
    assert (two.shape, two.slices, two.per_slice, two.compiler_name) == ((16, 16), 2, 256, "v6e:16x16")


def test_local_devices_may_be_judged_as_a_chip():
    assert parse_topology("local").local and parse_topology("local").chip is None
    assert parse_topology("local", "v6e").chip is CHIPS["v6e"]


@pytest.mark.parametrize(
    ("text", "chip", "words"),
    [
        ("v9x:4x4", "", "'v9x' is not a chip to plan for; write one of v5e, v5p, v6e"),
        ("h100:8x1", "", "'h100' is not a chip to plan for"),
        ("v5e", "", "is not a topology; write 'local'"),
        ("v5e:16", "", "torus of 2 axes; write sizes such as v5e:4x4"),
        ("v5p:16x16", "", "write sizes such as v5p:4x4x4"),
        ("v5e:0x16", "", "torus of 2 axes"),
        ("v6e:16x16x0slices", "", "torus of 2 axes"),
        ("local", "v9", "there is no chip 'v9' in the table; write one of v5e"),
        ("v5e:4x4", "v6e", "with a chip is not a topology"),
    ],
)
def test_what_is_no_topology_is_refused(text, chip, words):
    with pytest.raises(UserError, match="topology|chip") as caught:
        parse_topology(text, chip)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_the_chip_behind_a_device(kind, name):
    assert chip_of(kind) is CHIPS[name]


def test_a_cpu_is_no_chip():
    assert chip_of("cpu") is None


def test_a_device_that_is_here_has_the_memory_it_says():
    small = local_chip("NVIDIA A100-SXM4-40GB", {"bytes_limit": 30 * GIB})
    assert (small.name, small.peak, small.usable) == ("a100", CHIPS["a100"].peak, 30 * GIB)
    assert local_chip("NVIDIA A100-SXM4-80GB", None) is local_chip("NVIDIA A100", {}) is CHIPS["a100"]
    cpu = jax.devices()[0]
    assert local_chip(cpu.device_kind, cpu.memory_stats()) is None


def test_what_a_program_may_use_is_below_the_published_memory():
    published = {"v5e": 16, "v5p": 96, "v6e": 32, "a100": 80, "h100": 80, "h200": 141}
    assert {name: chip.usable < published[name] * GIB for name, chip in CHIPS.items()} == dict.fromkeys(published, True)
