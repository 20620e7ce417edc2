"""Decode pictures to uint8 [H,W,3], and change training pictures at random.

Pixels stay uint8 in [0, 255] until they are on the device; the towers normalise. Pictures with an alpha channel are put
on white. Resizing is Pillow's (antialiased, bicubic), crop and resize in one call.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from xmodal_jax.data.decoding import CorruptImage, loaded, opened
from xmodal_jax.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"
PNG_LEVEL = 6


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training picture. Raises `UserError` for impossible values.

    Cached tokens know only `flip`; all other changes need pixels.
    """

    crop_min_area: float = 0.5
    """Smallest share of the picture's area that the random crop keeps, above 0; 1: no cropping."""
    crop_ratio: float = 4 / 3
    """Largest factor by which the crop's aspect ratio changes, either way; 1 or more."""
    flip: float = 0.5
    """Probability of mirroring left to right; also chooses cached tokens of the mirror image."""
    jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation, below 1; 0: none."""
    rotate: float = 0.0
    """Largest angle of a random rotation, either way, in degrees; 0: none."""
    quarter_turns: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees, for pictures taken from above."""
    flip_vertical: float = 0.0
    """Probability of mirroring top to bottom, for pictures taken from above."""
    gray: float = 0.0
    """Probability of removing the colours."""

    def __post_init__(self) -> None:
        where, area = "config.data.augment", self.crop_min_area
        if not 0 < area <= 1:
            raise UserError(f"{where}.crop_min_area is {area}; write a share above 0, at most 1 (1: no crop)")
        if not self.crop_ratio >= 1:
            raise UserError(f"{where}.crop_ratio is {self.crop_ratio}; write 1 or more")
        for name in ("flip", "quarter_turns", "flip_vertical", "gray"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{where}.{name} is {value}; write a probability from 0 to 1")
        if not 0 <= self.jitter < 1:
            raise UserError(f"{where}.jitter is {self.jitter}; write a number from 0 to below 1")
        if not 0 <= self.rotate <= 180:
            raise UserError(f"{where}.rotate is {self.rotate}; write degrees from 0 to 180")


def decode(data: bytes, size: int = 0) -> np.ndarray:
    """Decode a picture to uint8 [H,W,3], upright and with alpha on white.

    With `size`, a JPEG whose shorter side is at least twice as long may be decoded at a half, a quarter or an eighth
    (never below `size`), which saves most of the time. Raises `CorruptImage`.
    """
    return np.asarray(loaded(opened(data), size or None))


def verify(data: bytes) -> tuple[int, int]:
    """Decode the whole picture, at the lowest scale its format offers, and return (width, height).

    Raises `CorruptImage`.
    """
    picture = opened(data)
    size = picture.size
    loaded(picture, 8)
    return size


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Squash uint8 [H,W,3] to a square, [size,size,3]."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def encode_png(image: np.ndarray) -> bytes:
    """Encode uint8 [H,W,3] as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def limit_size(data: bytes, longest: int, quality: int = 90) -> bytes:
    """Re-encode a picture whose longer side exceeds `longest` px; a JPEG stays one, any other format becomes PNG."""
    from PIL import Image

    picture = opened(data)
    if max(picture.size) <= longest:
        return data
    kind = "JPEG" if picture.format == "JPEG" else "PNG"
    scale = longest / max(picture.size)
    small = loaded(picture, min(picture.size) * scale)
    width, height = (max(1, round(side * longest / max(small.size))) for side in small.size)
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.LANCZOS).save(file, kind, quality=quality)
    return file.getvalue()


def render_svg(data: str, size: int) -> bytes:
    """Render the text of an SVG drawing as PNG, `size` px wide, on white.

    Raises `CorruptImage`; the renderer reports a broken file by ValueError or by a panic that is not an `Exception`.
    """
    import resvg_py

    try:
        picture = resvg_py.svg_to_bytes(
            svg_string=data, width=size, dpi=96, background="#ffffff", skip_system_fonts=True
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        raise CorruptImage(f"cannot render: {error}") from error
    return bytes(picture)


def random_box(rng: np.random.Generator, min_area: float, ratio: float) -> tuple[float, ...]:
    """Draw a crop (left, top, right, bottom), in shares of the sides, with an area of at least `min_area`.

    The area is uniform and the ratio log-uniform, as in Inception's training, but the ratio is relative to the
    picture's own shape. A large area allows smaller changes of the shape than `ratio`, since no side may be longer than
    the picture's. `min_area` 1 returns the whole picture.
    """
    if min_area >= 1:
        return 0.0, 0.0, 1.0, 1.0
    area = rng.uniform(min_area, 1.0)
    bound = min(math.log(ratio), -math.log(area))
    stretch = math.exp(rng.uniform(-bound, bound))
    wide, high = (min(1.0, math.sqrt(area * stretch)), min(1.0, math.sqrt(area / stretch)))
    left, top = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
    return left, top, min(1.0, left + wide), min(1.0, top + high)


def rotate(picture: "Picture", rng: np.random.Generator, degrees: float) -> "Picture":
    """Turn a Pillow picture about its centre by up to `degrees` either way; the corners become white."""
    from PIL import Image

    if degrees == 0:
        return picture
    return picture.rotate(rng.uniform(-degrees, degrees), Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))


def flip(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Mirror [H,W,3] left to right with the given probability."""
    return np.ascontiguousarray(image[:, ::-1]) if rng.random() < probability else image


def jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Scale brightness, contrast (about the mean grey) and saturation (about each pixel's grey) by 1 +- `strength`."""
    if strength == 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    pixels = image.astype(np.float32) * brightness
    grey = pixels @ LUMA
    pixels = grey[..., None] * (1 - saturation) + pixels * saturation
    pixels = grey.mean() * (1 - contrast) + pixels * contrast
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def happens(rng: np.random.Generator, probability: float) -> bool:
    """Return True with this probability.

    Nothing is drawn for 0, so that a change that is off leaves all other draws as they are.
    """
    return probability > 0 and rng.random() < probability


def quarter_turn(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Turn a square [S,S,3] by 90, 180 or 270 degrees, each as likely, with the given probability."""
    return np.rot90(image, int(rng.integers(1, 4))) if happens(rng, probability) else image


def flip_vertical(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Mirror [H,W,3] top to bottom with the given probability."""
    return image[::-1] if happens(rng, probability) else image


def gray(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Remove the colours of uint8 [H,W,3] with the given probability."""
    if not happens(rng, probability):
        return image
    return np.repeat(np.rint(image.astype(np.float32) @ LUMA).astype(np.uint8)[..., None], 3, axis=-1)


def train_image(size: int, augment: AugmentConfig) -> Callable[[bytes, np.random.Generator], np.ndarray]:
    """Return a function (encoded bytes, rng) -> uint8 [size,size,3] that decodes a picture and changes it at random.

    It applies the rotation, the crop, the flip, the jitter, the quarter turn, the vertical flip and the grey, in this
    order. The function raises `CorruptImage`.
    """
    from PIL import Image

    def example(data: bytes, rng: np.random.Generator) -> np.ndarray:
        left, top, right, bottom = random_box(rng, augment.crop_min_area, augment.crop_ratio)
        # the scale is chosen for the crop: its pixels, not the picture's, must not fall below `size`
        picture = loaded(opened(data), max(size / (right - left), size / (bottom - top)))
        picture = rotate(picture, rng, augment.rotate)
        box = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
        image = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))
        image = jitter(flip(image, rng, augment.flip), rng, augment.jitter)
        image = flip_vertical(quarter_turn(image, rng, augment.quarter_turns), rng, augment.flip_vertical)
        return np.ascontiguousarray(gray(image, rng, augment.gray))

    return example


def eval_image(size: int) -> Callable[[bytes], np.ndarray]:
    """Return a function encoded bytes -> uint8 [size,size,3] that squashes the whole picture to a square.

    It raises `CorruptImage`.
    """
    return lambda data: resize(decode(data, size), size)
