"""Load frozen image towers by name, as plain functions from pictures to tokens."""

from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn

from xmodal_jax.encode.apply import apply
from xmodal_jax.errors import UserError
from xmodal_jax.models.efficientnet import EfficientNetLite0
from xmodal_jax.parallel.mesh import local_mesh, replicated, split_rows, to_host
from xmodal_jax.types import Array, Params


def _lite0() -> tuple[EfficientNetLite0, Params]:
    """Load EfficientNet-Lite0 with its installed weights."""
    from xmodal_jax.convert.huggingface import load_lite0

    return EfficientNetLite0(summarize=True), load_lite0()


TOWERS: dict[str, Callable[[], tuple[nn.Module, Params]]] = {"lite0": _lite0}


def tower_encoder(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images [b,H,W,3] to float32 tokens [b,N,D] of the frozen tower `name`.

    The images are split over all local devices. Raises UserError for a tower that is not in `TOWERS`, or whose weights
    are not installed.
    """
    if name not in TOWERS:
        raise UserError(f"there is no tower '{name}'; write one of {', '.join(TOWERS)}")
    tower, params = TOWERS[name]()
    mesh = local_mesh()
    params = jax.device_put(params, replicated(mesh))

    @jax.jit
    def run(params: Params, images: Array) -> Array:
        return apply(tower, params, images)

    return lambda images: to_host(run(params, split_rows(mesh, images)), len(images))
