"""The chips a plan can be made for, and the names of topologies.

Figures per chip as Google publishes them (docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e) and NVIDIA's data sheets. Links
are one direction of one link: a TPU's published interconnect (1,600 Gbit/s for v5e, 4,800 for v5p, 3,200 for v6e) over
its 2 links per torus axis. `usable` is what XLA lets a program have of the memory, as its own messages say it.
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
    axes: int = 1  # of the torus; 1: a switch that every chip reaches at `link`
    topology: str = ""  # prefix of the compiler's topology name; "": not compiled ahead of time
    accelerator: str = ""  # prefix of TPU_ACCELERATOR_TYPE
    cores: int = 1  # that TPU_ACCELERATOR_TYPE counts per chip
    kinds: tuple[str, ...] = ()  # how jax's `device_kind` begins; the table goes from the longer to the shorter


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
    """Which devices to plan for: a chip, the shape of one slice and how many slices; `local` are this machine's."""

    text: str
    chip: Chip | None
    shape: tuple[int, ...] = ()
    slices: int = 1

    @property
    def local(self) -> bool:
        """Whether these are the devices of this machine."""
        return not self.shape

    @property
    def per_slice(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def compiler_name(self) -> str:
        """The name the TPU compiler knows one slice by."""
        return f"{self.chip.topology}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator_type(self) -> str:
        """The value of TPU_ACCELERATOR_TYPE."""
        return f"{self.chip.accelerator}-{self.per_slice * self.chip.cores}"


def chip_of(kind: str) -> Chip | None:
    """The chip behind jax's `device_kind`, None where the table has none (a CPU)."""
    return next((chip for chip in CHIPS.values() if kind.startswith(chip.kinds)), None)


def local_chip(kind: str, stats: Mapping[str, int] | None) -> Chip | None:
    """The chip behind a device that is here, with the memory (bytes) that its `memory_stats()` lets a program have.

    One `device_kind` is sold with several memories (A100: 40 and 80 GB), and the process may be given a share only.
    """
    chip, limit = chip_of(kind), (stats or {}).get("bytes_limit", 0)
    return dataclasses.replace(chip, usable=float(limit)) if chip and limit else chip


def chip_named(name: str) -> Chip:
    """The chip `name`. Raises UserError with the names there are."""
    if name not in CHIPS:
        raise UserError(f"there is no chip '{name}' in the table; write one of {', '.join(CHIPS)}")
    return CHIPS[name]


def parse_topology(text: str, chip: str = "") -> Topology:
    """`v5e:16x16`, `v6e:16x16x2slices` or `local` -> Topology; `chip` says what to judge local devices as.

    Raises UserError for a name that is no topology, an unknown chip, and a shape that the chip's torus does not have.
    """
    if text == "local":
        return Topology(text, chip_named(chip) if chip else None)
    known = [name for name, item in CHIPS.items() if item.topology]
    form = re.fullmatch(r"(\w+):(\d+(?:x\d+)*?)(?:x(\d+)slices?)?", text)
    if form is None or chip:
        raise UserError(
            f"--topology '{text}'{' with --chip' if chip else ''} is not a topology; write 'local' (with --chip NAME if you "
            "like), or a chip and its shape such as v5e:16x16, v5p:8x8x8 or v6e:16x16x2slices"
        )
    name, shape, slices = form[1], tuple(map(int, form[2].split("x"))), int(form[3] or 1)
    if name not in known:
        raise UserError(f"--topology '{text}': '{name}' is not a chip to plan for; write one of {', '.join(known)}")
    if len(shape) != CHIPS[name].axes or min(shape) <= 0 or slices <= 0:
        raise UserError(
            f"--topology '{text}': {name} has a torus of {CHIPS[name].axes} axes; write sizes such as "
            f"{name}:{'x'.join(['4'] * CHIPS[name].axes)}"
        )
    return Topology(text, CHIPS[name], shape, slices)
