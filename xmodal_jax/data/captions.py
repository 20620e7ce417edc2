"""When two captions are the same text, and what the words of a text are, in any language."""

import functools
import re
import unicodedata
from collections.abc import Hashable, Iterable

import numpy as np

JOINERS = "\u200c\u200d"  # stand inside words of Persian and of India's languages


def normal_caption(caption: str) -> str:
    """A caption as captions are compared: white space collapsed, lower case, composed letters (Unicode NFC).

    Accents count, and so does the difference of "Ma\u00dfe" and "Masse" that case folding would drop. Case is that of no
    language in particular: the Turkish capital of the dotless i is taken for that of i.
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
    """Whether there is a letter, digit, punctuation mark or symbol in it, not combining marks and control codes alone."""
    return any(unicodedata.category(char)[0] in "LNPS" for char in caption)


@functools.cache
def marks() -> str:
    """All combining marks, such as the vowel signs of Hindi, which Python's `\\w` does not count as parts of a word."""
    planes = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))
    return "".join(char for plane in planes for char in map(chr, plane) if unicodedata.category(char)[0] == "M")


@functools.cache
def _word() -> re.Pattern[str]:
    return re.compile(rf"[\w{marks()}{JOINERS}]+")


def words(text: str) -> list[str]:
    """The words of a text as captions are compared: runs of letters with their marks, and digits."""
    return _word().findall(normal_caption(text))
