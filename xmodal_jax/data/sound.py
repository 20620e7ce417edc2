"""Sound: files of any usual format become PCM numbers, which records keep and which are packed and unpacked here.

The bytes of a sound in a record are msgpack {"rate": Hz, "channels": 1 or 2, "pcm": little-endian int16, interleaved},
so that training needs no codec. PyAV decodes (extra `media`), also the sound of a video file.
"""

import io
import math
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from xmodal_jax.data.container import av_module, opened_container
from xmodal_jax.data.records import CorruptRecord, pack, unpack
from xmodal_jax.errors import UserError

MOST_RATE = 48_000  # Hz that are kept
SECONDS = 600.0  # of a file that are read
LEAST_RATE = 1_000  # Hz
TOLD_EXACTLY = {"flac"}  # formats whose header tells the number of samples
OPEN_END = 0x7FFFF000  # sizes from here on, and 0, stand in the header of a RIFF file that was written as a stream
CORRUPT, EMPTY, SILENT, MISSING = "corrupt sound", "empty sound", "no sound in the file", "missing sound"


class UnreadableSound(ValueError):
    """A file without a sound that can be kept; `reason` is a short text for counting, the message says more."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


class Sound(NamedTuple):
    """A decoded sound."""

    rate: int
    """Samples a second, Hz."""
    pcm: np.ndarray
    """Samples int16 [N,C], of one or two channels."""
    cut: bool = False
    """Whether the file goes on after them."""

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.pcm) / self.rate


def check_options(seconds: float, rate: int, where: str = "") -> None:
    """Raise `UserError` for an impossible number of seconds or Hz to keep, options of sources that have sound."""
    if not (seconds > 0 and math.isfinite(seconds)):
        raise UserError(f"{where}seconds is {seconds}; write the most seconds of a sound or clip to keep, above 0")
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise UserError(f"{where}rate is {rate}; write Hz from {LEAST_RATE} to {MOST_RATE}")


def sound_of_file(path: os.PathLike | str, seconds: float = SECONDS, rate: int = MOST_RATE) -> Sound:
    """Decode a file as `decode_sound` does, without reading more of it than is kept.

    Raises `UnreadableSound`; a pipe, a socket or a device is not opened, as reading it may never end.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableSound("sound is no file", f"'{path}' is a folder, a pipe or a device")
        with pathlib.Path(path).open("rb") as file:
            return decode_sound(file, seconds, rate)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path; PyAV's are caught where they are raised
        if isinstance(error, UnreadableSound):
            raise
        raise UnreadableSound(MISSING, f"'{path}': {getattr(error, 'strerror', None) or error}") from error


def decode_sound(content: bytes | IO[bytes], seconds: float = SECONDS, rate: int = MOST_RATE) -> Sound:
    """Decode the first `seconds` of a sound, or of a video's, at its own rate, or at `rate` Hz if that is lower.

    Sounds of more than two channels are mixed down to two.

    Raises `UnreadableSound` for content that is no sound, has none, has no sample, or breaks off.
    """
    av = av_module()
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with opened_container(file) as container:
            sound = _first_sound(av, container, seconds, rate)
        if not sound.cut:
            _refuse_cut_riff(file)
        return sound
    except UnreadableSound:
        raise
    except (av.FFmpegError, ValueError, EOFError, OverflowError) as error:
        raise UnreadableSound(CORRUPT, f"it cannot be decoded ({error})") from error


def _first_sound(av: Any, container: Any, seconds: float, most: int) -> Sound:
    """Decode the first sound of an open file."""
    if not container.streams.audio:
        raise UnreadableSound(SILENT, "it has no audio stream")
    stream = container.streams.audio[0]
    codec = stream.codec_context
    own, channels = (codec.sample_rate or 0, min(codec.channels or 0, 2)) if codec else (0, 0)
    if own < 1 or channels < 1:
        raise UnreadableSound(CORRUPT, f"it has {own} Hz and {channels} channels" if codec else "no codec decodes it")
    rate = min(own, most)
    resampler = av.AudioResampler("s16", "mono" if channels == 1 else "stereo", rate)
    room, parts, cut = round(seconds * rate), [], False
    for part in _samples(container.decode(stream), resampler, channels):
        cut = len(part) > room
        parts.append(part[:room])
        room -= len(parts[-1])
        if cut:
            break
    pcm = np.concatenate(parts) if parts else np.zeros((0, channels), np.int16)
    if not len(pcm):
        raise UnreadableSound(EMPTY, "it has no samples")
    if not cut:
        _refuse_shorter(container, stream, len(pcm) / rate)
    return Sound(rate, pcm, cut)


def _samples(frames: Iterator[Any], resampler: Any, channels: int) -> Iterator[np.ndarray]:
    """Yield samples int16 [n,C] of decoded frames, and at last those that the resampler holds back."""
    for frame in frames:
        for made in resampler.resample(frame):
            yield made.to_ndarray().reshape(-1, channels)
    for made in resampler.resample(None):
        yield made.to_ndarray().reshape(-1, channels)


def _refuse_shorter(container: Any, stream: Any, seconds: float) -> None:
    """Raise `UnreadableSound` for a file that is shorter than its header says, as one that was cut off."""
    if stream.duration is None or stream.time_base is None or container.format.name not in TOLD_EXACTLY:
        return
    told = float(stream.duration * stream.time_base)
    if seconds < 0.99 * told - 0.1:
        raise UnreadableSound(CORRUPT, f"it breaks off after {seconds:.1f} of {told:.1f} s")


def _refuse_cut_riff(file: IO[bytes]) -> None:
    """Raise `UnreadableSound` for a RIFF file (wav) that is shorter than its header says, which the decoder ignores."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    told = int.from_bytes(head[4:], "little")
    if head[:4] == b"RIFF" and 0 < told < OPEN_END and told + 8 > length:
        raise UnreadableSound(CORRUPT, f"it breaks off after {length} of {told + 8} bytes")


def pack_sound(sound: Sound) -> bytes:
    """Return the bytes that a record keeps of a sound. Raises `CorruptRecord` for one that could not be read back."""
    channels = sound.pcm.shape[1] if sound.pcm.ndim == 2 else 0
    if sound.pcm.dtype != np.int16:
        raise CorruptRecord(f"samples are {sound.pcm.dtype}, not int16")
    data = pack({"rate": int(sound.rate), "channels": channels, "pcm": sound.pcm.astype("<i2").tobytes()})
    unpack_sound(data)
    return data


def unpack_sound(data: bytes) -> Sound:
    """Return the sound that `pack_sound` packed. Raises `CorruptRecord`."""
    found = unpack(data)
    if not isinstance(found, dict) or set(found) != {"rate", "channels", "pcm"}:
        raise CorruptRecord("a sound is a dict of rate, channels and pcm")
    rate, channels, pcm = found["rate"], found["channels"], found["pcm"]
    if not isinstance(rate, int) or isinstance(rate, bool) or not 1 <= rate <= MOST_RATE:
        raise CorruptRecord(f"a sound's rate is {rate!r:.40}, not 1 to {MOST_RATE} Hz")
    if channels not in (1, 2):
        raise CorruptRecord(f"a sound has {channels!r:.40} channels, not 1 or 2")
    if not isinstance(pcm, bytes) or not pcm or len(pcm) % (2 * channels):
        raise CorruptRecord(f"a sound's samples are no int16 numbers of {channels} channels")
    return Sound(rate, np.frombuffer(pcm, "<i2").reshape(-1, channels).astype(np.int16, copy=False))


def waves(sound: Sound, rate: int) -> np.ndarray:
    """Return a sound at `rate` Hz as float32 [N,C] from -1 to 1."""
    return resampled(sound.pcm.astype(np.float32) / 32768, sound.rate, rate)


def mono(wave: np.ndarray) -> np.ndarray:
    """Return the mean float32 [N] of the channels of a wave [N,C]."""
    return wave.mean(1, dtype=np.float32)


def resampled(wave: np.ndarray, rate: int, other: int) -> np.ndarray:
    """Resample a wave [N,...] from `rate` Hz to `other` -> float32 [ceil(N * other / rate),...].

    By a polyphase filter (a Kaiser window of beta 5), which takes out what the lower rate cannot hold.
    """
    from scipy.signal import resample_poly

    if rate == other:
        return np.asarray(wave, np.float32)
    common = math.gcd(rate, other)
    return np.asarray(resample_poly(wave, other // common, rate // common, axis=0), np.float32)
