"""Derive shardings from rules: a regex over a leaf's path gives the axes of its trailing dimensions (with `...`:
its first).

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
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from xmodal_jax.types import Array, Params

Rule = tuple[str, tuple]

ROWS = ("data", "fsdp")  # the axes that a batch is split over

RULES: tuple[Rule, ...] = (
    (r"^memory/", (("data", "fsdp"), None, ...)),  # rows of features
    (r"^memory/", ()),  # ids, keys and marks of rows are small: they stay whole
    (r"/gpo/", ()),  # two GRUs of width 32: nothing to split
    (r"/gru_", ()),  # read at every word: whole on each device
    (r"(^|/)scorer/graph/", ()),  # 256 wide, read for every pair: whole on each device
    (r"/acquirers/", ()),  # a language's are read by single rows, and a hundred languages' take 0.4 GB
    (r"embed/word$", ("tensor", "fsdp")),
    (r"(query|key|value|up)/kernel$", ("fsdp", "tensor")),
    # A width is split over "tensor" only between a pair of products (query to out, up to down), never where it meets
    # another kernel: XLA's partitioner (jax 0.10.2) silently gives a wrong value or gradient if the two sides of a
    # product split the contracted axis differently, on meshes with data, fsdp and tensor all above 1.
    (r"/hash/linear/kernel$", ("fsdp", None)),  # it meets the head's `linear`, whose width is over "fsdp"
    (r"(^|/)classifier/[^/]+/kernel$", ("fsdp", None)),  # so does this, whatever its encoder is called
    (r"(out|down|attended|patch|project|transform|linear)/kernel$", ("tensor", "fsdp")),
    (r"(depthwise|stem)/kernel$", ()),  # a kernel per channel, and three input channels: small, and nothing to split
    (r"(query|key|value|up)/bias$", ("tensor",)),
    (r"kernel$", ("fsdp", None)),
)


def path_name(path: tuple) -> str:
    """Return a tree path as text, such as "image/layers/mlp/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def axis_size(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...] | None) -> int:
    """Return how many parts an axis of a spec cuts: the name of a mesh axis, several names, or None for none."""
    names = axis if isinstance(axis, tuple) else (axis,)
    return math.prod(mesh.shape[name] for name in names if name is not None)


@dataclass(frozen=True)
class Placement:
    """Placement of one leaf: the rule that matched, the axes that the rule asks for, and the resulting spec.

    `pattern` is "" if no rule matched; `asked` are the rule's axes for the trailing dimensions. `bytes` is the size of
    the whole leaf, 0 if unknown.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str
    asked: tuple
    spec: PartitionSpec
    bytes: float = 0.0

    @property
    def replicated(self) -> bool:
        """True if every device holds the whole leaf."""
        return all(axis is None for axis in self.spec)

    @property
    def whole(self) -> tuple:
        """Axes that were asked for but do not divide the dimension."""
        got = tuple(self.spec)[len(self.shape) - len(self.asked) :] if self.asked else ()
        return tuple(axis for axis, fit in zip(self.asked, got, strict=True) if axis is not None and fit is None)


def unrolled(axes: tuple, rank: int) -> tuple:
    """Expand a final `...` in a rule's axes to None for the remaining dimensions of a leaf of this rank."""
    return axes[:-1] + (None,) * (rank - len(axes) + 1) if axes[-1:] == (...,) else axes


def place(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: tuple[Rule, ...] = RULES) -> Placement:
    """Apply the first rule that matches `name` to the trailing axes of `shape`; what does not divide stays whole."""
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


def placements(tree: Any, mesh: Mesh | AbstractMesh, rules: tuple[Rule, ...] = RULES) -> list[Placement]:
    """List the placement of every leaf of a tree of arrays or ShapeDtypeStructs, in the order of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        dataclasses.replace(
            place(path_name(path), tuple(leaf.shape), mesh, rules), bytes=leaf.size * leaf.dtype.itemsize
        )
        for path, leaf in leaves
    ]


def shardings(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Any:
    """Return a tree of NamedSharding for a tree of arrays or ShapeDtypeStructs."""

    def one(path: tuple, leaf: Array) -> NamedSharding:
        return NamedSharding(mesh, place(path_name(path), leaf.shape, mesh, rules).spec)

    return jax.tree_util.tree_map_with_path(one, tree)


def _placed(x: Array, spec: PartitionSpec, divide: bool) -> Array:
    """Constrain x to `spec` if a mesh is set whose data and fsdp axes XLA places (`divide`: if x's rows divide)."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types.get(axis) != AxisType.Auto for axis in ROWS):
        return x
    if divide and x.shape[0] % axis_size(mesh, ROWS):
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def pin_rows(x: Array) -> Array:
    """Split the rows of x [B,...] over data x fsdp if a mesh is set and the rows divide; return x itself otherwise.

    Without it XLA may split the width of the activations over "fsdp", as the kernels are split, and sum activations
    between devices where it should gather kernels. Not on meshes with "tensor" above 1: there XLA (jax 0.10.2) silently
    gives a wrong loss and gradient when the carry of the layers is pinned.
    """
    if jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        return x
    return _placed(x, PartitionSpec(ROWS, *(None,) * (x.ndim - 1)), True)


def whole(x: Array) -> Array:
    """Gather x on every device if a mesh is set: a table, before rows are looked up in it.

    From a split table XLA would look up split widths and then move those, which are larger than the table.
    """
    return _placed(x, PartitionSpec(), False)


def wholly_frozen(params: Params, module: str, freeze: str) -> bool:
    """Return True if every parameter of `module`, such as "text/tower", is frozen (or if it has none)."""
    own = [path for path in flatten_dict(params, sep="/") if path.startswith(f"{module}/")]
    return all(freeze and re.search(freeze, path) for path in own)
