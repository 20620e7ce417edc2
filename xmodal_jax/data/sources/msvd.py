"""MSVD (Chen and Dolan 2011): a text file of captions by clip, and lists of the clips of each split."""

import collections
import os
import pathlib
from collections.abc import Iterator

from xmodal_jax.data.source import TERMS, Item, Skip, Source, digest_of_all, existing
from xmodal_jax.data.sources.clips import clip_item, path_of, video_paths
from xmodal_jax.data.textfile import read_lines
from xmodal_jax.data.video import ClipLimits
from xmodal_jax.errors import UserError

SPLITS = ("train", "val", "test")


def msvd_source(
    path: os.PathLike | str,
    videos: os.PathLike | str,
    lists: os.PathLike | str | None = None,
    frames: int = 32,
    frame_size: int = 256,
    seconds: float = 600.0,
    licence: str = "",
) -> Source:
    """Read MSVD: lines "CLIP CAPTION" of the file `path` (AllVideoDescriptions.txt), the clips in the folder `videos`.

    The splits are in `train_list.txt`, `val_list.txt` and `test_list.txt` of the folder `lists` (default: that of
    `path`), a clip's name on each line; 1,200, 100 and 670 clips, each with some forty captions, which evaluation all
    asks. A clip that no list names is left out. Of a clip `frames` frames are kept, the longer side `frame_size` px,
    of the first `seconds`. A clip whose file is missing is left out and counted; over 1 % of those need the option
    allow_bad. Raises `UserError` for files that are missing or of another format.
    """
    path, limits = existing(path, "MSVD captions"), ClipLimits(frames, frame_size, seconds)
    folder = existing(lists or path.parent, "folder of lists", folder=True)
    named = {split: existing(folder / f"{split}_list.txt", f"{split} list") for split in SPLITS}
    captions, paths = _captions(path), video_paths(videos)
    clips = {split: list(filter(None, map(str.strip, read_lines(own)))) for split, own in named.items()}

    def items() -> Iterator[Item | Skip]:
        for split, keys in clips.items():
            for key in keys:
                yield from clip_item(key, path_of(paths, videos, key), captions.get(key, []), limits, split=split)

    arguments = {"path": str(path.resolve()), "videos": str(pathlib.Path(videos).resolve())}
    arguments |= {"content": digest_of_all([path, *named.values()])}
    arguments |= {"frames": frames, "frame_size": frame_size, "seconds": seconds}
    return Source("msvd", path.name, licence or TERMS, items, arguments, sum(map(len, clips.values())))


def _captions(path: pathlib.Path) -> dict[str, list[str]]:
    """Return the captions of each clip. Raises `UserError` for a file without any; lines with # are its heading."""
    found = collections.defaultdict(list)
    for line in read_lines(path):
        key, _, caption = line.strip().partition(" ")
        if caption and not key.startswith("#"):
            found[key].append(caption)
    if not found:
        raise UserError(f"{path} has no captions; give a file with lines 'CLIP CAPTION', as AllVideoDescriptions.txt.")
    return found
