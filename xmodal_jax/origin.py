"""What a run was trained on: fingerprint and places of its data in run.json, digests of its records in trained.npy.

By these a run finds its data again from another folder, refuses to go on with other records, and knows which records of
a split it has seen.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.atomic import write_file
from xmodal_jax.data.card import CARD_FILE, Card
from xmodal_jax.data.fingerprint import load_digests
from xmodal_jax.data.records import WORDS
from xmodal_jax.errors import UserError
from xmodal_jax.settings import Config

TRAINED_FILE = "trained.npy"
LONGEST = 100  # letters of languages in a file's name, which may have 255 bytes


@dataclasses.dataclass(frozen=True)
class Origin:
    """A run's folder, what its run.json says of its data set (see `describe`), and `trained_languages` by encoder."""

    workdir: pathlib.Path
    data: Mapping[str, Any]
    languages: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def places(self) -> list[pathlib.Path]:
        """List where the data set may be: its path as written, from the run's folder, and the absolute one."""
        beside = os.path.realpath(self.workdir / self.data["from_workdir"])
        found = (self.data["path"], beside, self.data["absolute"])
        return list({os.path.realpath(path): pathlib.Path(path) for path in reversed(found)}.values())[::-1]

    def locate(self) -> pathlib.Path | None:
        """Return the place of the run's own data set, else the first that holds any, else None."""
        have = [path for path in self.places() if (path / CARD_FILE).is_file()]
        return next((path for path in have if self.is_own(path)), have[0] if have else None)

    def is_own(self, path: os.PathLike | str) -> bool:
        """Return True if the data set at `path` has the records and splits that the run was trained on."""
        try:
            return Card.load(path).fingerprint == self.data["fingerprint"]
        except UserError:
            return False

    def trained(self, path: os.PathLike | str, split: str) -> int:
        """Count the records of a split of the data set at `path` that the run was trained on."""
        records = Card.load(path).split(split)["records"]
        try:
            seen = np.load(self.workdir / TRAINED_FILE)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"'{self.workdir / TRAINED_FILE}' cannot be read ({error}), and only it tells which records the run "
                "was trained on; copy it from where the run was trained"
            ) from error
        return int(np.isin(load_digests(path, split, records), seen).sum())

    def refuse_missing(self, path: str) -> None:
        """Raise UserError, with the places that were looked at, where `path` holds no data set."""
        looked = dict.fromkeys([str(path), *map(str, self.places())])
        if not (pathlib.Path(path) / CARD_FILE).is_file():
            raise UserError(
                f"the data set of the run '{self.workdir}' is not there (looked for {', '.join(map(repr, looked))}); "
                "write the folder where it is now (option 'data', or config.data.path)"
            )


def describe(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Return what run.json keeps about the data set in `config.data.path`."""
    card, path = Card.load(config.data.path), os.path.realpath(config.data.path)
    splits = {name: {key: own[key] for key in ("records", "digest")} for name, own in card.splits.items()}
    return {
        "path": config.data.path,
        "absolute": os.path.abspath(config.data.path),
        "from_workdir": os.path.relpath(path, os.path.realpath(workdir)),
        "name": card.name,
        "source": card.source,
        "licence": card.licence,
        "languages": list(config.eval_data.languages),
        "fingerprint": card.fingerprint,
        "splits": splits,
    }


def trained_languages(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the languages of the captions that each encoder takes, by a section `data` as run.json keeps it."""
    found: dict[str, list[str]] = {}
    for field in data["fields"].values():
        if field["medium"] == WORDS:
            found.setdefault(field["encoder"], []).extend(field.get("languages") or data["languages"])
    return {encoder: list(dict.fromkeys(codes)) for encoder, codes in found.items()}


def keep_trained(config: Config, workdir: pathlib.Path, fresh: bool) -> None:
    """Write the digests of the training records; a run that goes on, maybe with another split, keeps those it had."""
    path, records = workdir / TRAINED_FILE, Card.load(config.data.path).split(config.data.split)["records"]
    own = load_digests(config.data.path, config.data.split, records)
    if not fresh and path.is_file():
        try:
            own = np.union1d(own, np.load(path))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"'{path}' cannot be read ({error}), and it alone tells which records the run was trained on; put a "
                "good copy there"
            ) from error
    write_file(path, lambda file: np.save(file, own))


def refuse_other_data(config: Config, workdir: pathlib.Path, before: Mapping[str, Any]) -> None:
    """Raise UserError where a run would go on with other records, perhaps former test records; `before`: run.json."""
    known, card = before["data"], Card.load(config.data.path)
    if known["fingerprint"] != card.fingerprint:
        raise UserError(
            f"the data set '{config.data.path}' is not the one that '{workdir}' was trained on"
            f"{changes(known['splits'], card.splits)}; "
            "write the config.data.path it was trained on, or another work directory"
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say how the splits of a card differ from what they were, in words."""
    said = [f"split '{name}' is new" for name in now if name not in before]
    for name, own in before.items():
        if name not in now:
            said.append(f"split '{name}' is gone")
        elif own["records"] != now[name]["records"]:
            said.append(f"split '{name}' has {now[name]['records']} records and had {own['records']}")
        elif own["digest"] != now[name]["digest"]:
            said.append(f"split '{name}' has other keys, captions or views")
    return f" ({', '.join(said)})" if said else ""


def refuse_trained(origin: Origin | None, path: str, split: str, allowed: bool) -> dict[str, Any]:
    """Return what a result keeps about its records, for `notes`; nothing for a run that is still in training.

    Raises UserError where the run was trained on some of them, unless that is `allowed`.
    """
    if origin is None:
        return {}
    origin.refuse_missing(path)
    card = Card.load(path)
    seen, records = origin.trained(path, split), card.split(split)["records"]
    if not allowed and seen:
        raise UserError(
            f"the run was trained on {seen} of the {records} records of split '{split}' of '{path}', "
            "so the numbers would not tell how it does on new ones; evaluate another split, or "
            "allow it (option 'allow_trained')"
        )
    return {
        "fingerprint": card.fingerprint,
        "trained": seen,
        "own_data": card.fingerprint == origin.data["fingerprint"],
    }


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return the sentences that belong beside numbers: on records trained on, or a data set not the run's."""
    said = []
    if result.get("trained"):
        said.append(f"The run was trained on {result['trained']} of these records.")
    if not result.get("own_data", True):
        said.append("This is not the data set that the run was trained on.")
    return said


def result_file(origin: Origin, kind: str, split: str, fingerprint: str, languages: Sequence[str] = ()) -> pathlib.Path:
    """Return the file of a result: KIND-SPLIT.json, with other languages or another data set in its name.

    The languages are added where they are not the run's (many of them as a digest), the first digits of the fingerprint
    where the data set is not: tables of the run's own data are never replaced by others.
    """
    own, named = list(languages) in ([], origin.data["languages"]), "+".join(languages)
    if len(named) > LONGEST:
        named = f"{len(languages)}-languages-{hashlib.sha256(named.encode()).hexdigest()[:8]}"
    parts = [kind, split] + ([] if own else [named])
    parts += [] if fingerprint == origin.data["fingerprint"] else [fingerprint[:8]]
    return origin.workdir / (re.sub(r"[^\w.+-]", "_", "-".join(parts)) + ".json")
