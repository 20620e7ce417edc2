"""FLOPs of a traced program, counted over its jaxpr, for any model.

Products only (2 per multiply-add), for the whole mesh: a loop counts once per trip, and of a branch the dearer side.
`step_flops` is the useful work of a step, that of the loss and its gradient without what rematerialisation and chunks
repeat; `executed_flops` of the step itself counts that too.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from xmodal_jax.settings import Config
from xmodal_jax.training.step import Recipe, total_loss


def executed_flops(jaxpr: Any, devices: int = 1) -> float:
    """Return the FLOPs of a (closed) jaxpr; shapes inside a shard_map are those of one of `devices`."""
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
    """Return the jaxprs among an equation's parameters."""
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


def _without_repeats(config: Config) -> Config:
    """Return the config of the same step with nothing recomputed: no rematerialisation, no chunks."""
    plain = {
        name: dataclasses.replace(own, remat="none") if hasattr(own, "remat") else own
        for name, own in config.encoders.items()
    }
    return dataclasses.replace(config, chunk=0, encoders=plain, fusion=dataclasses.replace(config.fusion, remat="none"))


def step_flops(recipe: Recipe, state: Any, batch: Mapping[str, Any]) -> float:
    """Return the FLOPs of one step's loss and gradient on a batch (shapes are enough: nothing runs)."""
    config = _without_repeats(recipe.config)
    plain = dataclasses.replace(recipe, config=config, model=dataclasses.replace(recipe.model, config=config))

    def gradient(params: Any, state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return total_loss(plain, params, state, batch, jax.random.key(0))[0]

        return jax.value_and_grad(loss)(params)

    traced = jax.make_jaxpr(gradient)(state.params, state, batch).jaxpr
    return executed_flops(partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[0])
