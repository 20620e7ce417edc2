"""The Tux Paint stamps (Debian package tuxpaint-stamps-default, GPL-2): pictures with captions in up to 78 languages.

Layout: ROOT/<category>/<...>/<name>.png or .svg, beside it <name>.txt, whose first line is the English caption and
whose other lines are `<language>.utf8=<caption>`. Many have their caption spoken, <name>_desc_<language>.ogg
(<name>_desc.ogg is English), and some have a sound effect, <name>.ogg; a few files are .wav.
"""

import dataclasses
import glob
import json
import os
import pathlib
import re
from collections.abc import Iterator

from xmodal_jax.data.captions import normal_caption
from xmodal_jax.data.image import CorruptImage, render_svg
from xmodal_jax.data.media import read_states
from xmodal_jax.data.sound import MOST_RATE, SECONDS
from xmodal_jax.data.source import Item, Skip, Source, clean_captions, shared_out
from xmodal_jax.data.sources.sounds import SoundOptions, read_sounds
from xmodal_jax.data.taxonomy import Taxonomy, folder_taxonomy
from xmodal_jax.data.textfile import hashed, read_lines
from xmodal_jax.errors import UserError

ROOT = "/usr/share/tuxpaint/stamps"
LETTERS = {"alphabets", "letters", "numbers"}  # a caption "The letter A" says nothing about a picture
TRANSLATION = re.compile(r"(?P<language>[\w@.-]+?)\.utf8=(?P<caption>.*)")
STYLES = {"cartoon", "toys", "plastic"}  # folders named after a style of drawing, not a thing
ASIDE = re.compile(r"\s*([(,\u2014]|\s-\s).*")  # "A peacock (a male peafowl)." is called "peacock"
ARTICLE = re.compile(r"^(a|an|the|some)\s+")
SOUNDS = (".ogg", ".wav")
SPOKEN, EFFECT = "audio", "effect"  # media: captions that are spoken, by language; the sound of the thing


def read_captions(path: pathlib.Path) -> dict[str, list[str]]:
    """Read {language: [caption]} from a stamp's text file, without languages that have no caption."""
    first, *rest = read_lines(path, lenient=True) or [""]
    captions = {"en": [first]}
    for match in map(TRANSLATION.fullmatch, rest):
        if match and match["caption"].strip():
            captions[match["language"]] = [match["caption"]]
    return captions


def group_key(caption: str) -> str:
    """Return the English caption without article, digits and punctuation: six stamps called "A flower." are a group."""
    return ARTICLE.sub("", re.sub(r"[^\w\s]|\d", "", normal_caption(caption))).strip()


def name_of(caption: str) -> str:
    """Return what the English caption calls the stamp, without asides: "an albino peahen (...)" -> "albino peahen"."""
    return group_key(ASIDE.sub("", caption)) or group_key(caption)


def folders_of(key: str) -> tuple[str, ...]:
    """Return the folders of a stamp from the outermost on, without those of a drawing style."""
    return tuple(folder for folder in key.split("/")[:-1] if folder not in STYLES)


def stamps_source(
    root: os.PathLike | str = ROOT,
    size: int = 256,
    held_out: int | None = None,
    only: str = "",
    label: str = "folder",
    spoken: bool = False,
    effects: bool = False,
    seconds: float = SECONDS,
    rate: int = MOST_RATE,
) -> Source:
    """Read the Tux Paint stamps below `root` that have a text file, without letters and numbers.

    SVG drawings are rendered `size` px wide. `held_out` stamps (default: 200, of 400 or fewer a fifth) are the test
    split, by group. `only`: names of outermost folders, as "animals,plants". There is one label, and the folders above
    it are its taxonomy: the first two folders (`label` "folder") or what the English caption names ("name"; a test
    label is then one that training never saw). `spoken` adds the captions that are spoken, as medium "audio" whose
    views are languages; `effects` the sounds of things, as medium "effect": of each the first `seconds`, at `rate` Hz
    or fewer. Raises `UserError` for a folder without stamps.
    """
    root, options = pathlib.Path(root), SoundOptions(seconds, rate).checked()
    if not root.is_dir():
        raise UserError(
            f"no stamps at {root}: apt-get install tuxpaint-stamps-default, or give the folder of an unpacked one."
        )
    if size < 16:
        raise UserError(f"size is {size}; write 16 px or more")
    if label not in ("folder", "name"):
        raise UserError(f"label is '{label}'; write folder or name")
    files = _kept(sorted(root.rglob("*.txt")), root, only)
    held_out = (200 if len(files) > 400 else len(files) // 5) if held_out is None else held_out
    keys = [path.relative_to(root).with_suffix("").as_posix() for path in files]
    captions = [read_captions(path) for path in files]
    labels = [_label(key, own["en"][0], label) for key, own in zip(keys, captions, strict=True)]
    groups = labels if label == "name" else [group_key(own["en"][0]) for own in captions]

    def items_of(row: int, split: str) -> Iterator[Item | Skip]:
        kept, skips = clean_captions(captions[row], keys[row])
        yield from skips
        if kept:
            item = _item(keys[row], files[row], kept, size, labels=(labels[row],), group=groups[row], split=split)
            heard = {
                SPOKEN: spoken_files(files[row]) if spoken else {},
                EFFECT: effect_file(files[row]) if effects else {},
            }
            yield from _with_sounds(item, heard, options)

    items = shared_out(groups, held_out, "stamps", items_of)
    content = hashed(json.dumps([keys, captions]))
    arguments = {"root": str(root.resolve()), "size": size, "held_out": held_out, "content": content}
    arguments |= ({"only": only} if only else {}) | ({"label": label} if label != "folder" else {})
    arguments |= {
        name: True for name, asked in (("spoken", spoken), ("effects", effects)) if asked
    } | options.arguments()
    origin = "Debian tuxpaint-stamps-default"
    return Source("stamps", origin, "GPL-2", items, arguments, len(files), _taxonomy(keys, labels, label))


def _kept(files: list[pathlib.Path], root: pathlib.Path, only: str) -> list[pathlib.Path]:
    """Return the text files of stamps, without letters, in the outermost folders that `only` names (all for "")."""
    files = [path for path in files if not LETTERS & set(path.relative_to(root).parts)]
    if not files:
        raise UserError(f"{root} holds no stamp (a picture with a .txt beside it): give the folder named stamps.")
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    known = {path.relative_to(root).parts[0] for path in files}
    if not wanted <= known:
        raise UserError(
            f"'only': {root} has no {sorted(wanted - known)[:1]}; write some of {', '.join(sorted(known))}."
        )
    return [path for path in files if not wanted or path.relative_to(root).parts[0] in wanted]


def _label(key: str, caption: str, label: str) -> str:
    """Return the label of a stamp."""
    folder = "/".join(key.split("/")[:-1][:2]) or "stamps"
    return (name_of(caption) or folder) if label == "name" else folder


def _taxonomy(keys: list[str], labels: list[str], label: str) -> Taxonomy:
    """Return the folders above each label; for a name in several folders the deepest."""
    paths: dict[str, tuple[str, ...]] = {}
    for key, own in zip(keys, labels, strict=True):
        folders = folders_of(key) if label == "name" else tuple(own.split("/")[:1])
        paths[own] = max(paths.get(own, ()), folders, key=len)
    return folder_taxonomy(paths, label)


def _item(key: str, path: pathlib.Path, captions: dict[str, list[str]], size: int, **fields) -> Item | Skip:
    """Return the item of a stamp, or the reason why there is none."""
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    files = read_states(png if png.is_file() else svg)
    try:
        picture = png.read_bytes() if png.is_file() else render_svg(svg.read_text("utf-8"), size)
    except OSError:
        return Skip("missing image", f"{key}: no .png or .svg", files)
    except (CorruptImage, UnicodeDecodeError) as error:
        return Skip("unreadable drawing", f"{key}: {error}", files)
    return Item(key, {"image": picture}, captions, **fields, files=files)


def spoken_files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the files of a stamp's spoken captions by language, those of its text file `path`."""
    start, found = f"{path.stem}_desc", {}
    for file in sorted(path.parent.glob(f"{glob.escape(start)}*")):
        language = file.stem.removeprefix(start).removeprefix("_")
        if file.suffix in SOUNDS and (file.stem == start or file.stem.startswith(f"{start}_")):
            found.setdefault(language or "en", file)
    return found


def effect_file(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the file of a stamp's sound effect, as the view "effect", if it has one."""
    there = [file for suffix in SOUNDS if (file := path.with_suffix(suffix)).is_file()]
    return {EFFECT: there[0]} if there else {}


def _with_sounds(
    item: Item | Skip, heard: dict[str, dict[str, pathlib.Path]], options: SoundOptions
) -> Iterator[Item | Skip]:
    """Yield an item with its sounds by medium, and a `Skip` for each that cannot be used."""
    if isinstance(item, Skip):
        yield item
        return
    for medium, paths in heard.items():
        sounds = read_sounds(item.key, paths, options)
        yield from sounds.skips
        media = item.media | ({medium: sounds.kept} if sounds.kept else {})
        item = dataclasses.replace(item, media=media, files=item.files + sounds.files)
    yield item
