"""Build the device mesh (axes data, fsdp and tensor, each of any size) and move arrays onto it and back."""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmodal_jax.errors import UserError
from xmodal_jax.settings import MeshConfig
from xmodal_jax.types import Array

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # batches are split over both


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Return a mesh over `devices` (default: all). One axis may be -1: it takes the devices that the others leave.

    Raises UserError when the axes do not multiply to the number of devices.

    Examples:
      >>> dict(make_mesh(MeshConfig(data=-1), jax.devices()[:1]).shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = devices if devices is not None else jax.devices()
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or not all(s > 0 or s == -1 for s in sizes):
        raise UserError(f"config.mesh is {sizes}; write sizes above 0, one may be -1")
    known = math.prod(size for size in sizes if size > 0)
    whole = tuple(size if size > 0 else len(devices) // known for size in sizes)
    if math.prod(whole) != len(devices):
        raise UserError(misfit(sizes, known, len(devices)))
    return Mesh(arranged(whole, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def misfit(sizes: list[int], known: int, count: int) -> str:
    """Write the sentence for axes that do not multiply to `count` devices; `known` is the product of the fixed axes."""
    fixed = " x ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True) if size > 0)
    asked = f"a multiple of {fixed} = {known}" if -1 in sizes else f"{fixed} = {known}"
    there = f"there are {count}" if count != 1 else "there is 1"
    return (
        f"config.mesh asks for {asked} devices, and {there}; "
        f"write axes that multiply to {count}, such as data={count}, fsdp=1 and tensor=1"
    )


def arranged(sizes: tuple[int, ...], devices: list) -> np.ndarray:
    """Arrange devices in the shape of the mesh so that neighbours on an axis are near each other on the torus.

    Slices, joined only by the data-centre network, are split along "data". Raises UserError when they cannot be.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu" or slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % slices != 0:
        raise UserError(
            f"config.mesh.data is {sizes[0]}, which {slices} slices cannot share; write a multiple of {slices}"
        )
    near, far = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(near, far, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits rows over data x fsdp."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def process_share(sharding: NamedSharding, rows: int) -> tuple[int, int]:
    """Return the part of a batch of `rows` that this process loads: (k, n) for the k-th of n equal consecutive parts.

    Processes that share rows (a "tensor" axis across processes) load the same part. Raises UserError when the devices
    of this process do not hold consecutive rows.
    """
    held = sharding.addressable_devices_indices_map((rows,)).values()
    spans = sorted({index[0].indices(rows)[:2] for index in held if index is not None})
    start, stop = spans[0][0], spans[-1][1]
    if sum(last - first for first, last in spans) != stop - start or start % (stop - start) != 0:
        raise UserError(
            f"the devices of process {jax.process_index()} hold rows {spans} of the batch, which are not consecutive; "
            "write a config.mesh whose data x fsdp axes follow the processes"
        )
    return start // (stop - start), rows // (stop - start)


def local_mesh() -> Mesh:
    """Return a mesh of all devices of this process along "data"."""
    return make_mesh(MeshConfig(), jax.local_devices())


def mesh_of(tree: Any) -> Mesh:
    """Return the mesh that the arrays of `tree` lie on; arrays on a single device give a mesh of that device."""
    place = jax.tree.leaves(tree)[0].sharding
    if not isinstance(place, NamedSharding):
        return make_mesh(MeshConfig(), list(place.device_set))
    assert isinstance(place.mesh, Mesh), "arrays that exist lie on devices"
    return place.mesh


def filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Pad rows [b,...] to [size,...] with copies of the last row."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def split_rows(mesh: Mesh, rows: np.ndarray) -> Array:
    """Split host rows [b,...], the same on every process, over data x fsdp of the mesh: [b',...].

    b' is b rounded up to a multiple of these devices. The extra rows are copies of the last one; `to_host` cuts them
    off the result.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = filled(rows, -(-len(rows) // devices) * devices)
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda index: rows[index])


def put_like(tree: Any, rows: np.ndarray) -> Array:
    """Split host rows over the mesh that the arrays of `tree` lie on, as `split_rows` does."""
    return split_rows(mesh_of(tree), rows)


def to_host(x: Array, rows: int | None = None) -> np.ndarray:
    """Copy the whole array, or its first `rows`, to the host of every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)[:rows]
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(x, tiled=True))[:rows]
