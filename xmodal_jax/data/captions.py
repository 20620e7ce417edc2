"""When two captions are the same text, and what the words of a text are, in any language."""

import functools
import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping

import numpy as np

# Letters of scripts that write no spaces between words: Chinese, Japanese, Thai and Lao, Burmese, Khmer
UNSPACED = (
    r"[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
JOINERS = "\u200c\u200d"  # stand inside words of Persian and of India's languages


def normal_caption(caption: str) -> str:
    """A caption as captions are compared: white space collapsed, lower case, composed letters (Unicode NFC).

    Accents count, and so does the difference of "Ma\u00dfe" and "Masse" that case folding would drop. Case is that
    of no language in particular: the Turkish capital of the dotless i is taken for that of i.
    """
    text = unicodedata.normalize("NFC", " ".join(caption.split()))
    return unicodedata.normalize("NFC", text.lower())


class Numbers(dict):
    """Numbers things 0, 1, ... in the order in which each is first asked for; only equal things share a number."""

    def __missing__(self, thing: Hashable) -> int:
        return self.setdefault(thing, len(self))


def caption_keys(captions: Iterable[str]) -> np.ndarray:
    """int32 [M], the same for two of these captions if and only if they are the same text (`normal_caption`)."""
    numbers = Numbers()
    return np.array([numbers[normal_caption(caption)] for caption in captions], np.int32)


def says_something(caption: str) -> bool:
    """Whether there is a letter, digit, punctuation mark or symbol in it, more than marks and control codes."""
    return any(unicodedata.category(char)[0] in "LNPS" for char in caption)


@functools.cache
def marks() -> str:
    """All combining marks, such as the vowel signs of Hindi, which Python's `\\w` does not count as parts of a word."""
    planes = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))
    return "".join(char for plane in planes for char in map(chr, plane) if unicodedata.category(char)[0] == "M")


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A word, and a letter of `UNSPACED` with its marks."""
    return re.compile(rf"[\w{marks()}{JOINERS}]+"), re.compile(rf"({UNSPACED}[{marks()}]*)")


def spaced(text: str) -> str:
    """`text` with spaces around each letter of scripts that write none between words."""
    return text if text.isascii() else _patterns()[1].sub(r" \1 ", text)


def words(text: str) -> list[str]:
    """The words of a text as captions are compared: runs of letters with their marks and digits; letters where a script
    writes no spaces between words."""
    return _patterns()[0].findall(spaced(normal_caption(text)))


def count_words(text: str) -> int:
    """How many words, quickly; in English those between spaces."""
    return len(text.split()) if text.isascii() else len(words(text))


def quantiles(counts: Mapping[int, int]) -> dict[str, int]:
    """{"median", "99 %", "longest"} of numbers that each occur `counts` times: so many are no larger."""
    numbers = sorted(counts)
    below = np.cumsum([counts[number] for number in numbers])
    places = np.searchsorted(below, np.array([0.5, 0.99, 1.0]) * below[-1])
    return {name: numbers[place] for name, place in zip(("median", "99 %", "longest"), places, strict=True)}
