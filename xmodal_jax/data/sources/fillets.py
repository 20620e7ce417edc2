"""The dialogues of Fish Fillets NG (Debian fillets-ng-data, GPL-2): spoken lines with their text in up to 14 languages.

Layout: ROOT/script/<scene>/<...>dialogs_<language>.lua, whose calls `dialogId("name", "font", "English text")` are
followed by `dialogStr("text")`; ROOT/sound/<scene>/<...>/<language>/<name>.ogg. The voices are in packages of their
own: fillets-ng-data-cs (Czech, 1.7 hours) and fillets-ng-data-nl.
"""

import os
import pathlib
import re
from collections.abc import Iterator

from xmodal_jax.data.sound import MOST_RATE, SECONDS
from xmodal_jax.data.source import Item, Skip, Source, clean_captions, digest_of_all, shared_out
from xmodal_jax.data.sources.sounds import SoundOptions, read_sounds
from xmodal_jax.errors import UserError

ROOT = "/usr/share/games/fillets-ng"
MEDIUM = "audio"
STRING = r'"(?:\\.|[^"\\])*"'
TEXT = rf"({STRING}(?:\s*\.\.\s*{STRING})*)"  # texts may be joined by ".."
CALL = re.compile(rf"dialogId\(\s*{TEXT}\s*,\s*{TEXT}\s*,\s*{TEXT}\s*\)|dialogStr\(\s*{TEXT}\s*\)", re.DOTALL)
DIALOGS = re.compile(r".*dialogs_(?P<language>\w+)\.lua")
ESCAPES = {"n": " ", "t": " ", "\n": " "}  # other characters behind a backslash stand for themselves

Lines = dict[str, dict[str, str]]  # {name: {language: text}}


def fillets_source(
    root: os.PathLike | str = ROOT,
    voices: str = "",
    held_out: int | None = None,
    seconds: float = SECONDS,
    rate: int = MOST_RATE,
) -> Source:
    """Read the spoken lines below `root`: the medium "audio", whose views are languages, with their texts.

    Lines without a voice are left out. `voices`: languages that are heard, as "cs,nl" (default: all there are). All
    lines of a scene are in the same split; `held_out` lines (default: a tenth) are the test split. Of a sound the first
    `seconds` are kept, at `rate` Hz or fewer. Raises `UserError` for a folder without spoken lines.
    """
    root, options = pathlib.Path(root), SoundOptions(seconds, rate).checked()
    scripts = sorted(path for path in root.glob("script/*/*.lua") if DIALOGS.fullmatch(path.name))
    if not scripts:
        raise UserError(
            f"no dialogues at {root}: apt-get install fillets-ng-data fillets-ng-data-cs, or give the folder of "
            "unpacked ones that has script and sound"
        )
    wanted = {name.strip() for name in voices.split(",") if name.strip()}
    spoken = _spoken(root, wanted)
    lines = {scene: read_lines_of(scripts, scene) for scene in {path.parent.name for path in scripts}}
    keys = sorted((scene, name) for scene, name in spoken if name in lines.get(scene, {}))
    if not keys:
        heard = f" in {voices}" if wanted else ""
        raise UserError(f"{root} has no spoken line{heard}; voices are in fillets-ng-data-cs and fillets-ng-data-nl")
    held_out = len(keys) // 10 if held_out is None else held_out

    def items_of(row: int, split: str) -> Iterator[Item | Skip]:
        scene, name = keys[row]
        yield from _items(keys[row], lines[scene][name], spoken[keys[row]], options, split)

    arguments = {"root": str(root.resolve()), "held_out": held_out, "content": digest_of_all(scripts)}
    arguments |= options.arguments() | ({"voices": ",".join(sorted(wanted))} if wanted else {})
    items = shared_out([scene for scene, _ in keys], held_out, "spoken lines", items_of)
    return Source("fillets", "Debian fillets-ng-data", "GPL-2", items, arguments, len(keys))


def _spoken(root: pathlib.Path, voices: set[str]) -> dict[tuple[str, str], dict[str, pathlib.Path]]:
    """Return {(scene, name): {language: file}} of all voices, or of some languages."""
    found: dict[tuple[str, str], dict[str, pathlib.Path]] = {}
    for path in sorted(root.glob("sound/**/*.ogg")):
        language, scene = path.parent.name, path.relative_to(root / "sound").parts[0]
        if len(path.relative_to(root / "sound").parts) >= 3 and (not voices or language in voices):
            found.setdefault((scene, path.stem), {})[language] = path
    return found


def read_lines_of(scripts: list[pathlib.Path], scene: str) -> Lines:
    """Return the lines of a scene, {name: {language: text}}, English first, without empty texts."""
    found: Lines = {}
    for path in scripts:
        match = DIALOGS.fullmatch(path.name)
        if path.parent.name != scene or not match:
            continue
        name = ""
        for own, _, english, text in CALL.findall(path.read_text("utf-8", errors="replace")):
            name = _plain(own) if own else name
            language, said = ("en", _plain(english)) if own else (match["language"], _plain(text))
            if name and said.strip():
                found.setdefault(name, {}).setdefault(language, said)
    return found


def _plain(expression: str) -> str:
    """Return the text of string literals that are joined, escapes undone."""
    parts = re.findall(STRING, expression)
    return "".join(re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), part[1:-1], flags=re.DOTALL) for part in parts)


def _items(
    key: tuple[str, str],
    texts: dict[str, str],
    voices: dict[str, pathlib.Path],
    options: SoundOptions,
    split: str,
) -> Iterator[Item | Skip]:
    """Yield the item of a spoken line, and what had to be left out."""
    name = "/".join(key)
    captions, skips = clean_captions({language: [text] for language, text in texts.items()}, name)
    sounds = read_sounds(name, voices, options)
    yield from skips
    yield from sounds.skips
    if captions and sounds.kept:
        yield Item(name, {}, captions, group=key[0], split=split, files=sounds.files, media={MEDIUM: sounds.kept})
