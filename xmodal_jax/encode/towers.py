"""Frozen image towers by name, as plain functions from pictures to tokens."""

from collections.abc import Callable

import jax
import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.models.efficientnet import EfficientNetLite0
from xmodal_jax.parallel.mesh import local_mesh, replicated, split_rows, to_host


def _lite0() -> tuple[EfficientNetLite0, dict]:
    from xmodal_jax.convert.huggingface import load_lite0

    return EfficientNetLite0(summarize=True), load_lite0()


TOWERS: dict[str, Callable] = {"lite0": _lite0}


def tower_encoder(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 images [b,H,W,3] -> float32 tokens [b,N,D] of the frozen tower `name`.

    The images are split over all local devices. Raises UserError for a tower that is not in `TOWERS`, or whose weights
    are not installed.
    """
    if name not in TOWERS:
        raise UserError(f"there is no tower '{name}'; write one of {', '.join(TOWERS)}")
    tower, params = TOWERS[name]()
    mesh = local_mesh()
    params = jax.device_put(params, replicated(mesh))

    @jax.jit
    def run(params: dict, images: jax.Array) -> jax.Array:
        return tower.apply({"params": params}, images)

    return lambda images: to_host(run(params, split_rows(mesh, images)), len(images))
