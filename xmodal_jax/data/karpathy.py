"""Karpathy's `dataset_*.json`: Flickr8k, Flickr30K, COCO; RSICD, UCM, Sydney, RSITMD."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.source import Captions, Item, Skip, Source, digest, existing, file_item
from xmodal_jax.errors import UserError, refuse_unless


def karpathy_source(path: os.PathLike | str, images: os.PathLike | str | None = None, licence: str = "") -> Source:
    """Karpathy's `dataset_*.json` (Flickr8k, Flickr30K, COCO; RSICD, UCM, Sydney, RSITMD) with its folder of images
    (default: `images` beside it).

    Its own splits are kept; "restval" (COCO) counts as "train". A sentence without "raw" is its tokens. Keywords, of the
    picture or of its sentences (RSITMD), become one caption of the language "en-keywords". Raises `UserError` if a file is missing or has no
    "images".
    """
    path = existing(path, "Karpathy file")
    folder = existing(images or path.parent / "images", "image folder", folder=True)
    try:
        rows = json.loads(path.read_text("utf-8"))["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a Karpathy file ({error!r}): it must be JSON with a list 'images'.") from error
    refuse_unless(
        isinstance(rows, list),
        f"{path} is not a Karpathy file: its 'images' is no list; give the dataset_*.json itself.",
    )

    def items() -> Iterator[Item | Skip]:
        for number, row in enumerate(rows):
            yield from _karpathy_item(row, number, folder)

    arguments = {"path": str(path.resolve()), "images": str(folder.resolve()), "content": digest(path)}
    return Source("karpathy", path.name, licence or "see the data set's own terms", items, arguments, len(rows))


def _karpathy_item(row: Any, number: int, folder: pathlib.Path) -> Iterator[Item | Skip]:
    try:
        name, split = row["filename"], row["split"]
        captions = {"en": [_raw(sentence) for sentence in row["sentences"]], **_keywords(row)}
        path = folder / row.get("filepath", "") / name
        if not isinstance(split, str):
            raise TypeError(f"split {split!r} is no text")
    except (KeyError, TypeError, AttributeError) as error:
        yield Skip("broken row", f"images[{number}]: {error!r}")
        return
    split = "train" if split == "restval" else split
    yield from file_item(name, {"image": path}, captions, group=name, split=split)


def _raw(sentence: Any) -> Any:
    return sentence["raw"] if "raw" in sentence else " ".join(sentence["tokens"])


def _keywords(row: dict[str, Any]) -> Captions:
    """{"en-keywords": [all keywords, each once]} where there are any."""
    found: dict[str, None] = {}
    for place in (row, *row["sentences"]):
        own = place.get("keywords") or []
        found |= {" ".join(str(word).split()): None for word in (own.split(",") if isinstance(own, str) else own)}
    words = [word for word in found if word]
    return {"en-keywords": [", ".join(words)]} if words else {}
