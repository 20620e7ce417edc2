"""The HLO reader on a compiled program and on lines as the TPU compiler writes them."""

import jax
import jax.numpy as jnp
import pytest

from xmodal_jax.planning.hlo import parse_instruction, parse_module, runs, shape_bytes, trips, unknown_loops

LAYERS = 5
TUPLE = (
    "  %while.1 = (s32[]{:T(128)}, bf16[256,197,64]{1,2,0:T(8,128)(2,1)S(1)}, /*index=2*/f32[24,64]{1,0}) "
    'while(%tuple.3), condition=%cond.4, body=%body.5, metadata={op_name="jit(f)/while" stack_frame_id=3}'
)


def loops(module):
    """The loops of a module."""
    return [
        item for computation in module.values() for item in computation.instructions.values() if item.opcode == "while"
    ]


def test_a_line_with_tuples_layouts_and_comments():
    item = parse_instruction(TUPLE)
    assert (item.name, item.opcode, item.operands, item.root) == ("while.1", "while", ("tuple.3",), False)
    assert item.called("body") == ["body.5"] and item.called("condition") == ["cond.4"]
    assert shape_bytes(item.shape) == 4 + 2 * 256 * 197 * 64 + 4 * 24 * 64


def test_what_lives_on_the_chip_is_no_main_memory():
    assert shape_bytes(parse_instruction(TUPLE).shape, everywhere=False) == 4 + 4 * 24 * 64
    assert shape_bytes("pred[3]{0}") == 3 and shape_bytes("s4[4]") == 2 and shape_bytes("token[]") == 0


def test_lines_without_an_instruction():
    assert parse_instruction("}") is None and parse_instruction("HloModule jit_f, is_scheduled=true") is None


def test_every_instruction_of_a_compiled_program_is_read(looped):
    compiled, module = looped
    lines = [line for line in compiled.as_text().splitlines() if line.startswith("  ") and " = " in line]
    assert sum(len(computation.instructions) for computation in module.values()) == len(lines)
    assert sum(computation.entry for computation in module.values()) == 1


def test_the_body_of_a_loop_runs_once_per_trip(looped):
    _, module = looped
    assert [trips(module, loop) for loop in loops(module)] == [LAYERS, LAYERS]
    counted = runs(module)
    assert [counted[loop.called("body")[0]] for loop in loops(module)] == [LAYERS, LAYERS]
    assert unknown_loops(module) == 0


def test_trips_are_read_off_the_condition_where_nothing_is_noted(looped):
    text = looped[0].as_text().replace("known_trip_count", "something_else")
    module = parse_module(text)
    assert [trips(module, loop) for loop in loops(module)] == [LAYERS, LAYERS]


def test_loops_inside_loops_multiply_and_unknown_ones_are_told():
    def step(x):
        def inner(x, _):
            return (jnp.sin(x), None)

        def outer(x, _):
            return (jax.lax.scan(inner, x, None, length=3)[0] * 2, None)

        x = jax.lax.scan(outer, x, None, length=4)[0]
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x + 1, x)

    module = parse_module(jax.jit(step).lower(jax.ShapeDtypeStruct((8,), "float32")).compile().as_text())
    counted = runs(module)
    bodies = sorted(counted[loop.called("body")[0]] for loop in loops(module))
    assert bodies == [1, 4, 12] and unknown_loops(module) == 1


def test_a_text_that_does_not_close_is_an_error():
    with pytest.raises(ValueError, match="no closing parenthesis"):
        parse_instruction("  %a = (f32[2], f32[3] tuple(%b)")
