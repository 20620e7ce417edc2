"""Decoding of sound files, what records keep of them, and resampling."""

import builtins
import io
import os
import tracemalloc

import av
import msgpack
import numpy as np
import pytest
import scipy.signal
from sounds import FORMATS, encoded, film, noise, pcm_of, tone, wav_of

from xmodal_jax.data import sound as sounds
from xmodal_jax.data.records import CorruptRecord
from xmodal_jax.data.sound import (
    Sound,
    UnreadableSound,
    decode_sound,
    mono,
    pack_sound,
    resampled,
    sound_of_file,
    unpack_sound,
    waves,
)
from xmodal_jax.errors import UserError

LOSSLESS = ("wav", "flac", "matroska")


def likeness(found, expected):
    """The correlation of a part of a wave with the other at the best shift."""
    one = expected[2000:6000].astype(float)
    products = scipy.signal.correlate(found.astype(float), one, "valid")
    energy = scipy.signal.correlate(np.square(found.astype(float)), np.ones(len(one)), "valid")
    return (products / np.sqrt(energy * np.square(one).sum())).max()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_usual_format_is_decoded(form, channels):
    rate = 48_000 if form == "ogg" else 16_000  # Opus has no other
    made = tone(1.0, rate, (440.0, 550.0)[:channels])
    found = decode_sound(encoded(made, form, rate))
    assert (found.rate, found.pcm.dtype, found.pcm.shape[1], found.cut) == (rate, np.int16, channels, False)
    assert found.seconds == pytest.approx(1.0, abs=0.15)  # of lossy ones the last block is whole
    for side in range(channels):
        if form in LOSSLESS:
            np.testing.assert_array_equal(found.pcm[:, side], pcm_of(made)[:, side])
        else:
            assert likeness(found.pcm[:, side], pcm_of(made)[:, side]) > 0.99


def test_the_sound_of_a_video_is_decoded():
    found = decode_sound(film(1.5, tone(1.5)))
    assert found.rate == 16_000 and found.seconds == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 47_999])
def test_odd_rates_are_kept(rate):
    made = noise(0.5, rate)
    found = decode_sound(wav_of(made, rate))
    assert found.rate == rate
    np.testing.assert_array_equal(found.pcm, pcm_of(made))


@pytest.mark.parametrize(("own", "asked", "kept"), [(96_000, 48_000, 48_000), (44_100, 16_000, 16_000)])
def test_a_higher_rate_is_lowered_to_the_one_asked_for(own, asked, kept):
    found = decode_sound(wav_of(tone(1.0, own), own), rate=asked)
    assert found.rate == kept and len(found.pcm) == pytest.approx(kept, abs=64)
    middle = slice(kept // 4, kept // 2)
    assert np.abs(found.pcm[middle] - pcm_of(tone(1.0, kept))[middle].astype(int)).max() < 0.01 * 32767


def test_a_lower_rate_than_asked_for_is_kept():
    assert decode_sound(wav_of(tone(0.1, 8000), 8000), rate=16_000).rate == 8000


def test_six_channels_are_mixed_down_to_two():
    assert decode_sound(wav_of(noise(0.2, channels=6))).pcm.shape == (3200, 2)


def test_samples_of_24_bits_and_floats_become_16_bits():
    made = tone(0.2)
    out = io.BytesIO()
    with av.open(out, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(made.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(decode_sound(out.getvalue()).pcm.astype(int) - pcm_of(made)).max() <= 1


def test_a_long_sound_is_cut_and_says_so():
    data = wav_of(tone(3.0))
    found = decode_sound(data, seconds=1.25)
    assert found.cut and found.seconds == 1.25
    np.testing.assert_array_equal(found.pcm, decode_sound(data).pcm[:20_000])
    assert not decode_sound(data, seconds=3.0).cut and not decode_sound(data, seconds=100).cut


def test_an_hour_takes_the_memory_of_what_is_kept(tmp_path):
    path, part = tmp_path / "hour.wav", wav_of(noise(60.0, 8000), 8000)
    body = part[44:]
    with path.open("wb") as file:
        size = 60 * len(body)
        file.write(part[:4] + (size + 36).to_bytes(4, "little") + part[8:40] + size.to_bytes(4, "little"))
        for _ in range(60):
            file.write(body)
    tracemalloc.start()
    found = sound_of_file(path, seconds=20.0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.cut and found.seconds == 20.0
    assert path.stat().st_size > 5e7 and most < 3e6


def damaged():
    """{case: (bytes, reason)}."""
    wav, flac, opus = wav_of(noise(1.0)), encoded(noise(1.0), "flac"), encoded(noise(1.0, 48_000), "ogg", 48_000)
    upset = bytearray(flac)
    for at in range(600, len(flac) - 600, 97):
        upset[at] ^= 0x5A
    return {
        "nothing": (b"", sounds.CORRUPT),
        "words": (b"This is no sound. " * 50, sounds.CORRUPT),
        "half a wav": (wav[: len(wav) // 2], sounds.CORRUPT),
        "a wav that lacks 4 bytes": (wav[:-4], sounds.CORRUPT),
        "half a flac": (flac[: len(flac) // 2], sounds.CORRUPT),
        "the head of an ogg": (opus[:60], sounds.CORRUPT),
        "a flac with bytes changed": (bytes(upset), sounds.CORRUPT),
        "a wav without samples": (wav_of(np.zeros((0, 1))), sounds.EMPTY),
        "a film without sound": (film(0.5), sounds.SILENT),
        "a playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hosts\n", sounds.CORRUPT),
        "a list of files": (b"ffconcat version 1.0\nfile /etc/hosts\n", sounds.CORRUPT),
    }


@pytest.mark.parametrize("case", damaged())
def test_what_is_no_whole_sound_is_refused_with_a_reason(case):
    data, reason = damaged()[case]
    with pytest.raises(UnreadableSound) as caught:
        decode_sound(data)
    assert caught.value.reason == reason and str(caught.value)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF024])
def test_a_wav_written_as_a_stream_has_no_size_and_is_read(size):
    data = bytearray(wav_of(noise(0.5)))
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    assert decode_sound(bytes(data)).seconds == 0.5


def test_a_path_that_no_file_can_have_is_a_missing_sound():
    with pytest.raises(UnreadableSound) as caught:
        sound_of_file("a\0b.wav")
    assert caught.value.reason == sounds.MISSING


def test_no_change_of_bytes_ends_in_another_error():
    rng = np.random.default_rng(3)
    whole = [encoded(noise(0.3), form) for form in ("wav", "flac", "mp3", "mp4")]
    for number in range(80):
        data = bytearray(whole[number % 4])
        for _ in range(rng.integers(1, 30)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            found = decode_sound(bytes(data[: rng.integers(1, len(data) + 1)]), seconds=5)
        except UnreadableSound:
            continue
        assert 0 < found.seconds <= 5 and found.pcm.dtype == np.int16


def test_files_that_are_none_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "sound is no file"), ("", "sound is no file"), ("gone.wav", sounds.MISSING)):
        with pytest.raises(UnreadableSound) as caught:
            sound_of_file(tmp_path / name)
        assert caught.value.reason == reason


def test_without_pyav_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install -e '\.\[media\]'"):
        decode_sound(b"RIFF")


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": float("nan")}, {"rate": 10}, {"rate": 96_000}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is"):
        sounds.check_options(**{"seconds": 60.0, "rate": 16_000} | options)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_comes_back_from_its_bytes(channels):
    made = Sound(22_050, pcm_of(noise(0.1, 22_050, channels)))
    found = unpack_sound(pack_sound(made))
    assert found.rate == 22_050
    np.testing.assert_array_equal(found.pcm, made.pcm)
    assert msgpack.unpackb(pack_sound(made))["pcm"] == made.pcm.astype("<i2").tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"no msgpack \xc1",
        [1],
        {"rate": 16_000, "channels": 1},
        {"rate": 0, "channels": 1, "pcm": b"ab"},
        {"rate": 96_000, "channels": 1, "pcm": b"ab"},
        {"rate": "16000", "channels": 1, "pcm": b"ab"},
        {"rate": True, "channels": 1, "pcm": b"ab"},
        {"rate": 16_000, "channels": 3, "pcm": b"abcdef"},
        {"rate": 16_000, "channels": 2, "pcm": b"ab"},
        {"rate": 16_000, "channels": 1, "pcm": b""},
        {"rate": 16_000, "channels": 1, "pcm": "ab"},
    ],
)
def test_bytes_that_are_no_sound_are_corrupt(content):
    with pytest.raises(CorruptRecord):
        unpack_sound(content if isinstance(content, bytes) else msgpack.packb(content))


def test_what_could_not_be_read_back_is_not_packed():
    for pcm in (np.zeros((0, 1), np.int16), np.zeros(5, np.int16), np.zeros((5, 3), np.int16), np.zeros((5, 1))):
        with pytest.raises(CorruptRecord):
            pack_sound(Sound(16_000, pcm))


@pytest.mark.parametrize(("rate", "other"), [(44_100, 16_000), (48_000, 16_000), (16_000, 44_100), (22_050, 16_000)])
def test_resampling_equals_the_same_tones_sampled_at_the_other_rate(rate, other):
    hertz = (100.0, 440.0, 1234.5, 3000.0)
    found = resampled(tone(1.0, rate, hertz), rate, other)
    assert found.shape == (other, 4) and found.dtype == np.float32
    inside = slice(other // 10, -other // 10)  # the filter reaches over the ends
    np.testing.assert_allclose(found[inside], tone(1.0, other, hertz)[inside], atol=4e-4)


def test_resampling_equals_a_fourier_series_of_a_periodic_sound():
    rng, time = np.random.default_rng(1), np.arange(44_100) / 44_100
    waves_ = [rng.normal() * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6)) for hertz in range(50, 6000, 211)]
    made = np.tile(np.sum(waves_, axis=0) / 30, 3).astype(np.float32)
    expected = scipy.signal.resample(made.astype(float), 48_000)  # whole seconds: their harmonics are kept exactly
    inside = slice(16_000, 32_000)
    np.testing.assert_allclose(resampled(made, 44_100, 16_000)[inside], expected[inside], atol=1e-3)


def test_resampling_takes_out_what_the_lower_rate_cannot_hold():
    found = resampled(tone(1.0, 48_000, (11_000.0,)), 48_000, 16_000)
    assert np.abs(found[2000:-2000]).max() < 2e-3 * 0.4


def test_waves_are_numbers_from_minus_one_to_one():
    made = Sound(16_000, np.array([[-32768, 32767], [0, 16384]], np.int16))
    np.testing.assert_allclose(waves(made, 16_000), [[-1, 32767 / 32768], [0, 0.5]], atol=1e-7)
    np.testing.assert_allclose(mono(waves(made, 16_000)), [-0.5 / 32768, 0.25], atol=1e-7)
