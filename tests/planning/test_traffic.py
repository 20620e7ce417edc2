"""Bytes to and from memory, on compiled programs whose answer is known and on the TPU's layouts."""

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.planning.hlo import parse_module
from xmodal_jax.planning.traffic import step_traffic

FLOAT = 4


def traffic(step, *shapes):
    """The estimate for a function of float32 arrays."""
    given = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    return step_traffic(parse_module(jax.jit(step).lower(*given).compile().as_text()))


def test_a_sum_of_two_arrays_moves_three():
    assert traffic(lambda a, b: a + b, (256, 128), (256, 128)) == 3 * FLOAT * 256 * 128


def test_a_product_moves_its_operands_and_result():
    np.testing.assert_allclose(traffic(jnp.dot, (64, 32), (32, 16)), FLOAT * (64 * 32 + 32 * 16 + 64 * 16), rtol=0.5)


def test_a_loop_over_layers_reads_a_layer_per_trip():
    layers, width = 64, 128

    def step(kernels, x):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    once = FLOAT * layers * width * width
    moved = traffic(step, (layers, width, width), (8, width))
    assert once < moved < 4 * once  # reading the whole stack every trip would be 64 times


TPU = """HloModule step
ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0:T(128)} parameter(0)
  %copy-start.1 = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = f32[100]{0:T(128)S(1)} copy-done(%copy-start.1)
  %b = f32[100]{0:T(128)S(1)} add(%copy-done.1, %copy-done.1)
  ROOT %c = f32[100]{0:T(128)} add(%b, %b)
}
"""


def test_what_stays_on_the_chip_is_free():
    assert step_traffic(parse_module(TPU)) == 400 + 400  # read once by the copy, written once at the end


NESTED = """HloModule step
%slice (s: f32[24,100], i: s32[]) -> f32[100] {
  %s = f32[24,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %cut = f32[1,100]{1,0} dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,100}
  ROOT %flat = f32[100]{0} bitcast(%cut)
}
%layer (a: f32[24,100], j: s32[], kept: f32[24,100]) -> (f32[24,100], f32[24,100]) {
  %a = f32[24,100]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %kept = f32[24,100]{1,0} parameter(2)
  %row = f32[100]{0} fusion(%a, %j), kind=kLoop, calls=%slice
  %back = f32[1,100]{1,0} bitcast(%row)
  %new = f32[24,100]{1,0} dynamic-update-slice(%kept, %back, %j, %j)
  ROOT %both = (f32[24,100]{1,0}, f32[24,100]{1,0}) tuple(%new, %a)
}
ENTRY %main (x: f32[24,100], k: s32[], y: f32[24,100]) -> (f32[24,100], f32[24,100]) {
  %x = f32[24,100]{1,0} parameter(0)
  %k = s32[]{:S(6)} parameter(1)
  %y = f32[24,100]{1,0} parameter(2)
  ROOT %out = (f32[24,100]{1,0}, f32[24,100]{1,0}) fusion(%x, %k, %y), kind=kLoop, calls=%layer
}
"""


def test_a_slice_taken_inside_nested_fusions_moves_the_slice_only():
    assert (
        step_traffic(parse_module(NESTED)) == 400 + 400
    )  # one row read, one row written in place, one array passed on
