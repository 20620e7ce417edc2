"""Open Clip Art (Debian package openclipart-svg, public domain): drawings with a title, keywords and folders as labels.

Layout: ROOT/<folder>/<...>/<name>.svg; title and keywords are in the drawing's own metadata (`dc:title`, `rdf:li`).
"""

import collections
import hashlib
import itertools
import json
import os
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from xmodal_jax.data.captions import normal_caption
from xmodal_jax.data.image import CorruptImage, render_svg
from xmodal_jax.data.source import Item, Skip, Source, shared_out
from xmodal_jax.data.textfile import hashed
from xmodal_jax.errors import UserError

ROOT = "/usr/share/openclipart/svg"
LEFT_OUT = (  # themes and series whose titles do not tell the drawings apart
    "computer/icons",
    "recreation/games/cards",
    "shapes/stars",
    "special",
    "unsorted",
    "buttons",
    "signs_and_symbols/flags",
    "logos",
)
TITLE = "{http://purl.org/dc/elements/1.1/}title"
WORK = "{http://web.resource.org/cc/}Work"
KEYWORD = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
PREFIX = re.compile(r"^(clip ?art|drawing) (by|from) [^-]+ - ", re.I)
NOISE = re.compile(r"\b(svg|clip ?art|collection|untitled|unknown|theme|part of|open clip)\b", re.I)
NUMBER = re.compile(r"[\s_\-#(]*\d+\)?$")  # "Chair 03" and "chair (2)" are drawings of a chair
NO_KEYWORDS = {"hash", "clip art", "clipart", "svg", "unsorted", ""}
SERIES = 20  # drawings that share a title: it names the series ("AIGA Symbol Signs"), not the drawing
KEYWORD_AT_LEAST = 10  # drawings that must have a keyword to make it a label


@dataclass(frozen=True)
class Drawing:
    """The metadata of a drawing."""

    key: str
    """Path below the root, without its ending."""
    path: pathlib.Path
    """File of the drawing."""
    title: str
    """Title in words; "" if it says nothing."""
    keywords: tuple[str, ...]
    """Keywords, in lower case."""
    same: str
    """Digest of the file's bytes, equal for copies."""


def clean_title(title: str) -> str:
    """Return a title in words, "" for one that says nothing.

    The author's prefix, file suffix, underscores and final numbers are removed.
    """
    title = PREFIX.sub("", " ".join(title.replace("_", " ").split()))
    title = NUMBER.sub("", title.removesuffix(".svg")).strip(" .-")
    return title if re.search(r"[^\W\d]{2}", title) and not NOISE.search(title) else ""


def read_drawing(path: pathlib.Path, root: pathlib.Path) -> Drawing | Skip:
    """Read the title and the keywords of a file, or return the reason why it cannot be used."""
    key = path.relative_to(root).with_suffix("").as_posix()
    try:
        data = path.read_bytes()
        tree = ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        return Skip("unreadable drawing", f"{key}: {error}")
    titles = [found.text for work in tree.iter(WORK) for found in work.findall(TITLE) if found.text]
    title = clean_title(titles[0]) if titles else ""
    words = dict.fromkeys(normal_caption(found.text or "").replace("_", " ") for found in tree.iter(KEYWORD))
    return Drawing(
        key, path, title, tuple(word for word in words if word not in NO_KEYWORDS), hashlib.sha256(data).hexdigest()
    )


def folder_label(key: str) -> str:
    """Return the first two folders of a drawing."""
    return "/".join(key.split("/")[:-1][:2]) or "openclipart"


def captions_of(drawing: Drawing) -> dict[str, list[str]]:
    """Return the title, and the title with those keywords that are not in it."""
    said = drawing.title.lower()
    more = [word for word in drawing.keywords if word not in said]
    return {"en": [drawing.title], "en-tags": [", ".join([drawing.title, *more])]}


def openclipart_source(
    root: os.PathLike | str = ROOT, size: int = 256, held_out: int | None = None, label: str = "folder"
) -> Source:
    """Read drawings of Open Clip Art below `root` that have a title of their own, one of each file.

    Icon themes, flags, cards and stars are left out, and so are the titles of a series, which say nothing. Drawings are
    rendered `size` px wide; `held_out` of them (default: a sixth) are the test split, by title. Captions are "en", the
    title, and "en-tags", the title with its keywords. Labels are the first two folders (`label` "folder"), or these and
    every keyword of ten drawings or more ("keyword"). Raises `UserError` for a folder without drawings.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(
            f"no drawings at {root}: apt-get install openclipart-svg, or give the folder 'svg' of an unpacked one."
        )
    if label not in ("folder", "keyword"):
        raise UserError(f"label is '{label}'; write folder or keyword")
    if size < 16:
        raise UserError(f"size is {size}; write 16 px or more")
    paths = [path for path in sorted(root.rglob("*.svg")) if path.is_file() and not _left_out(path, root)]
    read = [read_drawing(path, root) for path in paths]
    broken = [found for found in read if isinstance(found, Skip)]
    drawings = worth_keeping([found for found in read if isinstance(found, Drawing)])
    if not drawings:
        raise UserError(f"{root} holds no .svg with a title: give the folder named svg.")
    held_out = len(drawings) // 6 if held_out is None else held_out
    groups = [group_key(one.title) for one in drawings]
    labels = _labels(drawings, label)

    def items_of(row: int, split: str) -> list[Item | Skip]:
        one = drawings[row]
        return [_item(one, size, labels=labels[one.key], group=groups[row], split=split)]

    whole = shared_out(groups, held_out, "drawings", items_of)
    content = hashed(json.dumps([(one.key, one.same) for one in drawings]))
    arguments = {"root": str(root.resolve()), "size": size, "held_out": held_out, "content": content}
    arguments |= {"label": label} if label != "folder" else {}
    items, total = lambda: itertools.chain(broken, whole()), len(broken) + len(drawings)
    return Source("openclipart", "Debian openclipart-svg", "public domain", items, arguments, total)


def worth_keeping(read: list[Drawing]) -> list[Drawing]:
    """Return one drawing of each file, if its title says something and fewer than `SERIES` drawings share it."""
    counts = collections.Counter(group_key(one.title) for one in read)
    first = {one.same: one for one in reversed(read)}
    return [one for one in read if one is first[one.same] and one.title and counts[group_key(one.title)] < SERIES]


def group_key(title: str) -> str:
    """Return the title without case, digits and punctuation, by which drawings are grouped."""
    return " ".join(re.sub(r"[\W\d_]+", " ", title.lower()).split())


def _left_out(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Return True for a drawing in one of the folders `LEFT_OUT`."""
    folder = path.relative_to(root).parent.as_posix()
    return any(folder == name or folder.startswith(f"{name}/") for name in LEFT_OUT)


def _labels(drawings: list[Drawing], label: str) -> dict[str, tuple[str, ...]]:
    """Return the labels of each drawing."""
    if label == "folder":
        return {one.key: (folder_label(one.key),) for one in drawings}
    counts = collections.Counter(word for one in drawings for word in one.keywords)
    often = {word for word, count in counts.items() if count >= KEYWORD_AT_LEAST}
    return {
        one.key: (folder_label(one.key), *(f"#{word}" for word in one.keywords if word in often)) for one in drawings
    }


def _item(drawing: Drawing, size: int, **fields) -> Item | Skip:
    """Return the item of a drawing, rendered."""
    try:
        picture = render_svg(drawing.path.read_text("utf-8", "replace"), size)
    except CorruptImage as error:
        return Skip("unreadable drawing", f"{drawing.key}: {error}")
    return Item(drawing.key, {"image": picture}, captions_of(drawing), **fields)
