"""Concepts drawn by several vendors -> JSON lines for `xmodal data prepare jsonl`, with groups that no split may cut.

    python benchmarks/emoji_views.py FOLDER --out emoji_views.jsonl
    xmodal data prepare jsonl --path emoji_views.jsonl --root FOLDER --held-out 400 --out data/emoji_views

FOLDER/pairs.jsonl has a row per concept: id, views {vendor: path}, caption (its English name), tags, labels [group,
subgroup]. The drawings come from the npm packages @iconify-json/{noto,twemoji,openmoji,fluent-emoji-flat,emojione} and
@lobehub/fluent-emoji-3d, the names and tags from cldr-annotations-full and cldr-annotations-derived-full.

Flags are left out. Captions: "en" is the name, "en-tags" the name and its tags; with --languages also the names in
these, of rows that have "captions" {language: name}. Relatives (man and woman of one
profession, all clock faces, all families) share a group, as in the source `emoji`.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from xmodal_jax.data.sources.emoji import group_key
from xmodal_jax.errors import UserError, output_file, run_script

FIELDS = ("id", "views", "caption", "tags", "labels")


def converted(row: dict[str, Any], languages: Sequence[str] = ()) -> dict[str, Any]:
    """Convert one row of pairs.jsonl to a row of the JSONL source, with its names in some languages."""
    name = row["caption"]
    tags = [tag for tag in row["tags"] if tag != name]
    captions = {"en": name, "en-tags": f"{name}, {', '.join(tags)}" if tags else name}
    captions |= {code: row["captions"][code] for code in languages if row.get("captions", {}).get(code)}
    labels = ["/".join(row["labels"])]
    return {"id": row["id"], "views": row["views"], "caption": captions, "labels": labels, "group": group_key(name)}


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the rows of pairs.jsonl.

    Raises UserError for a missing file and, by line, for a row without its fields.
    """
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; give the folder that holds pairs.jsonl.")
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            missing = [name for name in FIELDS if name not in row]
        except (ValueError, TypeError) as error:
            raise UserError(f"'{path}', line {number} is no JSON object ({error}); mend the line.") from error
        if missing:
            raise UserError(f"'{path}', line {number} has no {missing[:1]}; write {', '.join(FIELDS)}.")
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="holds pairs.jsonl and the pictures")
    parser.add_argument("--out", type=output_file, required=True, help="JSON lines to write")
    parser.add_argument("--languages", default="", help="further languages of the names, as de,fr,ja")
    args = parser.parse_args(arguments)
    if args.out.exists():
        raise UserError(f"'{args.out}' exists; write another --out, nothing was overwritten.")
    rows = read_rows(args.folder / "pairs.jsonl")
    languages = [code for code in args.languages.split(",") if code]
    kept = [converted(row, languages) for row in rows if "flags" not in row["labels"]]
    unknown = [code for code in languages if not any(code in row["caption"] for row in kept)]
    if unknown:
        raise UserError(f"--languages: '{unknown[0]}' is a language of no row; write others.")
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), "utf-8")
    print(f"wrote {len(kept)} of {len(rows)} concepts to {args.out}")


if __name__ == "__main__":
    run_script(main)
