"""Labelled sets of cross-modal hashing in their usual layouts: MIRFlickr-25K, NUS-WIDE, Wikipedia.

MIRFlickr and NUS-WIDE have tags, not sentences: the caption is the tags in their order. Records without a tag are left
out and counted, as for every source.
"""

import html
import itertools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from xmodal_jax.data.source import (
    TERMS,
    Item,
    Skip,
    Source,
    digest_of_all,
    existing,
    file_item,
    split_groups,
    usable_item,
)
from xmodal_jax.data.textfile import read_lines, read_text
from xmodal_jax.errors import UserError

HELD_OUT = 2000  # MIRFlickr's queries in the literature; of a smaller set a tenth

Row = tuple[str, str | pathlib.Path, str, tuple[str, ...]]  # key, picture, caption, labels
Whole = Callable[[int], bool]


def lines_of(path: pathlib.Path) -> list[str]:
    """Return the lines of a text file that are not blank; tags of Flickr may hold bytes of any encoding."""
    return [line for line in read_lines(path, lenient=True) if line.strip()]


def divide_train(
    names: Sequence[str], splits: Sequence[str], worded: Sequence[bool], train: int, whole: Whole = lambda row: True
) -> list[str]:
    """Return `splits` with `train` of the "train" records left there, and the others in "rest".

    This is the protocol of the literature: the retrieval database is "train" and "rest" together. Records are drawn by
    the hash of their names, among those that are `worded` (have a text) and `whole` (their picture can be read); 0
    leaves all in their splits. Raises `UserError`.
    """
    able = [row for row, split in enumerate(splits) if split == "train" and worded[row]]
    if not 0 <= train <= len(able):
        raise UserError(
            f"train is {train}, but {len(able)} records that have a text are not queries; write at most that, or 0 "
            "for all of them."
        )
    if not train:
        return list(splits)
    drawn = _drawn(names, able, train, whole)
    return [
        "rest" if split == "train" and name not in drawn else split for name, split in zip(names, splits, strict=True)
    ]


def _drawn(names: Sequence[str], able: Sequence[int], count: int, whole: Whole) -> set[str]:
    """Return the names of `count` of the rows `able`."""
    splits = split_groups([names[row] for row in able], count, lambda place: whole(able[place]))
    return {names[row] for row, split in zip(able, splits, strict=True) if split == "test"}


def draw_splits(
    names: Sequence[str],
    splits: Sequence[str] | None,
    worded: Sequence[bool],
    queries: int | None,
    train: int,
    whole: Whole = lambda row: True,
) -> list[str]:
    """Return the split of each record.

    This is `splits`, or if that is None "test" and "train", further divided by `divide_train`. `queries` records
    (default: 2,000, or a tenth of fewer) are "test", by the hash of their names. They are drawn among records that
    are `worded` (have a text) and `whole` (their picture can be read), so that the prepared set has the numbers
    asked for. Raises `UserError`.
    """
    if splits is None:
        able = [row for row, good in enumerate(worded) if good]
        count = min(HELD_OUT, len(able) // 10) if queries is None else queries
        if not 0 <= count < max(1, len(able)):
            raise UserError(
                f"queries is {count}, but there are {len(able)} records to draw them from; write fewer, and at least 0."
            )
        test = _drawn(names, able, count, whole)
        splits = ["test" if name in test else "train" for name in names]
    return divide_train(names, splits, worded, train, whole)


def _source(
    kind: str,
    folder: pathlib.Path,
    rows: list[Row],
    files: Sequence[pathlib.Path],
    licence: str,
    splits: list[str] | None,
    queries: int | None = None,
    train: int = 0,
) -> Source:
    """Return a source of `rows`; `files` tell what the rows are, the other arguments are those of `draw_splits`."""
    given = [row[0] for row in rows], splits, [bool(row[2].strip()) for row in rows], queries, train
    draw_splits(*given)  # refuse impossible numbers now; the pictures are read later

    def items() -> Iterator[Item | Skip]:
        drawn = draw_splits(*given, whole=lambda row: usable_item(_items_of(rows[row], "")))
        for row, split in zip(rows, drawn, strict=True):
            yield from _items_of(row, split)

    arguments = {"path": str(folder.resolve()), "content": digest_of_all(files)}
    options = {"queries": queries, "train": train or None}
    arguments |= {name: value for name, value in options.items() if value is not None}
    return Source(kind, folder.name, licence or TERMS, items, arguments, len(rows))


def _items_of(row: Row, split: str) -> Iterator[Item | Skip]:
    """Yield the item of a row, or the reason why there is none."""
    key, picture, caption, labels = row
    return file_item(key, {"image": picture}, caption, labels=labels, group=key, split=split)


# --- MIRFlickr-25K --------------------------------------------------------------------------------------------------


def mirflickr_source(
    path: os.PathLike | str, narrow: bool = False, licence: str = "", queries: int | None = None, train: int = 0
) -> Source:
    """Read MIRFlickr-25K: `im*.jpg` and `meta/tags/tags*.txt` in the folder `path`, or in its folder `mirflickr`.

    The folder `annotations` is in it or beside it. A file there lists the numbers of the pictures that have its name as
    a label: 24 potential labels, or with `narrow` the 14 of `*_r1.txt`. `queries` records (default: 2,000, or a tenth
    of fewer) are the test split, by the hash of their names. With `train`, so many others are the train split and the
    rest is "rest"; the retrieval database of the literature is both together. Raises `UserError`.
    """
    folder = existing(path, "MIRFlickr folder", folder=True)
    folder = folder / "mirflickr" if (folder / "mirflickr").is_dir() else folder
    tags = existing(folder / "meta" / "tags", "tag folder", folder=True)
    pictures = sorted(folder.glob("im*.jpg"), key=lambda file: _number(file.stem.removeprefix("im"), file))
    if not pictures:
        raise UserError(f"{folder} has no im*.jpg; give the folder that holds them.")
    files = _annotations(folder, narrow)
    labels: dict[int, list[str]] = {}
    for file in files:
        for line in lines_of(file):
            labels.setdefault(_number(line.strip(), file), []).append(file.stem.removesuffix("_r1"))
    rows = []
    for file in pictures:
        number = _number(file.stem.removeprefix("im"), file)
        own = tags / f"tags{number}.txt"
        words = " ".join(lines_of(own)) if own.is_file() else ""
        rows.append((file.stem, file, words, tuple(labels.get(number, ()))))
    return _source("mirflickr", folder, rows, files, licence, None, queries, train)


def _annotations(folder: pathlib.Path, narrow: bool) -> list[pathlib.Path]:
    """Return the label files in `annotations` or `mirflickr25k_annotations_v080`, in the folder or beside it."""
    places = [
        root / name for root in (folder, folder.parent) for name in ("annotations", "mirflickr25k_annotations_v080")
    ]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"{folder} has no folder 'annotations' in or beside it; unpack the annotations there.")
    files = [file for file in sorted(found.glob("*.txt")) if file.stem.lower() != "readme"]
    files = [file for file in files if file.stem.endswith("_r1") == narrow]
    if not files:
        raise UserError(f"{found} has no {'*_r1.txt' if narrow else '*.txt'}; unpack the annotations there.")
    return files


def _number(text: str, file: pathlib.Path) -> int:
    """Return the number of a picture. Raises `UserError` for any other text."""
    if not text.isdecimal() or len(text) >= 20:
        raise UserError(f"{file} says '{text[:40]}' where the number of a picture must be; download it again.")
    return int(text)


# --- NUS-WIDE -------------------------------------------------------------------------------------------------------


def nuswide_source(
    path: os.PathLike | str,
    images: os.PathLike | str | None = None,
    top: int = 10,
    licence: str = "",
    train: int = 0,
) -> Source:
    """Read NUS-WIDE: `ImageList/{Train,Test}Imagelist.txt`, `Groundtruth/` and `All_Tags.txt` in the folder `path`.

    Pictures are in `images` (default: `Flickr` in `path`); `AllTags1k.txt` may stand for `All_Tags.txt`. Only records
    with one of the `top` most frequent concepts are part of the set, as in the literature. Labels are read from
    `Groundtruth/TrainTestLabels`, or from `AllLabels` with `ImageList/Imagelist.txt`. With `train`, so many records of
    the training list are the train split and its others are "rest"; the retrieval database of the literature is both
    together. Raises `UserError`.
    """
    folder = existing(path, "NUS-WIDE folder", folder=True)
    root = existing(images or folder / "Flickr", "image folder", folder=True)
    if top <= 0:
        raise UserError(f"top is {top}; write a number of concepts, such as 10 or 21")
    lists = folder / "ImageList"
    names, splits, files = [], {}, []
    for split, title in (("train", "Train"), ("test", "Test")):
        files.append(existing(lists / f"{title}Imagelist.txt", "image list"))
        own = _listed(files[-1])
        splits |= dict.fromkeys(own, split)
        names += own
    labels, read = _concepts(folder, names, splits)
    tags, tag_file = _tags(folder)
    frequent = [name for name, _ in Counter(label for own in labels.values() for label in own).most_common(top)]
    rows = []
    for name in names:
        kept = tuple(label for label in labels[name] if label in frequent)
        if kept:
            rows.append((name, os.path.join(root, name), tags.get(_photo(name), ""), kept))
    own = [splits[row[0]] for row in rows]
    return _source("nuswide", folder, rows, [*files, *read, *tag_file], licence, own, train=train)


def _listed(path: pathlib.Path) -> list[str]:
    """Return the pictures that a list names."""
    return [line.strip().replace("\\", "/") for line in lines_of(path)]


def _photo(name: str) -> str:
    """Return the id of a Flickr photo: "actor/0001_2124494179.jpg" -> "2124494179"."""
    return pathlib.PurePosixPath(name).stem.split("_")[-1]


def _concepts(
    folder: pathlib.Path, names: list[str], splits: dict[str, str]
) -> tuple[dict[str, list[str]], list[pathlib.Path]]:
    """Return {picture: concepts}, and the files it is from: line n of a concept's file is "1" if picture n shows it."""
    parts = folder / "Groundtruth" / "TrainTestLabels"
    if parts.is_dir():
        order = {f"_{split.title()}": [name for name in names if splits[name] == split] for split in ("train", "test")}
    else:
        parts = existing(folder / "Groundtruth" / "AllLabels", "folder of labels", folder=True)
        order = {"": _listed(existing(folder / "ImageList" / "Imagelist.txt", "image list"))}
    labels: dict[str, list[str]] = {name: [] for own in (names, *order.values()) for name in own}
    read = []
    for ending, own in order.items():
        for file in sorted(parts.glob(f"Labels_*{ending}.txt")):
            marks = [line.strip() for line in lines_of(file)]
            if len(marks) != len(own):
                raise UserError(f"{file} has {len(marks)} lines for {len(own)} pictures; download it again.")
            concept = file.stem.removeprefix("Labels_").removesuffix(ending)
            for name, mark in zip(own, marks, strict=True):
                if mark == "1":
                    labels[name].append(concept)
            read.append(file)
    if not read:
        raise UserError(f"{parts} has no Labels_*.txt; unpack the ground truth there.")
    return labels, read


def _tags(folder: pathlib.Path) -> tuple[dict[str, str], list[pathlib.Path]]:
    """Return {photo id: tags} from the first tag file, `All_Tags.txt`, or `AllTags1k.txt` with `TagList1k.txt`."""
    places = (folder, folder / "NUS_WID_Tags", folder / "Tags")
    for place in places:
        file, matrix = place / "All_Tags.txt", place / "AllTags1k.txt"
        if file.is_file():
            rows = (line.split() for line in lines_of(file))
            return {row[0]: " ".join(row[1:]) for row in rows}, [file]
        if matrix.is_file():
            return _matrix_tags(folder, matrix), [matrix]
    raise UserError(
        f"{folder} has no All_Tags.txt or AllTags1k.txt, nor its folder NUS_WID_Tags; unpack the tags there."
    )


def _matrix_tags(folder: pathlib.Path, matrix: pathlib.Path) -> dict[str, str]:
    """Return {photo id: tags} from a matrix of 0 and 1 whose rows are those of `ImageList/Imagelist.txt`."""
    words = [line.strip() for line in lines_of(existing(matrix.parent / "TagList1k.txt", "list of tags"))]
    names = _listed(existing(folder / "ImageList" / "Imagelist.txt", "list"))
    rows = [line.split() for line in lines_of(matrix)]
    if len(rows) != len(names) or not all(len(row) == len(words) for row in rows):
        raise UserError(
            f"{matrix} is not {len(names)} rows of {len(words)} marks, as Imagelist.txt and TagList1k.txt ask; "
            "download it again."
        )

    tags = (" ".join(itertools.compress(words, (mark == "1" for mark in row))) for row in rows)
    return dict(zip(map(_photo, names), tags, strict=True))


# --- Wikipedia ------------------------------------------------------------------------------------------------------


def wikipedia_source(path: os.PathLike | str, licence: str = "") -> Source:
    """Read the Wikipedia set: `{train,test}set_txt_img_cat.list`, `images/<category>/*.jpg` and `texts/*.xml`.

    A line of the lists is "text picture category". The caption is all text of the article's section, the label the
    folder of the picture. Raises `UserError`.
    """
    folder = existing(path, "Wikipedia folder", folder=True)
    pictures = existing(folder / "images", "image folder", folder=True)
    texts = existing(folder / "texts", "text folder", folder=True)
    known = {file.stem: file for file in sorted(pictures.glob("*/*.jpg"))}
    rows, splits, files = [], [], []
    for split in ("train", "test"):
        file = existing(folder / f"{split}set_txt_img_cat.list", "list of pairs")
        files.append(file)
        for number, line in enumerate(lines_of(file), 1):
            parts = line.split()
            if len(parts) != 3:
                raise UserError(f"{file}, line {number}, is not 'text picture category'; download the list again.")
            picture = known.get(parts[1], pictures / f"{parts[1]}.jpg")
            label = (picture.parent.name,) if parts[1] in known else ()
            rows.append((parts[0], picture, _article(texts / f"{parts[0]}.xml"), label))
            splits.append(split)
    return _source("wikipedia", folder, rows, files, licence, splits)


def _article(path: pathlib.Path) -> str:
    """Return all words in the `text` elements of an article, or in the whole article if it has none.

    It uses no XML parser, since the articles as distributed have "&" where XML requires "&amp;".
    """
    content = re.sub(r"<text\b[^>]*/>", " ", read_text(existing(path, "article"), lenient=True))
    content = re.sub(r"<!\[CDATA\[(.*?)\]\]>", r"\1", content, flags=re.DOTALL)
    texts = re.findall(r"<text\b[^>]*>(.*?)</text\s*>", content, re.DOTALL)
    if len(texts) != len(re.findall(r"<text\b", content)):
        raise UserError(f"{path} ends inside its text; download it again.")
    return " ".join(html.unescape(re.sub(r"<[a-zA-Z/!?][^>]*>", " ", " ".join(texts or [content]))).split())
