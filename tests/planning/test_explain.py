"""`--explain`: every leaf under the rule that took it, the replicated ones by size, and what did not divide."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xmodal_jax.planning.explain import explain

RULES = ((r"kernel$", ("fsdp", None)), (r"ring/", ()))
TREE = {
    "a": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((100,), jnp.float32)},
    "odd": {"kernel": jax.ShapeDtypeStruct((7, 4), jnp.float32)},
    "ring": {"id": jax.ShapeDtypeStruct((2000,), jnp.int32)},
}


def test_every_leaf_stands_under_its_rule(mesh):
    lines = list(explain(TREE, mesh, RULES))
    assert lines[1] == "  kernel$  (fsdp, -): 2 leaves, 240 B"
    assert lines[2].strip() == f"a/kernel (8, 4) -> {PartitionSpec('fsdp', None)}"
    assert "  ring/  replicated: 1 leaves, 8.00 kB" in lines and "  no rule  replicated: 1 leaves, 400 B" in lines


def test_tables_of_any_rank_stand_under_the_rule_of_rows(mesh):
    rules = ((r"^memory/", (("data", "fsdp"), None, ...)), (r"^memory/", ()))
    tree = {"memory": {name: jax.ShapeDtypeStruct((8, 4, 2)[:rank], jnp.float32) for rank, name in enumerate("cidv")}}
    lines = list(explain(tree, mesh, rules))
    assert lines[1] == "  ^memory/  (data+fsdp, -, ...): 2 leaves, 384 B"
    assert "  ^memory/  replicated: 2 leaves, 36 B" in lines


def test_what_stays_replicated_is_largest_first(mesh):
    lines = list(explain(TREE, mesh, RULES))
    start = lines.index("replicated: 3 leaves, 8.51 kB on every device")
    assert [line.split()[2] for line in lines[start + 1 : start + 4]] == ["ring/id", "a/bias", "odd/kernel"]
    assert "  and 2 smaller ones" in list(explain(TREE, mesh, RULES, most=1))


def test_axes_that_did_not_divide_are_listed(mesh):
    assert list(explain(TREE, mesh, RULES))[-2:] == [
        "asked for and not divided: 1 leaves",
        "  odd/kernel (7, 4): (fsdp)",
    ]


def test_what_is_explained_is_what_is_placed(mesh):
    from xmodal_jax.parallel.rules import placements, shardings

    placed = jax.tree.leaves(shardings(TREE, mesh, RULES))
    assert [leaf.spec for leaf in placements(TREE, mesh, RULES)] == [place.spec for place in placed]
