"""The reader of clips: some frames of a record's video, or their cached tokens."""

import pathlib

import numpy as np

from xmodal_jax.data.clip_files import CorruptClip, read_clip
from xmodal_jax.data.config import FieldConfig
from xmodal_jax.data.image import eval_image
from xmodal_jax.data.media import UnreadableFile
from xmodal_jax.data.readers import InputSpec, PictureReader, Row, of_view
from xmodal_jax.data.split import Split
from xmodal_jax.data.video import ClipLimits, lifted_frame, pack_clip, random_places, uniform_places, unpack_clip
from xmodal_jax.errors import UserError


class ClipReader(PictureReader):
    """Reader of clips as frames uint8 [T,S,S,3], or of cached tokens of their frames.

    T and S are the encoder's. Evaluation takes uniform frames, training a random one of each of T equal parts, all
    changed at random alike. A clip of fewer frames gives each once, and zeros behind them, which tell that no frame is
    there; a frame that is all black has one pixel of the value 1.
    """

    gives = "frames"
    viewed = False

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        super().__init__(split, own, spec)
        if not spec.cached and len(spec.shape) != 4:
            raise UserError(
                f"a field with the reader 'video' is taken by config.encoders.{own.encoder}, whose inputs are no "
                f"frames [T,S,S,3] but {list(spec.shape)}; write an encoder of the kind 'frames'"
            )

    @classmethod
    def of_file(cls, path: pathlib.Path, spec: InputSpec) -> np.ndarray:
        """Return the frames of a file, or of a folder of pictures, as evaluation reads those of a record.

        The record is one of a data set that was prepared with the usual number and size of frames.
        """
        return stacked(spec, uniform_frames(spec, cls.packed(path)))

    @classmethod
    def packed(cls, path: pathlib.Path) -> bytes:
        """Return what a record keeps of a video. Raises `UserError` if it cannot be read."""
        try:
            return pack_clip(read_clip(path, ClipLimits()))
        except CorruptClip as error:
            raise UserError(f"'{path}' is no video that can be read ({error}); write a whole file") from error
        except UnreadableFile as error:
            raise UserError(f"'{error.name}' cannot be opened ({error}); write the path of a video") from error

    def empty(self) -> np.ndarray:
        """Return no frames, or tokens that are zero."""
        return super().empty() if self.spec.cached else np.zeros(self.spec.shape, np.uint8)

    def read(self, row: Row, choice: list, rng: np.random.Generator) -> np.ndarray:
        """Return random frames, augmented alike, or cached tokens, those of the mirror images if flipped."""
        if self.spec.cached:
            return super().read(row, choice, rng)
        data = of_view(row.media(self.own.medium), choice[0], row)
        self.split.activity.note("decoding the clip of row", row.number)
        clip = unpack_clip(data)
        places, seed = random_places(len(clip), self.spec.shape[0], rng), int(rng.integers(1 << 62))
        return stacked(self.spec, [self._train(clip.frames[i], np.random.default_rng(seed)) for i in places])

    def plain(self, row: Row, choice: list) -> np.ndarray:
        """Return uniform frames, whole, or cached tokens; those of the mirror images if flipped."""
        if self.spec.cached:
            return super().plain(row, choice)
        data = of_view(row.media(self.own.medium), choice[0], row)
        found = stacked(self.spec, uniform_frames(self.spec, data))
        return np.ascontiguousarray(found[:, :, ::-1]) if choice[1] else found


def uniform_frames(spec: InputSpec, data: bytes) -> list[np.ndarray]:
    """Return uniform frames uint8 [S,S,3] of a stored clip, at most as many as the encoder takes."""
    (count, size), clip = spec.shape[:2], unpack_clip(data)
    decode = eval_image(size)
    return [decode(clip.frames[place]) for place in uniform_places(len(clip), count)]


def stacked(spec: InputSpec, frames: list[np.ndarray]) -> np.ndarray:
    """Return frames as one input [T,S,S,3], with zeros behind them."""
    found = np.zeros(spec.shape, np.uint8)
    for place, frame in enumerate(frames):
        found[place] = lifted_frame(frame)
    return found
