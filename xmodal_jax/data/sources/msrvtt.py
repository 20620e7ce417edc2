"""MSR-VTT (Xu et al. 2016): `videodata` JSON with videos and sentences, and the lists of the 1k-A split."""

import collections
import csv
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.formats import refuse_archive, wrong_format
from xmodal_jax.data.source import TERMS, Item, Skip, Source, digest_of_all, existing, plain_text
from xmodal_jax.data.sources.clips import clip_item, path_of, video_paths
from xmodal_jax.data.textfile import read_text
from xmodal_jax.data.video import ClipLimits
from xmodal_jax.errors import UserError

WANTED = "MSR-VTT's JSON (an object with lists 'videos' and 'sentences')"
SPLITS = {"validate": "val"}  # the file's own names, where ours differ


def msrvtt_source(
    path: os.PathLike | str,
    videos: os.PathLike | str,
    test_list: os.PathLike | str | None = None,
    train_list: os.PathLike | str | None = None,
    frames: int = 32,
    frame_size: int = 256,
    seconds: float = 600.0,
    licence: str = "",
) -> Source:
    """Read MSR-VTT: the JSON file `path` (train_val_videodatainfo.json, MSRVTT_data.json), its clips in `videos`.

    Without lists the file's own splits are kept ("validate" is "val"). With `test_list`, a CSV file with the columns
    "video_id" and "sentence" (MSRVTT_JSFUSION_test.csv: the 1,000 clips of 1k-A with one caption each), these clips are
    the test split with that caption alone, and all others train; with `train_list`, a CSV file with the column
    "video_id" (MSRVTT_train.9k.csv or .7k.csv), only those. Of a clip `frames` frames are kept, the longer side
    `frame_size` px, from the first `seconds`. The category is the label. A clip whose file is missing is left out and
    counted; over 1 % of those need the option allow_bad. Raises `UserError` for files of another format.
    """
    path, limits = pathlib.Path(path), ClipLimits(frames, frame_size, seconds)
    refuse_archive(path, WANTED)
    clips, captions = _content(existing(path, "MSR-VTT file"))
    test = _rows(test_list, ("video_id", "sentence")) if test_list else []
    train = {row["video_id"] for row in _rows(train_list, ("video_id",))} if train_list else None
    held, paths = {row["video_id"]: row["sentence"] for row in test}, video_paths(videos)

    ids = (clip.get("video_id") for clip in clips if isinstance(clip, dict))
    named = {key for key in ids if isinstance(key, str)}

    def items() -> Iterator[Item | Skip]:
        for number, clip in enumerate(clips):
            try:
                key, split = clip["video_id"], _split(clip, held, train)
                labels = tuple(filter(None, [plain_text(clip.get("category"))]))
            except (KeyError, TypeError) as error:
                yield Skip("broken row", f"videos[{number}]: {error!r}")
                continue
            if split:
                own = [held[key]] if key in held else captions.get(key, [])
                yield from clip_item(key, path_of(paths, videos, key), own, limits, labels=labels, split=split)
        for key in sorted(held.keys() - named):
            yield Skip("clip of the test list that the file lacks", key)

    lists = [pathlib.Path(own) for own in (path, test_list, train_list) if own]
    arguments = {"path": str(path.resolve()), "videos": str(pathlib.Path(videos).resolve())}
    arguments |= {"content": digest_of_all(lists), "frames": frames, "frame_size": frame_size, "seconds": seconds}
    return Source("msrvtt", path.name, licence or TERMS, items, arguments, len(clips))


def _split(clip: dict[str, Any], held: dict[str, str], train: set[str] | None) -> str:
    """Return the split of a clip; "" for one that is in none."""
    key = clip["video_id"]
    if key in held:
        return "test"
    if train is not None:
        return "train" if key in train else ""
    if held:
        return "train"
    own: str = clip["split"]
    return SPLITS.get(own, own)


def _content(path: pathlib.Path) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return the videos of a file, and the sentences of each. Raises `UserError` for a file of another format."""
    try:
        content = json.loads(read_text(path))
        videos, sentences = content["videos"], content["sentences"]
        captions = collections.defaultdict(list)
        for row in sentences:
            captions[row["video_id"]].append(row["caption"])
    except (ValueError, RecursionError, KeyError, TypeError):
        raise wrong_format(path, WANTED) from None
    if not isinstance(videos, list):
        raise wrong_format(path, WANTED)
    return videos, captions


def _rows(path: os.PathLike | str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a CSV file. Raises `UserError` if it lacks one of the columns."""
    found = existing(path, "list of clips")
    rows = list(csv.DictReader(read_text(found).splitlines()))
    missing = [name for name in columns if not rows or rows[0].get(name) is None]
    if missing:
        raise UserError(f"{found} has no column '{missing[0]}'; give a CSV file with {' and '.join(columns)}.")
    return rows
