"""Cross-modal pretraining and retrieval in JAX: pictures, text in many languages, and modalities of your own.

    import xmodal_jax as xmodal

The names of `__all__` are loaded when they are first used, so that importing the package is quick.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal_jax.api import (
        TrainedRun,
        config,
        load,
        open_index,
        plan,
        plot_curves,
        plot_pair_losses,
        prepare,
        train,
        use_compile_cache,
    )
    from xmodal_jax.errors import UserError
    from xmodal_jax.settings import defaults

__version__ = "0.1.0"
__all__ = [
    "TrainedRun",
    "UserError",
    "config",
    "defaults",
    "load",
    "open_index",
    "plan",
    "plot_curves",
    "plot_pair_losses",
    "prepare",
    "train",
    "use_compile_cache",
]
PLACES = {"UserError": "errors", "defaults": "settings"}  # of the names that are not in `api`


def __getattr__(name: str) -> Any:
    """Load a name of the front door."""
    if name in __all__:
        return getattr(importlib.import_module(f"xmodal_jax.{PLACES.get(name, 'api')}"), name)
    raise AttributeError(f"module 'xmodal_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the names of the front door."""
    return sorted([*globals(), *__all__])


class _Front(ModuleType):
    """The package, whose `config` and `plan` stay functions when the submodules of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but for a submodule that has the name of a function of the front door."""
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
