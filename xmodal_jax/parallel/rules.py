"""Shardings by rule: a regex over a leaf's path gives the axes of its trailing dimensions.

The same rules serve any tree: parameters, the teacher, optimizer slots (their paths end in the parameter's path) and
queues. Leading axes, such as the layer axis of a scanned stack, are never sharded.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xmodal_jax.types import Array

Rule = tuple[str, tuple]

RULES: tuple[Rule, ...] = (
    (r"memory/.*/(image|text|fused)$", (("data", "fsdp"), None)),
    (r"memory/", ()),
    (r"embed/word$", ("tensor", "fsdp")),
    (r"(query|key|value|up)/kernel$", ("fsdp", "tensor")),
    # A width is split over "tensor" only between a pair of products (query to out, up to down), never where it meets
    # another kernel: XLA's partitioner (jax 0.10.2) gives a wrong gradient, without a word, for a product whose two sides
    # split the contracted axis differently, on meshes with data, fsdp and tensor all above 1.
    (r"(out|down|attended|patch|project|transform|linear)/kernel$", ("tensor", "fsdp")),
    (r"(query|key|value|up)/bias$", ("tensor",)),
    (r"kernel$", ("fsdp", None)),
)


def path_name(path: tuple) -> str:
    """A tree path as "image/layers/mlp/up/kernel"."""
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def _axis_size(mesh: Mesh, axis: Any) -> int:
    names = axis if isinstance(axis, tuple) else (axis,)
    size = 1
    for name in names:
        size *= mesh.shape[name] if name is not None else 1
    return size


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> PartitionSpec:
    """The first rule that matches `name`, on the trailing axes of `shape`; an axis that does not divide stays whole."""
    for pattern, axes in rules:
        if re.search(pattern, name) and len(axes) <= len(shape):
            head = (None,) * (len(shape) - len(axes))
            fit = [axis if size % _axis_size(mesh, axis) == 0 else None for axis, size in zip(axes, shape[len(head) :])]
            return PartitionSpec(*head, *fit)
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Any:
    """A tree of NamedSharding for a tree of arrays or ShapeDtypeStructs."""

    def one(path: tuple, leaf: Array) -> NamedSharding:
        return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(one, tree)
