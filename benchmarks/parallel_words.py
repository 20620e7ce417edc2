"""Words and their translations from dictionaries, added to the names of emoji: parallel text that needs no picture.

    apt-get download dict-freedict-eng-{ara,deu,fra,hin,ind,pol,rus,spa,tur} dict-freedict-jpn-eng
    for package in dict-freedict-*.deb; do dpkg -x $package dictionaries; done
    python benchmarks/parallel_words.py dictionaries --emoji emoji_views.jsonl --out emoji_words.jsonl
    xmodal data prepare jsonl --path emoji_words.jsonl --root FOLDER --out data/emoji_words

FOLDER and emoji_views.jsonl are those of emoji_views.py. The dictionaries are FreeDict's in dictd's format (GPL and
others, not part of this repository). A row for each English headword of at most three words that `--least` of them
have, with the first translation of its first sense; of Japanese, which is read from the other side, words that its
dictionary marks as common. The concepts of emoji are split as `xmodal data prepare jsonl --held-out` splits them, and
a word that is the name of one held out, in English or in another language, makes no row.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from xmodal_jax.data.source import split_groups
from xmodal_jax.errors import UserError, output_file, run_script

CODES = {"ara": "ar", "deu": "de", "fra": "fr", "hin": "hi", "ind": "id", "pol": "pl", "rus": "ru", "spa": "es"}
CODES |= {"tur": "tr", "jpn": "ja"}
SCRIPTS = {"ar": ("ARABIC",), "hi": ("DEVANAGARI",), "ru": ("CYRILLIC",), "ja": ("CJK", "HIRAGANA", "KATAKANA")}
DIGITS = {digit: n for n, digit in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
ASIDE = re.compile(r"<[^>]*>|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|/+[^/]*/+")
COMMON = re.compile(r"\[(?:ichi1|news1|spec1|gai1)\]")
WORDS = 3  # of a headword and of a translation, at most


def entries(folder: pathlib.Path, name: str) -> Iterator[str]:
    """Yield the entries of one dictionary, each once."""
    data = gzip.decompress((folder / f"{name}.dict.dz").read_bytes())
    places = set()
    for line in (folder / f"{name}.index").read_text("utf-8").splitlines():
        word, start, size = line.split("\t")[:3]
        if not word.startswith("00database"):
            places.add((number(start), number(size)))
    for start, size in sorted(places):
        yield data[start : start + size].decode("utf-8", "replace")


def number(digits: str) -> int:
    """Return a number of dictd's index, which is written in base 64."""
    value = 0
    for digit in digits:
        value = 64 * value + DIGITS[digit]
    return value


def first(text: str) -> str:
    """Return the first word of a list of senses, without numbers, remarks and what comes after a comma."""
    text = re.sub(r"^\s*(?:[IVX]+\.)?\s*(?:\d+\.)?\s*", "", ASIDE.sub(" ", text).replace("~", " "))
    return " ".join(re.split(r"[,;.:!?=]|\d", text)[0].split())


def usable(text: str, language: str) -> bool:
    """Tell whether a text is of one to three words of letters of the language's script, and no single Latin letter."""
    letters = [unicodedata.name(letter, "").split(" ")[0].split("-")[0] for letter in text if letter.isalpha()]
    scripts = SCRIPTS.get(language, ("LATIN",))
    if len(letters) < 2 and "CJK" not in letters:
        return False
    known = all(name in scripts or name == "MODIFIER" for name in letters)
    return known and len(text.split()) <= WORDS and not re.search(r"[\d/\\<>|*]", text)


def translated(entry: str) -> tuple[str, str]:
    """Return the headword of an entry of English to another language, and the first translation or ""."""
    head, _, rest = entry.partition("\n")
    lines = [line for line in rest.splitlines() if first(line)]
    return first(head).lower(), first(lines[0]) if lines else ""


def from_japanese(entry: str) -> tuple[str, str]:
    """Return the first English gloss and the headword, or two "" where the dictionary does not mark it as common."""
    head, _, rest = entry.partition("\n")
    glosses = [line for line in rest.splitlines() if line.strip() and not line.strip().startswith("(")]
    if not COMMON.search(head) or not glosses:
        return "", ""
    return first(glosses[0]).removeprefix("to ").lower(), first(head)


def words(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Read the dictionaries below a folder: {English: {language: word}}.

    Raises UserError where there is none of them.
    """
    found: dict[str, dict[str, str]] = collections.defaultdict(dict)
    files = sorted(folder.rglob("freedict-*.index"))
    for path in files:
        _, source, target = path.stem.split("-")
        language = CODES.get(source if target == "eng" else target)
        if language is None or (target == "eng") != (language == "ja"):
            continue
        for entry in entries(path.parent, path.stem):
            english, word = from_japanese(entry) if language == "ja" else translated(entry)
            if usable(english, "en") and usable(word, language):
                found[english].setdefault(language, word)
    if not found:
        raise UserError(f"'{folder}' holds no dictionary of {', '.join(CODES)}; unpack dict-freedict-eng-deu there")
    return found


def split_names(rows: list[dict[str, Any]], held_out: int) -> list[dict[str, Any]]:
    """Return the rows of emoji with their split, drawn as `xmodal data prepare jsonl` draws it."""
    splits = split_groups([row["group"] for row in rows], held_out, lambda _: True)
    return [row | {"split": split} for row, split in zip(rows, splits, strict=True)]


def rows_of(found: dict[str, dict[str, str]], emoji: list[dict[str, Any]], least: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each English word that is in `least` languages and names no emoji held out."""
    captions = [row["caption"].items() for row in emoji if row["split"] != "train"]
    asked = {(code, name.casefold()) for own in captions for code, name in own}
    for english in sorted(found):
        caption = {"en": english} | dict(sorted(found[english].items()))
        named = any((code, word.casefold()) in asked for code, word in caption.items())
        if len(found[english]) >= least and not named:
            yield {"id": f"word: {english}", "caption": caption, "split": "train"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="where the dictionaries were unpacked")
    parser.add_argument("--emoji", type=pathlib.Path, required=True, help="the rows that emoji_views.py wrote")
    parser.add_argument("--held-out", type=int, default=400, help="concepts of emoji that are held out")
    parser.add_argument("--least", type=int, default=4, help="languages that a word must have")
    parser.add_argument("--out", type=output_file, required=True, help="JSON Lines to write")
    args = parser.parse_args(arguments)
    emoji = split_names([json.loads(line) for line in args.emoji.read_text("utf-8").splitlines()], args.held_out)
    rows = list(rows_of(words(args.folder), emoji, args.least))
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in emoji + rows), "utf-8")
    counts = collections.Counter(code for row in rows for code in row["caption"])
    print(f"{len(rows)} words beside {len(emoji)} names;", ", ".join(f"{code} {n}" for code, n in counts.most_common()))


if __name__ == "__main__":
    run_script(main)
