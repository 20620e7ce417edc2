import base64
import io

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

from xmodal_jax import drawing


def png(width, height, colour="red", mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return file.getvalue()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(strategies.text(max_size=120), strategies.integers(40, 300), strategies.integers(1, 4))
def test_wrapped_text_keeps_to_its_box(text, width, lines):
    font = drawing.face(14)
    found = drawing.wrapped(text, font, width, lines)
    assert 1 <= len(found) <= lines
    assert all(font.getlength(line) <= width for line in found)
    if font.getlength(" ".join(text.split())) <= width:
        assert found == [" ".join(text.split())]


def test_text_that_is_cut_says_so():
    found = drawing.wrapped("one two three four five six seven", drawing.face(14), 60, 2)
    assert len(found) == 2 and found[1].endswith("…") and found[0].startswith("one")
    assert drawing.shortened("Donaudampfschifffahrt", drawing.face(14), 60).endswith("…")


def test_words_stay_inside_their_block():
    pixels = np.asarray(drawing.text_block("Quick gypsy jumps, again and again and again", 120, 16, lines=3))
    assert pixels.shape[1] == 120 and pixels.shape[0] % round(1.35 * 16) == 0
    assert (pixels < 128).any() and (pixels[-2:] == 255).all()  # descenders end above the next block


@pytest.mark.parametrize(("width", "height"), [(10, 40), (400, 100), (96, 96)])
def test_a_framed_picture_is_whole_and_in_the_middle(width, height):
    square = np.asarray(drawing.framed(png(width, height), 100, "#00ff00", 4))
    assert square.shape == (100, 100, 3)
    assert (square[:4] == (0, 255, 0)).all() and (square[:, -4:] == (0, 255, 0)).all()
    red = (square == (255, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(tall, wide) == 88 and abs(wide / tall - width / height) < 0.1 * width / height
    assert abs(rows.sum() / len(rows) - 49.5) <= 0.5


def test_clear_pixels_become_white():
    square = np.asarray(drawing.framed(png(20, 20, (0, 0, 0, 0), "RGBA"), 60))
    assert (square[10:50, 10:50] == 255).all()


def test_blocks_never_overlap():
    blocks = [
        Image.new("RGB", size, colour) for size, colour in [((10, 20), "red"), ((30, 5), "blue"), ((7, 7), "black")]
    ]
    row, column = drawing.beside(blocks, 3), drawing.stacked(blocks, 2)
    assert row.size == (10 + 3 + 30 + 3 + 7, 20) and column.size == (30, 20 + 2 + 5 + 2 + 7)
    for sheet in (row, column, drawing.grid(blocks, 2)):
        pixels = np.asarray(sheet).reshape(-1, 3)
        for block in blocks:
            assert (pixels == np.asarray(block)[0, 0]).all(axis=1).sum() == block.width * block.height
    assert drawing.with_margin(row, 5).size == (row.width + 10, row.height + 10)


def test_a_data_url_holds_the_picture():
    kind, _, text = drawing.data_url(png(3, 2)).partition(";base64,")
    assert kind == "data:image/png"
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (3, 2)


def test_a_data_url_of_what_no_browser_shows_is_a_png():
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (7, 8, 9)).save(file, "TIFF")
    kind, _, text = drawing.data_url(file.getvalue()).partition(";base64,")
    assert kind == "data:image/png"
    assert Image.open(io.BytesIO(base64.b64decode(text))).getpixel((2, 1)) == (7, 8, 9)
