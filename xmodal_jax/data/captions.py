"""Compare captions, and split them into words, in any language."""

import functools
import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping

import numpy as np

UNSPACED = (  # scripts without spaces between words: Chinese, Japanese, Thai and Lao, Burmese, Khmer
    r"[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
TYPE = "-type"  # end of a "language" whose captions tell what a record is, such as the kind of its question
JOINERS = "\u200c\u200d"  # inside words of Persian and of India's languages


def normal_caption(caption: str) -> str:
    """Return the form in which captions are compared.

    White space is collapsed, letters are lower case and composed (Unicode NFC). Accents count, and so does the
    difference of "Ma\u00dfe" and "Masse", which case folding would drop. Lower case follows no language's own rules:
    the Turkish capital of the dotless i becomes i.
    """
    text = unicodedata.normalize("NFC", " ".join(caption.split()))
    return unicodedata.normalize("NFC", text.lower())


class Numbers(dict):
    """A numbering of things, 0, 1, ... in the order in which each is first asked for; equal things share a number."""

    def __missing__(self, thing: Hashable) -> int:
        return self.setdefault(thing, len(self))


def caption_keys(captions: Iterable[str]) -> np.ndarray:
    """Return int32 [M]: equal for two captions if and only if they are the same text (`normal_caption`)."""
    numbers = Numbers()
    return np.array([numbers[normal_caption(caption)] for caption in captions], np.int32)


def says_something(caption: str) -> bool:
    """Return True if the caption has a letter, digit, punctuation mark or symbol, not only marks and control codes."""
    return any(unicodedata.category(char)[0] in "LNPS" for char in caption)


@functools.cache
def marks() -> str:
    """Return all combining marks, such as Hindi's vowel signs; Python's `\\w` does not count them as part of a word."""
    planes = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))
    return "".join(char for plane in planes for char in map(chr, plane) if unicodedata.category(char)[0] == "M")


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a word and of a letter of `UNSPACED` with its marks."""
    return re.compile(rf"[\w{marks()}{JOINERS}]+"), re.compile(rf"({UNSPACED}[{marks()}]*)")


def spaced(text: str) -> str:
    """Put spaces around each letter of the scripts that write none between words."""
    return text if text.isascii() else _patterns()[1].sub(r" \1 ", text)


def words(text: str) -> list[str]:
    """Split a text into words, in the form in which captions are compared.

    A word is a run of letters with their marks and digits, or one letter in scripts that write no spaces between words.
    """
    return _patterns()[0].findall(spaced(normal_caption(text)))


def count_words(text: str) -> int:
    """Count the words of a text; quickly for ASCII, where they are separated by spaces."""
    return len(text.split()) if text.isascii() else len(words(text))


def quantiles(counts: Mapping[int, int]) -> dict[str, int]:
    """Return {"median", "99 %", "longest"} of numbers that occur `counts` times each.

    A quantile is the smallest of the numbers that at least this share does not exceed.
    """
    numbers = sorted(counts)
    below = np.cumsum([counts[number] for number in numbers])
    places = np.searchsorted(below, np.array([0.5, 0.99, 1.0]) * below[-1])
    return {name: numbers[place] for name, place in zip(("median", "99 %", "longest"), places, strict=True)}
