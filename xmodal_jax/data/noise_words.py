"""Replace words of a caption by words of other captions, nouns by nouns: partial noise.

No tagger is needed: nouns are those of a list of the user's, or mined from English captions by what stands before and
after each word (`mined_nouns`).
"""

import collections
import dataclasses
import functools
import itertools
import os
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator

from xmodal_jax.data.captions import JOINERS, UNSPACED, marks
from xmodal_jax.data.source import existing
from xmodal_jax.data.textfile import read_lines
from xmodal_jax.errors import UserError

DETERMINERS = frozenset(
    "a an the two three four five six seven eight nine ten his her its their my your our this these those some several "
    "many each every another no both".split()
)
CLOSERS = DETERMINERS | frozenset(  # words that stand behind a noun, as verbs in -ing and the end of the caption do
    "is are was were be has have and or but while as that who which with without in into on onto at by of to from for "
    "over under near behind beside between through across along around against up down off out above below inside "
    "outside during before after next towards toward".split()
)
BEHIND, CLOSED = 0.3, 0.3  # shares of a word's uses that make it a noun
FEWEST = 2  # uses of a word, to tell
DONORS, TRIES = 16, 4  # captions whose words are taken for one at most; new starts if the result is true of the record


def noun_file(path: os.PathLike | str) -> frozenset[str]:
    """Read a list of nouns, one word a line. Raises `UserError` for a list without words or with several in a line."""
    lines = [line.strip().lower() for line in read_lines(existing(path, "--words"))]
    several = [number for number, line in enumerate(lines, 1) if line and spans(line) != [(0, len(line))]]
    if several:
        raise UserError(f"--words {path}: line {several[0]} is {lines[several[0] - 1]!r:.60}; write one word a line")
    if not any(lines):
        raise UserError(f"--words {path} has no word; write one a line, or leave --words out")
    return frozenset(filter(None, lines))


def mined_nouns(captions: Iterable[str]) -> frozenset[str]:
    """Return words that are probably nouns, from English captions.

    A noun stands often (`BEHIND`) directly after a determiner or an adjective, and often (`CLOSED`) before what ends
    a noun phrase: a preposition, conjunction or form of "be", a verb in -ing, punctuation or the end. An adjective,
    or the first of two nouns, stands as often after a determiner, and seldom before such an end.
    """
    uses: collections.Counter[str] = collections.Counter()
    closed: collections.Counter[str] = collections.Counter()
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    for caption in captions:
        tokens = re.findall(r"\w+(?:[-'’]\w+)*|[^\w\s]", caption.lower())
        for before, word, after in zip([".", *tokens], tokens, [*tokens[1:], "."], strict=False):
            if word[0].isalpha() and word not in CLOSERS:
                uses[word] += 1
                closed[word] += after in CLOSERS or after.endswith("ing") or not after[0].isalnum()
                pairs[before, word] += 1
    describing = {word for word in _behind(pairs, uses, DETERMINERS) if closed[word] < CLOSED * uses[word]}
    found = _behind(pairs, uses, DETERMINERS | describing)
    return frozenset(word for word in found if closed[word] >= CLOSED * uses[word])


def _behind(
    pairs: collections.Counter[tuple[str, str]], uses: collections.Counter[str], first: Collection[str]
) -> set[str]:
    """Return the words that stand directly after one of `first` in `BEHIND` of their uses or more."""
    counts: collections.Counter[str] = collections.Counter()
    for (before, word), count in pairs.items():
        counts[word] += count if before in first else 0
    return {word for word, count in uses.items() if count >= FEWEST and counts[word] >= BEHIND * count}


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a word: in ASCII, and in any script."""
    letter = rf"(?:(?!{UNSPACED})[\w{marks()}{JOINERS}])+"
    return re.compile(r"\w+(?:[-']\w+)*"), re.compile(rf"{letter}(?:[-'’]{letter})*|{UNSPACED}[{marks()}]*")


def spans(text: str) -> list[tuple[int, int]]:
    """Return (start, stop) of each word of a text.

    Words are those of `captions.words`, but "dog's" and "t-shirt" are one each.
    """
    return [match.span() for match in _patterns()[not text.isascii()].finditer(text)]


@dataclasses.dataclass
class WordSwapper:
    """Writer of partial noise: `share` of a caption's words become words of others, those in `nouns` first.

    Attributes:
      replaced, seen: words replaced so far, and all words of the captions that it changed.
    """

    nouns: Collection[str]
    share: float
    draw: random.Random
    replaced: int = 0
    seen: int = 0

    def swapped(self, text: str, donor: Callable[[], str], refused: Callable[[str], bool]) -> str | None:
        """Return a caption with words of captions from `donor`; None if none was found that is not `refused`."""
        places = spans(text)
        words = [text[start:stop] for start, stop in places]
        for _ in range(TRIES if words else 0):
            new = self._replacements(words, donor)
            made = _put(text, places, new)
            if new and not refused(made):
                self.replaced, self.seen = self.replaced + len(new), self.seen + len(words)
                return made
        return None

    def _replacements(self, words: list[str], donor: Callable[[], str]) -> dict[int, str]:
        """Draw {place: word}: nouns for nouns and others for others, each another word than the one that is there."""
        places = self.draw.sample(range(len(words)), len(words))
        places.sort(key=lambda place: not self._is_noun(words[place]))  # stable: nouns first, each kind at random
        left = places[: max(1, round(self.share * len(words)))]
        new: dict[int, str] = {}
        for _ in range(DONORS):
            supply = self._offered(donor())
            for place in left:
                own = words[place].lower()
                fit = (word for word in supply[self._is_noun(own)] if word.lower() != own)
                if word := next(fit, ""):
                    supply[self._is_noun(own)].remove(word)
                    new[place] = word[0].upper() + word[1:] if place == 0 and words[0][0].isupper() else word
            left = [place for place in left if place not in new]
            if not left:
                break
        return new

    def _offered(self, text: str) -> dict[bool, list[str]]:
        """Return the words of a caption at random, {whether they are nouns: words}, its first without its capital."""
        words = [text[start:stop] for start, stop in spans(text)]
        words[:1] = [word.lower() if word[1:].islower() or len(word) == 1 else word for word in words[:1]]
        self.draw.shuffle(words)
        return {kind: [word for word in words if self._is_noun(word) is kind] for kind in (True, False)}

    def _is_noun(self, word: str) -> bool:
        """Return True for a word of the list."""
        return word.lower() in self.nouns


def _put(text: str, places: list[tuple[int, int]], new: dict[int, str]) -> str:
    """Return a text with other words at some of its `places`."""
    return "".join(_pieces(text, places, new))


def _pieces(text: str, places: list[tuple[int, int]], new: dict[int, str]) -> Iterator[str]:
    """Yield what stands before each word, the word, and the rest."""
    ends = [0, *itertools.chain.from_iterable(places), len(text)]
    for number, (start, stop) in enumerate(itertools.pairwise(ends)):
        yield new.get(number // 2, text[start:stop]) if number % 2 else text[start:stop]
