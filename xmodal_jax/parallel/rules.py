"""Shardings by rule: a regex over a leaf's path gives the axes of its trailing dimensions, or with `...` of its first ones.

The same rules serve any tree: parameters, the teacher, optimizer slots (their paths end in the parameter's path) and
queues. Leading axes, such as the layer axis of a scanned stack, are never sharded.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmodal_jax.types import Array, Params

Rule = tuple[str, tuple]

ROWS = ("data", "fsdp")  # the axes that a batch is split over

RULES: tuple[Rule, ...] = (
    (
        r"^memory/",
        (("data", "fsdp"), None, ...),
    ),  # rows of features; ids, keys and marks of rows, which are small, stay whole
    (r"^memory/", ()),
    (r"/gpo/", ()),  # two GRUs of width 32: nothing to split
    (r"/gru_", ()),  # read at every word: whole on each device
    (r"embed/word$", ("tensor", "fsdp")),
    (r"(query|key|value|up)/kernel$", ("fsdp", "tensor")),
    # A width is split over "tensor" only between a pair of products (query to out, up to down), never where it meets
    # another kernel: XLA's partitioner (jax 0.10.2) gives a wrong value or gradient, without a word, where the two sides
    # of a product split the contracted axis differently, on meshes with data, fsdp and tensor all above 1.
    (r"/hash/linear/kernel$", ("fsdp", None)),  # it meets the head's `linear`, whose width is over "fsdp"
    (r"(out|down|attended|patch|project|transform|linear)/kernel$", ("tensor", "fsdp")),
    (r"(depthwise|stem)/kernel$", ()),  # a kernel per channel, and three input channels: small, and nothing to split
    (r"(query|key|value|up)/bias$", ("tensor",)),
    (r"kernel$", ("fsdp", None)),
)


def path_name(path: tuple) -> str:
    """A tree path as "image/layers/mlp/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def axis_size(mesh: Mesh, axis: Any) -> int:
    """How many parts an axis of a spec cuts: the name of an axis of the mesh, several names, or None for none."""
    names = axis if isinstance(axis, tuple) else (axis,)
    return math.prod(mesh.shape[name] for name in names if name is not None)


@dataclass(frozen=True)
class Placement:
    """Where one leaf lives: the rule that took it, the axes the rule asks for, and what came of it.

    `pattern` is "" where no rule matched; `asked` are the rule's axes for the trailing dimensions, `whole` those of them
    that stay whole because their size does not divide. `bytes` is the size of the whole leaf, where it is known.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str
    asked: tuple
    spec: PartitionSpec
    bytes: float = 0.0

    @property
    def replicated(self) -> bool:
        """Whether every device has all of it."""
        return all(axis is None for axis in self.spec)

    @property
    def whole(self) -> tuple:
        """The axes that were asked for and did not divide."""
        got = tuple(self.spec)[len(self.shape) - len(self.asked) :] if self.asked else ()
        return tuple(axis for axis, fit in zip(self.asked, got, strict=True) if axis is not None and fit is None)


def unrolled(axes: tuple, rank: int) -> tuple:
    """A rule's axes for a leaf of so many dimensions: `...` at their end stands for those that are left, whole."""
    return axes[:-1] + (None,) * (rank - len(axes) + 1) if axes[-1:] == (...,) else axes


def place(name: str, shape: tuple[int, ...], mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Placement:
    """The first rule that matches `name`, on the trailing axes of `shape`; an axis that does not divide stays whole."""
    for pattern, axes in rules:
        axes = unrolled(axes, len(shape))
        if re.search(pattern, name) and len(axes) <= len(shape):
            head = (None,) * (len(shape) - len(axes))
            fit = [
                axis if size % axis_size(mesh, axis) == 0 else None
                for axis, size in zip(axes, shape[len(head) :], strict=True)
            ]
            return Placement(name, shape, pattern, axes, PartitionSpec(*head, *fit))
    return Placement(name, shape, "", (), PartitionSpec())


def placements(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> list[Placement]:
    """The placement of every leaf of a tree of arrays or ShapeDtypeStructs, in the order of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        dataclasses.replace(
            place(path_name(path), tuple(leaf.shape), mesh, rules), bytes=leaf.size * leaf.dtype.itemsize
        )
        for path, leaf in leaves
    ]


def shardings(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Any:
    """A tree of NamedSharding for a tree of arrays or ShapeDtypeStructs."""

    def one(path: tuple, leaf: Array) -> NamedSharding:
        return NamedSharding(mesh, place(path_name(path), leaf.shape, mesh, rules).spec)

    return jax.tree_util.tree_map_with_path(one, tree)


def _placed(x: Array, spec: PartitionSpec, divide: bool) -> Array:
    """x at `spec`, where a mesh is set whose data and fsdp axes are XLA's to place (and x's rows divide); else x."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types.get(axis) != AxisType.Auto for axis in ROWS):
        return x
    if divide and x.shape[0] % axis_size(mesh, ROWS):
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def pin_rows(x: Array) -> Array:
    """x [B,...] with its rows over data x fsdp, where a mesh is set and the rows divide; else x itself.

    Without it XLA may split the width of the activations over "fsdp", as the kernels are split, and sum activations
    between devices where it should gather kernels. Not on meshes with "tensor" above 1: there XLA (jax 0.10.2) gives a wrong
    loss and gradient, without a word, when the carry of the layers is pinned.
    """
    if jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        return x
    return _placed(x, PartitionSpec(ROWS, *(None,) * (x.ndim - 1)), True)


def whole(x: Array) -> Array:
    """x gathered on every device, where a mesh is set: a table before rows are looked up in it.

    From a split table XLA would look up split widths and then move those, which are more than the table.
    """
    return _placed(x, PartitionSpec(), False)


def wholly_frozen(params: Params, module: str, freeze: str) -> bool:
    """Whether every parameter of `module`, such as "text/tower", is frozen (one without parameters is)."""
    own = [path for path in flatten_dict(params, sep="/") if path.startswith(f"{module}/")]
    return all(freeze and re.search(freeze, path) for path in own)
