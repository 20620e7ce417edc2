"""Advise what to change when a step does not fit: each change with an estimate of the bytes it saves on one device.

The estimates are arithmetic on shapes, not compiled; only the next plan measures them. `cost` orders the changes:
roughly the share of a step's time that a change takes, 0 for free ones. A change that the program would refuse is not
advised; if other fields must change with it, its override names them too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from xmodal_jax.checks import refuse_chunks
from xmodal_jax.config_file import freeze, override
from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.base import Objective
from xmodal_jax.parallel.mesh import AXES, make_mesh
from xmodal_jax.parallel.rules import Placement, axis_size, placements
from xmodal_jax.planning.program import PARTS, Facts
from xmodal_jax.settings import Config, as_dict
from xmodal_jax.training.loop import Run

MORE = " --config."  # between the fields of one change


@dataclass(frozen=True)
class Change:
    """A change of the config: the text after `--config.`, estimated bytes saved, and cost as a share of step time."""

    override: str
    why: str
    saves: float
    cost: float


@dataclass(frozen=True)
class Stack:
    """One stack of layers as the step runs it: its section of the config, layers, and tokens on one device."""

    section: str
    layers: int
    width: int
    hidden: int
    heads: int
    tokens: float  # rows on one device times tokens of a row
    length: int
    remat: str

    @property
    def kept(self) -> float:
        """Numbers that the backward pass keeps of all layers under the stack's remat policy."""
        per_token = self.width  # full: the layer's input only
        if self.remat in ("dots", "none"):
            per_token += 5 * self.width + self.hidden
        if self.remat == "none":
            per_token += 2 * self.hidden + 4 * self.width + 2 * self.heads * self.length
        return self.layers * self.tokens * per_token

    def full(self) -> float:
        """Return the numbers kept when everything but each layer's input is recomputed."""
        return self.layers * self.tokens * self.width


def _stack(name: str, own: Any, rows: float, tokens: int) -> Stack:
    """Describe the stack of a transformer encoder over `rows` rows of `tokens` tokens."""
    section = f"encoders.{name}"
    return Stack(section, own.layers, own.width, own.hidden, own.heads, rows * tokens, tokens, own.remat)


def stacks(config: Config, rows: float) -> list[Stack]:
    """List the trained stacks, with `rows` pairs on a device; ITM fuses each pair with its negatives."""
    fusion, length = config.fusion, config.asking.extent
    kinds = [fields.get("kind", name) for name, fields in config.objectives.items()]
    found = []
    for name, own in config.encoders.items():
        if own.kind == "vit":
            found.append(_stack(name, own, rows, (own.size // own.patch) ** 2 + 1))
        if own.kind in ("bert", "acquirers"):
            found.append(_stack(name, own, rows * (1 + kinds.count("mlm") + kinds.count("lm")), own.length))
    matched = sum(
        (1 + 2 * fields.get("negatives", 1)) / fields.get("every", 1)
        for name, fields in config.objectives.items()
        if fields.get("kind", name) == "itm"
    )
    fused = matched + kinds.count("mlm") + kinds.count("lm")
    tokens = fused * rows * length
    found.append(
        Stack("fusion", fusion.layers, fusion.width, fusion.hidden, fusion.heads, tokens, length, fusion.remat)
    )
    return [stack for stack in found if stack.tokens and stack.layers]


def state_with(run: Run, mesh: Mesh | AbstractMesh) -> float:
    """Return the bytes of the state on one device if it lived on `mesh`, of which only the sizes matter."""

    def parts(one: Placement) -> int:
        return math.prod(axis_size(mesh, axis) for axis in one.spec)

    return sum(one.bytes / parts(one) for one in placements(run.abstract, mesh))


def wider_fsdp(run: Run, facts: Facts) -> Iterator[Change]:
    """Propose to split the state over more devices: each power of two up to all of them."""
    mesh, now = dict(run.mesh.shape), sum(facts.state[name] for name in PARTS)
    size = mesh["fsdp"] * 2
    while size <= mesh["fsdp"] * mesh["data"] and (mesh["data"] * mesh["fsdp"]) % size == 0:
        data = mesh["data"] * mesh["fsdp"] // size
        saved = now - state_with(run, AbstractMesh((data, size, mesh["tensor"]), AXES))
        yield Change(
            f"mesh.data={data}{MORE}mesh.fsdp={size}", "state split over more devices", saved, 0.01 * math.log2(size)
        )
        size *= 2


def thriftier_layers(config: Config, rows: float) -> Iterator[Change]:
    """Propose to recompute more of a tower in the backward pass, or to keep it in half the bytes."""
    width = 2 if config.dtype == "bfloat16" else 4
    for stack in stacks(config, rows):
        if stack.remat != "full":
            saved = width * (stack.kept - stack.full())
            yield Change(f"{stack.section}.remat=full", "layers recomputed in the backward pass", saved, 0.1)
    if width == 4:
        saved = 2 * sum(stack.kept for stack in stacks(config, rows))
        yield Change("dtype=bfloat16", "activations in half the bytes", saved, 0.0)


def groupable(objective: Objective, group: int) -> bool:
    """Return True if matching can draw its negatives inside `group` rows."""
    return group % objective.every == 0 and objective.negatives < group // objective.every


def fits_batch(objective: Objective, batch: int) -> bool:
    """Return True if the groups of matching, if the objective has any, divide a batch of this many rows."""
    group = objective.group or batch
    return objective.group is None or (batch % group == 0 and groupable(objective, group))


def regrouped(objectives: dict[str, Objective], batch: int, chunk: int, shards: int) -> list[str] | None:
    """List the group overrides for a batch and chunk (0: none) of `shards` row shards; None if no group is possible."""
    fields, rows = [], (chunk or batch) // shards  # rows of one pass on one device
    for name, objective in objectives.items():
        group = objective.group
        if group is None:
            continue
        if fits_batch(objective, batch) and (chunk in (0, batch) or (group and rows % group == 0)):
            continue
        if not groupable(objective, rows):  # then no divisor of `rows` is, as they are all smaller
            return None
        fields.append(f"objectives.{name}.group={rows}")
    return fields


def chunked(run: Run, rows: int) -> Iterator[Change]:
    """Propose passes over fewer rows: 4 pieces for each present one, or as near as `rows` of a device divide."""
    config, shards = run.assembly.config, row_shards(run.mesh)
    now = config.batch_size // (config.chunk or config.batch_size)
    finer = (pieces for pieces in range(now + 1, rows + 1) if rows % pieces == 0)
    for pieces in sorted(finer, key=lambda pieces: abs(math.log2(pieces / (4 * now)))):
        chunk = config.batch_size // pieces
        groups = regrouped(run.assembly.objectives, config.batch_size, chunk, shards)
        if groups is not None:
            width = 2 if config.dtype == "bfloat16" else 4
            saved = (1 / now - 1 / pieces) * width * sum(stack.kept for stack in stacks(config, rows))
            why = f"towers run in {pieces} chunks, each once more in the backward pass"
            yield Change(MORE.join([f"chunk={chunk}", *groups]), why, saved, 0.33 if now == 1 else 0.05)
            return


def thriftier_objectives(run: Run, rows: int) -> Iterator[Change]:
    """Propose to keep no matrix of the batch against itself, and no tokens that cross devices for negatives."""
    config, pairs = run.assembly.config, run.assembly.config.batch_size
    width = 2 if config.dtype == "bfloat16" else 4
    own = (config.chunk or pairs) // row_shards(run.mesh)
    for name, objective in run.assembly.objectives.items():
        if objective.ring is False:
            columns = pairs + objective.queue
            yield Change(
                f"objectives.{name}.ring=True", "similarities in blocks, none kept", 4 * 6 * rows * columns, 0.01
            )
        group = objective.group
        if group is not None and (group == 0 or group > rows) and groupable(objective, own):
            image = config.encoders[config.fusion.pair[0]]
            tokens = (image.size // image.patch) ** 2 if image.kind == "vit" else 50
            saved = (pairs - rows) * width * config.fusion.width * (2 * tokens + config.asking.extent)
            yield Change(f"objectives.{name}.group={own}", "negatives from one device's own rows", saved, 0.0)


def smaller_batch(run: Run, facts: Facts, rows: int) -> Iterator[Change]:
    """Propose half the pairs, or a quarter, with a chunk and groups that divide them."""
    config, shards = run.assembly.config, row_shards(run.mesh)
    for part in (2, 4):
        batch = config.batch_size // part
        chunk = math.gcd(config.chunk, batch) if config.chunk else 0
        groups = regrouped(run.assembly.objectives, batch, chunk, shards)
        if rows % part == 0 and groups is not None:
            saved = (facts.memory.temporary + facts.batch_bytes) * (1 - 1 / part)
            chunks = [f"chunk={chunk}"] if chunk != config.chunk else []
            fields = [f"batch_size={batch}", *chunks, *groups]
            yield Change(MORE.join(fields), "fewer pairs per step", saved, float(part))


def row_shards(mesh: Mesh) -> int:
    """Return the number of devices that share the rows of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def accepted(run: Run, change: Change) -> bool:
    """Return True if the config with this change passes the checks of config, objectives, mesh and chunks."""
    values = ConfigDict(as_dict(run.assembly.config))
    try:
        for item in change.override.split(MORE):
            override(values, item)
        config = freeze(values)
        objectives = build_objectives(config.objectives)
        shards = row_shards(make_mesh(config.mesh, list(run.mesh.devices.flat)))
        refuse_chunks(config, objectives, shards)
    except (UserError, NotImplementedError):  # the latter: a mesh that jax cannot lay over this torus
        return False
    return config.batch_size % shards == 0 and all(fits_batch(one, config.batch_size) for one in objectives.values())


def candidates(run: Run, facts: Facts) -> list[Change]:
    """List all changes that save something."""
    rows = run.assembly.config.batch_size // row_shards(run.mesh)
    found = [
        *wider_fsdp(run, facts),
        *thriftier_layers(run.assembly.config, rows),
        *chunked(run, rows),
        *thriftier_objectives(run, rows),
        *smaller_batch(run, facts, rows),
    ]
    return [one for one in found if one.saves > 0]


def changes(run: Run, facts: Facts, missing: float) -> list[Change]:
    """Choose three changes, cheapest first: those that alone free `missing` bytes, then the largest others."""
    found = candidates(run, facts)
    enough = sorted((one for one in found if one.saves >= missing), key=lambda one: one.cost)
    rest = sorted((one for one in found if one.saves < missing), key=lambda one: -one.saves)
    chosen, named = [], set()
    for one in [*enough, *rest]:
        kind = one.override.split("=")[0]
        if kind not in named and len(chosen) < 3 and accepted(run, one):
            chosen.append(one)
            named.add(kind)
    return sorted(chosen, key=lambda one: (one.saves < missing, one.cost))
