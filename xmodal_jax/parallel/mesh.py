"""The device mesh: axes data, fsdp and tensor, any of them 1."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmodal_jax.config import MeshConfig
from xmodal_jax.errors import refuse_unless

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # batches are split over both


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh over `devices` (default: all). One axis may be -1: what the others leave.

    Raises UserError when the axes do not multiply to the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    sizes = [config.data, config.fsdp, config.tensor]
    refuse_unless(
        sizes.count(-1) <= 1 and all(s > 0 or s == -1 for s in sizes),
        f"config.mesh is {sizes}; write sizes above 0, one may be -1",
    )
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    sizes = [size if size > 0 else len(devices) // known for size in sizes]
    total = sizes[0] * sizes[1] * sizes[2]
    refuse_unless(
        total == len(devices) and total > 0,
        f"config.mesh asks for {known} devices or a multiple, and there are {len(devices)}; write data=-1",
    )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data x fsdp."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
