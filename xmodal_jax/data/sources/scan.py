"""SCAN's "precomp" folders (Lee et al. 2018): captions, and features of the regions of pictures that are not there.

Flickr30K and COCO were published so, with the 36 regions of Anderson et al. 2018 for each picture, and VSE-infinity,
SGRAF and NCR read the same files. `remote_sensing.py` reads other folders called "precomp", of text files and pictures.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from xmodal_jax.data.media import file_state, read_states
from xmodal_jax.data.source import TERMS, Item, Skip, Source, clean_captions, digest_of_all, existing
from xmodal_jax.data.textfile import read_lines
from xmodal_jax.errors import UserError

SPLITS = {"train": "train", "dev": "val", "test": "test", "testall": "testall"}  # {start of the file names: split}
PER_PICTURE = 5
REGIONS = "regions"  # name of the view and of the feature cache


@dataclasses.dataclass(frozen=True)
class Part:
    """The files of one split: features [R,N,D], each picture in `repeats` rows, captions [5n] and maybe ids [n]."""

    split: str
    path: pathlib.Path
    rows: np.ndarray
    repeats: int
    captions: list[str]
    ids: list[str]
    texts: tuple[pathlib.Path, ...]

    def __len__(self) -> int:
        return len(self.rows) // self.repeats

    def tokens(self, number: int) -> np.ndarray:
        """Return the features [N,D] of a picture. Raises `UserError` if its rows differ, or are not finite."""
        first = number * self.repeats
        own = np.array(_opened(self.path)[first : first + self.repeats])  # a map for each: what was read leaves memory
        if not np.isfinite(own).all():
            raise UserError(f"{self.path}: row {first} has NaN or infinite numbers; download the file again.")
        if (own[1:] != own[0]).any():
            raise UserError(
                f"{self.path} has a row for each caption, so the {PER_PICTURE} rows from {first} on must be one "
                "picture, and they differ; put the rows in the order of the captions."
            )
        return own[0]


def scan_source(path: os.PathLike | str, licence: str = "") -> Source:
    """Read region features without pictures, `{train,dev,test}_ims.npy` and `_caps.txt` in the folder `path` (SCAN).

    These are the "precomp" folders of SCAN, VSE-infinity and SGRAF; those of remote sensing, with pictures, are read by
    the source `precomp`. Captions are one a line, five for each picture; the array has a row [N,D] for each picture, or
    each picture five times. Lines of `_ids.txt`, where there is one, name the pictures. "dev" becomes the split "val";
    COCO's "testall" is a split too. The features become the cache "regions" (float16), for
    `config.data.features=("regions",)`; there are no pictures to show or to encode anew. Raises `UserError` for files
    that are missing or do not fit each other.
    """
    folder = existing(path, "SCAN folder", folder=True)
    parts = [part for start in SPLITS if (part := _part(folder, start)) is not None]
    if not parts:
        other = "; for lists of pictures and captions write `precomp`" if any(folder.glob("*_filename*.txt")) else ""
        raise UserError(f"{folder} has no train_ims.npy, dev_ims.npy or test_ims.npy; give their folder{other}.")
    first = parts[0]
    for part in parts:
        if part.rows.shape[1:] != first.rows.shape[1:]:
            raise UserError(
                f"{part.path} has {_shape(part.rows)} and {first.path.name} {_shape(first.rows)}; all must have the "
                "same regions and width."
            )

    def items() -> Iterator[Item | Skip]:
        for part in parts:
            yield from _items(part)

    texts = [file for part in parts for file in part.texts]
    arguments: dict[str, Any] = {"path": str(folder.resolve()), "content": digest_of_all(texts)}
    arguments["arrays"] = {part.path.name: [part.rows.dtype.str, *part.rows.shape] for part in parts}
    files = read_states(*texts) + tuple(file_state(part.path) for part in parts)
    return Source("scan", folder.name, licence or TERMS, items, arguments, sum(map(len, parts)), files=files)


def _part(folder: pathlib.Path, start: str) -> Part | None:
    """Return the files of a split that begin with `start`, None if there are none."""
    arrays, caps, ids = folder / f"{start}_ims.npy", folder / f"{start}_caps.txt", folder / f"{start}_ids.txt"
    if not arrays.exists() and not caps.exists():
        return None
    rows, captions = _opened(existing(arrays, "array of features")), read_lines(existing(caps, "list of captions"))
    if not captions or len(captions) not in (PER_PICTURE * len(rows), len(rows)) or len(captions) % PER_PICTURE:
        raise UserError(
            f"{caps} has {len(captions)} lines and {arrays.name} {len(rows)} rows; {PER_PICTURE} lines belong to each "
            "picture, which has one row or one for each line."
        )
    pictures = len(captions) // PER_PICTURE
    names = _ids(ids, pictures) if ids.is_file() else [str(number) for number in range(pictures)]
    texts = (caps, ids) if ids.is_file() else (caps,)
    return Part(SPLITS[start], arrays, rows, len(rows) // pictures, captions, names, texts)


def _opened(path: pathlib.Path) -> np.ndarray:
    """Map the array [R,N,D] in a file. Raises `UserError` for another shape or type, and for what is no array."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:  # a cut file, an array of objects, another format
        raise UserError(
            f"{path} cannot be read as an array of numbers ({error}); download it again, or save it with numpy.save."
        ) from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 3 or rows.dtype.kind != "f" or not rows.size:
        what = _shape(rows) if isinstance(rows, np.ndarray) else "several arrays"
        raise UserError(f"{path} is {what}; it must be floating-point [pictures, regions, width].")
    return rows


def _shape(rows: np.ndarray) -> str:
    """Return the type and the shape of an array in words."""
    return f"{rows.dtype} {list(rows.shape)}"


def _ids(path: pathlib.Path, pictures: int) -> list[str]:
    """Return the name of each picture from a list with a line for each, or one for each caption."""
    lines = [line.strip() for line in read_lines(path)]
    if len(lines) not in (pictures, PER_PICTURE * pictures):
        raise UserError(
            f"{path} has {len(lines)} lines for {pictures} pictures; write one for each picture or for each caption, "
            "or remove the file."
        )
    names = lines[:: len(lines) // pictures]
    if len(set(names)) < pictures or not all(names):
        raise UserError(f"{path} names two pictures alike, or one not at all; write different names, or remove it.")
    return names


def _items(part: Part) -> Iterator[Item | Skip]:
    """Yield the items of a split; a name may come again in another split, so keys begin with it."""
    for number, name in enumerate(part.ids):
        key, first = f"{part.split}-{name}", PER_PICTURE * number
        kept, skips = clean_captions(part.captions[first : first + PER_PICTURE], key)
        yield from skips
        if kept:
            tokens = {REGIONS: {REGIONS: part.tokens(number)}}
            yield Item(key, {}, kept, group=key, split=part.split, features=tokens)
