"""Decode pictures with Pillow as a viewer shows them: upright, RGB, on white.

Whatever a decoder does with a damaged file, the caller sees `CorruptImage`, no other exception and no warning. The
formats in `FORMATS` are read; Pillow's others (documents, textures, scientific data) are not tried.
"""

import functools
import hashlib
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")
ORIENTATION = 0x0112  # the EXIF tag
OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-fA-F]+>")
QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
METADATA = frozenset({0xFE, *range(0xE0, 0xEE), 0xEF})  # comment, APP0 to APP15 but APP14, which defines the colours


class CorruptImage(ValueError):
    """Bytes that are no picture, only the beginning of one, or samples whose range is unknown."""


def opened(data: bytes) -> "Picture":
    """Open an encoded picture without decoding its pixels. Raises `CorruptImage`."""
    from PIL import Image

    _ignore_warnings()
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Exception as error:  # each decoder has its own kinds: RuntimeError, struct.error, NotImplementedError, ...
        raise CorruptImage(_unidentified(data, error)) from error


def loaded(picture: "Picture", shrink_to: float | None = None) -> "Picture":
    """Load the pixels as upright RGB on white; a JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves `shrink_to` px.

    Raises `CorruptImage`.
    """
    _ignore_warnings()
    try:
        if shrink_to is not None:
            picture.draft("RGB", (math.ceil(shrink_to), math.ceil(shrink_to)))
        picture.load()
        return _on_white(_eight_bits(_upright(picture)))
    except Exception as error:
        raise CorruptImage(_reason(error)) from error


def content_digest(data: bytes) -> bytes:
    """Decode the whole picture and return a digest of what it shows. Raises `CorruptImage`.

    Copies with other metadata have the same digest. It is computed from the upright RGB pixels; for a JPEG, which
    is decoded at the lowest scale, from the compressed pixels, their tables and the orientation. The same picture
    in two formats has two digests.
    """
    picture = opened(data)
    jpeg, orientation = picture.format in ("JPEG", "MPO"), _orientation(picture)
    whole = loaded(picture, 8)
    digest = hashlib.blake2b(f"{orientation if jpeg else whole.size}".encode(), digest_size=16)
    for part in _jpeg_segments(data) if jpeg else (whole.tobytes(),):
        digest.update(part)
    return digest.digest()


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow supports, and silence its log of odd files."""
    from PIL import Image

    Image.init()
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _ignore_warnings() -> None:
    """Ignore Pillow's warnings, which are of metadata and large pictures; both are used, and a line for each is noise.

    The filter stays, since setting and restoring it around each picture is not safe in threads.
    """
    if QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=QUIET[3].pattern)


def _unidentified(data: bytes, error: Exception) -> str:
    """Return why a picture could not be opened."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError) and Image.MAX_IMAGE_PIXELS:
        return f"it has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels"
    if not isinstance(error, UnidentifiedImageError):
        return _reason(error)
    if not data:
        return "the file is empty"
    if data[:200].lstrip()[:1] == b"<":
        return "it is a text, such as a web page or an SVG drawing"
    return f"its beginning is that of no format that is read ({', '.join(_formats())})"


def _reason(error: Exception) -> str:
    """Return the message of a decoder's exception, without the addresses of Python objects."""
    text = " ".join(OBJECT.sub("the data", str(error)).split())
    return text if " " in text else f"{type(error).__name__} {text}".strip()  # a single word tells nothing


def _orientation(picture: "Picture") -> int:
    """Return the EXIF orientation, 1 if there is none that can be read; the other EXIF values need not be readable."""
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels may be whole though the EXIF block is damaged
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(picture: "Picture") -> "Picture":
    """Turn a picture as its EXIF orientation asks."""
    from PIL.Image import Transpose as To

    turns = (None, To.FLIP_LEFT_RIGHT, To.ROTATE_180, To.FLIP_TOP_BOTTOM)
    turns += (To.TRANSPOSE, To.ROTATE_270, To.TRANSVERSE, To.ROTATE_90)
    turn = turns[_orientation(picture) - 1]
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: "Picture") -> "Picture":
    """Convert grey pictures of 16 and 32 bits to 8 bits; the transparent grey of a 16-bit PNG becomes white."""
    from PIL import Image

    if not picture.mode.startswith(("I", "F")):
        return picture
    samples = np.asarray(picture)
    grey = _grey_scale(samples, sixteen=picture.mode.startswith("I;16") or picture.format == "PPM")
    clear = picture.info.get("transparency")
    return Image.fromarray(np.where(samples == clear, np.uint8(255), grey) if isinstance(clear, int) else grey)


def _grey_scale(samples: np.ndarray, sixteen: bool) -> np.ndarray:
    """Convert grey samples [H,W] to uint8 [H,W].

    16-bit samples (`sixteen`) keep their upper byte. The range of 32-bit samples is not in the file, so the largest
    sample decides: floats up to 1 have the range 1, others up to 255 the range 255, larger integers 65535. Raises
    `CorruptImage` for samples that fit none of these.
    """
    least, most = samples.min(), samples.max()
    if sixteen:
        return (samples >> 8).astype(np.uint8)
    if least >= 0 and samples.dtype.kind == "f" and most <= 255:
        return np.rint(samples * (255 if most <= 1 else 1)).astype(np.uint8)
    if least >= 0 and samples.dtype.kind == "i" and most <= 65535:
        return (samples >> (8 if most > 255 else 0)).astype(np.uint8)
    kind, ranges = ("integer", "0 to 255 or 65535") if samples.dtype.kind == "i" else ("float", "0 to 1 or 255")
    raise CorruptImage(f"its 32-bit {kind} samples go from {least:g} to {most:g}; only {ranges} are known")


def _on_white(picture: "Picture") -> "Picture":
    """Put a picture on white, as RGB."""
    from PIL import Image

    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG without its metadata, and all bytes from the first scan on."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xFF:  # a fill byte
            end = at + 1
        elif data[at + 1] not in METADATA:
            yield data[at:end]
        at = end
    yield data[at:]
