"""Read the collectives of a compiled step: their kinds, how often they run, and the bytes they send between devices."""

import re
from dataclasses import dataclass

import numpy as np

from xmodal_jax.planning.hlo import Computation, Instruction, runs, shape_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective of the program: it runs `times` a step among `group` devices.

    `payload` is the bytes of the whole result on one device (of the whole operand for a reduce-scatter); `far` says
    that a group spans slices.
    """

    kind: str
    times: int
    group: int
    payload: float
    far: bool
    shape: str
    source: str  # op_name of the line of code it comes from

    @property
    def wire(self) -> float:
        """Bytes that one device sends in one run of a ring over its group (both directions of the ring share them)."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "all-to-all": self.group / 4, "collective-permute": 1.0}.get(
            self.kind, share
        )
        return self.payload * factor

    @property
    def total(self) -> float:
        """Payload bytes of a step."""
        return self.times * self.payload


def groups(rest: str, devices: int) -> list[list[int]]:
    """Parse the replica groups of a collective, in any of XLA's spellings, into lists of partition numbers."""
    if pairs := re.search(r"source_target_pairs=\{((?:\{[\d,]+\},?)*)\}", rest):
        return [[int(x) for x in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return _iota(iota[2], iota[3]).reshape(tuple(map(int, iota[1].split(",")))).tolist()
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", rest
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(int(np.prod(list(sizes.values()))))
        named = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        moved = np.moveaxis(ids.reshape(tuple(sizes.values())), named, range(-len(named), 0))
        return moved.reshape(-1, int(np.prod([list(sizes.values())[axis] for axis in named]))).tolist()
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", rest)
    found = [[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])] if listed else []
    return found or [list(range(devices))]


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """Expand `[2,4]T(1,0)`: the numbers 0, 1, ... laid out in this shape and transposed."""
    shape = tuple(map(int, sizes.split(",")))
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    return numbers.transpose(tuple(map(int, order.split(",")))) if order else numbers


def _payload(item: Instruction, kind: str, computation: Computation, group: int) -> float:
    """Return the bytes of the whole array on one device; the result of an async start also lists its operands."""
    size = shape_bytes(item.shape)
    if item.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        known = [computation.instructions[name] for name in item.operands if name in computation.instructions]
        size -= sum(shape_bytes(operand.shape) for operand in known)
    return size * group if kind == "reduce-scatter" else size


def collectives(module: dict[str, Computation], devices: int, per_slice: int = 0) -> list[Collective]:
    """List the collectives of a compiled module over `devices`, `per_slice` of them close together (0: all).

    A collective that the compiler spread over several fusions appears once in each, under one channel: it counts once.
    """
    found: dict[str, Collective] = {}
    for name, times in runs(module).items():
        for item in module[name].instructions.values():
            kind = item.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            scattered = name.startswith("all-reduce-scatter")  # on TPU a reduce-scatter is spelled as a fusion of two
            members = groups(item.rest, devices)
            size = 2 if kind == "collective-permute" else len(members[0])
            if size < 2 or not members:
                continue
            far = bool(per_slice) and any(len({x // per_slice for x in group}) > 1 for group in members)
            channel = re.search(r"channel_id=(\d+)", item.rest)
            key = f"{kind} {channel[1]}" if channel else f"{name} {item.name}"
            source = re.search(r'op_name="([^"]*)"', item.rest)
            payload = _payload(item, kind, module[name], size)
            named = "reduce-scatter" if scattered else kind
            one = Collective(named, times, size, payload, far, item.shape, source[1] if source else "")
            if key not in found or found[key].total < one.total:
                found[key] = one
    return sorted(found.values(), key=lambda one: -one.total)


def by_kind(found: list[Collective]) -> dict[str, tuple[int, float]]:
    """Sum the collectives by kind: {kind: (runs in a step, payload bytes in a step)}, most bytes first."""
    table = {kind: [one for one in found if one.kind == kind] for kind in KINDS}
    rows = {kind: (sum(x.times for x in own), sum(x.total for x in own)) for kind, own in table.items() if own}
    return dict(sorted(rows.items(), key=lambda row: -row[1][1]))
