"""The Tux Paint stamps (Debian package tuxpaint-stamps-default, GPL-2): pictures with captions in up to 78 languages.

Layout: ROOT/<category>/<...>/<name>.png or .svg, beside it <name>.txt, whose first line is the English caption and
whose other lines are `<language>.utf8=<caption>`.
"""

import os
import pathlib
import re
from collections.abc import Iterator

from xmodal_jax.data.card import normal_caption
from xmodal_jax.data.image import CorruptImage, render_svg
from xmodal_jax.data.sources import Item, Skip, Source, clean_captions, split_groups
from xmodal_jax.errors import refuse_unless

ROOT = "/usr/share/tuxpaint/stamps"
LETTERS = {"alphabets", "letters", "numbers"}  # a caption "The letter A" says nothing about a picture
TRANSLATION = re.compile(r"(?P<language>[\w@.-]+?)\.utf8=(?P<caption>.*)")
ARTICLE = re.compile(r"^(a|an|the|some)\s+")


def read_captions(path: pathlib.Path) -> dict[str, list[str]]:
    """{language: [caption]} of a stamp's text file; languages without a caption are left out."""
    first, *rest = path.read_text("utf-8", "replace").splitlines() or [""]
    captions = {"en": [first]}
    for match in map(TRANSLATION.fullmatch, rest):
        if match and match["caption"].strip():
            captions[match["language"]] = [match["caption"]]
    return captions


def group_key(caption: str) -> str:
    """The English caption without article, digits and punctuation: six stamps called "A flower." are one group."""
    return ARTICLE.sub("", re.sub(r"[^\w\s]|\d", "", normal_caption(caption))).strip()


def stamps_source(root: os.PathLike | str = ROOT, size: int = 256, held_out: int = 200) -> Source:
    """Stamps below `root` that have a text file, letters and numbers left out; `held_out` of them as "test", by group.

    SVG drawings are rendered `size` px wide. One label: the first two folders. Raises `UserError` for a folder
    without stamps.
    """
    root = pathlib.Path(root)
    refuse_unless(
        root.is_dir(),
        f"no stamps at {root}: apt-get install tuxpaint-stamps-default, or give the folder of an unpacked one.",
    )
    files = [path for path in sorted(root.rglob("*.txt")) if not LETTERS & set(path.relative_to(root).parts)]
    refuse_unless(
        bool(files), f"{root} holds no stamp (a picture with a .txt beside it): give the folder named stamps."
    )
    captions = [read_captions(path) for path in files]
    groups = [group_key(own["en"][0]) for own in captions]

    def items() -> Iterator[Item | Skip]:
        for path, own, group, split in zip(files, captions, groups, split_groups(groups, held_out)):
            key = path.relative_to(root).with_suffix("").as_posix()
            kept, skips = clean_captions(own, key)
            yield from skips
            if kept:
                yield _item(key, path, kept, size, group=group, split=split)

    arguments = {"root": str(root.resolve()), "size": size, "held_out": held_out}
    return Source("stamps", "Debian tuxpaint-stamps-default", "GPL-2", items, arguments, len(files))


def _item(key: str, path: pathlib.Path, captions: dict[str, list[str]], size: int, **fields) -> Item | Skip:
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    try:
        picture = png.read_bytes() if png.is_file() else render_svg(svg.read_text("utf-8"), size)
    except OSError:
        return Skip("missing image", f"{key}: no .png or .svg")
    except (CorruptImage, UnicodeDecodeError) as error:
        return Skip("unreadable drawing", f"{key}: {error}")
    return Item(key, {"image": picture}, captions, labels=("/".join(key.split("/")[:-1][:2]) or "stamps",), **fields)
