"""Decoding puts any picture into uint8 RGB; augmentation changes what it says it changes."""

import io

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.image import (
    AugmentConfig,
    CorruptImage,
    decode,
    encode_png,
    eval_image,
    flip,
    flip_vertical,
    gray,
    jitter,
    limit_size,
    quarter_turn,
    random_box,
    render_svg,
    resize,
    rotate,
    train_image,
    verify,
)
from xmodal_jax.errors import UserError

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="10" height="5" fill="#f00"/></svg>'


def noise(rng, height=24, width=32):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(height, width):
    """Smooth in both directions, so that scaling changes little."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return np.stack(np.broadcast_arrays(across[None], down[:, None], np.float64(90)), -1).astype(np.uint8)


def test_png_comes_back_exactly(rng, encoded):
    image = noise(rng)
    np.testing.assert_array_equal(decode(encoded(image)), image)
    np.testing.assert_array_equal(decode(encode_png(image)), image)


def test_transparency_becomes_white(encoded):
    image = np.zeros((4, 4, 4), np.uint8)
    image[0, 0] = (10, 20, 30, 255)
    image[1, 1] = (0, 0, 0, 51)
    got = decode(encoded(image))
    assert got[0, 0].tolist() == [10, 20, 30] and got[3, 3].tolist() == [255] * 3 and got[1, 1].tolist() == [204] * 3


def test_palettes_with_transparency_grey_and_16_bit_are_rgb(encoded):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=1)
    assert decode(file.getvalue())[0, 0].tolist() == [255] * 3
    assert decode(encoded(np.full((4, 4), 77, np.uint8)))[2, 2].tolist() == [77] * 3
    assert decode(encoded(np.full((4, 4), 0x8040, np.uint16)))[2, 2].tolist() == [0x80] * 3


def test_a_sideways_photograph_is_turned_upright(encoded):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
    got = decode(encoded(image, "JPEG", quality=95, exif=exif))
    assert got.shape == (32, 16, 3) and got[:12].min() > 200 and got[-12:].max() < 50


def test_jpeg_is_decoded_at_a_lower_scale_but_never_below_the_size_asked_for(encoded):
    data = encoded(ramp(256, 512), "JPEG", quality=95)
    assert decode(data).shape == (256, 512, 3)
    assert decode(data, 128).shape == (128, 256, 3)
    assert decode(data, 129).shape == (256, 512, 3)
    assert decode(data, 10).shape == (32, 64, 3)
    whole, reduced = resize(decode(data), 64), resize(decode(data, 64), 64)
    assert np.abs(whole.astype(int) - reduced).mean() < 2


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_corrupt(data):
    for read in (decode, verify, eval_image(8)):
        with pytest.raises(CorruptImage):
            read(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_half_a_picture_is_corrupt(rng, kind, encoded):
    data = encoded(noise(rng, 64, 64), kind)
    assert verify(data) == (64, 64)
    with pytest.raises(CorruptImage):
        verify(data[: len(data) // 2])
    with pytest.raises(CorruptImage):
        train_image(8, AugmentConfig())(data[: len(data) // 2], rng)


def test_resize_squashes_to_a_square_like_pillow(rng, encoded):
    image = noise(rng)
    want = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(image, 8), want)
    np.testing.assert_array_equal(eval_image(8)(encoded(image)), want)


def test_limit_size_keeps_small_pictures_and_shrinks_large_ones(encoded):
    small, large = encoded(ramp(20, 30), "JPEG"), encoded(ramp(100, 200), "JPEG", quality=95)
    assert limit_size(small, 30) is small
    shrunk = limit_size(large, 50)
    assert verify(shrunk) == (50, 25) and Image.open(io.BytesIO(shrunk)).format == "JPEG"
    assert Image.open(io.BytesIO(limit_size(encoded(ramp(9, 40)), 20))).format == "PNG"


def test_svg_is_drawn_on_white():
    pytest.importorskip("resvg_py")
    image = decode(render_svg(SVG, 20))
    assert image.shape == (20, 20, 3)
    assert image[2, 2].tolist() == [255, 0, 0] and image[17, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("text", ["", "<svg", "<svg xmlns='http://www.w3.org/2000/svg'/>no"])
def test_a_broken_svg_is_corrupt(text):
    pytest.importorskip("resvg_py")
    with pytest.raises(CorruptImage):
        render_svg(text, 16)


def test_random_boxes_keep_their_area_and_stay_inside(rng):
    boxes = np.array([random_box(rng, 0.3, 4 / 3) for _ in range(2000)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-12
    assert (wide * high).min() >= 0.3 - 1e-12 and (wide * high).max() <= 1
    assert (wide / high).max() <= 4 / 3 + 1e-9 and (wide / high).min() >= 3 / 4 - 1e-9
    assert abs(boxes[:, 0].mean() - (1 - boxes[:, 2]).mean()) < 0.02, "crops are not biased to a side"


@pytest.mark.parametrize("area", [0.8, 0.9, 0.95, 0.999])
def test_no_box_is_smaller_than_the_smallest_area(rng, area):
    boxes = np.array([random_box(rng, area, 4 / 3) for _ in range(4000)])
    found = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert found.min() >= area - 1e-12 and boxes.min() >= 0 and boxes.max() <= 1
    assert found.mean() == pytest.approx((1 + area) / 2, abs=4 * (1 - area) / np.sqrt(12 * 4000)), "uniform above it"
    assert np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])).std() > (1 - area) / 8, "the shape varies"


def test_no_crop_is_the_whole_picture(rng):
    assert random_box(rng, 1.0, 4 / 3) == (0.0, 0.0, 1.0, 1.0)


def test_flip_mirrors_with_its_probability(rng):
    image = noise(rng)
    np.testing.assert_array_equal(flip(image, rng, 1.0), image[:, ::-1])
    np.testing.assert_array_equal(flip(image, rng, 0.0), image)
    mirrored = sum(not np.array_equal(flip(image, rng, 0.25), image) for _ in range(1000))
    assert 200 < mirrored < 300


def test_jitter_scales_brightness_and_keeps_grey_grey(rng):
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = np.array([jitter(grey, rng, 0.3) for _ in range(300)])
    assert (values.max((1, 2, 3)) == values.min((1, 2, 3))).all(), "neither contrast nor saturation changes a flat grey"
    assert 70 <= values.min() < 80 and 120 < values.max() <= 130
    assert jitter(grey, rng, 0.0) is grey


def test_jitter_follows_its_definition(rng):
    image = noise(rng)
    brightness, contrast, saturation = np.random.default_rng(3).uniform(0.8, 1.2, 3)
    pixels = image * brightness
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    pixels = grey[..., None] + saturation * (pixels - grey[..., None])
    want = np.clip(grey.mean() + contrast * (pixels - grey.mean()), 0, 255)
    assert np.abs(jitter(image, np.random.default_rng(3), 0.2) - want).max() < 0.51


def test_rotation_by_nothing_is_nothing_and_corners_are_white(rng):
    picture = Image.new("RGB", (40, 40), "black")
    assert rotate(picture, rng, 0.0) is picture
    corners = [np.asarray(rotate(picture, rng, 45.0))[0, 0, 0] for _ in range(20)]
    assert max(corners) == 255
    assert np.asarray(rotate(picture, rng, 45.0))[20, 20].tolist() == [0, 0, 0]


def test_quarter_turns_and_vertical_flips_are_exact(rng):
    image = noise(rng, 6, 6)
    turns = [np.rot90(image, number) for number in range(4)]
    drawn = [quarter_turn(image, rng, 1.0) for _ in range(300)]
    found = [next(n for n, turn in enumerate(turns) if np.array_equal(turn, one)) for one in drawn]
    assert set(found) == {1, 2, 3} and min(found.count(number) for number in (1, 2, 3)) > 70
    still = sum(quarter_turn(image, rng, 0.25) is image for _ in range(1000))
    assert 700 < still < 800
    np.testing.assert_array_equal(flip_vertical(image, rng, 1.0), image[::-1])
    assert 200 < sum(flip_vertical(image, rng, 0.25) is not image for _ in range(1000)) < 300


def test_grey_is_pillows(rng):
    image = noise(rng)
    found = gray(image, rng, 1.0)
    want = np.asarray(Image.fromarray(image).convert("L"))
    assert found.dtype == np.uint8 and np.abs(found - want[..., None].astype(int)).max() <= 1
    assert 200 < sum(gray(image, rng, 0.25) is not image for _ in range(1000)) < 300


def test_what_is_off_draws_nothing(rng):
    image, before = noise(rng), rng.bit_generator.state
    for change in (quarter_turn, flip_vertical, gray):
        assert change(image, rng, 0.0) is image
    assert rng.bit_generator.state == before


def test_a_picture_from_above_comes_in_all_its_eight_positions(encoded, rng):
    image = noise(rng, 8, 8)
    make = train_image(8, AugmentConfig(crop_min_area=1.0, flip=0.5, quarter_turns=0.75, flip_vertical=0.5))
    eight = {np.rot90(side, turn).tobytes() for side in (image, image[:, ::-1]) for turn in range(4)}
    found = [make(encoded(image), rng) for _ in range(100)]
    assert {picture.tobytes() for picture in found} == eight and all(picture.flags.c_contiguous for picture in found)


def test_all_off_is_the_plain_resized_picture(rng, encoded):
    data = encoded(noise(rng))
    off = AugmentConfig(crop_min_area=1.0, flip=0.0)
    np.testing.assert_array_equal(train_image(12, off)(data, rng), eval_image(12)(data))


def test_a_training_picture_is_a_function_of_the_rng(encoded):
    data = encoded(ramp(40, 60), "JPEG")
    make = train_image(16, AugmentConfig(crop_min_area=0.3, jitter=0.2, rotate=10.0))
    first, same, other = (make(data, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (16, 16, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_small_crop_of_a_large_photograph_is_cut_from_all_its_pixels(rng, encoded):
    jpeg = encoded(noise(rng, 128, 128), "JPEG", quality=95)
    png = encoded(decode(jpeg))  # the same pixels, never decoded at a lower scale
    make, small = train_image(16, AugmentConfig(crop_min_area=0.01, crop_ratio=1.0)), 0
    for seed in range(60):
        left, _, right, _ = random_box(np.random.default_rng(seed), 0.01, 1.0)
        if right - left < 2 * 16 / 128:
            small += 1
            from_jpeg, from_png = (make(data, np.random.default_rng(seed)) for data in (jpeg, png))
            np.testing.assert_array_equal(from_jpeg, from_png)
    assert small > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_min_area", 0.0),
        ("crop_ratio", 0.5),
        ("flip", 1.5),
        ("jitter", 1.0),
        ("rotate", -1.0),
        ("quarter_turns", 1.1),
        ("flip_vertical", -0.5),
        ("gray", 2.0),
    ],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"config.data.augment.{field} is {value}; write"):
        AugmentConfig(**{field: value})
