"""The reader of sound: PCM in a record -> segments of its log-mel spectrogram, which an encoder takes."""

import pathlib
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.config import FieldConfig
from xmodal_jax.data.readers import InputSpec, Reader, Row
from xmodal_jax.data.records import CorruptRecord
from xmodal_jax.data.sound import Sound, UnreadableSound, pack_sound, sound_of_file, unpack_sound, waves
from xmodal_jax.data.spectrogram import UNKNOWN, Segments, segments
from xmodal_jax.data.split import Split
from xmodal_jax.errors import UserError


class Chosen(NamedTuple):
    """What is taken of a row: one view of the medium, and whether parts of its spectrogram are blanked."""

    view: str
    blanked: bool = False


class SoundReader(Reader):
    """Reader of sounds as segments of their spectrograms, float16 [P,M,W] or [P,M,W,3], or of cached tokens [N,D].

    Zeros behind the last tell that nothing is there.

    Training draws the view, and the segments of a sound that has more of them; evaluation takes the first view, and
    segments at equal distances. A field that is another view of the same record (`of`) shows the view that the other
    one shows, with bands and time steps blanked (SpecAugment), as CLIP4VLA contrasts a sound with its blanked copy.
    """

    gives = "sound"

    def __init__(self, split: Split, own: FieldConfig, spec: InputSpec):
        super().__init__(split, own, spec)
        if spec.cached and own.of:
            raise UserError(
                f"a view of config.data.fields.{own.of} shows its sound blanked in part, and config.encoders."
                f"{own.encoder} takes cached tokens; write an encoder of kind 'spectrogram', or leave the field out"
            )
        self.form = None if spec.cached else form_of(spec, f"config.encoders.{own.encoder}")

    @classmethod
    def of_file(cls, path: pathlib.Path, spec: InputSpec) -> np.ndarray:
        """Return the segments of a sound file, or of a video's sound, as evaluation reads them.

        Nobody says whether it is speech, so an encoder that is told takes it for half of it.
        """
        form = form_of(spec, f"'{path}' is a sound, and the field's encoder")
        sound = _sound(path)
        return segments(waves(sound, form.mel.rate), form, verbal=UNKNOWN)

    @classmethod
    def packed(cls, path: pathlib.Path) -> bytes:
        """Return what a record would keep of a sound file. Raises `UserError` if it cannot be read."""
        return pack_sound(_sound(path))

    def empty(self) -> np.ndarray:
        """Return padding only."""
        return np.zeros(self.spec.shape if self.form is None else self.form.shape, np.float16)

    def choose(self, row: Row, rng: np.random.Generator) -> Chosen | None:
        """Choose a view."""
        views = list(row.media(self.own.medium))
        return Chosen(views[rng.integers(len(views))]) if views else None

    def chosen(self, row: Row, view: str) -> Chosen:
        """Return the first view, whole."""
        views = row.media(self.own.medium)
        if not views:
            raise CorruptRecord(f"row {row.number} has no {self.own.medium}, which its sidecar names")
        return Chosen(next(iter(views)))

    def other(self, row: Row, first: Chosen, rng: np.random.Generator) -> Chosen:
        """Return the same view, blanked in part."""
        return Chosen(first.view, blanked=True)

    def read(self, row: Row, choice: Chosen, rng: np.random.Generator) -> np.ndarray:
        """Return the segments, drawn, and blanked in part if the choice says so."""
        return self._read(row, choice, rng)

    def plain(self, row: Row, choice: Chosen) -> np.ndarray:
        """Return segments at equal distances, whole."""
        return self._read(row, choice, None)

    def _read(self, row: Row, choice: Chosen, rng: np.random.Generator | None) -> np.ndarray:
        """Return the segments of a view of a row."""
        if self.form is None:
            return self.split.tokens(row.number, choice.view, False, self.split.cfg.caches_of(self.own))
        self.split.activity.note("computing the spectrogram of row", row.number)
        found = row.media(self.own.medium)
        if choice.view not in found:
            raise CorruptRecord(f"row {row.number} has no {self.own.medium} {choice.view!r}, which it had")
        wave = waves(unpack_sound(found[choice.view]), self.form.mel.rate)
        blank = rng if choice.blanked else None
        return segments(wave, self.form, rng, blank, self.form.verbal(self.own.medium, choice.view))


def form_of(spec: InputSpec, who: str) -> Segments:
    """Return the segments that an encoder takes. Raises `UserError` for one that takes no sound."""
    if not isinstance(spec.form, Segments):
        raise UserError(f"{who} takes no sound; write an encoder of kind 'spectrogram' for the field")
    return spec.form


def _sound(path: pathlib.Path) -> Sound:
    """Decode a file of a user's own. Raises `UserError` if it cannot be read."""
    try:
        return sound_of_file(path)
    except UnreadableSound as error:
        raise UserError(
            f"'{path}' is no sound that can be read ({error}); write a whole wav, flac, ogg or mp3 file, or a video"
        ) from error
