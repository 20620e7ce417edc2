"""Concepts: words of the training captions that tell what a record is of, mined once and stored beside the data.

CVSE (Wang et al. 2020) classifies pictures and captions onto 300 such words; MVSEN (Qin et al. 2024) names the task
"multi-label classification", and its abstract does not tell the labels. The words are those of one split, by default of
the training split; every record of every split is then marked with the concepts that are in any of its captions.

The marks are `DIR/concepts/<name>/<split>.bin` uint8 [n, ceil(C/8)], the bits of a row packed, first bit highest; row i
belongs to record i. Words are compared as `captions.words` splits them, in lower case. Plurals are not folded: "dog"
and "dogs" are two concepts, as one dog and several look different.
"""

import collections
import itertools
import logging
import operator
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.captions import words
from xmodal_jax.data.card import Card
from xmodal_jax.data.columns import ColumnWriter, open_column
from xmodal_jax.data.features import add_to_card, being_added, refuse_bad_name
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.textfile import read_lines
from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)

FOLDER = "concepts"
LEAST = 2  # training records that have a mined word: nothing is learned from one
COMMON = 0.5  # share of the training captions above which a word counts as a stop word, in any language
BLOCK = 4096  # records that are marked in memory at once
STOP_WORDS = frozenset(
    """
    a about above across after against all along also am among an and another any are around as at away back be
    because been before behind being below beneath beside between both but by can could did do does doing down
    during each either for from front had has have having he her here hers herself him himself his how if in
    inside into is it its itself just like many me more most mr mrs my near next no nor not of off on once one
    only onto or other others our out outside over own past same she should so some something such than that the
    their theirs them themselves then there these they this those through to together too toward towards under
    underneath until up upon us very was we were what when where which while who whom whose why will with within
    without would you your
    """.split()
)

Finder = Callable[[str], set[int]]


def write_concepts(
    data_dir: os.PathLike | str,
    name: str = "concepts",
    count: int = 300,
    split: str = "train",
    languages: Sequence[str] = (),
    listed: Sequence[str] = (),
) -> Card:
    """Mine concepts from the captions of a split, mark the records of every split with them, and return the new card.

    Args:
      name: what `config.data.concepts` calls them.
      count: concepts, the words of most records first; fewer where the captions have fewer.
      split: the one whose captions are mined.
      languages: of the captions (default: the first of the card).
      listed: concepts of one's own in place of mined ones, as from `read_concepts`.

    Raises:
      UserError: the data set has no captions in a language, or no such split; nothing is found; the name is taken by
        other concepts, or another process writes it.
    """
    data_dir = pathlib.Path(data_dir)
    card = Card.load(data_dir)
    refuse_bad_name(name, "concepts")
    if count < 1:
        raise UserError(f"--count is {count}; write 1 or more concepts")
    languages = _known_languages(card, languages, data_dir)
    mined = Sidecar(data_dir, card, split)
    names = list(listed) if listed else mine(mined, languages, count)
    _refuse_nothing(mined, languages, names)
    if not listed and len(names) < count:
        log.warning("%d concepts: the captions have no more words that could be one", len(names))
    plan = {"names": names, "split": split, "languages": list(languages), "fingerprint": card.fingerprint}
    if name in card.concepts:
        if any(card.concepts[name][key] != value for key, value in plan.items()):
            raise UserError(f"{data_dir} has other concepts '{name}': write another --name; nothing was overwritten.")
        return card
    with being_added(data_dir / FOLDER, name, f"concepts '{name}' to '{data_dir}'"):
        columns = _write(data_dir, card, name, languages, names)
        return add_to_card(data_dir, FOLDER, name, plan | {"columns": columns})


def _known_languages(card: Card, languages: Sequence[str], data_dir: pathlib.Path) -> tuple[str, ...]:
    """Return the languages, each once, or the first of the card. Raises `UserError` for one that it does not have."""
    found = tuple(dict.fromkeys(languages)) or tuple(card.languages[:1])
    unknown = [code for code in found if code not in card.languages]
    if unknown or not found:
        known = f"write some of {', '.join(card.languages)}" if card.languages else "concepts are mined from captions"
        raise UserError(f"{data_dir} has no captions{f' in {unknown[0]!r}' if unknown else ''}; {known}.")
    return found


def mine(own: Sidecar, languages: Sequence[str], count: int) -> list[str]:
    """Return the `count` content words of most records of a split, ties in alphabetical order.

    Content words are all but `STOP_WORDS`, numbers in digits, single Latin letters ("t" of "t-shirt"), words in more
    than half of the captions, and words of a single record.
    """
    captions: collections.Counter[str] = collections.Counter()
    records: collections.Counter[str] = collections.Counter()
    pairs = own.all_pairs(languages)
    owned = zip(own.owner[pairs].tolist(), own.texts.take(pairs), strict=True)
    for _, group in itertools.groupby(owned, key=operator.itemgetter(0)):
        found = [set(words(text)) for _, text in group]
        for one in found:
            captions.update(one)
        records.update(set().union(*found))
    common = COMMON * len(pairs)
    good = [word for word, of in records.items() if of >= LEAST and captions[word] <= common and has_content(word)]
    return sorted(good, key=lambda word: (-records[word], word))[:count]


def has_content(word: str) -> bool:
    """Return False for English stop words, numbers in digits and single Latin letters."""
    return word not in STOP_WORDS and not word.isdigit() and not (len(word) == 1 and word.isascii())


def read_concepts(path: os.PathLike | str) -> list[str]:
    """Read concepts from a text file, one a line, of one or several words; empty lines are left out.

    Raises `UserError` for a file without any, a line without a word, and a concept that is there twice.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"--words {path} is no file; write a text file with one concept a line.")
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    found: dict[str, int] = {}
    for number, line in lines:
        concept = " ".join(words(line))
        if not concept:
            raise UserError(f"{path}: line {number} has no word; write one concept a line.")
        if concept in found:
            raise UserError(f"{path}: line {number} is '{concept}' again, as in line {found[concept]}; write it once.")
        found[concept] = number
    if not found:
        raise UserError(f"{path} is empty; write one concept a line.")
    return list(found)


def finder(names: Sequence[str]) -> Finder:
    """Return a function from a caption to the numbers of the concepts in it: their words, one after the other.

    Example:
        >>> sorted(finder(["dog", "traffic light"])("A dog waits at the Traffic Light."))
        [0, 1]
    """
    places = {tuple(name.split()): number for number, name in enumerate(names)}
    lengths = sorted({len(own) for own in places})

    def found(text: str) -> set[int]:
        own = tuple(words(text))
        runs = (own[first : first + length] for length in lengths for first in range(len(own) - length + 1))
        return {places[run] for run in runs if run in places}

    return found


def _refuse_nothing(own: Sidecar, languages: Sequence[str], names: Sequence[str]) -> None:
    """Raise `UserError` if no caption of the split has a concept; log those that none has."""
    where = f"split '{own.split}' in {', '.join(languages)}"
    if not names:
        raise UserError(f"no word of {where} could be a concept; write your own with --words FILE, or another --split.")
    find, lacking = finder(names), set(range(len(names)))
    for text in own.texts.take(own.all_pairs(languages)):
        lacking -= find(text)
        if not lacking:
            break
    if len(lacking) == len(names):
        raise UserError(f"no caption of {where} has a concept of --words; write others, or another --split.")
    if lacking:
        some = ", ".join(names[number] for number in sorted(lacking)[:10])
        log.warning("no caption of split '%s' has %d of the concepts: %s", own.split, len(lacking), some)


def _write(
    data_dir: pathlib.Path, card: Card, name: str, languages: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Write the marks of all splits, and return the card's facts on their files."""
    folder, partial = data_dir / FOLDER / name, data_dir / FOLDER / f".{name}.part"
    for left in (folder, partial):  # by a run that was killed before it changed the card
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    find = finder(names)
    columns = {
        split: _write_split(partial / f"{split}.bin", Sidecar(data_dir, card, split), languages, find, len(names))
        for split in card.splits
    }
    os.replace(partial, folder)
    return columns


def _write_split(path: pathlib.Path, own: Sidecar, languages: Sequence[str], find: Finder, count: int) -> dict:
    """Write the marks of one split, and return the facts on the file."""
    out = ColumnWriter(path, "u1")
    for first in Progress(range(0, len(own), BLOCK), f"concepts {own.split}", "blocks", -(-len(own) // BLOCK)):
        rows = range(first, min(first + BLOCK, len(own)))
        present = np.zeros((len(rows), count), bool)
        for place, row in enumerate(rows):
            for pair in own.pairs(row, languages):
                present[place, list(find(own.texts[pair]))] = True
        out.write(np.packbits(present, axis=1).tobytes())
    return out.close()


class Concepts:
    """The concepts `name` of one split, for batches.

    Raises `UserError` for a name that the card does not have, and for marks that are not of this data set.
    """

    def __init__(self, folder: pathlib.Path, card: Card, name: str, own: Sidecar):
        entry = card.concept(name)
        self.names, self._languages, self._own = list(entry["names"]), entry["languages"], own
        path, width = folder / FOLDER / name / f"{own.split}.bin", -(-len(self.names) // 8)
        remedy = f"mine them anew: xmodal data concepts --data {folder} --name ANOTHER"
        packed = open_column(path, "u1", entry["columns"].get(own.split), remedy)
        if entry["fingerprint"] != card.fingerprint or len(packed) != len(own) * width:
            raise UserError(
                f"concepts '{name}' of {folder} are of other captions than it has; mine them under another name."
            )
        self._packed = packed.reshape(len(own), width)

    def row(self, number: int) -> np.ndarray:
        """Return the marks float32 [C] of a record."""
        return np.unpackbits(self._packed[number], count=len(self.names)).astype(np.float32)

    def known(self, number: int) -> bool:
        """Return True if a record has captions in the languages of the concepts; without any its marks say nothing."""
        return len(self._own.pairs(number, self._languages)) > 0

    def fields(self, number: int) -> dict[str, np.ndarray]:
        """Return the entries of a batch for a record: its marks, and whether they are known."""
        return {"concepts": self.row(number), "concepts/valid": np.asarray(self.known(number))}
