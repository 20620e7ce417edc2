"""Collectives of compiled programs: groups in every spelling, counts, bytes, and what a ring sends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xmodal_jax.planning.collectives import Collective, by_kind, collectives, groups
from xmodal_jax.planning.hlo import parse_module

LAYERS, WIDTH = 5, 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}, dimensions={0}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_in_every_spelling(text, expected):
    assert groups(f", channel_id=1, {text}, use_global_device_ids=true", 4) == expected


def test_collectives_of_a_loop_count_once_per_trip(looped):
    kinds = by_kind(collectives(looped[1], 8))
    kernel = 4 * WIDTH * WIDTH
    assert kinds["all-gather"] == (2 * LAYERS, 2 * LAYERS * kernel)  # each kernel, forward and backward
    assert "all-to-all" not in kinds and "collective-permute" not in kinds
    assert all(one.group in (2, 4, 8) for one in collectives(looped[1], 8))


def test_the_sum_of_split_rows_is_one_all_reduce(mesh):
    rows, whole = NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), NamedSharding(mesh, PartitionSpec())
    step = jax.jit(lambda x: x.sum(0), in_shardings=rows, out_shardings=whole)
    module = parse_module(step.lower(jax.ShapeDtypeStruct((16, 32), "float32")).compile().as_text())
    (one,) = collectives(module, 8)
    assert (one.kind, one.times, one.group, one.payload, one.far) == ("all-reduce", 1, 8, 128, False)
    assert collectives(module, 8, per_slice=4)[0].far


def test_a_permute_goes_between_two(mesh):
    def shift(x):
        return jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    step = jax.jit(jax.shard_map(shift, mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp")))
    module = parse_module(step.lower(jax.ShapeDtypeStruct((8, 4), "float32")).compile().as_text())
    (one,) = collectives(module, 8)
    assert (one.kind, one.times, one.payload, one.wire) == ("collective-permute", 1, 2 * 4 * 4, 2 * 4 * 4)


TPU = """HloModule step
%all-reduce-scatter.5 (input: bf16[64,32]) -> bf16[4,32] {
  %input = bf16[64,32]{1,0} parameter(0)
  %all-reduce.2 = bf16[64,32]{1,0} all-reduce(%input), channel_id=7, replica_groups=[2,16]<=[32], to_apply=%add
  ROOT %dynamic-slice.4 = bf16[4,32]{1,0} dynamic-slice(%all-reduce.2, %input), dynamic_slice_sizes={4,32}
}
%piece.1 (p: f32[8]) -> f32[16] {
  %p = f32[8]{0} parameter(0)
  ROOT %all-gather.1 = f32[16]{0} all-gather(%p), channel_id=9, replica_groups=[16,2]<=[32], dimensions={0}
}
%piece.2 (p.2: f32[8]) -> f32[16] {
  %p.2 = f32[8]{0} parameter(0)
  ROOT %all-gather.2 = f32[16]{0} all-gather(%p.2), channel_id=9, replica_groups=[16,2]<=[32], dimensions={0}
}
ENTRY %main (a: bf16[64,32], b: f32[8]) -> bf16[4,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %one = f32[16]{0} fusion(%b), kind=kCustom, calls=%piece.1
  %two = f32[16]{0} fusion(%b), kind=kCustom, calls=%piece.2
  %start = (f32[8]{0}, f32[16]{0}) all-gather-start(%b), channel_id=11, replica_groups=[16,2]<=[32], dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
  %alone = f32[8]{0} all-reduce(%b), channel_id=12, replica_groups={{0},{1}}, to_apply=%add
  ROOT %sum = bf16[4,32]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.5
}
"""


def test_spellings_of_the_tpu_compiler():
    found = {one.kind + str(one.group): one for one in collectives(parse_module(TPU), 32)}
    assert by_kind(list(found.values()))["reduce-scatter"] == (1, 2 * 64 * 32)
    # one gather spread over two fusions (one channel) and one asynchronous gather, both of 64 bytes
    assert by_kind(collectives(parse_module(TPU), 32))["all-gather"] == (2, 128)
    assert set(found) == {"reduce-scatter16", "all-gather2"}


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 75), ("reduce-scatter", 75), ("all-reduce", 150), ("all-to-all", 100), ("collective-permute", 100)],
)
def test_what_a_ring_of_four_sends(kind, sent):
    np.testing.assert_allclose(Collective(kind, 3, 4, 100.0, False, "", "").wire, sent)


def test_kinds_are_ordered_by_bytes():
    many = [Collective("all-gather", 10, 4, 1.0, False, "", ""), Collective("all-reduce", 1, 4, 99.0, False, "", "")]
    assert list(by_kind(many)) == ["all-reduce", "all-gather"]
    assert jnp.float32(by_kind(many)["all-gather"][1]) == 10
