"""Log-mel spectrograms against transformers' own, segments, and SpecAugment's masks."""

import dataclasses

import numpy as np
import pytest
from sounds import noise, tone
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, power_to_db, spectrogram, window_function

from xmodal_jax.data.spectrogram import (
    AISFX,
    CLIP4VLA,
    LEAST,
    LOGS,
    NORMS,
    SCALES,
    WHISPER,
    LogMel,
    Segments,
    compressed,
    draw_masks,
    hertz_to_mel,
    log_mel,
    mel_filters,
    mel_power,
    mel_to_hertz,
    places,
    segments,
    standardised,
)

SMALL = LogMel(16_000, 128, 64, 8)
OWN = Segments(4, 16, 1, SMALL)


def reference_filters(own):
    """Transformers' filters; "sum" is not among its norms."""
    norm = "slaney" if own.norm == "slaney" else None
    found = mel_filter_bank(own.window // 2 + 1, own.mels, 0.0, own.high, own.rate, norm=norm, mel_scale=own.scale)
    return found / np.maximum(found.sum(0), 1e-10) if own.norm == "sum" else found


def reference_power(wave, own):
    """Transformers' power in mel bands."""
    window = window_function(own.window, "hann")
    filters = reference_filters(own)
    return spectrogram(wave, window, own.window, own.hop, power=2.0, mel_filters=filters, mel_floor=0.0)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("own", [CLIP4VLA, WHISPER, AISFX])
def test_filters_equal_transformers(own, scale, norm):
    own = dataclasses.replace(own, scale=scale, norm=norm)
    expected = reference_filters(own)
    np.testing.assert_allclose(mel_filters(own), expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("scale", SCALES)
def test_mels_come_back_as_hertz(scale):
    hertz = np.linspace(0, 20_000, 101)
    np.testing.assert_allclose(mel_to_hertz(hertz_to_mel(hertz, scale), scale), hertz, atol=1e-8)
    assert np.all(np.diff(hertz_to_mel(hertz, scale)) > 0)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("own", [CLIP4VLA, WHISPER, AISFX])
@pytest.mark.parametrize("samples", [5000, 16_001, 44_100])
def test_power_equals_transformers(own, samples):
    wave = noise(samples / 16_000)[:, 0]
    expected = reference_power(wave, own)
    np.testing.assert_allclose(mel_power(wave, own), expected, atol=2e-6 * expected.max())
    assert expected.shape == (own.mels, own.steps(samples))


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_decibels_equal_power_to_db():
    wave = (noise(2.0) + tone(2.0, hertz=(1000.0,), loud=0.9))[:, 0]
    expected = power_to_db(reference_power(wave, CLIP4VLA), min_value=1e-10, db_range=80.0)
    np.testing.assert_allclose(log_mel(wave, CLIP4VLA), expected, atol=2e-3)
    assert np.ptp(log_mel(wave, CLIP4VLA)) == pytest.approx(80.0, abs=1e-3)


@pytest.mark.parametrize("seconds", [0.7, 3.0, 30.0])
def test_whisper_equals_its_feature_extractor(seconds):
    wave = (noise(seconds) + tone(seconds))[:, 0]
    expected = WhisperFeatureExtractor()(wave, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    whole = np.pad(wave, (0, 480_000 - len(wave)))
    np.testing.assert_allclose(log_mel(whole, WHISPER, last=False), expected, atol=1e-3)


def test_aisfx_is_the_logarithm_of_ten_thousand_times_the_power():
    wave = noise(1.0, 44_100)[:, 0]
    expected = np.log10(reference_power(wave, AISFX) * 10_000.0 + 1)
    np.testing.assert_allclose(log_mel(wave, AISFX), expected, atol=1e-4)


def test_a_part_of_the_windows_is_that_part_of_all():
    wave = noise(3.0)[:, 0]
    whole = mel_power(wave, SMALL)
    np.testing.assert_allclose(mel_power(wave, SMALL, 30, 77), whole[:, 30:77], rtol=1e-5)
    np.testing.assert_allclose(mel_power(wave, SMALL, 700), whole[:, 700:], rtol=1e-5)
    assert mel_power(wave, SMALL, 5000).shape == (8, 0)


@pytest.mark.parametrize("samples", [1, 2, 17, 64])
def test_sounds_shorter_than_a_window_are_read(samples):
    wave = np.ones(samples, np.float32)
    assert mel_power(wave, CLIP4VLA).shape == (224, 1)
    assert np.isfinite(log_mel(wave, CLIP4VLA)).all()


@pytest.mark.parametrize("log", LOGS)
def test_silence_is_finite(log):
    own = dataclasses.replace(SMALL, log=log)
    assert np.isfinite(log_mel(np.zeros(1000, np.float32), own)).all()


def test_the_loudest_of_each_channel_is_its_own():
    power = np.stack([np.full((2, 3), 1.0), np.full((2, 3), 1e-4)])
    power[:, 0, 0] *= 1e-12
    made = compressed(power, CLIP4VLA)
    np.testing.assert_allclose(made[:, 0, 0], [-80.0, -100.0])  # 80 below the loudest; the floor of 1e-10
    np.testing.assert_allclose(made[:, 1, 1], [0.0, -40.0])


def test_standardised_segments_have_mean_zero_and_deviation_one():
    made = standardised(np.random.default_rng(0).normal(5, 3, (4, 3, 6, 7)))
    np.testing.assert_allclose(made.mean((2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(made.std((2, 3)), 1, atol=1e-5)
    assert not standardised(np.full((1, 2, 3), 4.0)).any()


def clip4vla(wave, count):
    """CLIP4VLA's input by its description: left, mono and right, 0 dB behind the end, by segment and channel."""
    sides = (wave[:, 0], wave.mean(1), wave[:, -1])
    logs = np.stack([power_to_db(reference_power(side, CLIP4VLA), 1.0, 1e-10, 80.0) for side in sides])
    there = -(-logs.shape[2] // 224)
    logs = np.pad(logs, ((0, 0), (0, 0), (0, 224 * there - logs.shape[2])))
    cut = [logs[:, :, 224 * i : 224 * i + 224] for i in range(there)]
    made = [np.stack([(side - side.mean()) / side.std() for side in one], axis=-1) for one in cut]
    return np.stack([*made, *[np.zeros((224, 224, 3))] * (count - there)])


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_segments_are_those_of_clip4vla():
    wave = np.concatenate([noise(4.0, seed=1), noise(4.0, seed=2) + tone(4.0)], axis=1)
    made = segments(wave, Segments())
    assert made.shape == Segments().shape == (6, 224, 224, 3) and made.dtype == np.float16
    np.testing.assert_allclose(made.astype(np.float32), clip4vla(wave, 6), atol=5e-3)
    assert made[:3].any((1, 2, 3)).all() and not made[3:].any()


def test_mono_sounds_have_three_equal_channels_or_one():
    wave = noise(1.0)
    made = segments(wave, dataclasses.replace(OWN, channels=3))
    assert made.shape == (4, 8, 16, 3)
    np.testing.assert_array_equal(made[..., 0], made[..., 2])
    alone = segments(wave, OWN)
    assert alone.shape == OWN.shape == (4, 8, 16)
    np.testing.assert_array_equal(alone, made[..., 1])
    both = segments(np.concatenate([wave, noise(1.0, seed=5)], axis=1), OWN)
    assert (both != alone).any()  # the mean of both channels


def test_silence_is_not_taken_for_padding():
    made = segments(np.zeros((16 * 64, 1), np.float32), OWN)  # 17 time steps: two segments
    assert (made[0] == np.float16(LEAST)).all() and not made[2:].any()
    assert LEAST > 0


def test_a_sound_behind_which_whisper_has_silence_rather_than_zeros():
    own = dataclasses.replace(OWN, mel=dataclasses.replace(SMALL, log="whisper"))
    wave = noise(0.02)  # 320 samples, six time steps of sixteen
    expected = log_mel(np.pad(wave[:, 0], (0, 15 * 64 - 320)), own.mel)
    np.testing.assert_allclose(segments(wave, own)[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("there", "count", "expected"), [(1, 4, [0]), (4, 4, [0, 1, 2, 3]), (8, 4, [1, 3, 5, 7]), (5, 2, [1, 3])]
)
def test_places_of_evaluation(there, count, expected):
    assert places(there, count).tolist() == expected


def test_places_of_training_are_one_of_each_equal_part():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        found = places(10, 4, rng)
        assert np.all(np.diff(found) >= 0)
        assert all(2.5 * i - 1 < at < 2.5 * (i + 1) for i, at in enumerate(found))
        seen |= set(found.tolist())
    assert seen == set(range(10))


def test_a_longer_sound_gives_segments_at_equal_distances_or_drawn():
    wave = noise(2.0)
    whole = segments(wave, dataclasses.replace(OWN, count=100))
    there = int(whole.any((1, 2)).sum())
    assert there == -(-SMALL.steps(32_000) // 16) == 32
    np.testing.assert_allclose(segments(wave, OWN), whole[[4, 12, 20, 28]], atol=2e-3)
    drawn = segments(wave, OWN, np.random.default_rng(1))
    at = [int(np.abs(whole[:there] - one).sum((1, 2)).argmin()) for one in drawn]
    assert at != [4, 12, 20, 28] and [place // 8 for place in at] == [0, 1, 2, 3]


def test_masks_have_clip4vlas_numbers():
    rng, bands, times = np.random.default_rng(0), [], []
    for _ in range(200):
        masked = draw_masks(rng, 224, 448)
        bands.append(masked.all(1).sum())
        times.append(masked.all(0).sum())
    # 11 masks of 4.5 bands on average, and 67 of 4.5 time steps; some overlap
    lost = 224 * (1 - (1 - 4.5 / 224) ** 11), 448 * (1 - (1 - 4.5 / 448) ** 67)
    assert np.mean(bands) == pytest.approx(lost[0], rel=0.05) and np.mean(times) == pytest.approx(lost[1], rel=0.05)
    assert max(bands) <= 99 and max(times) <= 603


def test_masks_blank_whole_bands_and_time_steps():
    masked = draw_masks(np.random.default_rng(5), 60, 100)
    rows, columns = masked.all(1), masked.all(0)
    np.testing.assert_array_equal(masked, rows[:, None] | columns[None, :])
    assert rows.any() and columns.any() and not masked.all()
    assert draw_masks(np.random.default_rng(5), 4, 5).shape == (4, 5)


@pytest.mark.parametrize("log", ["decibel", "whisper"])
def test_blanked_segments_differ_where_the_masks_are_alone(log):
    own = dataclasses.replace(OWN, count=2, mel=LogMel(16_000, 128, 64, 40, log=log), steps=64)
    wave = noise(0.5)
    rng = np.random.default_rng(3)
    mask = draw_masks(np.random.default_rng(3), 40, own.mel.steps(8000) if log == "decibel" else 128)
    made, plain = segments(wave, own, None, rng), segments(wave, own)
    whole = np.zeros((40, 128), bool)
    whole[:, : mask.shape[1]] = mask
    for place in range(2):
        inside = whole[:, 64 * place : 64 * place + 64]
        assert inside.any() and np.unique(made[place][inside]).size == 1  # one value, which was 0 dB
        slope, offset = np.polyfit(plain[place][~inside].astype(float), made[place][~inside].astype(float), 1)
        np.testing.assert_allclose(slope * plain[place][~inside] + offset, made[place][~inside], atol=6e-3)


def test_what_is_speech_is_written_behind_each_real_segment():
    own = dataclasses.replace(OWN, labelled=True, wordless=("effect", "audio/noise"))
    assert [own.verbal(*at) for at in (("audio", "cs"), ("effect", "cs"), ("audio", "noise"))] == [1.0, 0.0, 0.0]
    made = segments(noise(0.1), own, verbal=0.25)
    assert made.shape == own.shape == (4, 8, 17)
    np.testing.assert_array_equal(made[..., :16], segments(noise(0.1), OWN))
    real = made[..., :16].any((1, 2))
    assert real.tolist() == [True, True, False, False]
    assert (made[real][..., 16] == 0.25).all() and not made[~real].any()
    colours = segments(noise(0.1), dataclasses.replace(own, channels=3), verbal=1.0)
    assert colours.shape == (4, 8, 17, 3) and (colours[0, :, 16] == 1).all()
