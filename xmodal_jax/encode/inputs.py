"""Read what a user has in hand (paths, Pillow pictures, arrays, strings) as inputs of a run's encoders; encode it."""

import functools
import io
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.captions import says_something
from xmodal_jax.data.card import OF_PICTURES
from xmodal_jax.data.features import kept_tokens
from xmodal_jax.data.image import eval_image
from xmodal_jax.data.readers import InputSpec, Reader, picture_of_file, reader_classes
from xmodal_jax.data.records import PICTURES
from xmodal_jax.data.tower_input import TowerInput
from xmodal_jax.encode.embed import Embedded, Embedder
from xmodal_jax.encode.towers import cache_input, tower_encoder
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import filled

log = logging.getLogger(__name__)

BLOCK = 32  # inputs encoded together
THREADS = 4  # that decode pictures
loaded_tower = functools.cache(tower_encoder)  # once in a process: its program is compiled for each that is made
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def reader_of(assembly: Assembly, field: str) -> tuple[type[Reader], InputSpec]:
    """Return the reader of a field and what its encoder takes. Raises UserError for a field that the run has not."""
    fields = assembly.config.data.fields
    if field not in fields:
        raise UserError(f"the run has no field '{field}'; write one of {', '.join(fields)}")
    return reader_classes({field: fields[field]})[field], assembly.specs[fields[field].encoder]


def read_inputs(assembly: Assembly, field: str, inputs: Sequence[Any], language: str = "") -> np.ndarray:
    """Read inputs of a field as its encoder takes them, [n,...].

    Words become token ids int32 [n,L], pictures uint8 [n,S,S,3]. An encoder of cached tokens takes those of the frozen
    tower behind each cache of the field, float16 [n,N,D], as that cache was made.

    Args:
      inputs: strings of a field of words; paths of files; of a field of pictures also Pillow pictures and arrays uint8
        [H,W], [H,W,3] or [H,W,4].
      language: of strings, for an encoder that tells languages apart.

    Raises:
      UserError: an input that cannot be read or is of another kind, or a cache whose frozen tower is not known here
        (features that another program computed can only be read from the data set).
    """
    reader, spec = reader_of(assembly, field)
    if reader.worded:
        return _token_ids(spec, field, inputs, language)
    if spec.cached:
        made = [_tokens(cache, reader, field, inputs) for cache in _caches(assembly, field)]
        return np.concatenate(made, axis=1)
    with ThreadPoolExecutor(THREADS) as pool:
        return np.stack(list(pool.map(lambda one: _one(reader, spec, field, one), inputs)))


def _token_ids(spec: InputSpec, field: str, inputs: Sequence[Any], language: str) -> np.ndarray:
    """Return the token ids int32 [n,L] of strings."""
    for one in inputs:
        if not isinstance(one, str):
            raise UserError(
                f"the field '{field}' takes strings, and one input is {type(one).__name__}; write a list of str"
            )
    if empty := sum(not says_something(one) for one in inputs):
        log.warning("%d of %d texts of the field '%s' say nothing; their rows are alike", empty, len(inputs), field)
    return spec.ids(list(inputs), [language] * len(inputs))


def _one(reader: type[Reader], spec: InputSpec, field: str, value: Any) -> np.ndarray:
    """Read one input of a field that has no words."""
    if is_picture(value) and reader.viewed:
        return picture_of(value, spec.size)
    return reader.of_file(_path(value, field, ", Pillow pictures and arrays" if reader.viewed else ""), spec)


def _path(value: Any, field: str, also: str = "") -> pathlib.Path:
    """Return the path of a file; UserError, naming what the field takes `also`, for anything else."""
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"the field '{field}' takes paths of files{also}, and one input is {type(value).__name__}")
    return pathlib.Path(value)


def is_picture(value: Any) -> bool:
    """Return True for a picture in memory: an array, or a Pillow picture."""
    return isinstance(value, np.ndarray) or hasattr(value, "convert")


def picture_of(value: Any, size: int) -> np.ndarray:
    """Read a picture, in memory or in a file, as evaluation does, uint8 [S,S,3]."""
    if is_picture(value):
        return eval_image(size)(picture_bytes(value))
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"a picture is a path, a Pillow picture or an array, and one input is {type(value).__name__}")
    return picture_of_file(pathlib.Path(value), size)


def picture_bytes(value: Any) -> bytes:
    """Return a Pillow picture, or an array uint8 [H,W], [H,W,3] or [H,W,4], as a PNG without compression.

    So a picture in memory goes through the same decoding, turning, background and resizing as one in a file.
    """
    from PIL import Image, ImageOps

    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim not in (2, 3) or value.ndim == 3 and value.shape[2] not in (3, 4):
            raise UserError(
                f"a picture is an array {value.dtype} {list(value.shape)}; write uint8 [H,W], [H,W,3] or [H,W,4] "
                "(of shares from 0 to 1: (255 * x).astype('uint8'))"
            )
        value = Image.fromarray(value)
    out = io.BytesIO()
    try:  # a Pillow picture decodes its file when it is first used
        upright = ImageOps.exif_transpose(value)
        (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(out, "PNG", compress_level=0)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"a picture cannot be read ({error}); open it anew, or write its path") from error
    return out.getvalue()


def _caches(assembly: Assembly, field: str) -> Sequence[dict[str, Any]]:
    """Return what is known of the frozen tower behind each feature cache of a field."""
    if not assembly.caches.get(field):
        raise UserError(
            "run.json does not say which frozen towers made its feature caches; train in that work directory again"
        )
    for cache in assembly.caches[field]:
        if (OF_PICTURES | cache)["medium"] == PICTURES and not cache["size"]:
            raise UserError(
                f"the run reads the features '{cache['tower']}' that came with its data set, and nothing here makes "
                "them of other pictures; encode words, or evaluate and index the data set itself"
            )
    return assembly.caches[field]


def _tokens(cache: dict[str, Any], reader: type[Reader], field: str, inputs: Sequence[Any]) -> np.ndarray:
    """Compute float16 tokens [n,N,D] of the frozen tower of a cache, as `data.features.write_features` stores them."""
    what, size = cache_input(cache), cache["size"]
    encode = loaded_tower(cache["tower"], what.pool)
    with ThreadPoolExecutor(THREADS) as pool:
        if what.medium == PICTURES:
            pixels = np.stack(list(pool.map(lambda one: picture_of(one, size), inputs)))
            return encode(filled(pixels, block_size(len(pixels))))[: len(pixels)].astype(np.float16)
        read = list(pool.map(lambda one: np.stack(what.read(reader.packed(_path(one, field)))), inputs))
    return np.stack([_row(encode(filled(parts, what.parts))[: len(parts)], what) for parts in read])


def _row(tokens: np.ndarray, what: TowerInput) -> np.ndarray:
    """Return the tokens [P,N,D] of the parts of one view as a row float16 of a cache, filled up with zeros."""
    kept = kept_tokens(tokens.astype(np.float16).reshape(-1, tokens.shape[-1]), what)
    return np.pad(kept, ((0, what.parts * tokens.shape[1] - len(kept)), (0, 0)))


def block_size(count: int) -> int:
    """Return the rows that so many inputs are encoded with: a power of two, at most `BLOCK`.

    So any number of inputs needs few compiled programs, and a single query does not pay for a whole block.
    """
    return min(BLOCK, 1 << max(count - 1, 0).bit_length())


def encode_blocks(
    assembly: Assembly,
    embedder: Embedder,
    field: str,
    inputs: Sequence[Any],
    tokens: bool = False,
    language: str = "",
) -> Iterator[Embedded]:
    """Encode inputs of a field in blocks; the last is filled up, so that one program serves all.

    `language`: of strings (see `read_inputs`).
    """
    reader_of(assembly, field)  # refuses a field that is not there
    size = block_size(len(inputs))
    for start in range(0, len(inputs), size):
        rows = read_inputs(assembly, field, inputs[start : start + size], language)
        yield encode_rows_of(assembly, embedder, field, rows, size, tokens)


def single(inputs: Any) -> str:
    """Return what one input is called that stands where a list of inputs should; "" for a list.

    Example:
        >>> single("a.jpg"), single(["a.jpg"]), single(np.zeros([8, 8, 3]))
        ('str', '', 'array [8, 8, 3]')
    """
    if isinstance(inputs, (str, bytes, os.PathLike, Mapping, Set)) or not hasattr(inputs, "__len__"):
        return type(inputs).__name__
    shape = getattr(inputs, "shape", ())
    return f"array {list(shape)}" if len(shape) == 2 or len(shape) == 3 and shape[2] in (3, 4) else ""


def encode_rows_of(
    assembly: Assembly, embedder: Embedder, field: str, rows: np.ndarray, size: int, tokens: bool = False
) -> Embedded:
    """Encode rows that were read for a field, filled up to `size` rows."""
    encoder = assembly.config.data.fields[field].encoder
    return embedder.rows(encoder, filled(rows, size), tokens).take(slice(len(rows)))
