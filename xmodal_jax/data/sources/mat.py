"""Labelled sets of cross-modal hashing in MATLAB files.

They are DCMH's `FLICKR-25K.mat` or its `iall`, `yall` and `lall`, and DCMHT's `index.mat`, `caption.mat` and
`label.mat`. The names of the variables, in any case of letters, tell what each holds. Pictures are an array or paths,
texts are a 0/1 bag of words or sentences, and labels are 0/1 vectors.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from xmodal_jax.data.media import file_state
from xmodal_jax.data.source import TERMS, Item, Skip, Source, clean_captions, existing, file_item, usable_item
from xmodal_jax.data.sources.labelled import Whole, draw_splits
from xmodal_jax.data.sources.matfile import Variable, variables
from xmodal_jax.data.textfile import hashed, read_lines
from xmodal_jax.errors import UserError

KNOWN = {
    "arrays": ("images", "iall"),
    "names": ("index", "fall", "imgs"),
    "texts": ("yall", "tall", "tags", "caption"),
    "labels": ("lall", "category", "labels", "label"),
}
EXPECTED = (
    "pictures (images or IAll as an array; index, FAll or imgs as paths), texts (YAll, TAll, tags or caption) and "
    "labels (LAll, category, labels or label)"
)
VOCABULARIES = ("vocabulary.txt", "taglist.txt", "taglist1k.txt")  # the last one is NUS-WIDE's
LABEL_LISTS = ("label_names.txt",)


Captions = list[str] | list[list[str]]  # the text of each row, or its texts


@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows of a set, without their pictures."""

    keys: list[str]
    """Key of each row."""
    captions: Captions
    """Text of each row, or its texts."""
    labels: list[tuple[str, ...]]
    """Labels of each row."""
    queries: int | None
    """Number of rows to draw for "test"; None: 2,000, or a tenth of fewer."""
    train: int
    """Number of rows to draw for "train"; 0: all the others."""

    def fields(self, number: int, split: str) -> dict[str, Any]:
        """Return the fields of the item of one row, but for its picture."""
        return {"labels": self.labels[number], "group": self.keys[number], "split": split}

    def splits(self, whole: Whole = lambda row: True) -> list[str]:
        """Return the split of each row; `whole` tells whether its picture can be read. Raises `UserError`."""
        worded = [bool("".join(text).strip()) for text in self.captions]
        return draw_splits(self.keys, None, worded, self.queries, self.train, whole)


def mat_source(
    path: os.PathLike | str,
    images: os.PathLike | str | None = None,
    vocabulary: os.PathLike | str | None = None,
    label_names: os.PathLike | str | None = None,
    queries: int | None = None,
    train: int = 0,
    licence: str = "",
) -> Source:
    """Read a .mat file, or a folder of them, with pictures, texts and labels (DCMH, DCMHT).

    Variables are images or IAll (an array), or index, FAll or imgs (paths); YAll, TAll, tags or caption; and LAll,
    category, labels or label. An array of pictures (three channels, 0 to 255) is written as PNG, a few dozen rows
    at a time; keys are row numbers. Paths are looked for under `images` (default: `images` in the folder), without
    the leading folders of the machine they were written on. A bag of words becomes the caption of the words that
    are set, named by the lines of `vocabulary` (default: `vocabulary.txt`, `TagList.txt` or `TagList1k.txt`
    beside), else "w17"; labels by those of `label_names` (`label_names.txt`), else "label3"; both count from 0.
    Texts may also be lines of `caption.txt`.

    `queries` records (default: 2,000, or a tenth of fewer) are the test split. With `train`, so many others are the
    train split and the rest is "rest". Both are drawn by the hash of the keys, among rows with a text and a picture
    that can be read. Raises `UserError`.
    """
    folder, found = _found(pathlib.Path(path), prefer_names=images is not None)
    pictures = found.get("arrays") or found["names"]
    by_path = "names" in found
    names = _names(pictures) if by_path else []
    count = len(names) if by_path else pictures.shape[_axes(pictures)[0]]
    captions = _captions(found["texts"], count, folder, vocabulary)
    labels = _labels(found["labels"], count, folder, label_names)
    keys = _keys(names) if by_path else [str(number) for number in range(count)]
    rows = Rows(keys, captions, labels, queries, train)
    rows.splits()  # refuse impossible numbers now; the pictures are read later
    options: dict[str, Any] = {"queries": queries, "train": train or None}
    if by_path:
        root = existing(images or folder / "images", "image folder", folder=True)
        options["images"] = str(root.resolve())
        items = functools.partial(_path_items, names, root, rows)
    else:
        if images is not None:
            raise UserError(f"'images' goes with paths of pictures, and {pictures} holds the pictures.")
        items = functools.partial(_array_items, pictures, rows)
    arguments = {"path": str(pathlib.Path(path).resolve()), "content": _digest(rows, pictures)}
    arguments |= {name: value for name, value in options.items() if value is not None}
    return Source("mat", pathlib.Path(path).name, licence or TERMS, items, arguments, count)


def _digest(rows: Rows, pictures: Variable) -> str:
    """Return a digest of all but the pixels, as for other sources; an array of pictures may have many gigabytes."""
    known = [rows.keys, rows.captions, rows.labels, pictures.shape]
    return hashed(json.dumps(known))


# --- what is where --------------------------------------------------------------------------------------------------


def _found(path: pathlib.Path, prefer_names: bool) -> tuple[pathlib.Path, dict[str, Any]]:
    """Return the folder and its variables: {"arrays" or "names", "texts", "labels": variable}.

    The texts may also be the path of a `caption.txt`.
    """
    folder = path if path.is_dir() else existing(path, "MATLAB file or folder").parent
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".mat") if path.is_dir() else [path]
    if not files:
        raise UserError(f"{folder} has no .mat file; give the file, or the folder that holds them.")
    held = [variable for file in files for variable in sorted(variables(file), key=lambda one: one.name)]
    found: dict[str, Any] = {}
    for what, names in KNOWN.items():
        own = [variable for variable in held if variable.name.lower() in names]
        if len(own) >= 2:
            raise UserError(f"{' and '.join(map(str, own))} are both {what}; give the file or the folder of one set.")
        found |= {what: own[0]} if own else {}
    lines = _beside(folder, ("caption.txt",))
    found |= {"texts": lines} if lines and "texts" not in found else {}
    if "arrays" in found and "names" in found:
        del found["arrays" if prefer_names else "names"]
    if len(found) != 3 or not {"texts", "labels"} < set(found):
        names = ", ".join(variable.name for variable in held) or "nothing"
        raise UserError(
            f"{path} holds {names}, and a set needs {EXPECTED}; give the file, or the folder of files, that has all."
        )
    return folder, found


def _beside(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    """Return the first of the text files `names` that is in `folder`, in any case of letters."""
    there = {file.name.lower(): file for file in sorted(folder.iterdir()) if file.is_file()}
    return next((there[name] for name in names if name in there), None)


# --- texts and labels -----------------------------------------------------------------------------------------------


def _marks(variable: Variable, count: int) -> np.ndarray:
    """Return bool [count,columns]; if the shape leaves it open, rows come first."""
    marks = variable.marks()
    marks = marks if len(marks) == count else marks.T
    _refuse_other(variable, len(marks) if len(marks) == count else max(variable.shape), count)
    return marks


def _refuse_other(what: Variable | pathlib.Path, rows: int, count: int) -> None:
    """Raise `UserError` if there are not as many rows as pictures."""
    if rows != count:
        raise UserError(f"{what} has {rows} rows for {count} pictures; give files of the same set.")


def _captions(
    texts: Variable | pathlib.Path, count: int, folder: pathlib.Path, vocabulary: os.PathLike | str | None
) -> Captions:
    """Return the text or texts of each row."""
    if isinstance(texts, Variable) and texts.kind != "text":
        marks = _marks(texts, count)
        words = _column_names(vocabulary, folder, VOCABULARIES, "w", texts, marks.shape[1])
        return [" ".join(words[column] for column in np.flatnonzero(row)) for row in marks]
    if vocabulary is not None:
        raise UserError(f"'vocabulary' goes with a 0/1 bag of words, and {texts} holds texts.")
    rows = texts.texts() if isinstance(texts, Variable) else read_lines(texts, lenient=True)
    _refuse_other(texts, len(rows), count)
    return rows


def _labels(
    variable: Variable, count: int, folder: pathlib.Path, given: os.PathLike | str | None
) -> list[tuple[str, ...]]:
    """Return the labels of each row."""
    marks = _marks(variable, count)
    names = _column_names(given, folder, LABEL_LISTS, "label", variable, marks.shape[1])
    return [tuple(names[column] for column in np.flatnonzero(row)) for row in marks]


def _column_names(
    given: os.PathLike | str | None,
    folder: pathlib.Path,
    known: Sequence[str],
    start: str,
    variable: Variable,
    count: int,
) -> list[str]:
    """Return the names of the columns: the lines of the file given or beside, else `start` and a number."""
    path = existing(given, "list of names") if given else _beside(folder, known)
    if path is None:
        return [f"{start}{column}" for column in range(count)]
    names = [line.strip() for line in read_lines(path)]
    if len(names) != count or not all(names) or len(set(names)) != count:
        raise UserError(
            f"{path} must have {count} lines, each another name, for the columns of {variable}; it has {len(names)}, "
            f"{len(set(names) - {''})} of them different names."
        )
    return names


# --- pictures -------------------------------------------------------------------------------------------------------


def _axes(pictures: Variable) -> tuple[int, ...]:
    """Return the axes of [n,height,width,3] in the array.

    They are [height,width,3,n] in MATLAB, or rows first, as Python writes it.
    """
    orders = {2: (3, 0, 1, 2), 1: (0, 2, 3, 1), 3: (0, 1, 2, 3)}
    shape = pictures.shape
    channel = next((axis for axis in orders if len(shape) == 4 and shape[axis] == 3), None)
    if channel is None or pictures.kind != "number":
        raise UserError(
            f"{pictures} is {list(shape)} and no array of pictures, such as [224,224,3,n]; features cannot be used."
        )
    return orders[channel]


def _array_items(pictures: Variable, rows: Rows) -> Iterator[Item | Skip]:
    """Yield the items of an array of pictures, one block of rows at a time."""
    number, splits = 0, rows.splits()
    for block in pictures.blocks(_axes(pictures)):
        for image in _bytes(block, pictures):
            key = rows.keys[number]
            kept, skips = clean_captions(rows.captions[number], key)
            files = () if number else (file_state(pictures.file),)  # its time and size alone, as it may have gigabytes
            yield from skips
            if kept:
                yield Item(key, {"image": _png(image)}, kept, **rows.fields(number, splits[number]), files=files)
            elif not skips:
                yield Skip("no caption", key, files)
            number += 1


def _bytes(block: np.ndarray, pictures: Variable) -> np.ndarray:
    """Convert pixels to uint8, also whole numbers saved as floats."""
    with np.errstate(invalid="ignore"):
        exact = block.astype(np.uint8)
    if not (exact == block).all():
        raise UserError(f"{pictures} has values that are no whole numbers from 0 to 255; give raw pixels.")
    return exact


def _png(image: np.ndarray) -> bytes:
    """Encode uint8 [H,W,3] as PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
    return file.getvalue()


def _names(variable: Variable) -> list[tuple[str, ...]]:
    """Return the parts of each path; a row of several texts (NUS-WIDE: folder and file) is one path."""
    paths = ["/".join(row).replace("\\", "/") for row in variable.texts()]
    return [tuple(part for part in path.split("/") if part not in ("", ".")) for path in paths]


def _keys(names: list[tuple[str, ...]]) -> list[str]:
    """Return the paths below the folder that all pictures share, so that splits do not depend on its place."""
    shared = len(os.path.commonprefix([parts[:-1] for parts in names]))
    return ["/".join(parts[shared:]) for parts in names]


def _foreign_parts(names: list[tuple[str, ...]], root: pathlib.Path) -> int:
    """Return how many leading parts of the paths are folders of another machine.

    It is the number by which most files are found, the same for all, so that no two rows take one file for theirs.
    """

    def found(start: int) -> int:
        return sum(root.joinpath(*parts[start:]).is_file() for parts in names if start < len(parts))

    return max(range(max(map(len, names), default=1)), key=lambda start: (found(start), -start))


def _path_items(names: list[tuple[str, ...]], root: pathlib.Path, rows: Rows) -> Iterator[Item | Skip]:
    """Yield the items whose pictures are files under `root`."""
    dropped = _foreign_parts(names, root)

    def items(number: int, split: str = "") -> Iterator[Item | Skip]:
        key, parts = rows.keys[number], names[number]
        file = root.joinpath(*parts[dropped:]) if dropped < len(parts) else root / key
        return file_item(key, {"image": file}, rows.captions[number], **rows.fields(number, split))

    for number, split in enumerate(rows.splits(lambda number: usable_item(items(number)))):
        yield from items(number, split)
