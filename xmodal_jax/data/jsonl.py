"""JSON lines: one pair a line, with the path of its picture."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.source import Item, Skip, Source, digest, existing, file_item, split_groups
from xmodal_jax.errors import refuse_unless


def jsonl_source(
    path: os.PathLike | str, root: os.PathLike | str | None = None, held_out: int | None = None, licence: str = ""
) -> Source:
    """JSON lines, one pair each, with image paths relative to `root` (default: the folder of the file).

    A row: {"image": path} or {"views": {name: path}}, "caption": str | [str] | {language: str | [str]}, and optionally
    "id", "labels" (a name or a list), "group", "split". Rows without an id that name the same picture are one item with
    all their captions. Items without a split are shared out by group: `held_out` of them (default: a tenth, at most
    1,000) become "test".
    """
    path = existing(path, "JSONL file")
    root = existing(root or path.parent, "image folder", folder=True)
    rows = [_jsonl_row(line, number) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    rows = _merged(rows)
    open_rows = [row for row in rows if isinstance(row, dict) and not row["split"]]
    held_out = min(1000, len(open_rows) // 10) if held_out is None else held_out
    refuse_unless(
        0 <= held_out < max(1, len(open_rows)),
        f"--held-out is {held_out}, but {path} has {len(open_rows)} pictures without a split; write fewer, and at least 0.",
    )
    for row, split in zip(open_rows, split_groups([row["group"] for row in open_rows], held_out)):
        row["split"] = split

    def items() -> Iterator[Item | Skip]:
        for row in rows:
            yield from [row] if isinstance(row, Skip) else _jsonl_item(row, root)

    arguments = {
        "path": str(path.resolve()),
        "root": str(root.resolve()),
        "held_out": held_out,
        "content": digest(path),
    }
    return Source("jsonl", path.name, licence or "see the data set's own terms", items, arguments, len(rows))


def _jsonl_row(line: bytes, number: int) -> dict[str, Any] | Skip:
    """A row in one form: views, caption, id, labels, group, split ("" if open)."""
    where = f"line {number}"
    try:
        row = json.loads(line)
    except ValueError:
        return Skip("broken JSON line", where)
    if not isinstance(row, dict):
        return Skip("broken JSON line", f"{where}: not an object")
    views = row.get("views") or {"image": row.get("image")}
    if not isinstance(views, dict) or not all(isinstance(value, str) for value in views.values()):
        return Skip("no image named", where)
    named = row.get("id") is not None
    key = str(row["id"] if named else next(iter(views.values())))
    labels = row.get("labels") if row.get("labels") is not None else []
    labels = labels if isinstance(labels, list) else [labels]
    group, split = str(row.get("group") or key), str(row.get("split") or "")
    found = {"views": views, "caption": row.get("caption"), "id": key, "labels": labels, "group": group, "split": split}
    return found if named else found | {"merge": (*views.items(), group, split)}


def _merged(rows: list[dict[str, Any] | Skip]) -> list[dict[str, Any] | Skip]:
    """Rows without an id that name the same pictures are one item with all their captions and labels."""
    first: dict[tuple, dict[str, Any]] = {}
    kept = []
    for row in rows:
        same = None if isinstance(row, Skip) or "merge" not in row else first.setdefault(row["merge"], row)
        if same is None or same is row:
            kept.append(row)
            continue
        captions = [_by_language(same["caption"]), _by_language(row["caption"])]
        same["caption"] = {
            code: [text for own in captions for text in own.get(code, [])] for code in {**captions[0], **captions[1]}
        }
        same["labels"] = list(dict.fromkeys(map(str, [*same["labels"], *row["labels"]])))
    return kept


def _by_language(captions: Any) -> dict[str, list]:
    """Any form of a row's captions as {language: [caption, ...]}."""
    whole = captions if isinstance(captions, dict) else {"en": captions}
    return {code: list(own) if isinstance(own, (list, tuple)) else [own] for code, own in whole.items()}


def _jsonl_item(row: dict[str, Any], root: pathlib.Path) -> Iterator[Item | Skip]:
    paths = {view: root / name for view, name in row["views"].items()}
    labels = tuple(str(label) for label in row["labels"])
    return file_item(row["id"], paths, row["caption"], labels=labels, group=row["group"], split=row["split"])
