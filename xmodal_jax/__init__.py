"""Cross-modal pretraining and retrieval in JAX: pictures, video, sound and text in many languages.

    import xmodal_jax as xmodal

The names of `__all__` are loaded from `xmodal_jax.api` when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal_jax.api import TrainedRun, config, load, open_index, prepare, train, use_compile_cache

__version__ = "0.1.0"
__all__ = ["TrainedRun", "config", "load", "open_index", "prepare", "train", "use_compile_cache"]


def __getattr__(name: str) -> Any:
    """Load a name of the front door."""
    if name in __all__:
        return getattr(importlib.import_module("xmodal_jax.api"), name)
    raise AttributeError(f"module 'xmodal_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the names of the front door."""
    return sorted([*globals(), *__all__])
