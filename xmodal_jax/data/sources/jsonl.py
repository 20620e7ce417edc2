"""JSON Lines: one pair a line, with the path of its picture."""

import codecs
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.formats import LINE, refuse_archive, wrong_format
from xmodal_jax.data.media import find_file
from xmodal_jax.data.sound import MOST_RATE, SECONDS
from xmodal_jax.data.source import (
    TERMS,
    Item,
    Skip,
    Source,
    digest,
    existing,
    file_item,
    plain_text,
    split_groups,
    usable_item,
)
from xmodal_jax.data.sources.clips import with_clip
from xmodal_jax.data.sources.sounds import SoundOptions, read_sounds
from xmodal_jax.data.textfile import not_utf8, refuse_wide
from xmodal_jax.data.video import ClipLimits
from xmodal_jax.errors import UserError

WANTED = f"JSON Lines with rows as {LINE}"
NOT_UTF8 = "line that is not UTF-8 (iconv converts it)"


def jsonl_source(
    path: os.PathLike | str,
    root: os.PathLike | str | None = None,
    held_out: int | None = None,
    licence: str = "",
    frames: int = 32,
    frame_size: int = 256,
    seconds: float = SECONDS,
    rate: int = MOST_RATE,
) -> Source:
    """Read JSON Lines, one pair each, with image paths relative to `root` (default: the folder of the file).

    A row has {"image": path} or {"views": {name: path}}, "caption": str | [str] | {language: str | [str]}, and
    optionally "id" (default: the path), "labels" (a name or a list), "group" and "split". A row with captions in
    several languages needs no picture, and its "id" defaults to all of them. Rows with the same id, group and
    split that name the same pictures are one item with all their captions. Items without a split are drawn by
    group: `held_out` of those that can be read (default: a tenth of the rows, at most 1,000) are the test split.

    A row may have {"video": path} beside or in place of a picture: a file that moves, or a folder of frames; with
    "strip": [rows, columns], a picture that shows the frames as tiles, row by row. `frames` of its frames are kept, the
    longer side `frame_size` px. A row may also have, or have instead, {"audio": path} or {"audio": {name: path}}:
    files of sound, or videos with sound, kept at `rate` Hz or fewer. Of both the first `seconds` are read.

    Raises `UserError` for a file of another format or encoding.
    """
    path = pathlib.Path(path)
    refuse_archive(path, WANTED)
    options = SoundOptions(seconds, rate).checked()
    rows = read_rows(existing(path, "JSONL file"))
    root = existing(root or path.parent, "image folder", folder=True)
    limits = ClipLimits(frames, frame_size, seconds)
    open_rows = [row for row in rows if isinstance(row, dict) and not row["split"]]
    held_out = min(1000, len(open_rows) // 10) if held_out is None else held_out
    if not 0 <= held_out < max(1, len(open_rows)):
        raise UserError(
            f"held_out is {held_out}, but {path} has {len(open_rows)} pictures without a split; "
            "write fewer (0: none), or leave it out."
        )

    def items() -> Iterator[Item | Skip]:
        def usable(number: int) -> bool:
            return usable_item(_item(open_rows[number], root, "", limits, options))

        drawn = iter(split_groups([row["group"] for row in open_rows], held_out, usable))
        for row in rows:
            own = [row] if isinstance(row, Skip) else _item(row, root, row["split"] or next(drawn), limits, options)
            yield from own

    arguments = {
        "path": str(path.resolve()),
        "root": str(root.resolve()),
        "held_out": held_out,
        "content": digest(path),
    } | options.arguments()
    if any(isinstance(row, dict) and row["video"] for row in rows):
        arguments |= {"frames": frames, "frame_size": frame_size, "seconds": seconds}
    return Source("jsonl", path.name, licence or TERMS, items, arguments, len(rows))


def read_rows(path: pathlib.Path) -> list[dict[str, Any] | Skip]:
    """Return the rows of a file in one form, with rows of one item merged. Raises `UserError` if no line is a row."""
    data = path.read_bytes()
    refuse_wide(data[:4], path)
    lines = enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1)
    rows = [_row(line, number) for number, line in lines if line.strip()]
    foreign = [row for row in rows if isinstance(row, Skip) and row.reason == NOT_UTF8]
    if 2 * len(foreign) > len(rows):
        raise not_utf8(path, f"{len(foreign)} of {len(rows)} lines, {foreign[0].where} first")
    if rows and all(isinstance(row, Skip) for row in rows):
        raise wrong_format(path, WANTED)
    return _merged(rows)


def _row(line: bytes, number: int) -> dict[str, Any] | Skip:
    """Return a row in one form: views, sounds, caption, id, labels, group, split ("" if open), its place, "where"."""
    where = f"line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Skip(NOT_UTF8, where)
    except (ValueError, RecursionError):  # RecursionError: brackets in brackets, a thousand deep
        return Skip("broken JSON line", where)
    if not isinstance(row, dict):
        return Skip("broken JSON line", f"{where}: not an object")
    views: Any = row.get("views") or ({"image": row["image"]} if row.get("image") is not None else {})
    sounds: Any = row.get("audio") if isinstance(row.get("audio"), dict) else _named({"audio": row.get("audio")})
    parallel = isinstance(row.get("caption"), dict) and len(row["caption"]) > 1  # a text and its translations
    video, strip = row.get("video"), row.get("strip") if row.get("video") else ()
    if not _are_paths(views):
        return Skip("no image named", where)
    if not (video is None or video and isinstance(video, str)):
        return Skip("video that is no path", where)
    if not (views or sounds or parallel or video):
        return Skip("no image named", where)
    if not _are_paths(sounds):
        return Skip("audio that is no path", where)
    strip = strip or ()
    if strip and not (isinstance(strip, list) and list(map(type, strip)) == [int, int]):
        return Skip("strip that is not [rows, columns] of a video", where)
    if "caption" not in row:
        return Skip("no caption", where)
    try:
        own = {"video": video or "", "strip": tuple(strip), "where": where}
        return _fields(row, views, sounds, own["video"]) | own
    except TypeError as error:
        return Skip("id, label, group or split that is no text", f"{where}: {error}")


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are there."""
    return {name: value for name, value in values.items() if value is not None}


def _are_paths(paths: Any) -> bool:
    """Return True for {name: path}, empty or not."""
    return isinstance(paths, dict) and all(isinstance(value, str) and value for value in paths.values())


def _fields(row: dict[str, Any], views: dict[str, str], sounds: dict[str, str], video: str) -> dict[str, Any]:
    """Return the fields of a row but its place. Raises `TypeError` for a field that must be a text and is not."""
    named = [*views.values(), *filter(None, [video]), *sounds.values()]
    key = plain_text(row.get("id")) or next(iter(named), "") or " / ".join(_texts(row["caption"]))
    if not key:
        raise TypeError("its captions are no texts")
    labels = row.get("labels")
    labels = [plain_text(label) for label in (labels if isinstance(labels, list) else [labels])]
    return {
        "views": views,
        "sounds": sounds,
        "caption": _by_language(row["caption"]),
        "id": key,
        "labels": {label: None for label in labels if label},
        "group": plain_text(row.get("group")) or key,
        "split": plain_text(row.get("split")),
    }


def _merged(rows: list[dict[str, Any] | Skip]) -> list[dict[str, Any] | Skip]:
    """Merge rows of one id, group and split that name the same pictures to one item with all their captions and labels.

    A row with the id of another item becomes a `Skip`.
    """
    first: dict[str, dict[str, Any]] = {}
    kept: list[dict[str, Any] | Skip] = []
    for row in rows:
        if isinstance(row, Skip):
            kept.append(row)
            continue
        same = first.setdefault(row["id"], row)
        if same is row:
            kept.append(row)
        elif all(same[name] == row[name] for name in ("views", "video", "strip", "sounds", "group", "split")):
            for language, captions in row["caption"].items():
                same["caption"].setdefault(language, []).extend(captions)
            same["labels"].update(row["labels"])
        else:
            kept.append(Skip("key occurs twice", f"{row['id']} in {row['where']}, first in {same['where']}"))
    return kept


def _texts(captions: Any) -> list:
    """Return the texts among any form of a row's captions."""
    found = [text for own in _by_language(captions).values() for text in own]
    return [text for text in found if isinstance(text, str) and text.strip()]


def _by_language(captions: Any) -> dict[str, list]:
    """Return any form of a row's captions as {language: [caption, ...]}, in lists of its own."""
    whole = captions if isinstance(captions, dict) else {"en": captions}
    return {code: list(own) if isinstance(own, (list, tuple)) else [own] for code, own in whole.items()}


def _item(
    row: dict[str, Any], root: pathlib.Path, split: str, limits: ClipLimits, options: SoundOptions
) -> Iterator[Item | Skip]:
    """Yield the item of a row, or the reason why there is none."""
    paths = {view: os.path.join(root, name) for view, name in row["views"].items()}
    heard = {view: find_file(os.path.join(root, name)) for view, name in row["sounds"].items()}
    sounds = read_sounds(row["id"], heard, options)
    yield from sounds.skips
    if sounds.skips:
        return
    media = {"audio": sounds.kept} if sounds.kept else {}
    fields = {"labels": tuple(row["labels"]), "group": row["group"], "split": split, "media": media}
    for found in file_item(row["id"], paths, row["caption"], **fields):
        if not isinstance(found, Item):
            yield found
            continue
        item = dataclasses.replace(found, files=found.files + sounds.files) if sounds.files else found
        clip = os.path.join(root, row["video"])
        yield with_clip(item, clip, limits, row["strip"] or None) if row["video"] else item
