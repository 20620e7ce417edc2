"""Files become clips: which frames, when, how large; and what is broken is named, never a traceback."""

import io
import logging
import os
import pathlib
import sys
import tracemalloc

import numpy as np
import pytest
from clips import grey, moving_picture, number_of, sound_bytes, video_bytes
from PIL import Image

from xmodal_jax.data import clip_files
from xmodal_jax.data.clip_files import CorruptClip, Frame, Sieve, read_clip, read_strip, upright
from xmodal_jax.data.image import decode
from xmodal_jax.data.media import UnreadableFile
from xmodal_jax.data.video import Clip, ClipLimits, pack_clip, uniform_places, unpack_clip
from xmodal_jax.errors import UserError

KINDS = [("mp4", "mpeg4"), ("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("matroska", "libx264")]


def numbers_of(clip):
    """The numbers of the frames of a clip."""
    return [number_of(decode(frame)) for frame in clip.frames]


def written(path, data):
    """The path of a file with these bytes."""
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_a_video_becomes_uniform_frames_with_their_times(tmp_path, kind, codec):
    path = written(tmp_path / f"a.{kind}", video_bytes(map(grey, range(25)), 10, kind, codec))
    clip = read_clip(path, ClipLimits(frames=8))
    assert numbers_of(clip) == uniform_places(25, 8)
    np.testing.assert_allclose(clip.times, np.array(uniform_places(25, 8)) / 10, atol=0.002)
    assert abs(clip.duration - 2.5) < 0.02
    assert unpack_clip(pack_clip(clip)) == clip
    whole = read_clip(path, ClipLimits())
    assert numbers_of(whole) == list(range(25)), "25 of at most 32"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_moving_pictures_are_clips(tmp_path, kind):
    clip = read_clip(written(tmp_path / "moving", moving_picture(map(grey, range(6)), kind)), ClipLimits(frames=3))
    assert numbers_of(clip) == [1, 3, 5]
    np.testing.assert_allclose(clip.times, [0.2, 0.6, 1.0])
    assert clip.duration == pytest.approx(1.2)


def test_a_still_picture_is_a_clip_of_one_frame(tmp_path, encoded):
    clip = read_clip(written(tmp_path / "still.jpg", encoded(grey(5), "JPEG")), ClipLimits())
    assert numbers_of(clip) == [5] and clip.times == (0.0,) and clip.duration == pytest.approx(0.1)


def test_a_see_through_picture_is_on_white(tmp_path):
    image = np.zeros((8, 8, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert decode(read_clip(written(tmp_path / "a.png", file.getvalue()), ClipLimits()).frames[0]).min() > 250


def test_a_folder_of_frames_goes_by_numbers(tmp_path, encoded):
    for number in range(12):
        written(tmp_path / f"frame {number}.png", encoded(grey(number)))
    (tmp_path / "notes.txt").write_text("no frame")
    clip = read_clip(tmp_path, ClipLimits(frames=4))
    assert numbers_of(clip) == [1, 4, 7, 10] == list(clip.times) and clip.duration == 12
    assert numbers_of(read_clip(tmp_path, ClipLimits(frames=4, seconds=4.0))) == [0, 1, 2, 3]
    written(tmp_path / "frame 4.png", b"torn")
    with pytest.raises(CorruptClip, match="its beginning is that of no format"):
        read_clip(tmp_path, ClipLimits(frames=4))


def test_an_empty_folder_has_no_frames(tmp_path):
    with pytest.raises(CorruptClip, match="it has no frames"):
        read_clip(tmp_path, ClipLimits())


def test_a_strip_is_read_row_by_row(tmp_path, encoded):
    tiles = [grey(number, 24, 16) for number in range(8)]
    strip = np.concatenate([np.concatenate(tiles[:4], 1), np.concatenate(tiles[4:], 1)])
    path = written(tmp_path / "strip.png", encoded(strip))
    clip = read_strip(path, 2, 4, ClipLimits())
    assert numbers_of(clip) == list(range(8)) == list(clip.times) and clip.duration == 8
    assert decode(clip.frames[3]).shape == (16, 24, 3)
    assert numbers_of(read_strip(path, 2, 4, ClipLimits(frames=2))) == [2, 6]
    for rows, columns in ((33, 1), (0, 4), (1, 97)):
        with pytest.raises(CorruptClip, match=f"96 x 32 pixels are no {rows} x {columns} tiles"):
            read_strip(path, rows, columns, ClipLimits())
    with pytest.raises(CorruptClip, match="beginning is that of no format"):
        read_strip(written(tmp_path / "torn.png", b"torn"), 2, 4, ClipLimits())
    with pytest.raises(UnreadableFile):
        read_strip(tmp_path / "gone.png", 2, 4, ClipLimits())


def test_frames_are_made_smaller_and_keep_their_shape(tmp_path):
    path = written(tmp_path / "a.mp4", video_bytes([grey(number, 320, 160) for number in range(3)]))
    assert [decode(frame).shape for frame in read_clip(path, ClipLimits(size=64)).frames] == [(32, 64, 3)] * 3
    assert decode(read_clip(path, ClipLimits(size=400)).frames[0]).shape == (160, 320, 3), "never larger"


def test_a_long_video_is_cut_and_said(tmp_path, caplog):
    path = written(tmp_path / "long.mp4", video_bytes(map(grey, range(30)), 1))
    with caplog.at_level(logging.WARNING):
        clip = read_clip(path, ClipLimits(frames=5, seconds=10))
    assert "long.mp4' is 30 s long; its first 10 s are kept" in caplog.text
    assert clip.times[-1] < 10 and len(clip) == 5 and clip.duration <= 10.01
    gif = written(tmp_path / "long.gif", moving_picture(map(grey, range(20)), seconds=1))
    assert numbers_of(read_clip(gif, ClipLimits(frames=32, seconds=4))) == [0, 1, 2, 3]


def test_frames_of_an_hour_are_sought(tmp_path, monkeypatch):
    """An hour at one frame a second: each is found near its place, without decoding them all."""
    path = written(
        tmp_path / "hour.mp4", video_bytes(map(grey, range(3600)), 1, codec="libx264", g="20", preset="ultrafast")
    )
    read = []
    monkeypatch.setattr(clip_files, "upright", lambda frame: read.append(frame.time) or upright(frame))
    clip = read_clip(path, ClipLimits(frames=6, seconds=3600))
    np.testing.assert_allclose(clip.times, (np.arange(6) + 0.5) * 600, atol=1)
    assert numbers_of(clip) == [int(time) % 30 for time in clip.times] and len(read) == 6
    monkeypatch.setattr(clip_files, "_sought", lambda *_: None)
    again = read_clip(path, ClipLimits(frames=6, seconds=3600))
    np.testing.assert_allclose(again.times, (np.arange(6) + 0.5) * 600, atol=1)


def test_a_sieve_keeps_few_and_covers_all():
    limits, read = ClipLimits(frames=4), []

    def picture(number):
        return lambda: read.append(number) or Image.new("RGB", (4, 4))

    for count in (1, 3, 4, 16, 17, 33, 1000):
        sieve = Sieve(limits)
        for number in range(count):
            sieve.add(Frame(float(number), picture(number)))
            assert len(sieve.frames) <= 16
        clip = sieve.clip(count)
        assert len(clip) == min(4, count)
        if count > 4:
            wanted = (np.arange(4) + 0.5) * count / 4
            assert np.abs(np.array(clip.times) + 0.5 - wanted).max() <= max(1.0, 0.15 * count)


def test_a_file_that_tells_a_wrong_number_of_frames_is_read_all_the_same(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mp4", video_bytes(map(grey, range(20))))
    true = clip_files.uniform_places
    monkeypatch.setattr(clip_files, "uniform_places", lambda count, wanted: true(count, wanted))
    once = read_clip(path, ClipLimits(frames=5))

    class Lying:
        """A stream that says it has 400 frames."""

        def __init__(self, stream):
            self._stream = stream

        frames = 400

        def __getattr__(self, name):
            return getattr(self._stream, name)

    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        timed = clip_files._timed
        monkeypatch.setattr(clip_files, "_timed", lambda box, own, *more: timed(box, stream, *more))
        found = clip_files._one_after_the_other(container, Lying(stream), ClipLimits(frames=5))
    assert numbers_of(found) == numbers_of(once)


def test_what_is_no_video_is_named(tmp_path):
    whole = video_bytes(map(grey, range(20)))
    (tmp_path / "other.mp4").write_bytes(whole)
    for name, data, words in (
        ("empty.mp4", b"", None),
        ("text.mp4", b"no video, only words " * 40, None),
        ("half.mp4", whole[: len(whole) // 2], None),
        ("song.wav", sound_bytes(), "it has no pictures"),
        ("torn.gif", moving_picture(map(grey, range(6)))[:300], None),
        ("torn.png", b"\x89PNG\r\n\x1a\n" + bytes(40), None),
        ("names.mp4", b"ffconcat version 1.0\nfile 'other.mp4'\n", None),  # a list of files is not followed
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", None),
    ):
        with pytest.raises(CorruptClip, match=words) as error:
            read_clip(written(tmp_path / name, data), ClipLimits())
        assert str(error.value)


def test_a_damaged_middle_is_no_traceback(tmp_path):
    whole = bytearray(video_bytes(map(grey, range(60)), codec="libx264"))
    draw = np.random.default_rng(0)
    for trial in range(12):
        torn = bytearray(whole)
        for place in draw.integers(64, len(whole), 40):
            torn[place] = draw.integers(256)
        try:
            clip = read_clip(written(tmp_path / f"{trial}.mp4", bytes(torn)), ClipLimits(frames=4))
            assert isinstance(clip, Clip) and unpack_clip(pack_clip(clip)) == clip
        except CorruptClip as error:
            assert str(error)


def test_a_video_with_sound_and_odd_rates(tmp_path):
    path = written(tmp_path / "a.mp4", video_bytes(map(grey, range(12)), 12, sound=True))
    assert numbers_of(read_clip(path, ClipLimits(frames=3))) == [2, 6, 10]
    from fractions import Fraction

    odd = written(tmp_path / "b.mp4", video_bytes(map(grey, range(10)), Fraction(30000, 1001), codec="libx264"))
    clip = read_clip(odd, ClipLimits(frames=2))
    np.testing.assert_allclose(clip.times, np.array([2, 7]) * 1001 / 30000, atol=0.002)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UnreadableFile) as error:
        read_clip(tmp_path / "gone.mp4", ClipLimits())
    assert error.value.reason == "missing video"
    with pytest.raises(UnreadableFile) as error:
        read_clip(pathlib.Path("https://x.org/a.mp4"), ClipLimits())
    assert error.value.reason == "video is an address"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFile, match="it is a pipe, not a file"):
        read_clip(tmp_path / "pipe", ClipLimits())


def test_without_pyav_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mp4", video_bytes(map(grey, range(3))))
    gif = written(tmp_path / "a.gif", moving_picture(map(grey, range(3))))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[media\]'"):
        read_clip(path, ClipLimits())
    assert len(read_clip(gif, ClipLimits())) == 3


def test_a_frame_is_turned_as_its_file_asks():
    class Turned:
        """A decoded frame of a camera held upright."""

        rotation = 90

        def to_image(self):
            return Image.fromarray(grey(3, 48, 32))

    assert upright(Turned()).size == (32, 48)
    Turned.rotation = 0
    assert upright(Turned()).size == (48, 32)
    turned = np.asarray(Image.fromarray(grey(3, 48, 32)).rotate(90, expand=True))
    np.testing.assert_array_equal(turned, np.rot90(grey(3, 48, 32)))


def test_memory_stays_small(tmp_path):
    path = written(tmp_path / "a.gif", moving_picture([grey(number, 256, 256) for number in range(120)]))
    tracemalloc.start()
    read_clip(path, ClipLimits(frames=4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6, "120 frames are 24 MB"
