"""Bound a step's time on a chip from below, by arithmetic, memory traffic and network, and derive rates from it.

It is a bound, not a forecast: the three are taken to overlap perfectly, and every product to run at the chip's peak.
"""

import math
from dataclasses import dataclass

from xmodal_jax.parallel.chips import Chip, Topology
from xmodal_jax.planning.collectives import Collective
from xmodal_jax.planning.program import Facts


@dataclass(frozen=True)
class Roofline:
    """Seconds per step by each limit, and the rates that follow for a global batch of `pairs`."""

    compute: float
    hbm: float
    network: float
    pairs: int
    useful: float  # FLOPs of a step
    peak: float  # FLOP/s of all chips

    @property
    def seconds(self) -> float:
        """The largest of the three times."""
        return max(self.compute, self.hbm, self.network)

    @property
    def bound(self) -> str:
        """Name of the limit that the step waits for."""
        times = {"arithmetic": self.compute, "memory bandwidth": self.hbm, "the network": self.network}
        return max(times, key=lambda name: times[name])

    @property
    def rate(self) -> float:
        """Pairs per second."""
        return self.pairs / self.seconds

    @property
    def mfu(self) -> float:
        """Share of the peak that useful FLOPs take (rematerialisation is no useful work)."""
        return self.useful / (self.seconds * self.peak)


def torus_axes(group: int, shape: tuple[int, ...]) -> int:
    """Return the fewest axes of a torus of this shape that a group of this many chips can span."""
    reach = 1
    for number, size in enumerate(sorted(shape, reverse=True), start=1):
        reach *= size
        if group <= reach:
            return number
    return max(1, len(shape))


def send_seconds(one: Collective, chip: Chip, topology: Topology) -> float:
    """Return the seconds that all runs of one collective take in a step.

    Inside a slice a ring uses both directions of each torus axis it spans. Between slices each chip sends its share
    over the data-centre network, after the part inside its slice.
    """
    axes = torus_axes(one.group, topology.shape or (one.group,))
    seconds = one.wire / (2 * chip.link * axes if chip.topology else chip.link)
    if one.far:
        inside = max(1, math.ceil(one.group / topology.slices))
        seconds += 2 * one.payload / inside / chip.dcn
    return one.times * seconds


def roofline(facts: Facts, chip: Chip, topology: Topology, pairs: int) -> Roofline:
    """Compute the roofline of a compiled step on `chip`."""
    peak = chip.peak * facts.devices
    network = sum(send_seconds(one, chip, topology) for one in facts.collectives)
    return Roofline(
        compute=max(facts.executed_flops, facts.useful_flops) / peak,
        hbm=facts.traffic / chip.hbm_bandwidth,
        network=network,
        pairs=pairs,
        useful=facts.useful_flops,
        peak=peak,
    )
