"""What a data set's labels belong to: the lineage of each label, written as `taxonomy.json` beside the card."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.textfile import mended
from xmodal_jax.errors import UserError

TAXONOMY_FILE = "taxonomy.json"


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """Labels and the taxa above them.

    `leaf`: what a label is, such as "species" or "folder". `ranks`: the levels above it, the coarsest first.
    `lineage`: {label: its taxon at each rank}, "" where it has none. `common`: {label: another name of it}.
    """

    leaf: str
    ranks: tuple[str, ...]
    lineage: dict[str, tuple[str, ...]]
    common: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """All labels, in the order they were given."""
        return list(self.lineage)

    def taxa(self, labels: Sequence[str], rank: str) -> np.ndarray:
        """int32 [C], equal for labels of one taxon at `rank`, -1 where a label has none or is unknown.

        A taxon is its whole path: a plant genus and a bird genus of one name differ.
        """
        depth, numbers = self.ranks.index(rank) + 1, {}
        paths = [self.lineage.get(label, ("",) * depth)[:depth] for label in labels]
        return np.array([numbers.setdefault(path, len(numbers)) if path[-1] else -1 for path in paths], np.int32)

    def save(self, folder: os.PathLike | str) -> None:
        """Write `folder/taxonomy.json`."""
        path = pathlib.Path(folder) / TAXONOMY_FILE
        path.write_text(mended(json.dumps(dataclasses.asdict(self), ensure_ascii=False)) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: os.PathLike | str) -> "Taxonomy | None":
        """Read `folder/taxonomy.json`; None where the data set has none. Raises `UserError` for a broken file."""
        path = pathlib.Path(folder) / TAXONOMY_FILE
        if not path.is_file():
            return None
        try:
            return _checked(json.loads(path.read_text("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a taxonomy ({error!r}); prepare the data set again.") from error


def _checked(content: Any) -> Taxonomy:
    lineage = {label: tuple(taxa) for label, taxa in content["lineage"].items()}
    short = [label for label, taxa in lineage.items() if len(taxa) != len(content["ranks"])]
    if short:
        raise ValueError(f"{short[0]!r} has another number of taxa than there are ranks")
    return Taxonomy(str(content["leaf"]), tuple(content["ranks"]), lineage, dict(content["common"]))


def folder_taxonomy(paths: dict[str, Sequence[str]], leaf: str) -> Taxonomy:
    """The taxonomy of labels in folders: {label: (outer folder, inner folder, ...)}; ranks "folder 1", "folder 2", ...

    Raises `UserError` without any label.
    """
    if not paths:
        raise UserError("a taxonomy needs at least one label; the source gave none.")
    depth = max(map(len, paths.values()))
    lineage = {label: (*folders, *("" for _ in range(depth - len(folders)))) for label, folders in paths.items()}
    return Taxonomy(leaf, tuple(f"folder {level}" for level in range(1, depth + 1)), lineage)
