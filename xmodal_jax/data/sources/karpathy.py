"""Karpathy's `dataset_*.json`: Flickr8k, Flickr30K, COCO; RSICD, UCM, Sydney, RSITMD."""

import collections
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.formats import refuse_archive, wrong_format
from xmodal_jax.data.source import TERMS, Captions, Item, Skip, Source, digest, existing, file_item, plain_text
from xmodal_jax.data.textfile import read_text

WANTED = "a Karpathy file (JSON with a list 'images' whose rows have 'filename', 'split' and 'sentences')"


def karpathy_source(path: os.PathLike | str, images: os.PathLike | str | None = None, licence: str = "") -> Source:
    """Read Karpathy's `dataset_*.json` (Flickr8k, Flickr30K, COCO; RSICD, UCM, Sydney, RSITMD).

    Pictures are in the folder `images` (default: `images` beside the file). The file's splits are kept; "restval"
    (COCO) counts as "train". A picture is named by its file name, with its folder in front if that name occurs in
    several folders. A sentence without "raw" is its tokens. Keywords, of the picture or of its sentences (RSITMD),
    become one caption of the language "en-keywords". Raises `UserError` if a file is missing or of another format.
    """
    path = pathlib.Path(path)
    refuse_archive(path, WANTED)
    rows = _rows(existing(path, "Karpathy file"))
    folder = existing(images or path.parent / "images", "image folder", folder=True)
    several = _names_in_several_folders(rows)

    def items() -> Iterator[Item | Skip]:
        for number, row in enumerate(rows):
            yield from _karpathy_item(row, number, folder, several)

    arguments = {"path": str(path.resolve()), "images": str(folder.resolve()), "content": digest(path)}
    return Source("karpathy", path.name, licence or TERMS, items, arguments, len(rows))


def _rows(path: pathlib.Path) -> list[Any]:
    """Return the list "images" of a file; some rows must have sentences, and each is checked when it is read."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise wrong_format(path, WANTED) from None
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list) or (rows and not any(isinstance(row, dict) and "sentences" in row for row in rows)):
        raise wrong_format(path, WANTED)
    return rows


def _names_in_several_folders(rows: list[Any]) -> set[str]:
    """Return the file names that occur with more than one `filepath`, and so name a picture only together with it."""
    folders = collections.defaultdict(set)
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("filename"), str):
            place = row.get("filepath")
            folders[row["filename"]].add(place if isinstance(place, str) else "")
    return {name for name, found in folders.items() if len(found) > 1}


def _karpathy_item(row: Any, number: int, folder: pathlib.Path, several: set[str]) -> Iterator[Item | Skip]:
    """Yield the item of a row, or the reason why there is none."""
    try:
        name, split = row["filename"], row["split"]
        captions = {"en": [_raw(sentence) for sentence in row["sentences"]], **_keywords(row)}
        place = os.path.join(row.get("filepath") or "", name)
        if not isinstance(split, str):
            raise TypeError(f"split is no text but {type(split).__name__}")
    except (KeyError, TypeError, AttributeError) as error:
        yield Skip("broken row", f"images[{number}]: {error!r}")
        return
    split, key = "train" if split == "restval" else split, place if name in several else name
    yield from file_item(key, {"image": os.path.join(folder, place)}, captions, group=key, split=split)


def _raw(sentence: Any) -> Any:
    """Return the sentence as written, or its tokens if that is missing or empty."""
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if (isinstance(raw, str) and raw.strip()) or not tokens:
        return sentence["raw"] if "raw" in sentence else " ".join(sentence["tokens"])
    return tokens if isinstance(tokens, str) else " ".join(tokens)


def _keywords(row: dict[str, Any]) -> Captions:
    """Return {"en-keywords": [all keywords, each once]}, {} without any."""
    found: dict[str, None] = {}
    for place in (row, *row["sentences"]):
        own = place.get("keywords") or []
        words = own.split(",") if isinstance(own, str) else own
        found |= {" ".join(plain_text(word).split()): None for word in words}
    words = [word for word in found if word]
    return {"en-keywords": [", ".join(words)]} if words else {}
