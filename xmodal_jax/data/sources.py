"""Where pairs come from: each source yields `Item`s, and a `Skip` for everything it had to leave out.

A source is cheap to make and checks its input then; its items are produced by iterating, in a fixed order. `SOURCES`
maps the names that `xmodal data prepare` takes to the functions that make them.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.errors import UserError, refuse_unless

Captions = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing: encoded pictures by view, captions by language, label names; `group` keeps relatives in one split."""

    key: str
    images: dict[str, bytes]
    captions: Captions
    labels: tuple[str, ...] = ()
    group: str = ""
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class Skip:
    """What was left out: `reason` is counted in the card, `where` names the row or the file."""

    reason: str
    where: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A named stream of items. `arguments` is what it was made with; `total` the number of items, 0 if unknown;
    `taxonomy` what its labels belong to, if that is known."""

    name: str
    origin: str
    licence: str
    items: Callable[[], Iterator[Item | Skip]]
    arguments: dict[str, Any]
    total: int = 0
    taxonomy: Taxonomy | None = None


def split_groups(groups: Sequence[str], held_out: int) -> list[str]:
    """Split of each row, "train" or "test": whole groups in the order of their hash until `held_out` rows are test.

    A group that no longer fits is passed over, so the number is met exactly whenever enough small groups are left.
    Deterministic: it depends on the names of the groups alone.
    """
    sizes = collections.Counter(groups)
    held, room = set(), held_out
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    return ["test" if group in held else "train" for group in groups]


def clean_captions(captions: Any, key: str) -> tuple[Captions, list[Skip]]:
    """{language: [caption, ...]} from a string, a list or a dict of either; empty captions become a `Skip` each."""
    by_language = captions if isinstance(captions, dict) else {"en": captions}
    kept, skips = {}, []
    for language, texts in by_language.items():
        for text in texts if isinstance(texts, (list, tuple)) else [texts]:
            text = " ".join(text.split()) if isinstance(text, str) else ""
            if text:
                kept.setdefault(language, []).append(text)
            else:
                skips.append(Skip("empty caption", f"{key} ({language})"))
    return kept, skips


def _read_images(paths: dict[str, pathlib.Path], key: str) -> dict[str, bytes] | Skip:
    images = {}
    for view, path in paths.items():
        try:
            images[view] = path.read_bytes()
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return Skip("missing image", f"{key}: {path}")
    return images


def file_item(key: str, paths: dict[str, pathlib.Path], captions: Any, **fields) -> Iterator[Item | Skip]:
    """The item of a row whose pictures are files, or the reason why there is none."""
    kept, skips = clean_captions(captions, key)
    yield from skips
    images = _read_images(paths, key)
    if isinstance(images, Skip):
        yield images
    elif kept:
        yield Item(key, images, kept, **fields)
    elif not skips:
        yield Skip("no caption", key)


def existing(path: os.PathLike | str, what: str, folder: bool = False) -> pathlib.Path:
    """`path`, if it is a file (or a folder); `what` names it in the `UserError` raised otherwise."""
    path = pathlib.Path(path)
    found = path.is_dir() if folder else path.is_file()
    refuse_unless(
        found, f"{what} {path} does not exist: give the path of an existing {'folder' if folder else 'file'}."
    )
    return path


def _digest(path: pathlib.Path) -> str:
    """Of the content, so that a changed file is not taken for one that is already prepared."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- Karpathy JSON --------------------------------------------------------------------------------------------------


def karpathy_source(path: os.PathLike | str, images: os.PathLike | str | None = None, licence: str = "") -> Source:
    """Karpathy's `dataset_*.json` (Flickr8k, Flickr30K, COCO; RSICD, UCM, Sydney, RSITMD) with its folder of images
    (default: `images` beside it).

    Its own splits are kept; "restval" (COCO) counts as "train". A sentence without "raw" is its tokens. Keywords, of the
    picture or of its sentences (RSITMD), become one caption of the language "en-keywords". Raises `UserError` if a file is missing or has no
    "images".
    """
    path = existing(path, "Karpathy file")
    folder = existing(images or path.parent / "images", "image folder", folder=True)
    try:
        rows = json.loads(path.read_text("utf-8"))["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a Karpathy file ({error!r}): it must be JSON with a list 'images'.") from error
    refuse_unless(
        isinstance(rows, list),
        f"{path} is not a Karpathy file: its 'images' is no list; give the dataset_*.json itself.",
    )

    def items() -> Iterator[Item | Skip]:
        for number, row in enumerate(rows):
            yield from _karpathy_item(row, number, folder)

    arguments = {"path": str(path.resolve()), "images": str(folder.resolve()), "content": _digest(path)}
    return Source("karpathy", path.name, licence or "see the data set's own terms", items, arguments, len(rows))


def _karpathy_item(row: Any, number: int, folder: pathlib.Path) -> Iterator[Item | Skip]:
    try:
        name, split = row["filename"], row["split"]
        captions = {"en": [_raw(sentence) for sentence in row["sentences"]], **_keywords(row)}
        path = folder / row.get("filepath", "") / name
        if not isinstance(split, str):
            raise TypeError(f"split {split!r} is no text")
    except (KeyError, TypeError, AttributeError) as error:
        yield Skip("broken row", f"images[{number}]: {error!r}")
        return
    split = "train" if split == "restval" else split
    yield from file_item(name, {"image": path}, captions, group=name, split=split)


def _raw(sentence: Any) -> Any:
    return sentence["raw"] if "raw" in sentence else " ".join(sentence["tokens"])


def _keywords(row: dict[str, Any]) -> Captions:
    """{"en-keywords": [all keywords, each once]} where there are any."""
    found: dict[str, None] = {}
    for place in (row, *row["sentences"]):
        own = place.get("keywords") or []
        found |= {" ".join(str(word).split()): None for word in (own.split(",") if isinstance(own, str) else own)}
    words = [word for word in found if word]
    return {"en-keywords": [", ".join(words)]} if words else {}


# --- JSON lines -----------------------------------------------------------------------------------------------------


def jsonl_source(
    path: os.PathLike | str, root: os.PathLike | str | None = None, held_out: int | None = None, licence: str = ""
) -> Source:
    """JSON lines, one pair each, with image paths relative to `root` (default: the folder of the file).

    A row: {"image": path} or {"views": {name: path}}, "caption": str | [str] | {language: str | [str]}, and optionally
    "id", "labels" (a name or a list), "group", "split". Rows without an id that name the same picture are one item with
    all their captions. Items without a split are shared out by group: `held_out` of them (default: a tenth, at most
    1,000) become "test".
    """
    path = existing(path, "JSONL file")
    root = existing(root or path.parent, "image folder", folder=True)
    rows = [_jsonl_row(line, number) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    rows = _merged(rows)
    open_rows = [row for row in rows if isinstance(row, dict) and not row["split"]]
    held_out = min(1000, len(open_rows) // 10) if held_out is None else held_out
    refuse_unless(
        0 <= held_out < max(1, len(open_rows)),
        f"--held-out is {held_out}, but {path} has {len(open_rows)} pictures without a split; write fewer, and at least 0.",
    )
    for row, split in zip(open_rows, split_groups([row["group"] for row in open_rows], held_out)):
        row["split"] = split

    def items() -> Iterator[Item | Skip]:
        for row in rows:
            yield from [row] if isinstance(row, Skip) else _jsonl_item(row, root)

    arguments = {
        "path": str(path.resolve()),
        "root": str(root.resolve()),
        "held_out": held_out,
        "content": _digest(path),
    }
    return Source("jsonl", path.name, licence or "see the data set's own terms", items, arguments, len(rows))


def _jsonl_row(line: bytes, number: int) -> dict[str, Any] | Skip:
    """A row in one form: views, caption, id, labels, group, split ("" if open)."""
    where = f"line {number}"
    try:
        row = json.loads(line)
    except ValueError:
        return Skip("broken JSON line", where)
    if not isinstance(row, dict):
        return Skip("broken JSON line", f"{where}: not an object")
    views = row.get("views") or {"image": row.get("image")}
    if not isinstance(views, dict) or not all(isinstance(value, str) for value in views.values()):
        return Skip("no image named", where)
    named = row.get("id") is not None
    key = str(row["id"] if named else next(iter(views.values())))
    labels = row.get("labels") if row.get("labels") is not None else []
    labels = labels if isinstance(labels, list) else [labels]
    group, split = str(row.get("group") or key), str(row.get("split") or "")
    found = {"views": views, "caption": row.get("caption"), "id": key, "labels": labels, "group": group, "split": split}
    return found if named else found | {"merge": (*views.items(), group, split)}


def _merged(rows: list[dict[str, Any] | Skip]) -> list[dict[str, Any] | Skip]:
    """Rows without an id that name the same pictures are one item with all their captions and labels."""
    first: dict[tuple, dict[str, Any]] = {}
    kept = []
    for row in rows:
        same = None if isinstance(row, Skip) or "merge" not in row else first.setdefault(row["merge"], row)
        if same is None or same is row:
            kept.append(row)
            continue
        captions = [_by_language(same["caption"]), _by_language(row["caption"])]
        same["caption"] = {
            code: [text for own in captions for text in own.get(code, [])] for code in {**captions[0], **captions[1]}
        }
        same["labels"] = list(dict.fromkeys(map(str, [*same["labels"], *row["labels"]])))
    return kept


def _by_language(captions: Any) -> dict[str, list]:
    """Any form of a row's captions as {language: [caption, ...]}."""
    whole = captions if isinstance(captions, dict) else {"en": captions}
    return {code: list(own) if isinstance(own, (list, tuple)) else [own] for code, own in whole.items()}


def _jsonl_item(row: dict[str, Any], root: pathlib.Path) -> Iterator[Item | Skip]:
    paths = {view: root / name for view, name in row["views"].items()}
    labels = tuple(str(label) for label in row["labels"])
    return file_item(row["id"], paths, row["caption"], labels=labels, group=row["group"], split=row["split"])


# --- in memory, and TensorFlow Datasets -----------------------------------------------------------------------------


def memory_source(items: Iterable[Item | Skip], name: str = "memory", licence: str = "") -> Source:
    """A source of items that are already there; for tests and for one's own scripts."""
    items = list(items)
    digest = hashlib.sha256(repr(items).encode()).hexdigest()
    return Source(name, "memory", licence, lambda: iter(items), {"content": digest}, len(items))


def tfds_source(
    name: str,
    data_dir: os.PathLike | str | None = None,
    image_key: str = "image",
    text_key: str = "text",
    label_key: str = "",
    language: str = "en",
    licence: str = "",
) -> Source:
    """A TensorFlow Datasets builder whose files are ArrayRecord, read by `tfds.data_source` (no TensorFlow needed).

    `name` is a TFDS name such as "my_set/config:1.0.0", already built in `data_dir`; keys are paths with dots into an
    example ("captions.text"). The builder's splits are kept; "validation" is named "val". Raises `UserError` without
    tensorflow-datasets, for an unknown builder, for one in another file format and for keys it does not have.
    """
    builder = _tfds_builder(name, data_dir)
    for key in filter(None, (image_key, text_key, label_key)):
        _nested(builder.info.features, key, f"{name}: features have no key")
    namer = _nested(builder.info.features, label_key, "").int2str if label_key else None

    def items() -> Iterator[Item | Skip]:
        for split in builder.info.splits:
            for number, example in enumerate(_tfds_examples(builder, split, image_key)):
                captions = _texts(_nested(example, text_key, f"{name}: example lacks"))
                kept, skips = clean_captions({language: captions}, f"{split}[{number}]")
                yield from skips
                label = int(_nested(example, label_key, "")) if namer else -1  # TFDS marks a hidden label by -1
                image = bytes(_nested(example, image_key, f"{name}: example lacks"))
                if kept:
                    key = f"{split}-{number}"
                    labels = (namer(label),) if label >= 0 else ()
                    yield Item(key, {"image": image}, kept, labels, key, "val" if split == "validation" else split)

    arguments = {"name": builder.info.full_name, "image_key": image_key, "text_key": text_key, "label_key": label_key}
    total = sum(info.num_examples for info in builder.info.splits.values())
    return Source("tfds", builder.info.full_name, licence or "see the data set's own terms", items, arguments, total)


def _tfds_builder(name: str, data_dir: os.PathLike | str | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError("source tfds needs tensorflow-datasets: pip install 'tensorflow-datasets>=4.9.10'.") from error
    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    except Exception as error:  # tfds raises a dozen kinds for names, configs, versions and broken folders
        raise UserError(f"TFDS has no data set {name!r} in {data_dir or 'its default folder'} ({error}).") from error
    refuse_unless(
        bool(builder.info.splits) and builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD,
        f"TFDS {name!r} is not built with array_record files in {builder.data_dir}: build it with "
        f"file_format='array_record' first.",
    )
    return builder


def _tfds_examples(builder: Any, split: str, image_key: str) -> Any:
    import tensorflow_datasets as tfds

    decoders: Any = tfds.decode.SkipDecoding()  # keep the encoded bytes
    for part in reversed(image_key.split(".")):
        decoders = {part: decoders}
    return builder.as_data_source(split=split, decoders=decoders)


def _nested(tree: Any, key: str, complaint: str) -> Any:
    for part in key.split("."):
        try:
            tree = tree[part]
        except (KeyError, TypeError) as error:
            raise UserError(f"{complaint} {key!r}: give the path of an existing one, parts joined by dots.") from error
    return tree


def _texts(value: Any) -> list[str]:
    values = [value] if isinstance(value, (bytes, str)) else list(value)
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in values]


def _emoji(**arguments) -> Source:
    from xmodal_jax.data.emoji import emoji_source

    return emoji_source(**arguments)


def _openclipart(**arguments) -> Source:
    from xmodal_jax.data.openclipart import openclipart_source

    return openclipart_source(**arguments)


def _stamps(**arguments) -> Source:
    from xmodal_jax.data.stamps import stamps_source

    return stamps_source(**arguments)


def _inaturalist(**arguments) -> Source:
    from xmodal_jax.data.inaturalist import inaturalist_source

    return inaturalist_source(**arguments)


def _precomp(**arguments) -> Source:
    from xmodal_jax.data.remote_sensing import precomp_source

    return precomp_source(**arguments)


def _albef(**arguments) -> Source:
    from xmodal_jax.data.remote_sensing import albef_source

    return albef_source(**arguments)


def _mirflickr(**arguments) -> Source:
    from xmodal_jax.data.labelled import mirflickr_source

    return mirflickr_source(**arguments)


def _nuswide(**arguments) -> Source:
    from xmodal_jax.data.labelled import nuswide_source

    return nuswide_source(**arguments)


def _wikipedia(**arguments) -> Source:
    from xmodal_jax.data.labelled import wikipedia_source

    return wikipedia_source(**arguments)


def _mat(**arguments) -> Source:
    from xmodal_jax.data.mat import mat_source

    return mat_source(**arguments)


SOURCES: dict[str, Callable[..., Source]] = {
    "emoji": _emoji,
    "stamps": _stamps,
    "openclipart": _openclipart,
    "karpathy": karpathy_source,
    "precomp": _precomp,
    "albef": _albef,
    "inaturalist": _inaturalist,
    "mirflickr": _mirflickr,
    "nuswide": _nuswide,
    "wikipedia": _wikipedia,
    "mat": _mat,
    "jsonl": jsonl_source,
    "tfds": tfds_source,
}
