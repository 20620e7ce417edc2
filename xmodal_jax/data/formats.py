"""Describe a file or folder that a source cannot read, and say how to have it read."""

import csv
import json
import pathlib
import shlex
from collections.abc import Iterable
from typing import Any

from xmodal_jax.data.textfile import read_text
from xmodal_jax.errors import UserError

LINE = '{"image": PATH, "caption": TEXT}'
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
BY_HAND = f"write a file with one line {LINE} for each caption, and give that to `jsonl`"
UNPACK = "unpack it, and give what was in it"
MAGIC = (  # place of the mark in the file, mark, kind of file, advice
    (0, b"PAR1", "a Parquet table", BY_HAND),
    (0, b"ARROW1", "an Arrow table", BY_HAND),
    (257, b"ustar", "a tar archive, as WebDataset and img2dataset write", f"unpack it, {BY_HAND}"),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it with gunzip, and give the file that is left"),
    (0, b"BZh", "compressed by bzip2", UNPACK),
    (0, b"\xfd7zXZ", "compressed by xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (0, b"PK\x03\x04", "a ZIP archive", UNPACK),
    (0, b"MATLAB 5.0", "a MATLAB file", "source `mat` reads it"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "source `mat` reads those that MATLAB writes"),
    (0, b"\x89PNG", "a picture", BY_HAND),
    (0, b"\xff\xd8\xff", "a picture", BY_HAND),
)
FOLDERS = (  # pattern of a file in it, kind of folder, advice
    ("*.jsonl", "a folder that holds JSON Lines", "give the file in it"),
    ("*.tar", "a folder of tar archives, as WebDataset and img2dataset write", f"unpack them, {BY_HAND}"),
    ("*.parquet", "a folder of Parquet tables", BY_HAND),
    ("*_caps.txt", "a folder of caption lists", "source `precomp` reads it"),
    ("train2018.json", "a folder of iNaturalist", "source `inaturalist` reads it"),
    ("*train.json", "a folder of JSON lists", "source `albef` reads those of BLIP and ALBEF"),
    ("*.mat", "a folder of MATLAB files", "source `mat` reads it"),
)
IMAGE_NAMES = ("image", "filepath", "file_name", "filename", "image_path", "path")
CAPTION_NAMES = ("caption", "title", "text", "sentence")
READ = "json.load(open(sys.argv[1], encoding='utf-8'))"
FROM_LIST = f"import json, sys; [print(json.dumps(row)) for row in {READ}]"
FROM_COCO = (
    f"import json, sys; coco = {READ}; names = {{row['id']: row['file_name'] for row in coco['images']}}; "
    "[print(json.dumps({'id': row['image_id'], 'image': names[row['image_id']], 'caption': row['caption']})) "
    "for row in coco['annotations']]"
)
FROM_TABLE = (
    "import csv, json, sys; path, dialect, image, caption = sys.argv[1:]; "
    "[print(json.dumps({'image': row[image], 'caption': row[caption]})) "
    "for row in csv.DictReader(open(path, newline='', encoding='utf-8-sig'), dialect=dialect)]"
)


def wrong_format(path: pathlib.Path, wanted: str) -> UserError:
    """Return the error for a path that is not `wanted`: what it is instead, if known, and what to do with it."""
    what = _folder(path) if path.is_dir() else _archive(path) or _text(path)
    return UserError(f"{path} is not {wanted}" + (f" but {what}" if what else "; give another file"))


def refuse_archive(path: pathlib.Path, wanted: str) -> None:
    """Raise `UserError` for a folder, and for a file whose first bytes show a table, an archive or a picture."""
    if path.is_dir() or (path.is_file() and _archive(path)):
        raise wrong_format(path, wanted)


def _folder(path: pathlib.Path) -> str:
    """Describe a folder by the files in it."""
    for pattern, what, advice in FOLDERS:
        if next(path.glob(pattern), None):
            return f"{what}; {advice}"
    pictures = any(file.suffix.lower() in PICTURES for file in path.iterdir())
    return f"a folder of pictures; {BY_HAND}" if pictures else "a folder; give a file"


def _archive(path: pathlib.Path) -> str:
    """Describe a file by its first bytes; "" if they are unknown."""
    with path.open("rb") as file:
        head = file.read(264)
    found = (f"{what}; {advice}" for at, mark, what, advice in MAGIC if head[at:].startswith(mark))
    return next(found, "")


def _text(path: pathlib.Path) -> str:
    """Describe a text file by its content; "" if it is unknown."""
    text = read_text(path, lenient=True)
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return _json(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        try:
            return _json(json.loads(first), path)
        except (ValueError, RecursionError):
            broken = first.lstrip()[:1] in ("{", "[")
            return f"JSON that cannot be read ({error}); download it again" if broken else _table(first, path)


def _json(content: Any, path: pathlib.Path) -> str:
    """Describe the content of a JSON file by the keys of its rows; "" without any."""
    rows = content if isinstance(content, list) else [content]
    keys = _keys(rows)
    if isinstance(content, list) and {"image", "caption"} <= keys:
        return (
            "one JSON list of pictures and captions, as BLIP and ALBEF have; source `albef` reads a folder of such "
            f"lists, named train.json, val.json and test.json, and for `jsonl` run {_command(FROM_LIST, path)}"
        )
    if isinstance(content, dict):
        for name in ("questions", "annotations"):
            if "question_id" in _keys(content.get(name)):
                return f"VQA's file of {name}; source `vqa` reads it (option '{name}')"
    if "images" in keys and isinstance(content, dict):
        return _with_images(content, path)
    if {"image", "caption"} <= keys and isinstance(content, dict):
        return "JSON Lines; source `jsonl` reads them"
    if keys:
        return f"JSON whose rows have the keys {_listed(keys)}; rows as {LINE} are what `jsonl` reads, rename the keys"
    return ""


def _with_images(content: dict[str, Any], path: pathlib.Path) -> str:
    """Describe a JSON object that has a list 'images'."""
    annotated, sentences = _keys(content.get("annotations")), "sentences" in _keys(content["images"])
    if sentences:
        return "a Karpathy file; source `karpathy` reads it"
    if "caption" in annotated:
        return f"COCO's list of captions; for `jsonl` run {_command(FROM_COCO, path)}"
    if "category_id" in annotated:
        return "COCO's list of categories, without captions; source `inaturalist` reads the folder of iNaturalist's"
    keys = _keys(content["images"])
    return f"JSON whose 'images' have the keys {_listed(keys)}; {BY_HAND}" if keys else ""


def _table(header: str, path: pathlib.Path) -> str:
    """Describe a table with columns by its first line; "" if it has fewer than two columns."""
    kind, dialect = ("TSV", "excel-tab") if "\t" in header else ("CSV", "excel")
    try:
        names = next(csv.reader([header], dialect=dialect))
    except csv.Error:
        return ""
    columns = [_known(names, IMAGE_NAMES, "IMAGE_COLUMN"), _known(names, CAPTION_NAMES, "CAPTION_COLUMN")]
    what = f"{kind} with the columns {_listed(names)}; for `jsonl` run {_command(FROM_TABLE, path, dialect, *columns)}"
    return what if len(names) > 1 else ""


def _known(names: list[str], wanted: Iterable[str], otherwise: str) -> str:
    """Return the first of the names that is `wanted`, or the word `otherwise`."""
    return next((name for name in names if name.strip().lower() in wanted), otherwise)


def _keys(rows: Any) -> set[str]:
    """Return the keys of the first of `rows` that is an object."""
    found = (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else iter(())
    return set(next(found, {}))


def _listed(names: Iterable[str]) -> str:
    """Join up to eight names, each cut to 40 letters."""
    names = sorted(names) if isinstance(names, set) else list(names)
    return ", ".join(name[:40] for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _command(code: str, path: pathlib.Path, *more: str) -> str:
    """Return a shell command; `code` has neither double quotes nor anything that a shell expands in them."""
    name = f"{path.stem}-rows" if path.suffix == ".jsonl" else path.stem  # never the file that is read
    return f'python -c "{code}" {shlex.join([str(path), *more])} > {shlex.quote(name)}.jsonl'
