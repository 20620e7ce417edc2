"""What a user has in hand (paths, Pillow pictures, arrays, strings) -> what the encoders of a run take."""

import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.image import eval_image
from xmodal_jax.data.readers import InputSpec, Reader, reader_classes
from xmodal_jax.encode.embed import Embedded, Embedder
from xmodal_jax.encode.files import read_files
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import filled

BLOCK = 32  # inputs encoded together: one compiled shape for any number of them
THREADS = 4  # that decode pictures


def reader_of(assembly: Assembly, field: str) -> tuple[type[Reader], InputSpec]:
    """Return the reader of a field and what its encoder takes. Raises UserError for a field that the run has not."""
    fields = assembly.config.data.fields
    if field not in fields:
        raise UserError(f"the run has no field '{field}'; write one of {', '.join(fields)}")
    return reader_classes({field: fields[field]})[field], assembly.specs[fields[field].encoder]


def read_inputs(assembly: Assembly, field: str, inputs: Sequence[Any]) -> np.ndarray:
    """Turn inputs into what the encoder of a field takes, [n,...].

    Args:
      inputs: strings of a field of words; paths of files; of a field of pictures also Pillow pictures and arrays uint8
        [H,W], [H,W,3] or [H,W,4].

    Raises:
      UserError: an input that cannot be read, or that is of another kind.
    """
    reader, spec = reader_of(assembly, field)
    if reader.worded:
        return _token_ids(spec, field, inputs)
    if spec.cached or not any(map(_is_picture, inputs)):
        return read_files(assembly, field, [_as_path(one, field) for one in inputs])
    with ThreadPoolExecutor(THREADS) as pool:
        return np.stack(list(pool.map(lambda one: _one(reader, spec, field, one), inputs)))


def _token_ids(spec: InputSpec, field: str, inputs: Sequence[Any]) -> np.ndarray:
    """Return the token ids int32 [n,L] of strings."""
    for one in inputs:
        if not isinstance(one, str):
            raise UserError(
                f"the field '{field}' takes strings, and one input is {type(one).__name__}; write a list of str"
            )
    assert spec.tokenizer is not None  # an encoder of words has one
    return spec.tokenizer.encode(list(inputs), spec.size)


def _is_picture(value: Any) -> bool:
    """Return True for a picture in memory: an array, or a Pillow picture."""
    return isinstance(value, np.ndarray) or hasattr(value, "convert")


def _as_path(value: Any, field: str) -> pathlib.Path:
    """Return a path. Raises UserError for anything else."""
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"the field '{field}' takes paths of files here, and one input is {type(value).__name__}")
    return pathlib.Path(value)


def _one(reader: type[Reader], spec: InputSpec, field: str, value: Any) -> np.ndarray:
    """Return one picture, in memory or in a file, as the encoder takes it."""
    if _is_picture(value) and reader.mirrored:
        return eval_image(spec.size)(picture_bytes(value))
    return reader.of_file(_as_path(value, field), spec)


def picture_bytes(value: Any) -> bytes:
    """Return a Pillow picture, or an array uint8 [H,W], [H,W,3] or [H,W,4], as a PNG without compression.

    So a picture in memory goes through the same decoding, background and resizing as one in a file.
    """
    from PIL import Image

    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim not in (2, 3) or value.ndim == 3 and value.shape[2] not in (3, 4):
            raise UserError(
                f"a picture is an array {value.dtype} {list(value.shape)}; write uint8 [H,W], [H,W,3] or [H,W,4]"
            )
        value = Image.fromarray(value)
    out = io.BytesIO()
    try:
        (value if value.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else value.convert("RGB")).save(
            out, "PNG", compress_level=0
        )
    except (OSError, ValueError) as error:  # a Pillow picture decodes its file when it is first used
        raise UserError(f"a picture cannot be read ({error}); open it anew, or write its path") from error
    return out.getvalue()


def encode_blocks(
    assembly: Assembly, embedder: Embedder, field: str, inputs: Sequence[Any], tokens: bool = False
) -> Iterator[Embedded]:
    """Encode inputs of a field, `BLOCK` at a time; the last block is filled up, so that one program serves all."""
    reader_of(assembly, field)  # refuses a field that is not there
    encoder = assembly.config.data.fields[field].encoder
    for start in range(0, len(inputs), BLOCK):
        rows = read_inputs(assembly, field, inputs[start : start + BLOCK])
        real, found = len(rows), embedder.rows(encoder, filled(rows, BLOCK), tokens)
        yield Embedded(**jax.tree.map(lambda x, real=real: x[:real], vars(found)))
