"""What a decoder complains of is one kind of error, and pixels are those that a viewer shows."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.decoding import FORMATS, CorruptImage, content_digest
from xmodal_jax.data.image import AugmentConfig, decode, eval_image, limit_size, train_image, verify

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))  # [32,64], dark to bright
COLOURS = np.stack([RAMP, 255 - RAMP, np.full_like(RAMP, 90)], -1)


def saved(image, kind, **options):
    """A Pillow picture or an array as the bytes of a file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def with_exif(jpeg, *entries):
    """The JPEG with a little-endian EXIF block of entries (tag, type, count, at most 8 bytes)."""
    table, values, behind = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, data in entries:
        where = data.ljust(4, b"\0")
        if len(data) > 4:
            where, values = struct.pack("<I", behind + len(values)), values + data
        table += struct.pack("<HHI", tag, kind, count) + where
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + values
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


SIDEWAYS = (0x0112, 3, 1, struct.pack("<H", 6))


@pytest.mark.parametrize(
    "bad",
    [
        (0x011A, 10, 1, struct.pack("<ii", -1, 0)),  # a resolution of -1/0
        (0x0128, 2, 2, b"x\0"),  # text for the unit of the resolution
        (0x011A, 2, 4, b"abc\0"),  # text for the resolution
    ],
    ids=["minus one over zero", "text as unit", "text as resolution"],
)
def test_a_bad_value_in_exif_costs_neither_the_picture_nor_its_turn(bad):
    data = with_exif(saved(COLOURS, "JPEG", quality=95, subsampling=0), SIDEWAYS, bad)
    upright = np.rot90(COLOURS, -1).astype(int)
    assert np.abs(decode(data) - upright).mean() < 3
    assert verify(data) == (64, 32)
    assert np.abs(decode(limit_size(data, 32)).astype(int) - upright[::2, ::2]).mean() < 8


@pytest.mark.parametrize("value", [(0x0112, 3, 1, struct.pack("<H", 9)), (0x0112, 2, 2, b"6\0")], ids=["nine", "text"])
def test_an_orientation_that_is_none_turns_nothing(value):
    plain = saved(COLOURS, "JPEG", quality=95)
    np.testing.assert_array_equal(decode(with_exif(plain, value)), decode(plain))


def test_a_damaged_exif_block_turns_nothing():
    plain = saved(COLOURS, "JPEG", quality=95)
    torn = with_exif(plain, SIDEWAYS).replace(b"II*\0\x08", b"II*\0\xf0")
    np.testing.assert_array_equal(decode(torn), decode(plain))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_all_formats_are_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(COLOURS, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    seen = [
        COLOURS,
        COLOURS[:, ::-1],
        np.rot90(COLOURS, 2),
        COLOURS[::-1],
        np.rot90(COLOURS[:, ::-1]),
        np.rot90(COLOURS, -1),
        np.rot90(COLOURS[:, ::-1], -1),
        np.rot90(COLOURS),
    ]
    got, want = decode(data).astype(int), seen[orientation - 1]
    assert got.shape == want.shape and np.abs(got - want).mean() < 3


WIDE = RAMP.astype(np.int64) * 257
PGM = b"P5 64 32 %d\n"


@pytest.mark.parametrize(
    "data",
    [
        saved(WIDE.astype(np.uint16), "PNG"),
        saved(WIDE.astype(np.uint16), "TIFF"),
        saved(WIDE.astype(">u2"), "TIFF"),
        PGM % 65535 + WIDE.astype(">u2").tobytes(),
        PGM % 1020 + (RAMP * np.int64(4)).astype(">u2").tobytes(),
        saved(WIDE.astype(np.int32), "TIFF"),
        saved(RAMP.astype(np.int32), "TIFF"),
        saved(RAMP.astype(np.float32) / 255, "TIFF"),
        saved(RAMP.astype(np.float32), "TIFF"),
    ],
    ids="PNG TIFF big-endian PGM PGM-of-10-bits int32 int32-of-255 float float-of-255".split(),
)
def test_deep_greys_are_as_bright_as_a_viewer_shows_them(data):
    got = decode(data).astype(int)
    assert got.shape == (32, 64, 3) and np.abs(got - RAMP[..., None]).max() <= 1
    assert np.abs(decode(limit_size(data, 16)).astype(int).mean() - RAMP.mean()) < 2


@pytest.mark.parametrize(
    "samples, words",
    [
        (np.array([[0, 70000]], np.int32), "32-bit integer samples go from 0 to 70000; only 0 to 255 or 65535"),
        (np.array([[-1, 200]], np.int32), "go from -1 to 200"),
        (np.array([[0.0, 3000.5]], np.float32), "32-bit float samples go from 0 to 3000.5; only 0 to 1 or 255"),
        (np.array([[0.0, np.nan]], np.float32), "nan"),
    ],
)
def test_samples_that_could_mean_anything_are_refused(samples, words):
    with pytest.raises(CorruptImage, match=words):
        decode(saved(samples, "TIFF"))


def test_a_clear_deep_grey_is_white():
    samples = np.array([[0x1234, 0x8040]], np.uint16)
    assert decode(saved(samples, "PNG", transparency=0x1234))[0, :, 0].tolist() == [255, 0x80]


def damaged_avif():
    """An AVIF whose compressed pixels are lost."""
    data = saved(COLOURS, "AVIF")
    start = data.index(b"mdat") + 4
    return data[:start] + bytes(len(data) - start)


def unknown_dds():
    """A texture whose pixel format Pillow does not know."""
    data = bytearray(saved(COLOURS, "DDS"))
    data[80:84] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "the file is empty"),
        (b" <html>404</html>", "it is a text, such as a web page"),
        (damaged_avif(), "^Failed to decode"),
        (unknown_dds(), "of no format that is read"),
        (saved(COLOURS, "PDF"), "of no format that is read"),
        (saved(COLOURS, "EPS"), "of no format that is read"),
        (saved(Image.new("1", (20000, 20000)), "PNG"), "more than 178 million pixels"),
    ],
    ids="empty html avif dds pdf eps bomb".split(),
)
def test_what_cannot_be_read_is_told_without_python_objects(data, words):
    for read in (decode, verify, eval_image(8), lambda data: limit_size(data, 8), content_digest):
        with pytest.raises(CorruptImage, match=words) as caught:
            read(data)
        assert " object at 0x" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_a_large_picture_is_read_without_a_warning():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert verify(saved(Image.new("1", (10000, 9500), 1), "PNG")) == (10000, 9500)
    assert told == []


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files_are_pictures_or_corrupt(kind, count, rng):
    whole = saved(COLOURS, kind)
    train = train_image(8, AugmentConfig())
    refused = 0
    for _ in range(count):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, len(data), rng.integers(1, 12)):
            data[at] = rng.integers(256)
        try:
            assert decode(bytes(data)).shape[2] == 3
            assert train(bytes(data), rng).shape == (8, 8, 3)
            content_digest(bytes(data))
        except CorruptImage as error:
            assert str(error)
            refused += 1
    assert refused > 0


def test_copies_with_other_metadata_have_one_digest():
    plain = saved(COLOURS, "JPEG", quality=90)
    dated = with_exif(plain, (0x0132, 2, 4, b"now\0"))
    assert content_digest(plain) == content_digest(dated) != content_digest(with_exif(plain, SIDEWAYS))
    assert content_digest(plain + b"more") != content_digest(plain)
    other = COLOURS.copy()
    other[3, 3, 0] ^= 1
    png = content_digest(saved(COLOURS, "PNG"))
    assert png == content_digest(saved(COLOURS, "PNG", compress_level=1)) == content_digest(saved(COLOURS, "BMP"))
    assert png != content_digest(saved(other, "PNG")) and png != content_digest(saved(COLOURS.swapaxes(0, 1), "PNG"))
