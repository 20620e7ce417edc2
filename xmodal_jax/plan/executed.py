"""FLOPs that a traced step executes, counted over its jaxpr: what rematerialisation and the backward pass repeat too.

Products only (2 per multiply-add), for the whole mesh: a loop counts once per trip, and of a branch the dearer side.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def executed_flops(jaxpr: Any, devices: int = 1) -> float:
    """FLOPs of a (closed) jaxpr; shapes inside a shard_map are those of one of `devices`."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_equation(equation, devices) for equation in jaxpr.eqns)


def _equation(equation: Any, devices: int) -> float:
    name, inner = equation.primitive.name, list(_inner(equation.params))
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(executed_flops(branch, devices) for branch in inner)
    times = {"scan": equation.params.get("length", 1), "shard_map": devices}.get(name, 1)
    return times * sum(executed_flops(part, devices) for part in inner)


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in parameters.values():
        yield from (
            x for x in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(x, (ClosedJaxpr, Jaxpr))
        )


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: Any) -> float:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])  # rhs_spec: output features, input features, space
    return 2.0 * taps * math.prod(equation.outvars[0].aval.shape)
