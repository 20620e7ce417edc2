"""Which rule took which leaf, what stayed replicated, and which axes did not divide (`xmodal plan --explain`)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from xmodal_jax.parallel.rules import RULES, Placement, Rule, path_name, place, unrolled


@dataclass(frozen=True)
class Leaf:
    """One leaf of the state: where it lives and how many bytes it has in all."""

    placement: Placement
    bytes: float

    @property
    def replicated(self) -> bool:
        """Whether every device has all of it."""
        return all(axis is None for axis in self.placement.spec)


def leaves(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> list[Leaf]:
    """The leaves of a tree of arrays or ShapeDtypeStructs."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [
        Leaf(place(path_name(path), tuple(leaf.shape), mesh, rules), math.prod(leaf.shape) * leaf.dtype.itemsize)
        for path, leaf in found
    ]


def megabytes(size: float) -> str:
    """Bytes as text in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def _axes(axes: tuple) -> str:
    named = [f"{'+'.join(axis) if isinstance(axis, tuple) else '...' if axis is ... else axis or '-'}" for axis in axes]
    return f"({', '.join(named)})" if named else "replicated"


def explain(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES, most: int = 20) -> Iterator[str]:
    """Lines: leaves by rule, replicated leaves (largest first, `most` of them), and axes that did not divide."""
    found = leaves(tree, mesh, rules)
    yield "rules (first match takes the leaf; axes of the trailing dimensions)"
    for pattern, axes in (*rules, ("", ())):
        own = [
            leaf for leaf in found
            if leaf.placement.pattern == pattern and leaf.placement.asked == unrolled(axes, len(leaf.placement.shape))
        ]  # fmt: skip
        size = megabytes(sum(leaf.bytes for leaf in own))
        yield f"  {pattern or 'no rule'}  {_axes(axes)}: {len(own)} leaves, {size}"
        yield from (f"      {leaf.placement.name} {leaf.placement.shape} -> {leaf.placement.spec}" for leaf in own)
    whole = sorted((leaf for leaf in found if leaf.replicated), key=lambda leaf: -leaf.bytes)
    yield f"replicated: {len(whole)} leaves, {megabytes(sum(leaf.bytes for leaf in whole))} on every device"
    for leaf in whole[:most]:
        taken = leaf.placement.pattern or "no rule"
        yield f"  {megabytes(leaf.bytes):>10}  {leaf.placement.name} {leaf.placement.shape} ({taken})"
    if len(whole) > most:
        yield f"  and {len(whole) - most} smaller ones"
    odd = [leaf for leaf in found if leaf.placement.whole]
    yield f"asked for and not divided: {len(odd)} leaves"
    for leaf in odd:
        yield f"  {leaf.placement.name} {leaf.placement.shape}: {_axes(leaf.placement.whole)}"
