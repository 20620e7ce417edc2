"""Answers of VQA (Goyal et al. 2017): their normal form, and the accuracy that each of them earns.

The normal form is that of the official evaluation: punctuation, articles, numbers written as words, and contractions
without their apostrophe. The accuracy of an answer is the official one too: min(1, n / 3), n of the other nine
annotators having given it, averaged over the ten subsets that leave one annotator out. Of ten annotators 1, 2, 3 and 4
or more give 0.3, 0.6, 0.9 and 1.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COUNTED = "zero one two three four five six seven eight nine ten".split()
NUMBERS: dict[str, str] = {"none": "0"} | {word: str(number) for number, word in enumerate(COUNTED)}
ARTICLES = frozenset(("a", "an", "the"))
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
FEWEST = 4  # annotators that the official accuracy makes sense for


def spellings(word: str) -> list[str]:
    """Return a contraction without some or all of its apostrophes.

    Example:
        >>> spellings("he'd've")
        ['hedve', "hed've", "he'dve"]
    """
    first, *rest = word.split("'")
    marks = itertools.product(("", "'"), repeat=len(rest))
    found = (first + "".join(map("".join, zip(own, rest, strict=True))) for own in marks)
    return [text for text in found if text != word]


CONTRACTIONS = {text: word for word in CONTRACTED for text in spellings(word)}


def normal_answer(text: str) -> str:
    """Return the normal form of an answer; "" if nothing is left of it.

    Example:
        >>> normal_answer("The  two t-shirts."), normal_answer("1,000"), normal_answer("dont")
        ('2 t shirts', '1000', "don't")
    """
    whole = text = text.replace("\n", " ").replace("\t", " ").strip()
    number = re.search(r"\d,\d", whole) is not None
    for mark in PUNCTUATION:
        apart = f"{mark} " in whole or f" {mark}" in whole
        text = text.replace(mark, "" if number or apart else " ")
    words = re.sub(r"\.(?!\d)", "", text).lower().split()
    counted = (NUMBERS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in counted if word not in ARTICLES)


def accuracy(count: int, annotators: int) -> float:
    """Return the accuracy of an answer that `count` of the annotators gave.

    Example:
        >>> [round(accuracy(count, 10), 2) for count in range(5)]
        [0.0, 0.3, 0.6, 0.9, 1.0]
    """
    own, others = min(1.0, (count - 1) / 3), min(1.0, count / 3)
    return (count * own + (annotators - count) * others) / annotators


def answer_scores(given: Sequence[str], chosen: str) -> dict[str, float]:
    """Return the accuracy of each answer that annotators gave, all in their normal form, without empty ones.

    With fewer than four annotators the `chosen` answer counts as certain.
    """
    if len(given) < FEWEST:
        return {chosen: 1.0} if chosen else {}
    return {answer: accuracy(count, len(given)) for answer, count in Counter(given).items() if answer}
