"""Log-mel spectrograms of sound, by NumPy alone, and SpecAugment's masks (Park et al. 2019).

Three published settings are here: `CLIP4VLA` (Ruan et al. 2023), `WHISPER` (Radford et al. 2022) and `AISFX` (Ma and
Lerch 2022). A spectrogram is the power of centred windows (Hann, periodic; the ends mirrored), summed by triangles on
the mel scale, and compressed to logarithms.

Mel scales: "slaney" is linear below 1,000 Hz (200/3 Hz a mel) and logarithmic above (27 mels to a factor of 6.4);
"htk" is 2595 log10(1 + f / 700). The triangles are normalised to an equal area in Hz ("slaney": times 2 / width), to
weights that sum to one ("sum"), or have the peak 1 ("none").
"""

import functools
from dataclasses import dataclass

import numpy as np

BLOCK = 4096  # windows that are transformed together
FLOOR = 1e-10  # power below which logarithms stay
DECIBELS = 80.0  # below the loudest, where power_to_db cuts
SCALES = ("slaney", "htk")
NORMS = ("slaney", "sum", "none")
LOGS = ("decibel", "whisper", "shifted")


@dataclass(frozen=True)
class LogMel:
    """The constants of a log-mel spectrogram."""

    rate: int = 16_000
    """Samples a second of the wave, Hz."""
    window: int = 512
    """Samples of a window, and of its Fourier transform."""
    hop: int = 128
    """Samples from one window to the next."""
    mels: int = 224
    """Mel bands M."""
    high: float = 8_000.0
    """Highest frequency of the bands, Hz; the lowest is 0."""
    scale: str = "slaney"
    """Mel scale: one of `SCALES`."""
    norm: str = "slaney"
    """Normalisation of the triangles: one of `NORMS`."""
    log: str = "decibel"
    """Compression: "decibel", 10 log10 of the power, at most 80 dB below the loudest; "whisper", log10 of it, at most 8
    below the loudest, plus 4, over 4; "shifted", log10(10000 power + 1)."""

    def steps(self, samples: int) -> int:
        """Return the number T of windows of a wave of so many samples."""
        return 1 + samples // self.hop


CLIP4VLA = LogMel()
WHISPER = LogMel(window=400, hop=160, mels=80, log="whisper")
AISFX = LogMel(44_100, 2048, 1024, 96, 22_050.0, "htk", "sum", "shifted")


def hertz_to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Return frequencies in Hz as mels.

    Example:
        >>> hertz_to_mel(np.array([500.0, 1000.0, 6400.0]), "slaney")
        array([ 7.5, 15. , 42. ])
    """
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, above)


def mel_to_hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    """Return mels as frequencies in Hz; the inverse of `hertz_to_mel`."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * (np.log(6.4) / 27.0)))


@functools.lru_cache(maxsize=8)
def mel_filters(own: LogMel) -> np.ndarray:
    """Return the triangles float32 [F,M] that sum F = window // 2 + 1 frequencies to M bands."""
    top = hertz_to_mel(np.array(own.high), own.scale)
    edges = mel_to_hertz(np.linspace(0.0, top, own.mels + 2), own.scale)
    frequency = np.linspace(0.0, own.rate / 2, own.window // 2 + 1)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    weight = np.maximum(np.minimum((frequency - low) / (middle - low), (high - frequency) / (high - middle)), 0.0)
    if own.norm == "slaney":
        weight *= 2.0 / (high - low)
    if own.norm == "sum":
        weight /= np.maximum(weight.sum(0), FLOOR)
    return weight.astype(np.float32)


def mel_power(wave: np.ndarray, own: LogMel, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Return the power float32 [M,T] in mel bands of the windows `start` to `stop` (all) of a wave float32 [N]."""
    stop = own.steps(len(wave)) if stop is None else min(stop, own.steps(len(wave)))
    padded = np.pad(wave, own.window // 2, mode="reflect" if len(wave) > 1 else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, own.window)[:: own.hop]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(own.window) / own.window)).astype(np.float32)
    made = [np.zeros((0, own.mels), np.float32)]
    for first in range(start, stop, BLOCK):
        spectrum = np.fft.rfft(windows[first : min(first + BLOCK, stop)] * hann, axis=1)
        made.append(np.square(np.abs(spectrum)).astype(np.float32) @ mel_filters(own))
    return np.concatenate(made).T


def compressed(power: np.ndarray, own: LogMel) -> np.ndarray:
    """Compress power [...,M,T] in mel bands to float32 logarithms, as `LogMel.log` says.

    What is loudest is taken over the last two axes.
    """
    if own.log == "shifted":
        return np.log10(1.0 + 10_000.0 * power).astype(np.float32)
    found = np.log10(np.maximum(power, FLOOR))
    loudest = found.max((-2, -1), keepdims=True) if found.size else found
    if own.log == "whisper":
        return ((np.maximum(found, loudest - 8.0) + 4.0) / 4.0).astype(np.float32)
    return (10.0 * np.maximum(found, loudest - DECIBELS / 10.0)).astype(np.float32)


def log_mel(wave: np.ndarray, own: LogMel, last: bool = True) -> np.ndarray:
    """Return the log-mel spectrogram float32 [M,T] of a wave float32 [N]; without the `last` window T is one less."""
    return compressed(mel_power(wave, own, 0, own.steps(len(wave)) - (not last)), own)


def standardised(segments: np.ndarray) -> np.ndarray:
    """Return segments [...,M,W] with mean 0 and standard deviation 1, each by itself; a constant one becomes zeros."""
    mean = segments.mean((-2, -1), keepdims=True)
    deviation = segments.std((-2, -1), keepdims=True)
    return np.where(deviation > 1e-6, (segments - mean) / np.maximum(deviation, 1e-6), 0.0).astype(np.float32)


def draw_masks(
    rng: np.random.Generator, mels: int, steps: int, widest: int = 10, bands: float = 0.05, times: float = 0.15
) -> np.ndarray:
    """Draw SpecAugment's masks bool [M,T], True where the spectrogram is blanked, with CLIP4VLA's constants.

    `int(bands * M)` masks of bands and `int(times * T)` of time steps have 0 to `widest` - 1 places each; they may
    overlap.
    """
    masked = np.zeros((mels, steps), bool)
    for _ in range(int(mels * bands)):
        width = min(int(rng.integers(widest)), mels)
        first = int(rng.integers(mels - width + 1))
        masked[first : first + width] = True
    for _ in range(int(steps * times)):
        width = min(int(rng.integers(widest)), steps)
        first = int(rng.integers(steps - width + 1))
        masked[:, first : first + width] = True
    return masked


@dataclass(frozen=True)
class Segments:
    """The input of an encoder of spectrograms: segments of equal length, and what is written beside them."""

    count: int = 6
    """Segments P; sounds with fewer have zeros behind them."""
    steps: int = 224
    """Time steps W of a segment."""
    channels: int = 3
    """3: left, mono and right; 1: mono alone, without the axis."""
    mel: LogMel = CLIP4VLA
    """The spectrogram."""
    labelled: bool = False
    """Whether one more time step says how much of a row is speech, from 0 to 1."""
    wordless: tuple[str, ...] = ()
    """Media, or MEDIUM/VIEW, whose sounds are not speech (0); all others are (1)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape [P,M,W] of an input, or [P,M,W,3]; with `labelled` W + 1."""
        colours = (self.channels,) if self.channels > 1 else ()
        return (self.count, self.mel.mels, self.steps + self.labelled, *colours)

    def verbal(self, medium: str, view: str) -> float:
        """Return how much of a medium's view is speech, 1 or 0."""
        return 0.0 if {medium, f"{medium}/{view}"} & set(self.wordless) else 1.0


LEAST = float(np.finfo(np.float16).tiny)  # what a segment of a real sound has at least: zeros are padding
UNKNOWN = 0.5  # share of speech of a sound that nobody described


def places(there: int, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return int [min(there, count)], the segments that are taken of so many that are there, in order.

    Of more than `count` they are the middles of `count` equal parts, or with `rng` a random place in each.
    """
    if there <= count:
        return np.arange(there)
    edges = np.linspace(0, there, count + 1)
    inside = 0.5 if rng is None else rng.random(count)
    return np.minimum((edges[:-1] + inside * np.diff(edges)).astype(int), there - 1)


def segments(
    wave: np.ndarray,
    own: Segments,
    rng: np.random.Generator | None = None,
    blank: np.random.Generator | None = None,
    verbal: float = UNKNOWN,
) -> np.ndarray:
    """Return the segments float16 (`Segments.shape`) of a wave float32 [N,C] at the rate of `own.mel`.

    The last is filled up with zeros (0 dB; of the setting "whisper" with silence), each is `standardised` by itself and
    channel (not with "whisper"), and one that is then all zeros, such as silence, is lifted above zero. What is loudest
    is taken over the segments that are chosen.

    Args:
      rng: draws the segments of a longer sound; None takes them at equal distances.
      blank: draws SpecAugment's masks, over all chosen segments; None leaves them whole.
      verbal: how much of it is speech, which `own.labelled` writes beside each segment.
    """
    mel, steps = own.mel, own.steps
    there = -(-mel.steps(len(wave)) // steps)
    if mel.log == "whisper":
        wave = np.pad(wave, ((0, max(0, (there * steps - 1) * mel.hop - len(wave))), (0, 0)))
    chosen = places(there, own.count, rng)
    logs = compressed(_powers(wave, own, chosen), mel)
    if blank is not None:
        logs = np.where(draw_masks(blank, *logs.shape[1:]), np.float32(0), logs)
    whole = np.zeros((len(logs), mel.mels, len(chosen) * steps), np.float32)
    whole[:, :, : logs.shape[2]] = logs
    cut = whole.reshape(len(logs), mel.mels, len(chosen), steps).transpose(2, 1, 3, 0)
    if mel.log == "decibel":
        cut = standardised(cut.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    return _filled(cut.astype(np.float16), own, verbal)


def _powers(wave: np.ndarray, own: Segments, chosen: np.ndarray) -> np.ndarray:
    """Return the mel power float32 [C,M,T] of the chosen segments of a wave, by channel, equal ones computed once."""
    middle = wave.mean(1, dtype=np.float32)
    sides = [wave[:, 0], middle, wave[:, -1]] if own.channels == 3 and wave.shape[1] == 2 else [middle]
    found = [
        np.concatenate([mel_power(side, own.mel, at * own.steps, (at + 1) * own.steps) for at in chosen], axis=1)
        for side in sides
    ]
    return np.stack(found)


def _filled(cut: np.ndarray, own: Segments, verbal: float) -> np.ndarray:
    """Return segments float16 [p,M,W,1 or 3] in the shape of an input, none of them all zeros, padded with zeros."""
    cut = np.where(cut.any((1, 2, 3), keepdims=True), cut, np.float16(LEAST))
    cut = np.broadcast_to(cut, (*cut.shape[:3], own.channels))
    if own.labelled:
        cut = np.concatenate([cut, np.full((*cut.shape[:2], 1, own.channels), verbal, np.float16)], axis=2)
    found = np.zeros((own.count, *cut.shape[1:]), np.float16)
    found[: len(cut)] = cut
    return found if own.channels > 1 else found[..., 0]
