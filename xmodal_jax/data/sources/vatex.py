"""VATEX (Wang et al. 2019): JSON lists of clips with ten English and ten Chinese captions each."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.formats import refuse_archive, wrong_format
from xmodal_jax.data.source import TERMS, Item, Skip, Source, digest_of_all, existing
from xmodal_jax.data.sources.clips import clip_item, path_of, video_paths
from xmodal_jax.data.textfile import read_lines, read_text
from xmodal_jax.data.video import ClipLimits
from xmodal_jax.errors import UserError

WANTED = "VATEX's JSON (a list of rows with 'videoID', 'enCap' and 'chCap')"
CAPTIONS = {"enCap": "en", "chCap": "zh"}


def vatex_source(
    train: os.PathLike | str,
    videos: os.PathLike | str,
    validation: os.PathLike | str | None = None,
    test: os.PathLike | str | None = None,
    test_list: os.PathLike | str | None = None,
    frames: int = 32,
    frame_size: int = 256,
    seconds: float = 600.0,
    licence: str = "",
) -> Source:
    """Read VATEX: the JSON lists `train`, `validation` and `test`, the clips `videoID.mp4` in the folder `videos`.

    Research splits the validation clips, as the public test list has no captions: those that the text file `test_list`
    names, one a line, become the test split (1,500 in the split of HGR, Chen et al. 2020). "enCap" is the language
    "en", "chCap" "zh". Of a clip `frames` frames are kept, the longer side `frame_size` px, from the first `seconds`. A
    clip whose file is missing is left out and counted, as many are that were taken down; over 1 % of those need the
    option allow_bad. Raises `UserError` for files of another format.
    """
    limits, named = ClipLimits(frames, frame_size, seconds), {"train": train, "val": validation, "test": test}
    files = {split: pathlib.Path(path) for split, path in named.items() if path}
    rows = {split: _rows(path) for split, path in files.items()}
    held, paths = _held(test_list, rows.get("val", [])) if test_list else set(), video_paths(videos)

    def items() -> Iterator[Item | Skip]:
        for split, own in rows.items():
            for number, row in enumerate(own):
                try:
                    key, captions = row["videoID"], {code: row.get(name) or [] for name, code in CAPTIONS.items()}
                    path = path_of(paths, videos, key)
                except (KeyError, TypeError, AttributeError) as error:
                    yield Skip("broken row", f"{files[split].name}[{number}]: {error!r}")
                    continue
                place = "test" if split == "val" and key in held else split
                yield from clip_item(key, path, captions, limits, split=place)

    lists = [*files.values(), *([pathlib.Path(test_list)] if test_list else [])]
    arguments = {"videos": str(pathlib.Path(videos).resolve()), "content": digest_of_all(lists)}
    arguments |= {split: str(path.resolve()) for split, path in files.items()}
    arguments |= {"frames": frames, "frame_size": frame_size, "seconds": seconds}
    return Source("vatex", files["train"].name, licence or TERMS, items, arguments, sum(map(len, rows.values())))


def _held(path: os.PathLike | str, rows: list[Any]) -> set[str]:
    """Return the clips that a text file names, one a line. Raises `UserError` for one that is not among the rows."""
    held = set(filter(None, map(str.strip, read_lines(existing(path, "list of test clips")))))
    ids = (row.get("videoID") for row in rows if isinstance(row, dict))
    unknown = held - {key for key in ids if isinstance(key, str)}
    if unknown:
        raise UserError(f"{path} names '{min(unknown)}', which is no clip of `validation`; give names of its clips.")
    return held


def _rows(path: pathlib.Path) -> list[Any]:
    """Return the rows of a list, each checked when it is read. Raises `UserError` for a file of another format."""
    refuse_archive(path, WANTED)
    try:
        rows = json.loads(read_text(existing(path, "VATEX file")))
    except (ValueError, RecursionError):
        raise wrong_format(path, WANTED) from None
    if not isinstance(rows, list) or not any(isinstance(row, dict) and "videoID" in row for row in rows):
        raise wrong_format(path, WANTED)
    return rows
