"""What to change when a step does not fit: each change with an estimate of the bytes it saves on one device.

The estimates are arithmetic on shapes, not compiled; the next plan tells the truth. `cost` orders the changes: the share
of a step's time that they take, roughly, 0 for those that are free.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_jax.config import Config
from xmodal_jax.parallel.rules import RULES, place
from xmodal_jax.plan.program import PARTS, Facts
from xmodal_jax.train.loop import Run


@dataclass(frozen=True)
class Change:
    """`override` is what to write on the command line, `saves` the estimated bytes, `cost` the share of step time."""

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
        """The same with everything recomputed but the input of each layer."""
        return self.layers * self.tokens * self.width


def stacks(config: Config, rows: float) -> list[Stack]:
    """The stacks that are trained, with `rows` pairs on a device; ITM fuses each pair with its negatives."""
    image, text, fusion, length = config.image, config.text, config.fusion, config.data.length
    found = []
    if image.kind == "vit":
        patches = (config.data.image_size // image.patch) ** 2 + 1
        found.append(
            Stack("image", image.layers, image.width, image.hidden, image.heads, rows * patches, patches, image.remat)
        )
    kinds = [fields.get("kind", name) for name, fields in config.objectives.items()]
    texts = 1 + kinds.count("mlm") + kinds.count("lm")
    found.append(
        Stack("text", text.layers, text.width, text.hidden, text.heads, texts * rows * length, length, text.remat)
    )
    matched = sum(
        (1 + 2 * fields.get("negatives", 1)) / fields.get("every", 1)
        for name, fields in config.objectives.items()
        if fields.get("kind", name) == "itm"
    )
    fused = matched + kinds.count("mlm") + kinds.count("lm")
    tokens = fused * rows * length
    found.append(Stack("fusion", fusion.layers, text.width, fusion.hidden, fusion.heads, tokens, length, fusion.remat))
    return [stack for stack in found if stack.tokens and stack.layers]


class Grown:
    """A mesh's sizes with other ones in place: all that `place` asks of a mesh."""

    def __init__(self, **shape: int):
        self.shape = shape


def state_with(run: Run, mesh: Any) -> float:
    """Bytes of the state on one device if it lived on `mesh` (only its sizes matter)."""
    import jax

    from xmodal_jax.parallel.rules import path_name

    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.abstract):
        parts = [axis for axis in place(path_name(path), leaf.shape, mesh, RULES).spec if axis is not None]
        names = [name for axis in parts for name in (axis if isinstance(axis, tuple) else (axis,))]
        total += leaf.size * leaf.dtype.itemsize / float(np.prod([mesh.shape[name] for name in names] or [1]))
    return total


def wider_fsdp(run: Run, facts: Facts) -> Iterator[Change]:
    """Split the state over more devices: each power of two up to all of them."""
    mesh, now = dict(run.mesh.shape), sum(facts.state[name] for name in PARTS)
    size = mesh["fsdp"] * 2
    while size <= mesh["fsdp"] * mesh["data"] and (mesh["data"] * mesh["fsdp"]) % size == 0:
        data = mesh["data"] * mesh["fsdp"] // size
        saved = now - state_with(run, Grown(data=data, fsdp=size, tensor=mesh["tensor"]))
        yield Change(
            f"mesh.data={data} --config.mesh.fsdp={size}", "state split over more devices", saved, 0.01 * np.log2(size)
        )
        size *= 2


def thriftier_layers(config: Config, rows: float) -> Iterator[Change]:
    """Recompute more of a tower in the backward pass, or run it in chunks."""
    width = 2 if config.dtype == "bfloat16" else 4
    for stack in stacks(config, rows):
        if stack.remat != "full":
            saved = width * (stack.kept - stack.full())
            yield Change(f"{stack.section}.remat=full", "layers recomputed in the backward pass", saved, 0.1)
    if width == 4:
        saved = 2 * sum(stack.kept for stack in stacks(config, rows))
        yield Change("dtype=bfloat16", "activations in half the bytes", saved, 0.0)
    if hasattr(config, "chunk") and rows >= 4 and (not config.chunk or config.chunk > config.batch_size // 4):
        saved = 0.75 * width * sum(stack.kept for stack in stacks(config, rows))
        yield Change(
            f"chunk={config.batch_size // 4}",
            "towers run in 4 chunks, each once more in the backward pass",
            saved,
            0.33,
        )


def thriftier_objectives(run: Run, rows: float) -> Iterator[Change]:
    """Matrices of the batch against itself, and tokens that cross devices for negatives."""
    config, pairs = run.assembly.config, run.assembly.config.batch_size
    width = 2 if config.dtype == "bfloat16" else 4
    for name, objective in run.assembly.objectives.items():
        if getattr(objective, "ring", None) is False:
            columns = pairs + getattr(objective, "queue", 0)
            yield Change(
                f"objectives.{name}.ring=True", "similarities in blocks, none kept", 4 * 6 * rows * columns, 0.01
            )
        group = getattr(objective, "group", None)
        if group is not None and (group == 0 or group > rows) and rows >= 2 and hasattr(objective, "negatives"):
            tokens = (config.data.image_size // config.image.patch) ** 2 if config.image.kind == "vit" else 50
            saved = (pairs - rows) * width * config.text.width * (2 * tokens + config.data.length)
            yield Change(f"objectives.{name}.group={int(rows)}", "negatives from one device's own rows", saved, 0.0)


def smaller_batch(config: Config, facts: Facts, rows: float) -> Iterator[Change]:
    """Half the pairs, or a quarter."""
    for part in (2, 4):
        if rows % part == 0:
            saved = (facts.memory.temporary + facts.batch_bytes) * (1 - 1 / part)
            yield Change(f"batch_size={config.batch_size // part}", "fewer pairs per step", saved, float(part))


def changes(run: Run, facts: Facts, missing: float) -> list[Change]:
    """Three changes, cheapest first: those that alone free `missing` bytes by their estimate, then the largest others."""
    config = run.assembly.config
    rows = config.batch_size / (run.mesh.shape["data"] * run.mesh.shape["fsdp"])
    found = [
        *wider_fsdp(run, facts),
        *thriftier_layers(config, rows),
        *thriftier_objectives(run, rows),
        *smaller_batch(config, facts, rows),
    ]
    found = [one for one in found if one.saves > 0]
    enough = sorted((one for one in found if one.saves >= missing), key=lambda one: one.cost)
    rest = sorted((one for one in found if one.saves < missing), key=lambda one: -one.saves)
    chosen, named = [], set()
    for one in [*enough, *rest]:
        kind = one.override.split("=")[0]
        if kind not in named and len(chosen) < 3:
            chosen.append(one)
            named.add(kind)
    return sorted(chosen, key=lambda one: (one.saves < missing, one.cost))
