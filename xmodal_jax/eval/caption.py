"""Measure caption quality as the COCO tool does: corpus BLEU, CIDEr, and a tokenizer close to its Penn Treebank one.

The tool runs Stanford's PTBTokenizer in Java and drops punctuation; `tokenize` does the same with one regular
expression, without Java. Scores agree with pycocoevalcap on equal tokens. Scripts that write no spaces between words
(Chinese, Japanese, Thai, Lao, Burmese, Khmer) count by letter, a letter with its marks being one token; the tool would
take a whole sentence for one word. So numbers of languages with and without spaces are not of one scale: four letters
are often two words.
"""

import collections
import functools
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.captions import JOINERS, marks, normal_caption, spaced
from xmodal_jax.errors import UserError

Ngrams = collections.Counter

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'])
TYPOGRAPHY = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "–": "--", "—": "--", "…": "..."})
# Words that the Penn Treebank writes as two tokens, with the length of the first one.
SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "wanna": 3, "gimme": 3, "'tis": 2, "'twas": 2}
# A sentence may end in these; the period belongs to the word all the same.
ABBREVIATIONS = "mr|mrs|ms|dr|st|jr|sr|vs|etc|prof|gen|lt|col|sgt|capt|ave|blvd|rd|ft|inc|co|corp|ltd|mt"
TOKEN = rf"""
      (?:[^\W\d_]\.)+(?=[\s.,?!;:]|$) (?<=\.[^\W\d_]\.)      # u.s.  p.m.  e.g.
    | \b(?:{ABBREVIATIONS})\.                                # mr.  vs.
    | \bno\.(?=\s*\d)                                        # no. 5, and never the answer
    | \w+(?=n't\b) | n't\b                             # do n't
    | '(?:s|d|m|ll|re|ve|tis|twas)\b | 'n'                # it 's, rock 'n' roll
    | o'clock | ma'am
    | \d*[.,/:]?\d+(?:[.,/:-]\d+)*\w*(?:-\w+)*               # 3.5  1,000  7:30  1/2  20s  3d
    | \w+(?:(?:[-/@_.]|\+)(?=\w)\w+)*                       # t-shirt  red/blue  hello.world
    | \.\.\. | -{{2,}} | [!?]+ | \S
    """
ASCII_TOKEN = re.compile(TOKEN, re.VERBOSE | re.ASCII)


@functools.cache
def _foreign_token() -> re.Pattern[str]:
    """Return the pattern of a token whose words may have combining marks."""
    return re.compile(TOKEN.replace(r"\w", rf"[\w{marks()}{JOINERS}]"), re.VERBOSE)


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case Penn Treebank tokens without punctuation, or into letters where no spaces are.

    Examples:
      >>> " ".join(tokenize("The dog's ball, isn't it?"))
      "the dog 's ball is n't it"
      >>> " ".join(tokenize("赤い犬。"))
      '赤 い 犬'
    """
    tokens, caption = [], normal_caption(caption).translate(TYPOGRAPHY)
    pattern = ASCII_TOKEN if caption.isascii() else _foreign_token()
    for token in pattern.findall(spaced(caption)):
        cut = SPLIT_WORDS.get(token, len(token))
        tokens += [part for part in (BRACKETS.get(token[:cut], token[:cut]), token[cut:]) if part]
    return [token for token in tokens if not (token in PUNCTUATION or is_foreign_punctuation(token))]


def is_foreign_punctuation(token: str) -> bool:
    """Return True for punctuation of other scripts, such as a Chinese full stop, or the remains of a symbol."""
    return not token.isascii() and all(unicodedata.category(char)[0] in "PM" for char in token)


def ngrams(tokens: Sequence[str], order: int = 4) -> list[Ngrams]:
    """Count the 1-grams .. `order`-grams of a caption, one counter per length."""
    return [
        collections.Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
        for size in range(1, order + 1)
    ]


def _refuse_bad_captions(candidates: Sequence[Any], references: Sequence[Sequence[Any]]) -> None:
    """Refuse no captions, lists that do not match, and a caption without a reference."""
    if len(candidates) == 0:
        raise UserError("There are no captions to score; generate some first.")
    if len(candidates) != len(references):
        raise UserError(
            f"There are {len(candidates)} captions and {len(references)} lists of references; "
            "write one list per caption."
        )
    bare = [i for i, captions in enumerate(references) if not captions]
    if bare:
        raise UserError(f"Caption {bare[0]} has no reference; leave it out or give it one.")


def bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], order: int = 4
) -> list[float]:
    """Compute corpus BLEU-1 .. BLEU-`order` (Papineni et al., 2002), each between 0 and 1.

    n-gram matches are clipped by the largest count in any one reference and summed over the corpus before dividing; the
    brevity penalty uses each caption's reference of the closest length (the shorter one of two).

    Args:
      candidates: tokens of one caption per image.
      references: tokens of the true captions of each image.
      order: length of the longest n-grams.

    Raises:
      UserError: nothing to score, or lists that do not match.
    """
    _refuse_bad_captions(candidates, references)
    matched, guessed = np.zeros(order), np.zeros(order)
    length = reference_length = 0
    for tokens, truths in zip(candidates, references, strict=True):
        allowed = [ngrams(truth, order) for truth in truths]
        for n, counts in enumerate(ngrams(tokens, order)):
            best = collections.Counter()
            for truth in allowed:
                best |= truth[n]
            matched[n] += (counts & best).total()
            guessed[n] += counts.total()
        length += len(tokens)
        reference_length += min((abs(len(truth) - len(tokens)), len(truth)) for truth in truths)[1]
    # the tool's two tiny constants: 0 matches of 0 guesses is 0, not an error
    precisions = (matched + 1e-15) / (guessed + 1e-9)
    brevity = min(1.0, math.exp(1 - (reference_length + 1e-9) / (length + 1e-15))) if length else 0.0
    return [float(np.prod(precisions[:n]) ** (1 / n) * brevity) for n in range(1, order + 1)]


def _idf(references: Sequence[Sequence[list[Ngrams]]]) -> dict[tuple, float]:
    """Return log(images / images whose references hold the n-gram), of every n-gram of the references."""
    seen = collections.Counter()
    for truths in references:
        seen.update({gram for truth in truths for counts in truth for gram in counts})
    return {gram: math.log(len(references) / count) for gram, count in seen.items()}


def _weigh(counts: list[Ngrams], idf: dict[tuple, float], unseen: float) -> tuple[list[dict], list[float]]:
    """Return TF-IDF vectors per n-gram length, and their norms."""
    vectors = [{gram: count * idf.get(gram, unseen) for gram, count in of_length.items()} for of_length in counts]
    return vectors, [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]


def _similarity(caption: tuple[list[dict], list[float]], truth: tuple[list[dict], list[float]]) -> float:
    """Average the clipped cosine over n: repeating an n-gram more often than the reference gains nothing."""
    cosines = []
    for mine, my_norm, theirs, their_norm in zip(*caption, *truth, strict=True):
        shared = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
        cosines.append(shared / (my_norm * their_norm) if my_norm and their_norm else 0.0)
    return sum(cosines) / len(cosines)


def cider(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    order: int = 4,
    sigma: float = 6.0,
) -> tuple[float, np.ndarray]:
    """Compute CIDEr-D (Vedantam et al., 2015) with the factor 10 of the COCO tool; papers print 100 times this.

    The n-gram weights come from these references, so the score of one image alone is 0 (every idf is log 1).

    Args:
      candidates: tokens, as in `bleu`.
      references: tokens, as in `bleu`.
      order: length of the longest n-grams.
      sigma: width in bigrams of the penalty exp(-(length difference)^2 / 2 sigma^2).

    Returns:
      The mean over images and the score of each, float64 [n].

    Raises:
      UserError: as `bleu`.
    """
    _refuse_bad_captions(candidates, references)
    counted = [[ngrams(truth, order) for truth in truths] for truths in references]
    idf, unseen = _idf(counted), math.log(len(references))
    scores = []
    for tokens, truths in zip(candidates, counted, strict=True):
        counts = ngrams(tokens, order)
        vectors, total = _weigh(counts, idf, unseen), 0.0
        for truth in truths:
            # the tool measures length in bigrams
            difference = counts[1].total() - truth[1].total() if order > 1 else 0
            total += _similarity(vectors, _weigh(truth, idf, unseen)) * math.exp(-(difference**2) / (2 * sigma**2))
        scores.append(10.0 * total / len(truths))
    return float(np.mean(scores)), np.array(scores)


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score raw captions, one per image against its true ones: {"BLEU-4" (0 to 1), "CIDEr" (COCO tool's scale)}.

    Raises:
      UserError: nothing to score, or lists that do not match.

    Examples:
      >>> found = caption_scores(["A dog runs.", "Two cats on a mat."], [["A dog runs fast."], ["Two cats on a mat!"]])
      >>> {name: round(value, 2) for name, value in found.items()}
      {'BLEU-4': 0.88, 'CIDEr': 7.88}
    """
    _refuse_bad_captions(candidates, references)
    captions = [tokenize(caption) for caption in candidates]
    truths = [[tokenize(caption) for caption in captions_of] for captions_of in references]
    return {"BLEU-4": bleu(captions, truths)[3], "CIDEr": cider(captions, truths)[0]}
