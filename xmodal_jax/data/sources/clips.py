"""Items with clips: what the sources of videos share."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from xmodal_jax.data.clip_files import CorruptClip, read_clip, read_strip
from xmodal_jax.data.media import UnreadableFile, file_state, find_file
from xmodal_jax.data.source import Item, Skip, existing, file_item
from xmodal_jax.data.video import VIDEO, VIEW, ClipLimits, pack_clip
from xmodal_jax.errors import UserError

SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif", ".webp")  # of the videos of a folder, in this order
UNREAD = {"image is an address": "video is an address", "missing image": "missing video"}  # reasons of pictures' files


def with_clip(
    item: Item, path: os.PathLike | str, limits: ClipLimits, strip: tuple[int, int] | None = None
) -> Item | Skip:
    """Return an item with the clip of a file, a folder of frames, or a strip of (rows, columns), or a `Skip`."""
    found = find_file(path)
    try:
        clip = read_strip(found, strip[0], strip[1], limits) if strip else read_clip(found, limits)
    except UnreadableFile as error:
        reason = UNREAD.get(error.reason, error.reason)
        why = "" if reason == "missing video" else f": {error}"
        return Skip(reason, f"{item.key}: {error.name}{why}", (file_state(found),))
    except CorruptClip as error:
        return Skip("corrupt video", f"{item.key}: {path}: {error}", (file_state(found),))
    media = {**item.media, VIDEO: {VIEW: pack_clip(clip)}}
    return dataclasses.replace(item, media=media, files=(*item.files, *_states(found)))


def _states(path: pathlib.Path) -> Iterator[Any]:
    """Yield the states of a file, or of a folder's files."""
    yield from map(file_state, sorted(path.iterdir()) if path.is_dir() else [path])


def clip_item(
    key: str, path: os.PathLike | str, captions: Any, limits: ClipLimits, **fields: Any
) -> Iterator[Item | Skip]:
    """Yield the item of a video in a file with its captions, and a `Skip` for all that is left out."""
    for one in file_item(key, {}, captions, group=key, **fields):
        yield with_clip(one, path, limits) if isinstance(one, Item) else one


def video_paths(folder: os.PathLike | str) -> Mapping[str, pathlib.Path]:
    """Return the videos of a folder by their names without the ending. Raises `UserError` for a folder without any."""
    root, found = existing(folder, "video folder", folder=True), {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            kept = found.setdefault(path.stem, path)
            if SUFFIXES.index(path.suffix.lower()) < SUFFIXES.index(kept.suffix.lower()):
                found[path.stem] = path
    if not found:
        raise UserError(f"video folder {root} has no videos ({', '.join(SUFFIXES)}); give the folder of the files.")
    return found


def path_of(paths: Mapping[str, pathlib.Path], folder: os.PathLike | str, name: str) -> pathlib.Path:
    """Return the file of a video by its name, or where it would be."""
    return paths.get(name, pathlib.Path(folder) / f"{name}{SUFFIXES[0]}")
