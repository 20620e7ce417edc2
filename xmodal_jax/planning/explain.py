"""Explain which rule took which leaf, which leaves are replicated, and which axes did not divide (`--explain`)."""

from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from xmodal_jax.parallel.rules import RULES, Rule, placements, unrolled


def megabytes(size: float) -> str:
    """Format bytes in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def _axes(axes: tuple) -> str:
    """Format the axes of a rule, such as "(fsdp, -)"."""
    named = [f"{'+'.join(axis) if isinstance(axis, tuple) else '...' if axis is ... else axis or '-'}" for axis in axes]
    return f"({', '.join(named)})" if named else "replicated"


def explain(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES, most: int = 20) -> Iterator[str]:
    """Yield lines: leaves by rule, replicated leaves (the `most` largest first), and axes that did not divide."""
    found = placements(tree, mesh, rules)
    yield "rules (first match takes the leaf; axes of the trailing dimensions)"
    for pattern, axes in (*rules, ("", ())):
        own = [leaf for leaf in found if leaf.pattern == pattern and leaf.asked == unrolled(axes, len(leaf.shape))]
        size = megabytes(sum(leaf.bytes for leaf in own))
        yield f"  {pattern or 'no rule'}  {_axes(axes)}: {len(own)} leaves, {size}"
        yield from (f"      {leaf.name} {leaf.shape} -> {leaf.spec}" for leaf in own)
    whole = sorted((leaf for leaf in found if leaf.replicated), key=lambda leaf: -leaf.bytes)
    yield f"replicated: {len(whole)} leaves, {megabytes(sum(leaf.bytes for leaf in whole))} on every device"
    for leaf in whole[:most]:
        taken = leaf.pattern or "no rule"
        yield f"  {megabytes(leaf.bytes):>10}  {leaf.name} {leaf.shape} ({taken})"
    if len(whole) > most:
        yield f"  and {len(whole) - most} smaller ones"
    odd = [leaf for leaf in found if leaf.whole]
    yield f"asked for and not divided: {len(odd)} leaves"
    for leaf in odd:
        yield f"  {leaf.name} {leaf.shape}: {_axes(leaf.whole)}"
