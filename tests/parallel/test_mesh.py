"""Meshes: every axis named, one may be left open, and what does not fit is refused."""

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import AXES, batch_sharding, make_mesh, mesh_of, put_like, replicated, split_rows, to_host
from xmodal_jax.settings import MeshConfig


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ((8, 1, 1), (8, 1, 1)),
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 2, -1), (1, 2, 4)),
        ((-1, 4, 2), (1, 4, 2)),
    ],
)
def test_axes_multiply_to_the_devices(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert tuple(mesh.shape[name] for name in AXES) == shape
    assert sorted(device.id for device in mesh.devices.ravel()) == list(range(8))


def test_a_mesh_over_some_devices():
    assert make_mesh(MeshConfig(-1, 2, 1), jax.devices()[:4]).devices.shape == (2, 2, 1)
    assert make_mesh(MeshConfig(), jax.devices()[3:4]).devices.ravel()[0] == jax.devices()[3]


@pytest.mark.parametrize(
    "sizes, asked",
    [
        ((3, 1, 1), "data=3 x fsdp=1 x tensor=1 = 3"),
        ((2, 2, 1), "data=2 x fsdp=2 x tensor=1 = 4"),
        ((16, 1, 1), "data=16 x fsdp=1 x tensor=1 = 16"),
        ((-1, 3, 1), "a multiple of fsdp=3 x tensor=1 = 3"),
        ((-1, 16, 1), "a multiple of fsdp=16 x tensor=1 = 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, asked):
    sentence = f"config.mesh asks for {asked} devices, and there are 8; write axes that multiply to 8, such as data=8"
    with pytest.raises(UserError, match=sentence):
        make_mesh(MeshConfig(*sizes))


def test_one_device_is_named_in_the_singular():
    with pytest.raises(
        UserError, match="fsdp=16 x tensor=1 = 16 devices, and there is 1; write axes that multiply to 1"
    ):
        make_mesh(MeshConfig(fsdp=16), jax.devices()[:1])


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 8, 1), (-2, 1, 1)])
def test_two_open_axes_or_none_are_refused(sizes):
    with pytest.raises(UserError, match="write sizes above 0, one may be -1"):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize("sizes, share", [((8, 1, 1), 2), ((2, 2, 2), 3), ((1, 1, 8), 11)])
def test_rows_that_do_not_divide_are_split_with_copies_of_the_last(sizes, share):
    rows = np.arange(22).reshape(11, 2)
    placed = split_rows(make_mesh(MeshConfig(*sizes)), rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(share, 2)}
    whole = to_host(placed)
    np.testing.assert_array_equal(whole[:11], rows)
    np.testing.assert_array_equal(whole[11:], np.repeat(rows[-1:], len(whole) - 11, axis=0))
    np.testing.assert_array_equal(to_host(placed, 11), rows)


def test_rows_go_to_the_devices_of_what_they_are_used_with():
    one = jax.device_put(np.zeros(3), jax.devices()[5])
    assert mesh_of(one).devices.ravel().tolist() == [jax.devices()[5]]
    assert put_like({"a": one}, np.arange(3)).devices() == {jax.devices()[5]}
    mesh = make_mesh(MeshConfig(4, 2, 1))
    placed = put_like([jax.device_put(np.zeros(3), replicated(mesh))], np.arange(8))
    assert placed.sharding == batch_sharding(mesh)


def test_batches_are_split_over_data_and_fsdp_in_order():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rows = jax.device_put(np.arange(8), batch_sharding(mesh))
    held = {shard.device: np.asarray(shard.data).tolist() for shard in rows.addressable_shards}
    for data in range(2):
        for fsdp in range(2):
            first = 4 * data + 2 * fsdp
            assert all(held[device] == [first, first + 1] for device in mesh.devices[data, fsdp])


def test_replicated_is_a_full_copy_everywhere():
    x = jax.device_put(np.arange(3), replicated(make_mesh(MeshConfig())))
    assert len(x.addressable_shards) == 8 and all(shard.data.shape == (3,) for shard in x.addressable_shards)


class Chip(NamedTuple):
    """What `arranged` asks of a TPU device: where it is."""

    slice_index: int
    platform: str = "tpu"


def test_slices_must_share_the_data_axis():
    devices = [Chip(number // 4) for number in range(8)]
    with pytest.raises(UserError, match="config.mesh.data is 1, which 2 slices cannot share; write a multiple of 2"):
        make_mesh(MeshConfig(1, 8, 1), devices)


@pytest.mark.slow
def test_meshes_that_split_a_torus_axis_and_span_slices():
    """On TPU topologies that are not here; in a process of its own, for libtpu reads its environment when it starts."""
    pytest.importorskip("libtpu")
    from xmodal_jax.parallel.chips import parse_topology
    from xmodal_jax.planning.command import child_environment

    two = parse_topology("v6e:4x4x2slices")
    program = (
        "from xmodal_jax.parallel.chips import parse_topology as p\n"
        "from xmodal_jax.planning.program import topology_devices as d\n"
        "from xmodal_jax.parallel.mesh import make_mesh; from xmodal_jax.settings import MeshConfig\n"
        "mesh = make_mesh(MeshConfig(4, 8, 1), d(p('v6e:4x4x2slices'))).devices\n"
        "print([sorted({x.slice_index for x in row.flat}) for row in mesh])"
    )
    environment = os.environ | child_environment(two)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0], [0], [1], [1]]"
