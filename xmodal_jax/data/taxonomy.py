"""The taxonomy of a data set's labels: the lineage of each label, written as `taxonomy.json` beside the card."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.textfile import mended
from xmodal_jax.errors import UserError

TAXONOMY_FILE = "taxonomy.json"


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """Labels and the taxa above them."""

    leaf: str
    """Kind of the labels, such as "species" or "folder"."""
    ranks: tuple[str, ...]
    """Names of the levels above the labels, the coarsest first."""
    lineage: dict[str, tuple[str, ...]]
    """{label: its taxon at each rank}, "" where it has none."""
    common: dict[str, str] = dataclasses.field(default_factory=dict)
    """{label: another name of it}."""

    @property
    def labels(self) -> list[str]:
        """All labels, in the order they were given."""
        return list(self.lineage)

    def taxa(self, labels: Sequence[str], rank: str) -> np.ndarray:
        """Return int32 [C], equal for labels of one taxon at `rank`; -1 for a label that has none or is unknown.

        A taxon is its whole path: a plant genus and a bird genus of one name differ.
        """
        depth = self.ranks.index(rank) + 1
        numbers: dict[tuple[str, ...], int] = {}
        paths = [self.lineage.get(label, ("",) * depth)[:depth] for label in labels]
        return np.array([numbers.setdefault(path, len(numbers)) if path[-1] else -1 for path in paths], np.int32)

    def save(self, folder: os.PathLike | str) -> None:
        """Write `folder/taxonomy.json`."""
        path = pathlib.Path(folder) / TAXONOMY_FILE
        path.write_text(mended(json.dumps(dataclasses.asdict(self), ensure_ascii=False)) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: os.PathLike | str) -> "Taxonomy | None":
        """Read `folder/taxonomy.json`; None if the data set has none. Raises `UserError` for a broken file."""
        path = pathlib.Path(folder) / TAXONOMY_FILE
        if not path.is_file():
            return None
        try:
            return _checked(json.loads(path.read_text("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a taxonomy ({error!r}); prepare the data set again.") from error


def _checked(content: Any) -> Taxonomy:
    """Return the taxonomy in a JSON object. Raises the errors that `load` expects if it is none."""
    lineage = {label: tuple(taxa) for label, taxa in content["lineage"].items()}
    short = [label for label, taxa in lineage.items() if len(taxa) != len(content["ranks"])]
    if short:
        raise ValueError(f"{short[0]!r} has another number of taxa than there are ranks")
    return Taxonomy(str(content["leaf"]), tuple(content["ranks"]), lineage, dict(content["common"]))


def folder_taxonomy(paths: Mapping[str, Sequence[str]], leaf: str) -> Taxonomy:
    """Return the taxonomy of labels in folders, {label: (outer folder, inner folder, ...)}.

    The ranks are "folder 1", "folder 2", ... Raises `UserError` without any label.
    """
    if not paths:
        raise UserError("a taxonomy needs at least one label; the source gave none.")
    depth = max(map(len, paths.values()))
    lineage = {label: (*folders, *("" for _ in range(depth - len(folders)))) for label, folders in paths.items()}
    return Taxonomy(leaf, tuple(f"folder {level}" for level in range(1, depth + 1)), lineage)
