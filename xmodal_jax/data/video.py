"""Clips as records keep them: a few JPEG frames with their times, so that training needs no video decoder."""

import dataclasses
import math
from typing import Any

import numpy as np

from xmodal_jax.data.image import eval_image
from xmodal_jax.data.records import CorruptRecord, pack, unpack
from xmodal_jax.data.tower_input import TowerInput
from xmodal_jax.errors import UserError

VIDEO = "video"  # medium of clips
VIEW = "clip"  # usual name of a record's only clip


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames of a video in their order.

    Example:
        >>> clip = Clip((b"(a JPEG file)", b"(another)"), (0.0, 0.5), 1.0)
        >>> len(clip), unpack_clip(pack_clip(clip)) == clip
        (2, True)
    """

    frames: tuple[bytes, ...]
    """Encoded pictures, at least one."""
    times: tuple[float, ...]
    """Seconds from the beginning at which each frame is shown; they never fall."""
    duration: float
    """Seconds of the whole."""

    def __len__(self) -> int:
        return len(self.frames)


@dataclasses.dataclass(frozen=True)
class ClipLimits:
    """What is kept of a video. Raises `UserError` for impossible numbers."""

    frames: int = 32
    """Most frames, at uniform places."""
    size: int = 256
    """Longest side of a frame in pixels."""
    seconds: float = 600.0
    """Longest part that is read, from the beginning."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("size", 8)):
            if getattr(self, name) < least:
                raise UserError(f"{name} of a clip is {getattr(self, name)}; write {least} or more")
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise UserError(f"seconds of a clip is {self.seconds}; write a number above 0, such as 600")


def pack_clip(clip: Clip) -> bytes:
    """Return the stored bytes of a clip: msgpack {"frames": [bytes], "times": [seconds], "duration": seconds}.

    Raises `CorruptRecord` for a clip that could not be read back.
    """
    return pack(dataclasses.asdict(_checked(clip)))


def unpack_clip(data: bytes) -> Clip:
    """Return the clip in stored bytes. Raises `CorruptRecord` for anything else."""
    found = unpack(data)
    if not isinstance(found, dict) or set(found) != {"frames", "times", "duration"}:
        raise CorruptRecord("a clip is a dict of frames, times and duration")
    if not (isinstance(found["frames"], list) and isinstance(found["times"], list)):
        raise CorruptRecord("the frames and times of a clip are lists")
    return _checked(Clip(tuple(found["frames"]), tuple(found["times"]), found["duration"]))


def _checked(clip: Clip) -> Clip:
    """Return a clip. Raises `CorruptRecord` naming what is wrong with it."""
    if not clip.frames or not all(isinstance(frame, bytes) and frame for frame in clip.frames):
        raise CorruptRecord("a clip has one frame or more, each some bytes")
    numbers = (*clip.times, clip.duration)
    if len(clip.times) != len(clip.frames) or not all(map(_is_second, numbers)):
        raise CorruptRecord("a clip has a time in seconds for each frame, and a duration")
    if list(numbers) != sorted(numbers):
        raise CorruptRecord("the times of a clip's frames fall, or its duration is below them")
    return clip


def _is_second(value: Any) -> bool:
    """Return True for a finite number that is not negative."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def uniform_places(count: int, wanted: int) -> list[int]:
    """Return the middle places of `wanted` equal parts of `count` frames, or all where there are fewer.

    Example:
        >>> uniform_places(9, 3), uniform_places(2, 3)
        ([1, 4, 7], [0, 1])
    """
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)] if count > wanted else list(range(count))


def random_places(count: int, wanted: int, rng: np.random.Generator) -> list[int]:
    """Return one random place of each of `wanted` equal parts of `count` frames, or all where there are fewer."""
    if count <= wanted:
        return list(range(count))
    edges = [i * count // wanted for i in range(wanted + 1)]
    return [int(rng.integers(low, high)) for low, high in zip(edges, edges[1:], strict=False)]


def lifted_frame(image: np.ndarray) -> np.ndarray:
    """Return a frame uint8 [S,S,3] that is not all zero, which would tell that it is not there: black gets one 1."""
    if image.any():
        return image
    found = image.copy()
    found[0, 0] = 1
    return found


def frames_input(size: int, parts: int) -> TowerInput:
    """Return how a tower of pictures reads a clip: uniform frames, each at a size in pixels, one token for each."""
    decode = eval_image(size)

    def read(data: bytes) -> list[np.ndarray]:
        clip = unpack_clip(data)
        return [decode(clip.frames[place]) for place in uniform_places(len(clip), parts)]

    return TowerInput(read, VIDEO, parts, pool="mean")
