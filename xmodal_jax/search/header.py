"""Check the header of an index, so that its values can be used without another look."""

import re
from typing import Any

DTYPES = ("float32", "int8")  # of embeddings on disk
FILES = {
    "dense": re.compile(r"dense-\d{5,}\.npy"),
    "codes": re.compile(r"codes-\d{5,}\.npy"),
    "items": re.compile(r"items-\d{5,}\.jsonl"),
    "lines": re.compile(r"lines-\d{5,}\.npy"),
}
FIELDS = {
    "version": int,
    "id": str,
    "model": str,
    "width": int,
    "bits": int,
    "dtype": str,
    "count": int,
    "extra": dict,
    "blocks": dict,
}
EXTRA = {
    "workdir": str,
    "workdir_from_index": str,
    "split": str,
    "field": str,
    "noun": str,
    "words": bool,
    "data": str,
    "sets": dict,
    "repeated": int,
}


def is_whole(header: dict[str, Any]) -> bool:
    """Return True if a header has all fields, each of its type, and blocks that hold its rows."""
    if header.keys() != FIELDS.keys() or not _typed(header, FIELDS) or not _typed(header["extra"], EXTRA):
        return False
    sets, blocks = header["extra"].get("sets", {}).values(), header["blocks"]
    if not all(isinstance(own, dict) and all(isinstance(value, str) for value in own.values()) for own in sets):
        return False
    sizes, has = (header["width"], header["bits"]), ("dense" in blocks, "codes" in blocks)
    if min(sizes) < 0 or tuple(size > 0 for size in sizes) != has or not any(has) or header["bits"] % 8:
        return False
    return header["dtype"] in DTYPES and blocks.keys() <= FILES.keys() - {"lines"} and _hold(blocks, header["count"])


def _hold(blocks: dict[str, Any], count: int) -> bool:
    """Return True if the blocks of every kind are files cut at the same rows, `count` in all."""
    if not all(
        isinstance(entries, list) and all(_is_entry(own, kind) for own in entries) for kind, entries in blocks.items()
    ):
        return False
    cuts = [[entry["rows"] for entry in entries] for entries in blocks.values()]
    return all(cut == cuts[0] for cut in cuts) and sum(cuts[0]) == count > 0


def _is_entry(entry: Any, kind: str) -> bool:
    """Return True if `entry` describes a file of a kind, and for items the file of their lines too."""
    fields = {"file": str, "rows": int, "bytes": int, "sha256": str}
    if not isinstance(entry, dict) or not fields.keys() <= entry.keys() or not _typed(entry, fields):
        return False
    if FILES[kind].fullmatch(entry["file"]) is None or entry["rows"] < 1:
        return False
    if kind != "items":
        return True
    lines = entry.get("lines", {})
    return _is_entry(lines, "lines") and lines["rows"] == entry["rows"]


def _typed(found: dict[str, Any], types: dict[str, type]) -> bool:
    """Return True if each value that `types` names has its type (True is no number)."""
    return all(type(found[name]) is kind for name, kind in types.items() if name in found)
