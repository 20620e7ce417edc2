"""Read files of no data set into inputs of a run's encoders."""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.readers import picture_of_file, reader_classes
from xmodal_jax.encode.towers import tower_encoder
from xmodal_jax.errors import UserError


def read_files(assembly: Assembly, field: str, paths: Sequence[str | os.PathLike]) -> np.ndarray:
    """Read files into the inputs [n,...] of a field: of pictures uint8 [n,S,S,3], or float16 [n,N,D] with `features`.

    An encoder of cached tokens takes those of the frozen tower behind each cache, at that cache's size.

    Raises UserError naming the file that is missing or cannot be read, and if the frozen tower of a cache is not known
    here (features that another program computed can only be read from the data set).
    """
    own, files = assembly.config.data.fields[field], [pathlib.Path(path) for path in paths]
    spec, reader = assembly.specs[own.encoder], reader_classes({field: own})[field]
    if not spec.cached:
        return np.stack([reader.of_file(path, spec) for path in files])
    return np.concatenate([_tokens(encode, size, files) for encode, size in _towers(assembly)], axis=1)


def _towers(assembly: Assembly) -> list[tuple[Callable[[np.ndarray], np.ndarray], int]]:
    """Load the frozen tower behind each feature cache of a run, with the size of its pictures in pixels."""
    if not assembly.caches:
        raise UserError(
            "run.json does not say which frozen towers made its feature caches; "
            "run `xmodal train` on that --workdir again"
        )
    return [(tower_encoder(cache["tower"]), cache["size"]) for cache in assembly.caches]


def _tokens(encode: Callable[[np.ndarray], np.ndarray], size: int, files: Sequence[pathlib.Path]) -> np.ndarray:
    """Compute float16 tokens [n,N,D] of one frozen tower, as `data.features.write_features` stores them."""
    return encode(np.stack([picture_of_file(path, size) for path in files])).astype(np.float16)
