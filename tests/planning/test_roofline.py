"""The roofline against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from xmodal_jax.parallel.chips import CHIPS, parse_topology
from xmodal_jax.planning.collectives import Collective
from xmodal_jax.planning.program import Facts, Memory
from xmodal_jax.planning.roofline import roofline, send_seconds, torus_axes

V5E, POD = CHIPS["v5e"], parse_topology("v5e:16x16")
FACTS = Facts(
    devices=256,
    seconds={},
    useful_flops=1.97e14 * 256 * 0.3,
    executed_flops=1.97e14 * 256 * 0.4,
    xla_flops=0.0,
    memory=Memory(0, 0),
    state={},
    params=0,
    batch_bytes=0,
    traffic=819e9 * 0.25,
)


def gather(group: int, payload: float, far: bool = False) -> Collective:
    """An all-gather that runs twice a step."""
    return Collective("all-gather", 2, group, payload, far, "", "")


def test_arithmetic_counts_recomputation_and_mfu_does_not():
    roof = roofline(FACTS, V5E, POD, 1000)
    np.testing.assert_allclose([roof.compute, roof.hbm, roof.network], [0.4, 0.25, 0.0])
    assert roof.bound == "arithmetic" and roof.seconds == roof.compute
    np.testing.assert_allclose([roof.rate, roof.mfu], [2500, 0.75])


def test_the_largest_of_the_three_bounds_the_step():
    assert roofline(dataclasses.replace(FACTS, traffic=819e9), V5E, POD, 1).bound == "memory bandwidth"
    busy = dataclasses.replace(FACTS, collectives=(gather(16, 1e12),))
    assert roofline(busy, V5E, POD, 1).bound == "the network"


def test_a_ring_on_one_axis_uses_both_directions():
    # 15/16 of 16 GB, twice, over 2 x 50 GB/s
    np.testing.assert_allclose(send_seconds(gather(16, 16e9), V5E, POD), 2 * 15e9 / 100e9)


def test_a_group_over_the_whole_torus_uses_both_axes():
    np.testing.assert_allclose(send_seconds(gather(256, 25.6e9), V5E, POD), 2 * 25.5e9 / 200e9)


def test_between_slices_the_data_centre_network_counts_too():
    two = parse_topology("v6e:16x16x2slices")
    near, far = (send_seconds(gather(512, 12.5e9, far), CHIPS["v6e"], two) for far in (False, True))
    np.testing.assert_allclose(far - near, 2 * (2 * 12.5e9 / 256 / 12.5e9))


@pytest.mark.parametrize(
    ("group", "shape", "axes"),
    [(16, (16, 16), 1), (2, (4, 4), 1), (17, (16, 16), 2), (512, (8, 8, 8), 3), (600, (16, 16), 2)],
)
def test_how_many_axes_a_group_spans(group, shape, axes):
    assert torus_axes(group, shape) == axes


def test_a_switch_has_no_torus():
    here = parse_topology("local", "h100")
    np.testing.assert_allclose(send_seconds(gather(8, 450e9), here.chip, here), 2 * 7 / 8)
