"""Classify pictures zero-shot, by a class head that the text tower writes from the names of the labels.

A class is the normalised mean of its name in several templates (a prompt ensemble; Radford et al., 2021, section
3.1.4). Neither the texts of all classes nor the scores of all pictures are ever held at once.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.captions import words
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.readers import reader_classes
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.data.textfile import read_lines
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.eval.folds import mean_tables
from xmodal_jax.eval.retrieval import Places, places
from xmodal_jax.eval.tables import Grid
from xmodal_jax.origin import notes, refuse_trained
from xmodal_jax.parallel.mesh import local_mesh
from xmodal_jax.search import topk
from xmodal_jax.search.dense import inner_product, resident, unit_rows
from xmodal_jax.search.numpy_engine import refuse_unsearchable
from xmodal_jax.settings import Config
from xmodal_jax.types import Params

TEMPLATES = (
    "{}",
    "{}.",
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "this is a {}.",
    "here is one {}.",
)
BLOCK_SCORES = 1 << 22  # 16 MiB of float32: the largest block of pictures x classes
TOP = (1, 3)

Tables = dict[str, dict[str, float]]


def read_templates(path: str | pathlib.Path) -> tuple[str, ...]:
    """Read one template a line, each with one `{}` for the name. Raises `UserError`, by line."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"--templates: there is no file {path}; write one template a line, as: a photo of a {{}}.")
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1)]
    found = [(number, line) for number, line in lines if line]
    if not found:
        raise UserError(f"--templates: {path} is empty; write one template a line, as: a photo of a {{}}.")
    for number, line in found:
        refuse_odd_template(line, f"--templates: line {number} of {path}")
    return tuple(line for _, line in found)


def refuse_odd_template(template: str, where: str) -> None:
    """Refuse a template without exactly one `{}`; the sentence begins with `where`."""
    if template.count("{}") != 1:
        raise UserError(f"{where}, '{template}', must have one {{}} for the name.")


def spoken(label: str) -> str:
    """Write a label as words: "animals/birds" -> "animals birds", "Food: food-fruit" -> "Food food-fruit"."""
    return " ".join(re.split(r"[/:_\s]+", label)).strip()


def class_head(
    encode: Callable[[list[str]], np.ndarray],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    batch: int = 256,
) -> np.ndarray:
    """Compute the class head float32 [C,E], unit rows: of each name the mean embedding over the templates.

    Args:
      encode: texts, always the same number of them, -> unit embeddings [b,E].
      names: C names, as they are put in place of `{}`.
      templates: texts with one `{}` each.
      batch: texts encoded at once; memory does not grow with C besides the head.

    Raises:
      UserError: no names, no templates, or an embedding that is not finite.
    """
    if not names:
        raise UserError("There are no classes to choose from; prepare a data set with labels.")
    if not templates:
        raise UserError("There are no templates; write at least one, as '{}'.")
    size = min(len(names), max(1, batch // len(templates)))
    rows = []
    for start in range(0, len(names), size):
        block = list(names[start : start + size])
        padded = block + block[-1:] * (size - len(block))
        texts = [template.replace("{}", name) for name in padded for template in templates]
        embed = encode(texts).reshape(size, len(templates), -1).mean(axis=1, dtype=np.float32)
        rows.append(embed[: len(block)])
    return unit_rows(np.concatenate(rows))


def text_encoder(assembly: Assembly, embedder: Embedder, encoder: str) -> Callable[[list[str]], np.ndarray]:
    """Return a function from texts to embeddings [b,E] of a run's encoder of words."""
    spec = assembly.specs[encoder]
    return lambda texts: embedder.rows(encoder, spec.ids(texts), keep_tokens=False).embed


def classified_pair(config: Config) -> tuple[tuple[str, str], str, str]:
    """Find the first evaluated pair with words on one side: the pair, its classified field, and its field of words."""
    reads = {name: cls.worded for name, cls in reader_classes(config.data.fields).items()}
    found = [pair for pair in config.eval.pairs if reads[pair[0]] != reads[pair[1]]]
    if not found:
        raise UserError(
            f"config.eval.pairs is {config.eval.pairs}; classes are named in words: "
            "write a pair with one field of words"
        )
    one, two = found[0]
    return found[0], *((two, one) if reads[one] else (one, two))


def best_classes(image: np.ndarray, head: np.ndarray, k: int, block_scores: int = BLOCK_SCORES) -> np.ndarray:
    """Find the `k` best classes int32 [n,k] of pictures [n,E] by cosine, exactly, `block_scores` scores at a time.

    The head is padded to a power of two of classes; a block is at least one picture. Equal scores: the lower
    class first.
    """
    refuse_unsearchable(image, head.shape, k)
    return topk.blocked_topk(inner_product, unit_rows(image), resident(head, local_mesh()), k, block_scores)[1]


def standing(image: np.ndarray, head: np.ndarray, labels: Sequence[Sequence[int]]) -> Places:
    """Find where the best of each picture's classes `labels` stands among all, by cosine: [n,E] and [C,E]."""
    right = np.full((len(labels), max(map(len, labels))), -1, np.int32)
    for row, own in zip(right, labels, strict=True):
        row[: len(own)] = own
    return places(unit_rows(image), head, right, max(1, BLOCK_SCORES // len(head)))


def accuracy(found: Places, labels: Sequence[Sequence[int]], classes: int) -> Tables:
    """Compute {"top-1", "top-3", "macro": {"right", "chance"}} in %, expected over ties.

    `found` comes from `standing`; `labels` are those of each picture, at least one. With several labels any of them
    is right. "macro" is the mean over classes of the share of their pictures whose best class is right (a picture
    with two labels counts in both), so that rare classes weigh as much as frequent ones. "chance" is a random order
    of the classes.
    """
    counts = np.array([len(set(own)) for own in labels])
    random = Places(np.zeros_like(counts), np.full_like(counts, classes), counts)
    tables = {f"top-{k}": _row(found.hits(k), random.hits(k)) for k in TOP if k <= classes}
    owners = np.array([(label, picture) for picture, own in enumerate(labels) for label in set(own)])

    def per_class(values: np.ndarray) -> np.ndarray:
        return _class_means(owners[:, 0], values[owners[:, 1]])

    tables["macro"] = _row(per_class(found.hits(1)), per_class(counts / classes))
    return tables


def _class_means(classes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average values class by class."""
    _, place, count = np.unique(classes, return_inverse=True, return_counts=True)
    return np.bincount(place, values) / count


def _row(right: Any, chance: Any) -> dict[str, float]:
    """Return the means of right answers and of chance in %."""
    return {"right": 100 * float(np.mean(right)), "chance": 100 * float(np.mean(chance))}


def alike(head: np.ndarray) -> list[np.ndarray]:
    """List for each class of a head [C,E] the classes that no picture tells from it, itself included."""
    _, group = np.unique(head, axis=0, return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    return [members[own] for own in group]


def rank_accuracy(
    best: Sequence[np.ndarray], labels: Sequence[Sequence[int]], names: Sequence[str], tree: Taxonomy
) -> Tables:
    """Compute {rank: {"right", "chance"}} in %, the finest rank first: the best class has a true one's taxon there.

    `best` holds the classes that tie for the best of each picture; each is as likely. Pictures without a taxon at a
    rank do not count there; ranks that no picture has are left out. "chance" is the share of the classes that have
    the taxon.
    """
    tables = {}
    for rank in reversed(tree.ranks):
        taxa = tree.taxa(names, rank)
        sizes = np.bincount(taxa[taxa >= 0], minlength=1) / len(taxa)
        right, chance = [], []
        for choice, own in zip(best, labels, strict=True):
            true = set(taxa[list(own)].tolist()) - {-1}
            if true:
                right.append(np.isin(taxa[choice], list(true)).mean())
                chance.append(sizes[list(true)].sum())
        if right:
            tables[rank] = _row(right, chance)
    return tables


def classes_of(card: Card, tree: Taxonomy | None) -> list[str]:
    """List the names to choose from: all labels of the taxonomy, or those of the card. Refuses a card without any."""
    if not card.label_names:
        raise UserError(f"data set '{card.name}' has no labels, so no classes; prepare one with labels.")
    return tree.labels if tree and set(card.label_names) <= set(tree.labels) else card.label_names


def record_labels(data: DataConfig, split: str, rows: Iterable[int]) -> list[list[str]]:
    """List the label names of the records at `rows` of a split."""
    card = Card.load(data.path)
    own = Sidecar(data.path, card, split)
    return [[card.label_names[number] for number in own.labels(int(row))] for row in rows]


def classify(
    assembly: Assembly,
    params: Params,
    split: str = "",
    templates: Sequence[str] = TEMPLATES,
    classes: str = "all",
    say: Callable[[str], None] = lambda _: None,
    allow_trained: bool = False,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Classify a split zero-shot over all labels of its data set, or (`classes` "split") those of the split.

    If a split's labels were never trained on, "all" also measures how strongly a model prefers those it knows.

    Returns:
      {"split", "classes", "templates", "pictures", "unlabelled", "views": {view: tables}, "mean": over the views};
        tables are those of `accuracy` and, with a taxonomy, of `rank_accuracy`. Pictures without a label are left out.

    Raises:
      UserError: a data set or a split without labels; records that were trained on, unless `allow_trained`.
    """
    data = dataclasses.replace(assembly.config.data, labels=False)  # [n,C] of thousands of classes would be large
    assembly = dataclasses.replace(assembly, config=dataclasses.replace(assembly.config, data=data))
    split = split or data.eval_split
    origin = refuse_trained(assembly.origin, data.path, split, allow_trained)
    card, tree = Card.load(data.path), Taxonomy.load(data.path)
    names, evaluator = classes_of(card, tree), Evaluator(assembly, params, poll)
    if classes == "split":
        own = {name for labels in record_labels(data, split, range(card.split(split)["records"])) for name in labels}
        names = [name for name in names if name in own]
    pair, field, words_field = classified_pair(assembly.config)
    embedder, views = evaluator.embedder, evaluator.views(split, pair)
    say(f"writing {len(names)} classes from {len(templates)} templates")
    encode = text_encoder(assembly, embedder, data.fields[words_field].encoder)
    head = class_head(encode, [spoken(name) for name in names], templates, assembly.config.eval.batch_size)
    result = {"split": split, "classes": len(names), "templates": list(templates), "views": {}}
    for view in views:
        found = evaluator.open(split, view, pair=pair)
        side = found.left if found.left.field == field else found.right
        say(f"classifying {len(side)} x {field} ({view})")
        image = embedder.side(side, assembly.config.eval.batch_size).embed
        tables, pictures = view_tables(image, record_labels(data, split, found.rows[side.owner]), head, names, tree)
        if not tables:
            raise UserError(f"no picture of split '{split}' has a label, so there is nothing to compare with.")
        result["views"][view or field] = tables
        result |= {"pictures": pictures, "unlabelled": len(side) - pictures}
    return result | {"mean": mean_tables(list(result["views"].values()))} | origin


def view_tables(
    image: np.ndarray, labels: list[list[str]], head: np.ndarray, names: list[str], tree: Taxonomy | None
) -> tuple[Tables, int]:
    """Tabulate pictures [n,E] with their label names, and count those that have a label; ({}, 0) if none has."""
    number = {name: place for place, name in enumerate(names)}
    kept = [row for row, own in enumerate(labels) if own]
    if not kept:
        return {}, 0
    true = [[number[name] for name in labels[row]] for row in kept]
    tables = accuracy(standing(image[kept], head, true), true, len(names))
    if tree:
        same = alike(head)
        best = [same[first] for first in best_classes(image[kept], head, 1)[:, 0]]
        tables |= rank_accuracy(best, true, names, tree)
    return tables, len(kept)


def as_text(result: dict[str, Any]) -> str:
    """Format the tables of `classify` for a terminal."""
    views = result["views"] | ({"mean of the views": result["mean"]} if len(result["views"]) > 1 else {})
    rows = [
        [view, measure, f"{row['right']:.2f}", f"{row['chance']:.2f}"]
        for view, tables in views.items()
        for measure, row in tables.items()
    ]
    title = f"split '{result['split']}': {result['pictures']} pictures, {result['classes']} classes, "
    title += f"{len(result['templates'])} templates"
    note = "Right with any of a picture's labels; macro: mean over classes; ranks: the best class has the true taxon."
    grid = Grid(["pictures", "measure", "right %", "chance %"], rows)
    return "\n\n".join([title, str(grid), "\n".join([note, *notes(result)])])


def name_index(tree: Taxonomy) -> dict[tuple[str, ...], set[str]]:
    """Index the words of each label and of its common name: {words: the labels so called}."""
    index: dict[tuple[str, ...], set[str]] = {}
    for label in tree.labels:
        for name in (label, tree.common.get(label, "")):
            if said := tuple(words(name)):
                index.setdefault(said, set()).add(label)
    return index


def named_labels(caption: str, index: dict[tuple[str, ...], set[str]]) -> set[str]:
    """Find the labels that a caption names: those of the longest name in it, whole words; of two as long the first."""
    said = tuple(words(caption))
    for length in range(min(len(said), max(map(len, index), default=0)), 0, -1):
        for start in range(len(said) - length + 1):
            if said[start : start + length] in index:
                return index[said[start : start + length]]
    return set()


def naming_accuracy(captions: Sequence[str], labels: Sequence[Sequence[str]], tree: Taxonomy) -> dict[str, float]:
    """Compute {"species named", "species right"}, shares of the captions (0 to 1): any label is named, a true one is.

    "species" stands for `tree.leaf`. `labels` are the true ones of each picture.
    """
    index = name_index(tree)
    found = [named_labels(caption, index) for caption in captions]
    right = [bool(named & set(own)) for named, own in zip(found, labels, strict=True)]
    return {
        f"{tree.leaf} named": float(np.mean([bool(own) for own in found])),
        f"{tree.leaf} right": float(np.mean(right)),
    }
