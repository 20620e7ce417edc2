"""Sound files of a source: each becomes the bytes that a record keeps, or a `Skip` with the reason."""

import logging
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from xmodal_jax.data.media import FileState, file_state
from xmodal_jax.data.sound import MOST_RATE, SECONDS, UnreadableSound, check_options, pack_sound, sound_of_file
from xmodal_jax.data.source import Skip

log = logging.getLogger(__name__)


class SoundOptions(NamedTuple):
    """What is kept of each sound."""

    seconds: float = SECONDS
    """Seconds from its beginning."""
    rate: int = MOST_RATE
    """Most samples a second, Hz."""

    def checked(self) -> "SoundOptions":
        """Return the options. Raises `UserError` for impossible ones."""
        check_options(self.seconds, self.rate)
        return self

    def arguments(self) -> dict[str, float | int]:
        """Return the options that are not the usual ones, for the arguments of a source."""
        usual = SoundOptions()._asdict()
        return {name: value for name, value in self._asdict().items() if value != usual[name]}


class Sounds(NamedTuple):
    """The sounds of one item."""

    kept: dict[str, bytes]
    """Bytes for a record, by view."""
    skips: list[Skip]
    """The files that cannot be used."""
    files: tuple[FileState, ...]
    """States of all files."""


def read_sounds(key: str, paths: Mapping[str, pathlib.Path], options: SoundOptions) -> Sounds:
    """Read the sound files of the item `key`, by view; the log says which are cut to the first seconds."""
    kept, skips = {}, []
    files = {view: (file_state(path),) for view, path in paths.items()}  # no digest: long files are not read whole
    for view, path in paths.items():
        try:
            sound = sound_of_file(path, options.seconds, options.rate)
        except UnreadableSound as error:
            skips.append(Skip(error.reason, f"{key} ({view}): {error}", files[view]))
            continue
        if sound.cut:
            log.warning("'%s' is cut to its first %g s", path, options.seconds)
        kept[view] = pack_sound(sound)
    return Sounds(kept, skips, tuple(state for own in files.values() for state in own))
