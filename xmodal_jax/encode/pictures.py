"""Pictures that are in no data set -> what the image tower of a run takes.

Pixel towers take the decoded picture; the `features` tower takes the tokens of the frozen tower behind each of its
caches, at that cache's size.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.image import CorruptImage, eval_image
from xmodal_jax.data.media import UnreadableFile, find_file, read_file
from xmodal_jax.encode.towers import tower_encoder
from xmodal_jax.errors import UserError, refuse_unless


def read_pictures(assembly: Assembly, paths: Sequence[str | os.PathLike]) -> np.ndarray:
    """Picture files -> the image field [n, ...]: uint8 [n,S,S,3], or float16 [n,N,D] with `features`.

    Raises UserError naming the file that is missing or no picture, and where the frozen tower of a cache is not known
    here (features that another program computed can only be read from the data set).
    """
    if assembly.config.encoders["image"].reads != "tokens":
        return _decoded(assembly.config.data.image_size, paths)
    towers = _towers(assembly)
    return np.concatenate([_tokens(encode, _decoded(size, paths)) for encode, size in towers], axis=1)


def _towers(assembly: Assembly) -> list[tuple[Callable[[np.ndarray], np.ndarray], int]]:
    """The frozen tower behind each feature cache of a run, and the size of its pictures in pixels."""
    refuse_unless(
        bool(assembly.caches),
        "run.json does not say which frozen towers made its feature caches; run `xmodal train` on that --workdir again",
    )
    return [(tower_encoder(cache["tower"]), cache["size"]) for cache in assembly.caches]


def _tokens(encode: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray) -> np.ndarray:
    """uint8 [n,S,S,3] -> float16 [n,N,D] of one frozen tower, as `data.features.write_features` stores them."""
    return encode(pictures).astype(np.float16)


def _decoded(size: int, paths: Sequence[str | os.PathLike]) -> np.ndarray:
    """Picture files as evaluation reads them, uint8 [n,S,S,3]."""
    decode = eval_image(size)
    return np.stack([_read_file(decode, pathlib.Path(path)) for path in paths])


def _read_file(read: Callable[[bytes], np.ndarray], path: pathlib.Path) -> np.ndarray:
    try:
        return read(read_file(find_file(path)))
    except CorruptImage as error:
        raise UserError(f"'{path}' is no picture that can be read ({error}); write a whole PNG or JPEG file") from error
    except UnreadableFile as error:
        raise UserError(f"'{error.name}' cannot be opened ({error}); write the path of a picture file") from error
