"""Cross-modal pretraining and retrieval in JAX: pictures, video, sound and text in many languages.

    import xmodal_jax as xmodal

The names of `__all__` are loaded when they are first used, so that importing the package is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal_jax.api import (
        TrainedRun,
        config,
        load,
        open_index,
        plan,
        plot_curves,
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
