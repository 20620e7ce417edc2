"""iNaturalist 2018: pictures of 8,142 species with captions written from their taxonomy.

Layout: FOLDER/train2018.json and val2018.json (COCO style: images, annotations, categories) and categories.json, which
gives the names that the first two hide. The captions of validation pictures use phrasings that no training caption has,
so that a score there is not one for a phrasing learned by heart.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.source import Item, Skip, Source, existing, file_item, plain_text
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.data.textfile import hashed, mended, read_json
from xmodal_jax.errors import UserError

SPLITS = {"train": "train2018.json", "val": "val2018.json"}
CATEGORIES = "categories.json"
RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
LICENCE = "iNaturalist 2018: non-commercial research; each picture has its own licence and owner"

KINDS = {
    "Plantae": "a plant",
    "Insecta": "an insect",
    "Aves": "a bird",
    "Actinopterygii": "a ray-finned fish",
    "Fungi": "a fungus",
    "Reptilia": "a reptile",
    "Mollusca": "a mollusc",
    "Mammalia": "a mammal",
    "Animalia": "an animal",
    "Amphibia": "an amphibian",
    "Arachnida": "an arachnid",
    "Chromista": "a chromist",
    "Protozoa": "a protozoan",
    "Bacteria": "a bacterium",
}

# By split and level. A sentence names its level and coarser ones only, so that a text belongs to one taxon.
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "name": ("a photo of {name}.", "{name} in the wild.", "this is {name}, {kind}."),
        "species": (
            "{name}, {kind} of the family {family}.",
            "{kind} of the species {name}, in the order {order}.",
            "a picture of {name}, {kind} from the genus {genus}.",
        ),
        "genus": ("{kind} of the genus {genus}.", "a photo of the genus {genus}, family {family}."),
        "family": ("{kind} of the family {family}.", "a photo of the family {family}, order {order}."),
        "order": ("{kind} of the order {order}.", "a photo of the order {order}, class {class}."),
        "class": ("{kind} of the class {class}.", "a photo of the class {class}."),
        "supercategory": ("a photo of {kind}.", "{kind} in the wild."),
    },
    "val": {
        "name": ("here we see {name}.", "an observation of {name}."),
        "species": ("{name} belongs to the family {family} and is {kind}.", "{kind} known as {name}, one of {genus}."),
        "genus": ("one of {genus}, which is {kind}.", "here we see some {genus}, one of the {family}."),
        "family": ("one of the {family}, which is {kind}.", "here we see one of the {family}."),
        "order": ("one of the {order}, which is {kind}.", "here we see one of the {order}."),
        "class": ("an observation of one of the {class}.", "one of the {class}, which is {kind}."),
        "supercategory": ("an observation of {kind}.", "here we see {kind}."),
    },
}
NAMED, COARSE = ("name", "species"), ("genus", "family", "order", "class", "supercategory")


@dataclasses.dataclass(frozen=True)
class Species:
    """One category of iNaturalist."""

    name: str
    """Binomial."""
    taxa: tuple[str, ...]
    """Taxa from kingdom to genus, "" where unknown."""
    supercategory: str
    """Coarse kind, such as "Aves"; "" if unknown."""
    common: str = ""
    """Common name; "" if unknown."""

    def words(self) -> dict[str, str]:
        """Return the words that fill in the templates."""
        kind = KINDS.get(self.supercategory, f"one of the {self.supercategory or 'living things'}")
        return {"name": self.name, "kind": kind, **dict(zip(RANKS, self.taxa, strict=True))}


def inaturalist_source(path: os.PathLike | str, images: os.PathLike | str | None = None, licence: str = "") -> Source:
    """Read the pictures of iNaturalist 2018 in the folder `path`, with captions written from their taxonomy.

    File names are relative to `images` (default: `path`). Splits are "train" and "val"; the label is the species, and
    the taxonomy is kept. Captions of the language "en" are two sentences that name the species, those of "en-taxa" one
    each for genus, family, order, class and supercategory. Training phrasings are drawn per picture; those of
    validation per taxon, so that pictures of one taxon share their text and any of them is right. Raises `UserError`
    for a missing or broken file.
    """
    folder = existing(path, "iNaturalist folder", folder=True)
    root = existing(images or folder, "image folder", folder=True)
    species = read_categories(folder / CATEGORIES)
    found = [split for split, name in SPLITS.items() if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} has neither {' nor '.join(SPLITS.values())}; give the folder that holds them.")
    tables = {split: _table(folder / SPLITS[split]) for split in found}

    def items() -> Iterator[Item | Skip]:
        for split, table in tables.items():
            yield from _items(table, species, root, split)

    total = sum(len(table["images"]) for table in tables.values())
    arguments = {"path": str(folder.resolve()), "images": str(root.resolve()), "content": _content(folder)}
    return Source("inaturalist", "iNaturalist 2018", licence or LICENCE, items, arguments, total, taxonomy(species))


def read_categories(path: pathlib.Path) -> dict[Any, Species]:
    """Read {category id: species} from `categories.json`.

    Raises `UserError` for a missing file, and for a missing or repeated name.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: the names in train2018.json are hidden; put the competition's later "
            "categories.json, which has the real ones, beside it."
        )
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} must be a JSON list of categories with id, name, kingdom to genus.")
    try:
        species = {row["id"]: _species(row) for row in rows}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a category has no id or name ({error!r}); download the file again.") from error
    nameless = [key for key, one in species.items() if not one.name]
    if nameless:
        raise UserError(f"{path}: the name of category {nameless[:1]} is empty; download the file again.")
    counts = collections.Counter(one.name for one in species.values())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"{path}: the name {twice[:1]} occurs twice; a label must be one species.")
    return species


def _species(row: dict[str, Any]) -> Species:
    """Return the species in a row of `categories.json`."""
    taxa = tuple(_taxon(row, rank) for rank in RANKS)
    return Species(
        mended(" ".join(row["name"].split())), taxa, _taxon(row, "supercategory"), _taxon(row, "common_name")
    )


def _taxon(row: dict[str, Any], name: str) -> str:
    """Return one name in a row, "" if it has none."""
    return mended(plain_text(row.get(name)).strip())


def taxonomy(species: dict[Any, Species]) -> Taxonomy:
    """Return the taxonomy, kingdom to genus, of every species, also of those without a picture."""
    lineage = {one.name: one.taxa for one in species.values()}
    return Taxonomy("species", RANKS, lineage, {one.name: one.common for one in species.values() if one.common})


def captions(one: Species, split: str, key: str) -> dict[str, list[str]]:
    """Return {"en": sentences with the species, "en-taxa": sentences about coarser taxa}; unknown levels are left out.

    The phrasing is drawn by a hash: of `key` in "train", else of the words that any phrasing of the level could use.
    """
    words, written = one.words(), {}
    for language, levels in (("en", NAMED), ("en-taxa", COARSE)):
        for level in levels:
            known = [text for text in TEMPLATES[split][level] if _fillable(text, words)]
            if known:
                taxon = one.name if language == "en" else "/".join((one.supercategory, *_upto(one, level)))
                chosen = known[_hash(f"{level} {key if split == 'train' else taxon}") % len(known)]
                written.setdefault(language, []).append(chosen.format(**words))
    return written


def _upto(one: Species, level: str) -> tuple[str, ...]:
    """Return the taxa of a species down to a level; () for levels outside `RANKS`."""
    return one.taxa[: RANKS.index(level) + 1] if level in RANKS else ()


def _fillable(template: str, words: dict[str, str]) -> bool:
    """Return True if a species has all taxa that a template names."""
    return all(words[rank] for rank in RANKS if f"{{{rank}}}" in template)


def _hash(text: str) -> int:
    """Return 64 bits of a text as a number."""
    return int(hashed(text)[:16], 16)


def _items(
    table: dict[str, list], species: dict[Any, Species], root: pathlib.Path, split: str
) -> Iterator[Item | Skip]:
    """Yield a `Skip` for each annotation that leads nowhere, then the items of a split in the order of its images."""
    labels: dict[Any, Any] = {}
    known = {_id(row, "id") for row in table["images"]} - {None}
    for number, row in enumerate(table["annotations"]):
        where = f"{SPLITS[split]}: annotations[{number}]"
        image, category = _id(row, "image_id"), _id(row, "category_id")
        if image not in known:
            yield Skip("annotation of an unknown image", f"{where}: image_id {image!r}")
        elif category not in species:
            yield Skip("annotation of an unknown category", f"{where}: category_id {category!r}")
        elif labels.setdefault(image, category) != category:
            yield Skip("second species of an image", f"{where}: image_id {image!r}")
    for number, row in enumerate(table["images"]):
        yield from _item(row, f"{SPLITS[split]}: images[{number}]", labels, species, root, split)


def _id(row: Any, name: str) -> int | str | None:
    """Return an id in a row, None if it is missing or no id."""
    value = row.get(name) if isinstance(row, dict) else None
    return value if isinstance(value, (int, str)) else None


def _item(row: Any, where: str, labels: dict, species: dict, root: pathlib.Path, split: str) -> Iterator[Item | Skip]:
    """Yield the item of a row of "images", or the reason why there is none."""
    if _id(row, "id") is None or not isinstance(row.get("file_name"), str):
        yield Skip("broken row", where)
    elif row["id"] not in labels:
        yield Skip("image without a species", where)
    else:
        one, key = species[labels[row["id"]]], row["file_name"]
        texts = captions(one, split, key)
        yield from file_item(key, {"image": os.path.join(root, key)}, texts, labels=(one.name,), group=key, split=split)


def _table(path: pathlib.Path) -> dict[str, list]:
    """Read a file of images and annotations."""
    table = read_json(path)
    for name in ("images", "annotations"):
        if not isinstance(table, dict) or not isinstance(table.get(name), list):
            raise UserError(f"{path} has no list '{name}'; give the file of the 2018 competition (COCO style).")
    return table


def _content(folder: pathlib.Path) -> str:
    """Return a digest of the three files."""
    digest = hashlib.sha256()
    for name in (CATEGORIES, *SPLITS.values()):
        digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"")
    return digest.hexdigest()
