"""The card of a data set: what the folder holds, where it comes from, and how high recall can get on it."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.atomic import write_file
from xmodal_jax.data.fingerprint import fingerprint
from xmodal_jax.data.records import PICTURES
from xmodal_jax.data.textfile import mended
from xmodal_jax.errors import UserError

FORMAT = 4
CARD_FILE = "card.json"
RECALL_AT = (1, 5, 10)
ANY = "*"  # in SHAPES: any name
RECALLS = {f"R@{k}": float for k in RECALL_AT}
FILES = {ANY: [str]}
SHAPES: dict[str, Any] = {  # shape of each field: a type, [shape of the entries] or {name: shape}
    "name": str,
    "source": str,
    "licence": str,
    "fingerprint": str,
    "arguments": {},
    "languages": [str],
    "views": [str],
    "media": [str],
    "label_names": [str],
    "splits": {
        ANY: {
            "records": int,
            "captions": int,
            "groups": int,
            "files": [str],
            "digest": str,
            "languages": {ANY: int},
            "columns": {ANY: {"bytes": int, "crc": int}},
        }
    },
    "ceiling": {ANY: {"i2t": RECALLS, "t2i": RECALLS}},
    "duplicates": {ANY: {"captions": int, "unique": int, "unique_per_image": float, "shared": float}},
    "words": {ANY: {"median": int, "99 %": int, "longest": int}},
    "skipped": {ANY: int},
    "copies": {ANY: int},
    "noise": {},
    "features": {
        ANY: {
            "tower": str,
            "size": int,
            "medium": str,
            "parts": int,
            "pool": str,
            "tokens": int,
            "width": int,
            "views": [str],
            "dtype": str,
            "files": FILES,
        }
    },
    "embeddings": {
        ANY: {
            "teacher": str,
            "weights": str,
            "width": int,
            "media": [str],
            "views": [str],
            "languages": [str],
            "dtype": str,
            "files": FILES,
        }
    },
    "concepts": {
        ANY: {
            "names": [str],
            "split": str,
            "languages": [str],
            "fingerprint": str,
            "columns": {ANY: {"bytes": int, "crc": int}},
        }
    },
    "without_pixels": [str],
}
LATER: dict[str, Any] = {
    "concepts": {},
    "noise": {},
    "without_pixels": [],
}  # fields that older cards of this format lack
OF_PICTURES: dict[str, Any] = {"medium": PICTURES, "parts": 1, "pool": ""}  # of feature caches that do not tell


def is_padded(cache: Mapping[str, Any]) -> bool:
    """Return whether the last tokens of a row of a feature cache may be zeros: of pictures they never are."""
    return (OF_PICTURES | dict(cache))["medium"] != PICTURES


@dataclasses.dataclass(frozen=True)
class Card:
    """The content of `card.json`; printed, how much of what it holds, and what was left out and why."""

    name: str
    """Name of the data set."""
    source: str
    """Where the data comes from, in words."""
    licence: str
    """Licence of the data, in words."""
    languages: list[str]
    """Languages of the captions, the one of most records first."""
    views: list[str]
    """Views of the pictures, in the order in which the source gave them first."""
    label_names: list[str]
    """Names of the labels; records refer to them by their place in this list."""
    splits: dict[str, dict[str, Any]]
    """{split: {records, captions, groups, files, digest, languages, columns}}.

    `captions` counts all languages, `languages` each of them; `digest` is described in data/fingerprint.py; `columns`
    has the size and the checksum of each column of data/sidecar.py.
    """
    ceiling: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    """{split: {"i2t" | "t2i": {"R@1", "R@5", "R@10"}}} in %, of the first language; see `ceiling`."""
    duplicates: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """{split: {"captions", "unique", "unique_per_image", "shared"}} of the first language; see `duplicates`."""
    words: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """{language: {"median", "99 %", "longest"}}: words of a caption."""
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    """{reason: count} of what the source has and the data set leaves out."""
    copies: dict[str, int] = dataclasses.field(default_factory=dict)
    """{split: records with a picture that the train split has too}; see `copies.Copies`."""
    features: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """{name: {tower, size, medium, parts, pool, tokens, width, views, dtype, files: {split: [...]}}}.

    `parts` is the most inputs of the tower that one view of the medium has, such as frames; `pool` says whether each of
    them is its tokens ("") or their mean; `tokens` those of all parts. See `features.write_features`.
    """
    embeddings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """{name: {teacher, weights, width, media, views, languages, dtype, files: {split: [...]}}} of frozen teachers."""
    noise: dict[str, Any] = dataclasses.field(default_factory=dict)
    """{kind, split, rate, real_rate, seed, ...} of captions made wrong on purpose; see `noise.add_noise`."""
    concepts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """{name: {names, split, languages, fingerprint, columns: {split: {bytes, crc}}}}; see `concepts.write_concepts`."""
    without_pixels: list[str] = dataclasses.field(default_factory=list)
    """Views of which there are cached features and no pictures."""
    media: list[str] = dataclasses.field(default_factory=list)
    """Media that records have beside pictures and captions."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments that `prepare` was called with; called with them again, it keeps the data set as it is."""
    fingerprint: str = ""
    """Digest of all splits, computed from their own digests; 32 hex digits."""
    format: int = FORMAT
    """Version of this format; `load` refuses any other."""

    def __post_init__(self) -> None:
        """Compute the fingerprint, which depends on the splits alone."""
        known = all("digest" in numbers for numbers in self.splits.values())
        object.__setattr__(self, "fingerprint", fingerprint(self.splits) if known else "")

    @classmethod
    def load(cls, folder: os.PathLike | str) -> "Card":
        """Read and check `folder/card.json`. Raises `UserError` naming the file and the field."""
        path = pathlib.Path(folder) / CARD_FILE
        if not path.is_file():
            raise UserError(
                f"no data set at {folder}: write one with xmodal.prepare, or `xmodal data prepare ... --out {folder}`."
            )
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON ({error}); prepare the data set again.") from error
        return _checked(content, path)

    def save(self, folder: os.PathLike | str) -> None:
        """Write `folder/card.json` in one step: a reader sees the old card or the new one."""
        path, content = pathlib.Path(folder) / CARD_FILE, dataclasses.asdict(self)
        if not self.noise:
            del content["noise"]
        _checked(content, path)
        write_file(path, mended(json.dumps(content, indent=1, ensure_ascii=False)) + "\n")

    def __repr__(self) -> str:
        """Tell what the folder holds, in the lines that `xmodal data prepare` prints."""
        return "\n".join([f"data set '{self.name}' from {self.source}", *report(self)])

    def split(self, name: str) -> dict[str, Any]:
        """Return the numbers of one split. Raises `UserError` listing the splits that exist."""
        if name not in self.splits:
            raise UserError(f"data set {self.name!r} has no split {name!r}: use one of {_listed(self.splits)}.")
        return self.splits[name]

    def feature(self, name: str) -> dict[str, Any]:
        """Return the entry of a feature cache. Raises `UserError` listing the caches that exist."""
        return self._made("features", name, "features")

    def embedding(self, name: str) -> dict[str, Any]:
        """Return the entry of a teacher's embeddings. Raises `UserError` listing those that exist."""
        return self._made("embeddings", name, "embed")

    def concept(self, name: str) -> dict[str, Any]:
        """Return the entry of concepts. Raises `UserError` listing those that exist."""
        return self._made("concepts", name, "concepts")

    def _made(self, what: str, name: str, command: str) -> dict[str, Any]:
        """Return the entry `name` of the field `what`, which `xmodal data COMMAND` writes."""
        there = getattr(self, what)
        if name not in there:
            raise UserError(
                f"data set {self.name!r} has no {what} {name!r}: it has {_listed(there)}; write them with "
                f"`xmodal data {command}`."
            )
        return there[name]


def _listed(names: Iterable[str]) -> str:
    """Return the names sorted, as a part of a sentence."""
    return ", ".join(sorted(names)) or "(none)"


def _checked(content: Any, path: pathlib.Path) -> Card:
    """Return the card in `content`. Raises `UserError` naming a field that is missing, unknown or of the wrong type."""
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; prepare the data set again.")
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: field 'format' is {content.get('format')!r}, this version reads {FORMAT}; "
            "prepare the set again (option 'force')."
        )
    content = LATER | content
    if isinstance(content.get("features"), dict):  # caches of an older version are of pictures
        kept = content["features"].items()
        content["features"] = {name: OF_PICTURES | own if isinstance(own, dict) else own for name, own in kept}
    known = [field.name for field in dataclasses.fields(Card)]
    missing = [name for name in known if name not in content]
    if missing:
        raise UserError(f"{path}: field {missing[0]!r} is missing.")
    unknown = set(content) - set(known)
    if unknown:
        raise UserError(f"{path}: unknown field {_listed(unknown)}; was it written by a newer version?")
    for name, shape in SHAPES.items():
        _refuse_misshapen(content[name], shape, name, path)
    return Card(**content)


def _refuse_misshapen(value: Any, shape: Any, where: str, path: pathlib.Path) -> None:
    """Raise `UserError` unless a field's value, and everything in it, has the shape given in `SHAPES`."""
    kind = shape if isinstance(shape, type) else type(shape)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise UserError(f"{path}: field '{where}' must be a {kind.__name__}.")
    if kind in (int, float) and not 0 <= value < 2**63:  # also NaN
        raise UserError(f"{path}: field '{where}' must be a {kind.__name__}.")
    if isinstance(shape, list):
        for number, entry in enumerate(value):
            _refuse_misshapen(entry, shape[0], f"{where}[{number}]", path)
    elif isinstance(shape, dict):
        for name in value if ANY in shape else shape:
            _refuse_misshapen(value.get(name), shape.get(ANY, shape.get(name)), f"{where}.{name}", path)


def ceiling(owner: np.ndarray, number: np.ndarray, ks: Sequence[int] = RECALL_AT) -> dict[str, dict[str, float]]:
    """Return the best possible R@k, in %, if only an image's own captions (and a caption's own image) count as right.

    Ties are counted by their expected value. Identical captions are one query and one candidate to a model:
    - text to image: the model can put k images first, at best those that have the text most often;
    - image to text: an image puts one of its texts first. Of its c copies in the gallery, o belong to the image, and
      all tie: one of these o is among the first k with probability 1 - C(c-o, j) / C(c, j), j = min(k, c). The best
      text of the image counts. Mixing two texts is worth less, since each foreign copy makes the next copy of the same
      text likelier to be right.

    Args:
      owner: int [M], the image of each caption.
      number: int [M], the number of each caption's text.
    """
    if len(owner) == 0:
        return {side: {f"R@{k}": 0.0 for k in ks} for side in ("i2t", "t2i")}
    image, text, own = _counted(owner, number)
    order = np.lexsort((-own, text))  # the images of each text, those that have it most often first
    image, text, own = image[order], text[order], own[order]
    first = np.flatnonzero(np.diff(text, prepend=-1))
    length = np.diff(first, append=len(text))
    place = np.arange(len(text)) - np.repeat(first, length)
    copies = np.repeat(np.add.reduceat(own, first), length)
    base = int(own.max()) + 1  # a pair (copies, own) as one number: copies * base + own
    chances, which = np.unique(copies * base + own, return_inverse=True)
    known, t2i, i2t = np.unique(image), {}, {}
    for k in ks:
        t2i[f"R@{k}"] = round(100.0 * int(own[place < k].sum()) / len(owner), 2)
        drawn = np.array([_drawn(chance // base, chance % base, k) for chance in chances.tolist()])
        best = np.zeros(int(known[-1]) + 1)
        np.maximum.at(best, image, drawn[which])
        i2t[f"R@{k}"] = round(100.0 * float(best[known].mean()), 2)
    return {"i2t": i2t, "t2i": t2i}


def _counted(owner: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, text, and how often the image has the text, int64 [P] each, for all P pairs that occur."""
    images = int(owner.max(initial=-1)) + 1
    pairs, own = np.unique(number.astype(np.int64) * images + owner, return_counts=True)
    return pairs % max(images, 1), pairs // max(images, 1), own


def _drawn(copies: int, own: int, k: int) -> float:
    """Return the probability that one of `own` is among the first `k` of `copies` in random order."""
    first = min(k, copies)
    return 1.0 - math.comb(copies - own, first) / math.comb(copies, first)


def duplicates(owner: np.ndarray, number: np.ndarray, images: int) -> dict[str, float]:
    """Count how often captions repeat.

    Args:
      owner: int [M], the image of each caption.
      number: int [M], the number of each caption's text.
      images: the number of images.

    Returns:
      "captions": all captions; "unique": different texts; "unique_per_image": different texts of an image, on average;
      "shared": % of the captions whose text belongs to more than one image.
    """
    image, text, own = _counted(owner, number)
    _, which, owners = np.unique(text, return_inverse=True, return_counts=True)
    return {
        "captions": len(owner),
        "unique": len(owners),
        "unique_per_image": round(len(image) / max(1, images), 2),
        "shared": round(100.0 * int(own[owners[which] > 1].sum()) / max(1, len(owner)), 2),
    }


def report(card: Card) -> list[str]:
    """Return size, ceiling and repeated captions of every split, and what was left out by reason, a line each."""
    lines = [f"beside pictures and captions: {', '.join(card.media)}"] if card.media else []
    if card.without_pixels:
        caches = "; ".join(f"'{name}' {own['tokens']} x {own['width']}" for name, own in card.features.items())
        lines.append(f"no pictures of {', '.join(card.without_pixels)}, but features of them: {caches}")
    for split, numbers in card.splits.items():
        lines.append(
            f"{split}: {numbers['records']} records, {numbers['captions']} captions, {numbers['groups']} groups"
        )
        lines += _captions_report(card, split) if numbers["captions"] else []
        if split in card.copies:
            lines.append(
                f"  {card.copies[split]} of its records have a picture that is in train too; "
                "option 'drop_copies' leaves those out of train"
            )
    for language, words in card.words.items():
        lines.append(
            f"words of a caption in '{language}': half have {words['median']} or fewer, 99 % {words['99 %']}, "
            f"the longest {words['longest']}"
        )
    lines += [f"skipped: {count} x {reason}" for reason, count in card.skipped.items()]
    return lines


def _captions_report(card: Card, split: str) -> list[str]:
    """Return lines on the ceiling of a split, if it has pictures, and on repeated captions in the first language."""
    lines, found = [], card.duplicates[split]
    if card.views and found["captions"]:
        best = {side: " / ".join(f"{value:.1f}" for value in row.values()) for side, row in card.ceiling[split].items()}
        ks = "/".join(name.removeprefix("R@") for name in card.ceiling[split]["i2t"])
        lines.append(
            f"  best possible R@{ks} where its own captions alone are right: image to text {best['i2t']}, "
            f"text to image {best['t2i']}"
        )
    thing = "picture" if card.views else "record"
    lines.append(
        f"  '{card.languages[0]}' captions: {found['captions']}, {found['unique']} different, "
        f"{found['unique_per_image']:.2f} different per {thing}, {found['shared']:.1f} % shared by {thing}s"
    )
    return lines
