"""A tiny data set of real PNG and JPEG files, prepared once."""

import io

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.text import load_tokenizer


def picture_bytes(image, kind="PNG", **options):
    """uint8 [H,W,3 or 4] -> PNG or JPEG bytes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def picture_of(number, side=16):
    """An image whose colour tells its number: red = 8 * number; its left half is darker, so that a flip shows."""
    image = np.full((side, side, 3), (8 * number, 200, 40), np.uint8)
    image[:, : side // 2, 1] = 100
    return image


def items_of(count=24):
    """Two views of each record, one to two English captions and a French one; every fourth record is a test record."""
    return [
        Item(
            key=f"thing-{number}",
            images={
                "png": picture_bytes(picture_of(number)),
                "jpeg": picture_bytes(picture_of(number), "JPEG", quality=95),
            },
            captions={"en": [f"thing number {number}", "a thing"][: 1 + number % 2], "fr": [f"la chose {number}"]},
            labels=("even",) if number % 2 == 0 else ("odd", "strange"),
            group=f"group-{number // 2}",
            split="test" if number % 4 == 0 else "train",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Folder of a prepared data set: 18 train records, 6 test records, two views, two languages, three labels."""
    folder = tmp_path_factory.mktemp("tiny") / "set"
    prepare(memory_source(items_of(), "tiny", "none"), folder)
    return folder


@pytest.fixture
def own_set(tmp_path):
    """The same, for a test that changes it."""
    prepare(memory_source(items_of(), "tiny", "none"), tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture(scope="session")
def tokenizer(tiny_set):
    """A tokenizer built from the captions of `tiny_set`."""
    return load_tokenizer("data", tiny_set)


@pytest.fixture(scope="session")
def encoded():
    """The function uint8 [H,W,3 or 4] -> PNG or JPEG bytes."""
    return picture_bytes


@pytest.fixture(scope="session")
def plain_colour():
    """The function number -> the image of that record of `tiny_set`, uint8 [16,16,3]."""
    return picture_of


@pytest.fixture(scope="session")
def tiny_items():
    """The function count -> that many items like those of `tiny_set`."""
    return items_of
