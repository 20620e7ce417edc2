"""Make a data set with wrong captions in one split from a prepared one, for research on noisy correspondence.

Kinds of noise, for the share `rate` of the split:
- "complete": captions, drawn at random, are permuted among themselves, so that each belongs to another record (Huang et
  al. 2021, "Learning with Noisy Correspondence for Cross-modal Matching");
- "partial": of captions, drawn at random, a share of the words is replaced by words of others (data/noise_words.py);
- "captions": of records, drawn at random, half of the captions (at least one) are exchanged for those of others.

Captions stay in their language. One counts as wrong only if its text differs from every text that its record had. Which
ones are wrong is a column of the sidecar for scoring, `Sidecar.changed`; training never reads it.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from xmodal_jax.atomic import write_file
from xmodal_jax.data import making
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.noise_draws import exchanged, half_of_records, nouns_of, of_each_language, partial_noise
from xmodal_jax.data.noise_words import noun_file
from xmodal_jax.data.recaptioned import NewCaptions, write_recaptioned
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.errors import UserError

KINDS = ("complete", "partial", "captions")
SHARE = 0.5  # of the words of a caption
WORDS_FILE = "noise-words.txt"


@dataclasses.dataclass(frozen=True)
class NoiseSummary:
    """Numbers of a data set with noise, as its card has them."""

    kind: str
    """One of `KINDS`."""
    split: str
    """The split with noise."""
    rate: float
    """Share of the captions, or for "captions" of the records that have any, that was asked for."""
    real_rate: float
    """Share of them that is wrong."""
    seed: int
    """Seed of all draws."""
    captions: int
    """Captions of the split."""
    wrong_captions: int
    """Captions that are wrong."""
    records: int
    """Records of the split that have captions."""
    wrong_records: int
    """Records with a wrong caption."""
    source: dict[str, str]
    """{"name", "fingerprint"} of the data set that it was made of."""
    share: float | None = None
    """Share of the words of a wrong caption that was asked for; None but for "partial"."""
    real_share: float | None = None
    """Share of their words that is replaced."""
    nouns: int = 0
    """Words of the list of nouns, `noise-words.txt`."""
    words: str = ""
    """The file of the list, if there is one."""


def add_noise(
    data: os.PathLike | str,
    out: os.PathLike | str,
    *,
    kind: str,
    rate: float,
    seed: int = 0,
    split: str = "train",
    share: float | None = None,
    words: os.PathLike | str = "",
) -> NoiseSummary:
    """Write to the new folder `out` the data set at `data` with noise in one split; return what was done.

    Other splits stay as they are. Pictures and their cached features are shared with `data` (hard links, or copies);
    what was computed from captions is left out. The folder appears complete or not at all, and the same arguments
    write the same captions.

    Args:
      kind: one of `KINDS`, described in the module.
      rate: share of the captions ("captions": of the records) that shall be wrong, above 0 and at most 1.
      share: of the words of a caption to replace (default: 0.5); "partial" alone.
      words: file of nouns, one a line (default: mined from the split's English captions); "partial" alone.

    Raises:
      UserError: an argument is out of range, `out` exists, or the split has no other captions to give.
    """
    data, out = pathlib.Path(data), pathlib.Path(out)
    card = Card.load(data)
    _refuse_misfit(kind, rate, seed, share, words)
    _refuse_unfit_sets(card, data, out, split)
    own = Sidecar(data, card, split)
    _refuse_few(own, data)
    new, nouns, facts = _drawn(own, kind, rate, seed, SHARE if share is None else share, words)
    facts |= {"source": {"name": card.name, "fingerprint": card.fingerprint}}
    summary = _summary(own, new, kind=kind, rate=rate, seed=seed, **facts)
    _write(data, out, card, new, nouns, summary)
    return summary


def report(summary: NoiseSummary, others: Iterable[str]) -> list[str]:
    """Return the lines that `xmodal data noise` prints; `others`: the splits without noise."""
    of_records = summary.kind == "captions"
    lines = [
        f"{summary.split}: {summary.wrong_captions} of {summary.captions} captions are wrong, of "
        f"{summary.wrong_records} of {summary.records} records",
        f"  real rate {summary.real_rate:.4f} of the {'records' if of_records else 'captions'}, {summary.rate:g} asked",
    ]
    if summary.real_share is not None:
        how = f"{summary.nouns} nouns first ({summary.words})" if summary.words else "any words: there is no list"
        lines.append(f"  {summary.real_share:.4f} of their words replaced, {summary.share:g} asked; {how}")
    names = ", ".join(others)
    return [*lines, f"untouched: {names}"] if names else lines


def _refuse_misfit(kind: str, rate: float, seed: int, share: float | None, words: os.PathLike | str) -> None:
    """Raise `UserError` for arguments that are out of range, or of another kind of noise."""
    if kind not in KINDS:
        raise UserError(f"--kind is {kind!r}; write one of {', '.join(KINDS)}")
    if not 0 < rate <= 1:
        raise UserError(f"--rate is {rate:g}; write a share above 0 and at most 1, such as 0.4")
    if seed < 0:
        raise UserError(f"--seed is {seed}; write a whole number, and at least 0")
    if kind != "partial" and (share is not None or words):
        flag = "--words" if words else "--share"
        raise UserError(f"{flag} goes with --kind partial only; leave it out, or write --kind partial")
    if share is not None and not 0 < share <= 1:
        raise UserError(f"--share is {share:g}; write a share of the words above 0 and at most 1, such as 0.5")


def _refuse_unfit_sets(card: Card, data: pathlib.Path, out: pathlib.Path, split: str) -> None:
    """Raise `UserError` for a data set that has noise, a split that is not there, and an `out` that is."""
    if card.noise:
        raise UserError(
            f"{data} has noise already ({card.noise.get('kind')}, rate {card.noise.get('rate')}); "
            "write --data with the data set that it was made of"
        )
    card.split(split)
    _refuse_taken(out)


def _refuse_taken(out: pathlib.Path) -> None:
    """Raise `UserError` if `out` has anything in it."""
    making.refuse_foreign(out)
    if (out / CARD_FILE).is_file():
        raise UserError(f"{out} holds a data set: choose another --out; nothing was overwritten.")


def _refuse_few(own: Sidecar, data: pathlib.Path) -> None:
    """Raise `UserError` if no caption of the split can be that of another record."""
    records = len(np.unique(own.owner))
    if records < 2:
        raise UserError(
            f"split {own.split!r} of {data} has {records} record{'s' * (records != 1)} with captions, and wrong ones "
            "come from other records; write another --split"
        )


def _summary(own: Sidecar, new: NewCaptions, kind: str, rate: float, **facts: Any) -> NoiseSummary:
    """Count what is wrong. Raises `UserError` if nothing is."""
    wrong, records = int(new.changed.sum()), len(np.unique(own.owner))
    wrong_records = len(np.unique(own.owner[new.changed]))
    if wrong == 0:
        raise UserError(
            f"--rate {rate:g} made none of the {len(own.owner)} captions of split {own.split!r} wrong: too few were "
            "drawn, or all are the same; write a higher --rate, or another --seed"
        )
    counts = (wrong_records, records) if kind == "captions" else (wrong, len(own.owner))
    return NoiseSummary(
        kind=kind,
        split=own.split,
        rate=rate,
        real_rate=counts[0] / counts[1],
        captions=len(own.owner),
        wrong_captions=wrong,
        records=records,
        wrong_records=wrong_records,
        **facts,
    )


def _drawn(
    own: Sidecar, kind: str, rate: float, seed: int, share: float, words: os.PathLike | str
) -> tuple[NewCaptions, frozenset[str], dict[str, Any]]:
    """Draw the new captions; return them, the list of nouns, and what the summary says of words."""
    draw = np.random.default_rng(seed)
    if kind == "partial":
        nouns = noun_file(words) if words else nouns_of(own, draw)
        new, real = partial_noise(own, rate, share, nouns, draw)
        told = {"share": share, "real_share": real, "nouns": len(nouns), "words": WORDS_FILE if nouns else ""}
        return new, nouns, told
    rows = half_of_records(own, rate, draw) if kind == "captions" else of_each_language(own, rate, draw)
    return exchanged(own, rows, draw), frozenset(), {}


def _write(
    data: pathlib.Path, out: pathlib.Path, card: Card, new: NewCaptions, nouns: frozenset[str], summary: NoiseSummary
) -> None:
    """Write the folder `out`, complete or not at all."""
    with making.being_made(out) as part:
        _refuse_taken(out)  # a killed process may have made it, and not moved it
        made = write_recaptioned(data, part, card, summary.split, new)
        if nouns:
            write_file(part / WORDS_FILE, "".join(f"{word}\n" for word in sorted(nouns)))
        if Card.load(data).fingerprint != card.fingerprint:
            raise UserError(f"{data} was prepared again meanwhile; start this command again")
        told = {key: value for key, value in dataclasses.asdict(summary).items() if value is not None}
        dataclasses.replace(made, name=out.resolve().name, noise=told).save(part)  # the last file
        with making.changing_card(out):
            making.move_up(part, out)
