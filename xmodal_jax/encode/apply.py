"""Call methods of modules on a tree of parameters."""

from typing import Any

from flax import linen as nn

from xmodal_jax.types import Params


def apply(module: nn.Module, params: Params, *inputs: Any, method: str | None = None) -> Any:
    """Call `method` of a module (default: the module itself) with these parameters as its only variables."""
    return module.apply({"params": params}, *inputs, method=method)
