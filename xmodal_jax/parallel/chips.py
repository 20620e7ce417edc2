"""A table of accelerators that a plan can be made for, and the syntax of topologies.

Figures per chip as published by Google (docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e) and in NVIDIA's data sheets.
`link` is one direction of one link: a TPU's published interconnect (1,600 Gbit/s for v5e, 4,800 for v5p, 3,200 for v6e)
divided by its 2 links per torus axis. `usable` is the memory that XLA lets a program have, read off its own messages.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from xmodal_jax.errors import UserError

GIB = 1024**3


@dataclass(frozen=True)
class Chip:
    """One accelerator: peak bfloat16 FLOP/s, memory (bytes) and its bandwidth, links (bytes/s), torus axes."""

    name: str
    peak: float
    usable: float
    hbm_bandwidth: float
    link: float  # one direction of one link, bytes/s
    dcn: float  # between slices or hosts, bytes/s and chip
    axes: int = 1  # of the torus; 1: a switch that reaches every chip at `link`
    topology: str = ""  # prefix of the compiler's topology name; "": no compilation ahead of time
    accelerator: str = ""  # prefix of TPU_ACCELERATOR_TYPE
    cores: int = 1  # per chip, as TPU_ACCELERATOR_TYPE counts them
    kinds: tuple[str, ...] = ()  # prefixes of jax's `device_kind`; in the table longer ones come first


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 15.75 * GIB, 819e9, 50e9, 3.1e9, 2, "v5e", "v5litepod", 1, ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 100e9, 6.2e9, 3, "v5", "v5p", 2, ("TPU v5", "TPU v5p")),
        Chip("v6e", 918e12, 31.25 * GIB, 1640e9, 100e9, 12.5e9, 2, "v6e", "v6e", 1, ("TPU v6 lite", "TPU v6e")),
        Chip("a100", 312e12, 79 * GIB, 2039e9, 300e9, 25e9, kinds=("NVIDIA A100",)),
        Chip("h100", 989e12, 79 * GIB, 3350e9, 450e9, 50e9, kinds=("NVIDIA H100",)),
        Chip("h200", 989e12, 139 * GIB, 4800e9, 450e9, 50e9, kinds=("NVIDIA H200",)),
    )
}


@dataclass(frozen=True)
class Topology:
    """The devices to plan for: a chip, the shape of one slice and the number of slices.

    The topology "local" stands for this machine's devices; it has no shape, and its chip may be unknown (None).
    """

    text: str
    chip: Chip | None
    shape: tuple[int, ...] = ()
    slices: int = 1

    @property
    def local(self) -> bool:
        """True if these are the devices of this machine."""
        return not self.shape

    @property
    def per_slice(self) -> int:
        """Number of chips in one slice."""
        return math.prod(self.shape)

    @property
    def compiler_name(self) -> str:
        """Name of one slice in the TPU compiler, such as v5e:4x4."""
        assert self.chip is not None, "only a topology that is not local has a name"
        return f"{self.chip.topology}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator_type(self) -> str:
        """Value of TPU_ACCELERATOR_TYPE for one slice."""
        assert self.chip is not None, "only a topology that is not local has a type"
        return f"{self.chip.accelerator}-{self.per_slice * self.chip.cores}"


def chip_of(kind: str) -> Chip | None:
    """Return the chip behind jax's `device_kind`, or None if the table has no such chip (a CPU)."""
    return next((chip for chip in CHIPS.values() if kind.startswith(chip.kinds)), None)


def local_chip(kind: str, stats: Mapping[str, int] | None) -> Chip | None:
    """Return the chip of a local device, with the memory (bytes) that its `memory_stats()` grants a program.

    One `device_kind` is sold with several memory sizes (A100: 40 and 80 GB), and the process may be given only a share.
    """
    chip, limit = chip_of(kind), (stats or {}).get("bytes_limit", 0)
    return dataclasses.replace(chip, usable=float(limit)) if chip and limit else chip


def chip_named(name: str) -> Chip:
    """Return the chip called `name`. Raises UserError with the known names."""
    if name not in CHIPS:
        raise UserError(f"there is no chip '{name}' in the table; write one of {', '.join(CHIPS)}")
    return CHIPS[name]


def parse_topology(text: str, chip: str = "") -> Topology:
    """Parse `v5e:16x16`, `v6e:16x16x2slices` or `local`; `chip` names the chip to judge local devices as.

    Raises UserError for a text that is no topology, an unknown chip, and a shape that does not fit the chip's torus.
    """
    if text == "local":
        return Topology(text, chip_named(chip) if chip else None)
    known = [name for name, item in CHIPS.items() if item.topology]
    form = re.fullmatch(r"(\w+):(\d+(?:x\d+)*?)(?:x(\d+)slices?)?", text)
    if form is None or chip:
        raise UserError(
            f"topology '{text}'{' with a chip' if chip else ''} is not a topology; write 'local' (with a chip's name "
            "if you like), or a chip and its shape such as v5e:16x16, v5p:8x8x8 or v6e:16x16x2slices"
        )
    name, shape, slices = form[1], tuple(map(int, form[2].split("x"))), int(form[3] or 1)
    if name not in known:
        raise UserError(f"topology '{text}': '{name}' is not a chip to plan for; write one of {', '.join(known)}")
    if len(shape) != CHIPS[name].axes or min(shape) <= 0 or slices <= 0:
        raise UserError(
            f"topology '{text}': {name} has a torus of {CHIPS[name].axes} axes; write sizes such as "
            f"{name}:{'x'.join(['4'] * CHIPS[name].axes)}"
        )
    return Topology(text, CHIPS[name], shape, slices)
