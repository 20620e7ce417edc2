"""Draw wrong captions for a split: captions exchanged between records, and captions with words of others."""

import random
from collections.abc import Callable, Collection

import numpy as np

from xmodal_jax.data.captions import normal_caption
from xmodal_jax.data.noise_words import WordSwapper, mined_nouns
from xmodal_jax.data.recaptioned import NewCaptions
from xmodal_jax.data.sidecar import Sidecar

ROUNDS = 30  # of exchanges of captions that fell on their own record, and of draws of a caption of another
MINED = 100_000  # captions that nouns are mined from


def of_each_language(own: Sidecar, rate: float, draw: np.random.Generator) -> np.ndarray:
    """Draw the rows of captions, as many of each language as its share, int64 [k], in order."""
    found = [np.flatnonzero(own.language == code) for code in range(len(own.languages))]
    chosen = [draw.choice(rows, round(rate * len(rows)), replace=False) for rows in found if len(rows)]
    return np.sort(np.concatenate(chosen))


def half_of_records(own: Sidecar, rate: float, draw: np.random.Generator) -> np.ndarray:
    """Draw the rows of half of the captions, at least one, of records drawn at random, int64 [k], in order."""
    records = np.unique(own.owner)
    records = np.sort(draw.choice(records, round(rate * len(records)), replace=False))
    rows = np.flatnonzero(np.isin(own.owner, records))
    rows = rows[np.lexsort((draw.random(len(rows)), own.owner[rows]))]  # at random in each record
    _, first, counts = np.unique(own.owner[rows], return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(first, counts)
    return np.sort(rows[place < np.repeat(np.maximum(1, counts // 2), counts)])


class OwnTexts:
    """The texts of each record of a split, from the record `owner` [M] and the text's `number` [M] of each caption."""

    def __init__(self, owner: np.ndarray, number: np.ndarray):
        self._owner, self._number = owner.astype(np.int64), number.astype(np.int64)
        self._base = int(self._number.max(initial=0)) + 1
        self._pairs = np.unique(self._owner * self._base + self._number)

    def has(self, rows: np.ndarray, took: np.ndarray) -> np.ndarray:
        """Return bool [k], True where the caption of row `took` [k] is a text of the record of row `rows` [k]."""
        asked = self._owner[rows] * self._base + self._number[took]
        places = np.searchsorted(self._pairs, asked)
        return self._pairs[np.minimum(places, len(self._pairs) - 1)] == asked


def exchanged(own: Sidecar, rows: np.ndarray, draw: np.random.Generator) -> NewCaptions:
    """Permute the captions of some rows [k] among those of one language, so that each is new to its record.

    The rows for which that cannot be done keep their own.
    """
    took, texts = np.arange(len(own.owner)), OwnTexts(own.owner, own.number)
    for code in range(len(own.languages)):
        mine = rows[own.language[rows] == code]
        if len(mine):
            took[mine] = restored(mine, permuted(mine, texts, draw), texts)
    return NewCaptions(took, {}, took != np.arange(len(took)))


def permuted(rows: np.ndarray, texts: OwnTexts, draw: np.random.Generator) -> np.ndarray:
    """Return a permutation of rows [k] in which few or none take a caption that is a text of their own record.

    Those that do swap with others, drawn at random, where that helps both, in `ROUNDS` rounds at most: by turns with
    rows that are good already and among each other, without which two records could not exchange all they have.
    """
    took = draw.permutation(rows)
    bad = np.flatnonzero(texts.has(rows, took))
    for number in range(ROUNDS):
        if len(bad) == 0:
            break
        bad = draw.permutation(bad)
        if number % 2:
            half = len(bad) // 2
            one, other = bad[:half], bad[half : 2 * half]
        else:
            other = draw.permutation(np.setdiff1d(np.arange(len(rows)), bad))[: len(bad)]
            one = bad[: len(other)]
        better = ~texts.has(rows[one], took[other]) & ~texts.has(rows[other], took[one])
        one, other = one[better], other[better]
        took[one], took[other] = took[other], took[one]
        bad = bad[texts.has(rows[bad], took[bad])]
    return took


def restored(rows: np.ndarray, took: np.ndarray, texts: OwnTexts) -> np.ndarray:
    """Return a permutation of rows [k] in which all that take a text of their own record have their own caption.

    Each of them swaps with the row that has its caption, which may make that one the next.
    """
    took, left = took.copy(), np.flatnonzero(texts.has(rows, took)).tolist()
    holder = dict(zip(took.tolist(), range(len(took)), strict=True)) if left else {}
    while left:
        place = left.pop()
        row, other = int(rows[place]), int(took[place])
        if row == other or not texts.has(rows[[place]], took[[place]])[0]:
            continue
        swapped = holder[row]
        took[place], took[swapped] = row, other
        holder[row], holder[other] = place, swapped
        left.append(swapped)
    return took


def nouns_of(own: Sidecar, draw: np.random.Generator) -> frozenset[str]:
    """Return the nouns of the split's English captions, of some of them if they are many."""
    english = [name for name in own.languages if name.partition("-")[0] == "en"]
    pairs = own.all_pairs(english)
    some = np.sort(draw.choice(pairs, min(len(pairs), MINED), replace=False)) if len(pairs) else pairs
    return mined_nouns(own.texts.take(some))


def partial_noise(
    own: Sidecar, rate: float, share: float, nouns: Collection[str], draw: np.random.Generator
) -> tuple[NewCaptions, float]:
    """Replace words in the share `rate` of the captions; return them, and the share of their words that was replaced.

    Words come from captions of other records in the same language.
    """
    swapper = WordSwapper(nouns, share, random.Random(int(draw.integers(2**63))))
    rows, made = of_each_language(own, rate, draw), {}
    donors = [np.flatnonzero(own.language == code) for code in range(len(own.languages))]
    for row in rows.tolist():
        record, language = int(own.owner[row]), donors[own.language[row]]
        text = swapper.swapped(own.texts[row], _donor(own, record, language, swapper.draw), _truth(own, record))
        if text is not None:
            made[row] = text
    changed = np.zeros(len(own.owner), bool)
    changed[list(made)] = True
    return NewCaptions(np.arange(len(changed)), made, changed), swapper.replaced / max(1, swapper.seen)


def _donor(own: Sidecar, record: int, rows: np.ndarray, draw: random.Random) -> Callable[[], str]:
    """Return a function that draws a caption of `rows` which is not of a record, "" if it does not find one."""

    def drawn() -> str:
        for _ in range(ROUNDS):
            row = rows[draw.randrange(len(rows))]
            if own.owner[row] != record:
                return own.texts[row]
        return ""

    return drawn


def _truth(own: Sidecar, record: int) -> Callable[[str], bool]:
    """Return a function that tells whether a text is one of a record's."""
    texts = {normal_caption(text) for texts in own.captions(record).values() for text in texts}

    def true(text: str) -> bool:
        return normal_caption(text) in texts

    return true
