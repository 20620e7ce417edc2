"""Compose small pictures of text and pictures, for contact sheets (Pillow alone).

Functions take and return Pillow images on white; blocks are stacked and set side by side, so no text overlaps.
"""

from __future__ import annotations

import base64
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from xmodal_jax.data import decoding
from xmodal_jax.data.image import decode, encode_png
from xmodal_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FACES = {
    False: ("DejaVuSans.ttf", "Arial.ttf", "Helvetica.ttc"),
    True: ("DejaVuSans-Bold.ttf", "Arial Bold.ttf", "Helvetica.ttc"),
}
SHOWN = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/avif", "image/bmp")  # by browsers
INK, GREY, EDGE = "#1b1f24", "#667080", "#d5dae1"


@functools.cache
def face(size: int, bold: bool = False) -> Any:
    """Return a font of `size` px: the first of `FACES` that the machine has, else the one inside Pillow."""
    from PIL import ImageFont

    for name in FACES[bold]:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def wrapped(text: str, font: Any, width: int, lines: int) -> list[str]:
    """Break `text` into at most `lines` lines of at most `width` px; text that does not fit ends in an ellipsis."""
    found, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            found.append(line)
            line = word
        else:
            line = longer
    found.append(line)
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1] + " …"]
    return [shortened(line, font, width) for line in found]


def shortened(line: str, font: Any, width: int) -> str:
    """Cut one line to `width` px with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    kept = line.rstrip("… ")
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def text_block(
    text: str, width: int, size: int = 14, colour: str = INK, bold: bool = False, lines: int = 2
) -> Image.Image:
    """Draw wrapped text as a picture of `width` px."""
    from PIL import Image, ImageDraw

    font = face(size, bold)
    rows, step = wrapped(text, font, width, lines), round(1.35 * size)
    block = Image.new("RGB", (width, step * len(rows)), "white")
    pen = ImageDraw.Draw(block)
    for number, row in enumerate(rows):
        pen.text((0, number * step), row, fill=colour, font=font)
    return block


def framed(data: bytes, side: int, colour: str = EDGE, border: int = 2) -> Image.Image:
    """Draw an encoded picture, whole, in the middle of a framed white square of `side` px. Raises `CorruptImage`."""
    from PIL import Image, ImageOps

    inner = side - 2 * border - 4
    picture = ImageOps.contain(Image.fromarray(decode(data)), (inner, inner), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side - 2 * border, side - 2 * border), "white")
    square.paste(picture, ((square.width - picture.width) // 2, (square.height - picture.height) // 2))
    return ImageOps.expand(square, border, colour)


def beside(blocks: Iterable[Image.Image], gap: int = 8) -> Image.Image:
    """Join blocks from left to right, tops aligned."""
    return _joined(list(blocks), gap, 0)


def stacked(blocks: Iterable[Image.Image], gap: int = 6) -> Image.Image:
    """Join blocks from top to bottom, left sides aligned."""
    return _joined(list(blocks), gap, 1)


def _joined(blocks: list[Image.Image], gap: int, axis: int) -> Image.Image:
    """Join blocks along an axis, 0 or 1."""
    from PIL import Image

    size = [max(block.size[side] for block in blocks) for side in (0, 1)]
    size[axis] = sum(block.size[axis] for block in blocks) + gap * (len(blocks) - 1)
    sheet, place = Image.new("RGB", (size[0], size[1]), "white"), [0, 0]
    for block in blocks:
        sheet.paste(block, (place[0], place[1]))
        place[axis] += block.size[axis] + gap
    return sheet


def grid(blocks: Sequence[Image.Image], columns: int, gap: int = 12) -> Image.Image:
    """Arrange blocks in rows of `columns`, `gap` px apart."""
    rows = [beside(blocks[i : i + columns], gap) for i in range(0, len(blocks), columns)]
    return stacked(rows, gap)


def with_margin(block: Image.Image, margin: int = 24) -> Image.Image:
    """Add a white margin of `margin` px to a block."""
    from PIL import ImageOps

    return ImageOps.expand(block, margin, "white")


def data_url(data: bytes) -> str:
    """Return an encoded picture as a data: URL, as PNG where browsers do not read its format.

    Raises `CorruptImage`.
    """
    from PIL import Image

    kind = Image.MIME.get(decoding.opened(data).format or "", "")
    if kind not in SHOWN:
        kind, data = "image/png", encode_png(decode(data))
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def save_figure(figure: Any, path: str | os.PathLike) -> pathlib.Path:
    """Write a figure of matplotlib and return its path. Raises UserError for a format that it does not write."""
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UserError(
            f"'{path}' cannot be written ({error}); write a path that ends in .png, .svg or .pdf"
        ) from error
    return pathlib.Path(path)
