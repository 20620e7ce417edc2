"""Remote-sensing sets in two layouts beside Karpathy's: text files ("precomp") and ALBEF-style JSON lists ("albef").

RSICD, UCM-captions, Sydney-captions and RSITMD come in either; their original JSON is Karpathy's (`karpathy_source`).
RSITMD's training list has 20 empty captions: they are dropped and counted like all others.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xmodal_jax.data.formats import wrong_format
from xmodal_jax.data.source import TERMS, Item, Skip, Source, digest_of_all, existing, file_item, plain_text
from xmodal_jax.data.textfile import read_json, read_lines
from xmodal_jax.errors import UserError

SPLITS = ("train", "val", "test")
PER_IMAGE = 5  # captions of a name that is listed once

Row = tuple[str, list[Any], tuple[str, ...]]  # picture, captions, labels


def precomp_source(path: os.PathLike | str, images: os.PathLike | str | None = None, licence: str = "") -> Source:
    """Read `{train,val,test}_caps.txt` and `{train,val,test}_filename.txt` in the folder `path`.

    SCAN's "precomp" folders, which have features and no pictures, are read by the source `scan`. Pictures are in
    `images` (default: `images` beside them). A split that also has `..._caps_verify.txt` and
    `..._filename_verify.txt` is read from these: AMFMN's folders hold out validation pictures that way, and
    their plain training lists still have them. Captions are one a line. A name is listed once for its five
    captions or once for each caption; the number of lines tells which. Raises `UserError` for any other ratio,
    by file name, and for missing files.
    """
    folder = existing(path, "precomp folder", folder=True)
    if any(folder.glob("*_ims.npy")):
        raise UserError(f"{folder} holds features of pictures, as SCAN's folders do; write the source `scan`.")
    root = existing(images or folder / "images", "image folder", folder=True)
    found = {split: lists for split in SPLITS if (lists := _lists_of(folder, split))}
    if not found:
        raise UserError(f"{folder} has no train_caps.txt, val_caps.txt or test_caps.txt; give their folder.")
    rows = {split: _paired(*lists) for split, lists in found.items()}
    return _source("precomp", folder, root, rows, [file for lists in found.values() for file in lists], licence)


def _lists_of(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path] | None:
    """Return the files of captions and of file names of a split, None if it has no captions."""
    for end in ("_verify", ""):
        caps, names = (folder / f"{split}_{what}{end}.txt" for what in ("caps", "filename"))
        if caps.is_file():
            return caps, names
    return None


def _paired(caps: pathlib.Path, names: pathlib.Path) -> list[Row]:
    """Return the pictures of one split with their captions."""
    captions, files = read_lines(caps), read_lines(existing(names, "list of file names"))
    whole = len(captions) == PER_IMAGE * len(files)
    if not files or not (whole or len(captions) == len(files)):
        raise UserError(
            f"{caps} has {len(captions)} lines and {names.name} {len(files)}; a name must be there once for "
            f"{PER_IMAGE} captions or once for each caption."
        )
    merged: dict[str, list[Any]] = {}
    for number, caption in enumerate(captions):
        merged.setdefault(files[number // PER_IMAGE if whole else number].strip(), []).append(caption)
    return [(name, own, ()) for name, own in merged.items()]


def albef_source(
    path: os.PathLike | str, images: os.PathLike | str | None = None, name: str = "", licence: str = ""
) -> Source:
    """Read `{NAME_}train.json`, `{NAME_}val.json` and `{NAME_}test.json` in the folder `path` (BLIP, ALBEF).

    Each is a JSON list of {"image": path, "caption": text or list, and maybe "label_name"}; rows of one image are one
    item. Pictures are in `images` (default: `images` beside the lists). `name` is needed if the folder holds the lists
    of several sets. Raises `UserError`.
    """
    folder = existing(path, "folder of JSON lists", folder=True)
    root = existing(images or folder / "images", "image folder", folder=True)
    files = {split: file for split in SPLITS if (file := _list_of(folder, name, split))}
    if not files:
        raise UserError(f"{folder} has no {name or '*'}_train.json, _val.json or _test.json; give their folder.")
    rows = {split: _grouped(file) for split, file in files.items()}
    return _source("albef", folder, root, rows, list(files.values()), licence)


def _list_of(folder: pathlib.Path, name: str, split: str) -> pathlib.Path | None:
    """Return the list of a split, None if there is none."""
    plain = [folder / f"{split}.json"] if (folder / f"{split}.json").is_file() else []
    files = sorted(folder.glob(f"{name}_{split}.json")) if name else plain + sorted(folder.glob(f"*_{split}.json"))
    if len(files) >= 2:
        raise UserError(
            f"{folder} holds {' and '.join(file.name for file in files)}; choose one set "
            "(option 'name'), such as 'rsitmd'."
        )
    return files[0] if files else None


def _grouped(path: pathlib.Path) -> list[Row | Skip]:
    """Return pictures with all their captions and labels, in the order of their first rows; broken rows as `Skip`."""
    content = read_json(path)
    if not isinstance(content, list) or (content and not any(map(_is_row, content))):
        raise wrong_format(path, "a JSON list of rows with 'image' and 'caption'")
    merged: dict[str, tuple[list[Any], dict[str, None]]] = {}
    skips: list[Row | Skip] = []
    for number, row in enumerate(content):
        if not _is_row(row):
            skips.append(Skip("broken row", f"{path.name}: row {number}"))
            continue
        captions, labels = merged.setdefault(row["image"], ([], {}))
        captions += row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
        labels |= {plain_text(row["label_name"]): None} if row.get("label_name") else {}
    return skips + [(image, captions, tuple(labels)) for image, (captions, labels) in merged.items()]


def _is_row(row: Any) -> bool:
    """Return True if a row has a picture and captions, and a label that can be written as text."""
    good = isinstance(row, dict) and isinstance(row.get("image"), str) and "caption" in row
    return good and type(row.get("label_name") or "") in (str, int, float)  # a bool is none of these


def _source(
    kind: str,
    folder: pathlib.Path,
    root: pathlib.Path,
    rows: Mapping[str, Sequence[Row | Skip]],
    files: Sequence[pathlib.Path],
    licence: str,
) -> Source:
    """Return a source of rows by split."""

    def items() -> Iterator[Item | Skip]:
        for split, own in rows.items():
            for row in own:
                yield from [row] if isinstance(row, Skip) else _item(*row, root, split)

    arguments = {"path": str(folder.resolve()), "images": str(root.resolve()), "content": digest_of_all(files)}
    arguments |= {"files": [file.name for file in files]}
    return Source(kind, folder.name, licence or TERMS, items, arguments, sum(map(len, rows.values())))


def _item(
    name: str, captions: list[Any], labels: tuple[str, ...], root: pathlib.Path, split: str
) -> Iterator[Item | Skip]:
    """Yield the item of a row, or the reason why there is none."""
    return file_item(name, {"image": os.path.join(root, name)}, captions, labels=labels, group=name, split=split)
