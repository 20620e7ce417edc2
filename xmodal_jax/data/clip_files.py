"""Read videos of files: what PyAV decodes, moving pictures, folders of frames, and strips with all frames side by side.

However long a video is, memory stays small: frames are decoded one after the other and only those that are kept are
encoded. Of long ones each kept frame is sought.
"""

import contextlib
import functools
import io
import itertools
import logging
import pathlib
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from xmodal_jax.data.container import opened_container
from xmodal_jax.data.decoding import CorruptImage, loaded, opened
from xmodal_jax.data.media import KINDS, URL, UnreadableFile, find_file, read_file
from xmodal_jax.data.video import Clip, ClipLimits, uniform_places
from xmodal_jax.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

log = logging.getLogger(__name__)

MISSING_VIDEO = "missing video"
PICTURE_MARKS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff")  # beginnings of files that Pillow reads; WebP has two marks
FRAME_NAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SOUGHT_SECONDS = 60.0  # frames of longer videos are sought one by one
SOUGHT_FRAMES = 1000  # decoded behind a place that was sought, at most
SPARE = 4  # frames kept for each one wanted while the number of all is unknown
NO_DELAY = 0.1  # seconds of a frame of a moving picture that says 0, as browsers show it
JPEG_QUALITY = 90
USUAL_RATE = 25.0  # frames a second where a file does not tell


class CorruptClip(ValueError):
    """A file that is no video, has no pictures, or whose frames cannot be decoded."""


class Frame(NamedTuple):
    """One frame on its way: its time in seconds, and a function that gives its picture."""

    time: float
    picture: Callable[[], "Picture"]


def read_clip(path: pathlib.Path, limits: ClipLimits) -> Clip:
    """Read a video of a file, or of a folder of pictures in the order of their names, one a second.

    A moving picture (GIF, WebP, PNG) is read as one, and a still one is a clip of one frame. Raises `UnreadableFile`,
    `CorruptClip`, and `UserError` where a video needs PyAV and it is not installed.
    """
    path = find_file(path)
    if path.is_dir():
        return _of_folder(path, limits)
    head = _head(path)
    moving = head.startswith(PICTURE_MARKS) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
    return _of_picture(path, limits) if moving else _of_video(path, limits)


def read_strip(path: pathlib.Path, rows: int, columns: int, limits: ClipLimits) -> Clip:
    """Read a picture that shows the frames of a clip as `rows` x `columns` tiles, row by row, as one frame a second.

    Raises `UnreadableFile` and `CorruptClip`, also if the picture has fewer pixels than tiles.
    """
    try:
        whole = _loaded(find_file(path))
    except CorruptImage as error:
        raise CorruptClip(f"{error}") from error
    if rows < 1 or columns < 1 or whole.width < columns or whole.height < rows:
        raise CorruptClip(f"{whole.width} x {whole.height} pixels are no {rows} x {columns} tiles")
    xs, ys = _edges(whole.width, columns), _edges(whole.height, rows)
    boxes = [(xs[i], ys[j], xs[i + 1], ys[j + 1]) for j in range(rows) for i in range(columns)]
    own = uniform_places(len(boxes), limits.frames)
    frames = [Frame(float(place), functools.partial(whole.crop, boxes[place])) for place in own]
    return all_of(frames, len(boxes), limits)


def _edges(side: int, parts: int) -> list[int]:
    """Return the places in pixels where `parts` equal parts of a side begin and end."""
    return [side * i // parts for i in range(parts + 1)]


def _head(path: pathlib.Path) -> bytes:
    """Return the first bytes of a file. Raises `UnreadableFile` for one that is not there, or is no file."""
    try:
        if kind := KINDS.get(stat.filemode(path.stat().st_mode)[0]):
            raise UnreadableFile(path, "video is no file", f"it is a {kind}, not a file")
        with path.open("rb") as file:
            return file.read(16)
    except (OSError, ValueError) as error:
        if URL.fullmatch(str(path)):
            why = "download it, and write the path of the file"
            raise UnreadableFile(path, "video is an address", why) from error
        raise UnreadableFile(path, MISSING_VIDEO, getattr(error, "strerror", None) or str(error)) from error


def _bytes(path: pathlib.Path) -> bytes:
    """Return the bytes of a file. Raises `UnreadableFile`."""
    _head(path)
    return read_file(path)


def jpeg(picture: "Picture", size: int) -> bytes:
    """Encode a picture as JPEG, its longer side at most `size` px."""
    from PIL import Image

    if max(picture.size) > size:
        scale = size / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


class Kept:
    """The frames that are kept of a video, encoded as they come."""

    def __init__(self, limits: ClipLimits):
        self.limits = limits
        self.frames: list[tuple[float, bytes]] = []

    def add(self, frame: Frame) -> None:
        """Encode and keep a frame."""
        self.frames.append((frame.time, jpeg(frame.picture(), self.limits.size)))

    def clip(self, duration: float) -> Clip:
        """Return the clip of them, at most as many as are wanted. Raises `CorruptClip` if there is none."""
        if not self.frames:
            raise CorruptClip("it has no frames")
        own = [self.frames[place] for place in uniform_places(len(self.frames), self.limits.frames)]
        times = list(itertools.accumulate((max(0.0, time) for time, _ in own), max))
        return Clip(tuple(data for _, data in own), tuple(times), max(float(duration), times[-1]))


class Sieve(Kept):
    """Frames of a stream of unknown length, thinned as they come: all at first, then every other, every fourth ...

    At most `SPARE` times as many as are wanted are kept.
    """

    def __init__(self, limits: ClipLimits):
        super().__init__(limits)
        self.stride, self.seen = 1, 0

    def add(self, frame: Frame) -> None:
        """Keep a frame, or leave it out."""
        if self.seen % self.stride == 0 and len(self.frames) == SPARE * self.limits.frames:
            self.frames, self.stride = self.frames[::2], 2 * self.stride
        if self.seen % self.stride == 0:
            super().add(frame)
        self.seen += 1


def all_of(frames: Iterable[Frame], duration: float, limits: ClipLimits) -> Clip:
    """Return the clip of some frames, all of which are kept. Raises `CorruptClip` if there is none."""
    kept = Kept(limits)
    for frame in frames:
        kept.add(frame)
    return kept.clip(duration)


def _of_folder(folder: pathlib.Path, limits: ClipLimits) -> Clip:
    """Read a folder of pictures, in the order of their names with numbers as numbers, one a second."""
    with _named_faults():
        paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in FRAME_NAMES), key=_natural)
        paths = paths[: max(1, int(limits.seconds))]
        own = uniform_places(len(paths), limits.frames)
        return all_of(
            (Frame(float(place), functools.partial(_loaded, paths[place])) for place in own), len(paths), limits
        )


def _natural(path: pathlib.Path) -> list[tuple[int, str]]:
    """Return a key that sorts "frame 9" before "frame 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _loaded(path: pathlib.Path) -> "Picture":
    """Return the picture in a file, upright, RGB, on white. Raises `CorruptImage` and `UnreadableFile`."""
    return loaded(opened(_bytes(path)))


def _of_picture(path: pathlib.Path, limits: ClipLimits) -> Clip:
    """Read a picture, moving or still. Raises `CorruptClip`."""
    with _named_faults():
        picture, sieve, time = opened(_bytes(path)), Sieve(limits), 0.0
        while time < limits.seconds:
            sieve.add(Frame(time, lambda: loaded(picture)))
            time += (picture.info.get("duration") or 1000 * NO_DELAY) / 1000
            try:
                picture.seek(picture.tell() + 1)
            except EOFError:
                break
        return sieve.clip(time)


@contextlib.contextmanager
def _named_faults() -> Iterator[None]:
    """Raise whatever a decoder raises as `CorruptClip`: each has its own kinds of exceptions."""
    try:
        yield
    except (CorruptClip, UnreadableFile, UserError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise CorruptClip(text if " " in text else f"{type(error).__name__} {text}".strip()) from error


def _of_video(path: pathlib.Path, limits: ClipLimits) -> Clip:
    """Read a file that PyAV decodes: seeking each frame of a long one, else one frame after the other."""
    with _named_faults(), opened_container(str(path)) as container:
        stream = _pictures_of(container)
        whole = _duration(container, stream)
        if whole > limits.seconds:
            log.warning("'%s' is %.0f s long; its first %g s are kept (option seconds)", path, whole, limits.seconds)
        length = min(whole, limits.seconds)
        if whole > SOUGHT_SECONDS and (clip := _sought(container, stream, length, limits)) is not None:
            return clip
        container.seek(0)
        return _one_after_the_other(container, stream, limits)


def _pictures_of(container: Any) -> Any:
    """Return the stream of moving pictures of a file; the cover of a song is none. Raises `CorruptClip`."""
    streams = [own for own in container.streams.video if "attached_pic" not in str(getattr(own, "disposition", ""))]
    if not streams:
        raise CorruptClip("it has no pictures")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _duration(container: Any, stream: Any) -> float:
    """Return the seconds of a video as its file tells them; 0.0 where it does not."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else 0.0


def _start(stream: Any) -> float:
    """Return the time in seconds of a stream's first frame."""
    return float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0


def _sought(container: Any, stream: Any, length: float, limits: ClipLimits) -> Clip | None:
    """Read the frames at the middles of equal parts of `length` seconds; None if one cannot be sought."""
    start, kept = _start(stream), Kept(limits)
    for i in range(limits.frames):
        time = (i + 0.5) * length / limits.frames
        try:
            container.seek(int((start + time) / stream.time_base), stream=stream)
            frame = _shown_at(container, stream, start + time)
        except Exception as error:  # such as a file without an index: read one after the other instead
            log.debug("seeking %.1f s: %s", time, error)
            return None
        if frame is None:
            return None
        kept.add(Frame(float(frame.time) - start, functools.partial(upright, frame)))
    return kept.clip(length)


def _shown_at(container: Any, stream: Any, time: float) -> Any:
    """Return the frame that is shown at a time, None if it is not among the next ones."""
    last = None
    for count, frame in enumerate(container.decode(stream)):
        if frame.time is None or count == SOUGHT_FRAMES:
            return None
        if frame.time > time:
            return last or frame
        last = frame
    return last


def _one_after_the_other(container: Any, stream: Any, limits: ClipLimits) -> Clip:
    """Read all frames: exactly uniform ones where the file tells rightly how many there are, else by a sieve."""
    rate, told = float(stream.average_rate or USUAL_RATE), stream.frames
    own, kept, seen, time = set(uniform_places(told, limits.frames)), Kept(limits), 0, 0.0
    for frame in _timed(container, stream, rate, limits.seconds) if told else ():
        time = max(time, frame.time)
        if seen in own:
            kept.add(frame)
        seen += 1
    if not told or seen != told:
        container.seek(0)
        kept = Sieve(limits)
        for frame in _timed(container, stream, rate, limits.seconds):
            time = max(time, frame.time)
            kept.add(frame)
    return kept.clip(time + 1 / rate)


def _timed(container: Any, stream: Any, rate: float, seconds: float) -> Iterator[Frame]:
    """Decode the frames of the first seconds; those without a time follow each other at the usual rate."""
    start = _start(stream)
    for place, frame in enumerate(container.decode(stream)):
        time = place / rate if frame.time is None else float(frame.time) - start
        if time >= seconds:
            return
        yield Frame(time, functools.partial(upright, frame))


def upright(frame: Any) -> "Picture":
    """Return the picture of a decoded frame, turned as its file asks (`rotation`, degrees counter-clockwise)."""
    picture, turn = frame.to_image(), getattr(frame, "rotation", 0) % 360
    return picture.rotate(turn, expand=True) if turn else picture
