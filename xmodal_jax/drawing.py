"""Small pictures put together from text and pictures, for contact sheets and the report (Pillow alone).

Everything here takes and gives Pillow images on white; blocks are stacked and set side by side, so no text overlaps.
"""

import base64
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from xmodal_jax.data import decoding
from xmodal_jax.data.image import decode, encode_png

FACES = {
    False: ("DejaVuSans.ttf", "Arial.ttf", "Helvetica.ttc"),
    True: ("DejaVuSans-Bold.ttf", "Arial Bold.ttf", "Helvetica.ttc"),
}
SHOWN = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/avif", "image/bmp")  # by browsers
INK, GREY, RIGHT, EDGE = "#1b1f24", "#667080", "#1a9641", "#d5dae1"  # RIGHT frames right answers, EDGE all others


@functools.cache
def face(size: int, bold: bool = False) -> Any:
    """A font of `size` px: the first of `FACES` that the machine has, else the one inside Pillow."""
    from PIL import ImageFont

    for name in FACES[bold]:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def wrapped(text: str, font: Any, width: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of at most `width` px; what does not fit ends in an ellipsis."""
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
    """One line, cut to `width` px with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    kept = line.rstrip("… ")
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def text_block(text: str, width: int, size: int = 14, colour: str = INK, bold: bool = False, lines: int = 2) -> Any:
    """Wrapped text as a picture of `width` px."""
    from PIL import Image, ImageDraw

    font = face(size, bold)
    rows, step = wrapped(text, font, width, lines), round(1.35 * size)
    block = Image.new("RGB", (width, step * len(rows)), "white")
    pen = ImageDraw.Draw(block)
    for number, row in enumerate(rows):
        pen.text((0, number * step), row, fill=colour, font=font)
    return block


def framed(data: bytes, side: int, colour: str = EDGE, border: int = 2) -> Any:
    """An encoded picture, whole, in the middle of a white square of `side` px with a frame. Raises `CorruptImage`."""
    from PIL import Image, ImageOps

    inner = side - 2 * border - 4
    picture = ImageOps.contain(Image.fromarray(decode(data)), (inner, inner), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side - 2 * border,) * 2, "white")
    square.paste(picture, ((square.width - picture.width) // 2, (square.height - picture.height) // 2))
    return ImageOps.expand(square, border, colour)


def beside(blocks: Iterable[Any], gap: int = 8) -> Any:
    """Blocks from left to right, tops aligned."""
    return _joined(list(blocks), gap, 0)


def stacked(blocks: Iterable[Any], gap: int = 6) -> Any:
    """Blocks from top to bottom, left sides aligned."""
    return _joined(list(blocks), gap, 1)


def _joined(blocks: list[Any], gap: int, axis: int) -> Any:
    """Blocks one after the other along an axis, 0 or 1."""
    from PIL import Image

    size = [max(block.size[side] for block in blocks) for side in (0, 1)]
    size[axis] = sum(block.size[axis] for block in blocks) + gap * (len(blocks) - 1)
    sheet, place = Image.new("RGB", tuple(size), "white"), [0, 0]
    for block in blocks:
        sheet.paste(block, tuple(place))
        place[axis] += block.size[axis] + gap
    return sheet


def grid(blocks: Sequence[Any], columns: int, gap: int = 12, below: int | None = None) -> Any:
    """Blocks in rows of `columns`, `gap` px apart, and the rows `below` px (default: `gap`)."""
    rows = [beside(blocks[i : i + columns], gap) for i in range(0, len(blocks), columns)]
    return stacked(rows, gap if below is None else below)


def with_margin(block: Any, margin: int = 24) -> Any:
    """The block with a white margin of `margin` px."""
    from PIL import ImageOps

    return ImageOps.expand(block, margin, "white")


def opened(data: bytes) -> Any:
    """Encoded picture -> Pillow image on white. Raises `CorruptImage`."""
    from PIL import Image

    return Image.fromarray(decode(data))


def data_url(data: bytes) -> str:
    """An encoded picture as a data: URL, so that a page needs no other file; as PNG where no browser reads its format.

    Raises `CorruptImage`.
    """
    kind = decoding.opened(data).get_format_mimetype()
    if kind not in SHOWN:
        kind, data = "image/png", encode_png(decode(data))
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
