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

Reader = Callable[[bytes], np.ndarray]


def picture_reader(assembly: Assembly) -> Reader:
    """A function encoded bytes -> one example of the image field: uint8 [S,S,3], or float16 [N,D] with `features`.

    The function raises `CorruptImage`. Raises UserError where the frozen tower of a cache is not known here (features
    that another program computed can only be read from the data set).
    """
    if assembly.config.encoders["image"].reads != "tokens":
        return eval_image(assembly.config.data.image_size)
    refuse_unless(
        bool(assembly.caches),
        "run.json does not say which frozen towers made its feature caches; run `xmodal train` on that --workdir again",
    )
    readers = [_token_reader(cache["tower"], cache["size"]) for cache in assembly.caches]
    return lambda data: np.concatenate([read(data) for read in readers])


def _token_reader(tower: str, size: int) -> Reader:
    """Encoded bytes -> float16 [N,D] of one frozen tower, as `data.features.write_features` stores them."""
    encode, decode = tower_encoder(tower), eval_image(size)
    return lambda data: encode(decode(data)[None])[0].astype(np.float16)


def read_pictures(assembly: Assembly, paths: Sequence[str | os.PathLike]) -> np.ndarray:
    """Picture files -> the image field [n, ...]. Raises UserError naming the file that is missing or no picture."""
    read = picture_reader(assembly)
    return np.stack([_read_file(read, pathlib.Path(path)) for path in paths])


def _read_file(read: Reader, path: pathlib.Path) -> np.ndarray:
    try:
        return read(read_file(find_file(path)))
    except CorruptImage as error:
        raise UserError(f"'{path}' is no picture that can be read ({error}); write a whole PNG or JPEG file") from error
    except UnreadableFile as error:
        raise UserError(f"'{error.name}' cannot be opened ({error}); write the path of a picture file") from error
