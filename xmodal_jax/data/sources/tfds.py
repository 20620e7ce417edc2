"""TensorFlow Datasets, read without TensorFlow."""

import os
from collections.abc import Iterator
from typing import Any

from xmodal_jax.data.source import TERMS, Item, Skip, Source, clean_captions
from xmodal_jax.errors import UserError


def tfds_source(
    name: str,
    data_dir: os.PathLike | str | None = None,
    image_key: str = "image",
    text_key: str = "text",
    label_key: str = "",
    language: str = "en",
    licence: str = "",
) -> Source:
    """Read a TensorFlow Datasets builder whose files are ArrayRecord, by `tfds.data_source` (no TensorFlow needed).

    `name` is a TFDS name such as "my_set/config:1.0.0", already built in `data_dir`; keys are paths with dots into an
    example ("captions.text"). The builder's splits are kept; "validation" becomes "val". Raises `UserError` without
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
                label = int(_nested(example, label_key, "")) if namer else -1  # TFDS, too, hides a label by -1
                image = bytes(_nested(example, image_key, f"{name}: example lacks"))
                if kept:
                    key = f"{split}-{number}"
                    labels = (namer(label),) if namer and label >= 0 else ()
                    yield Item(key, {"image": image}, kept, labels, key, "val" if split == "validation" else split)

    keys = {"image_key": image_key, "text_key": text_key, "label_key": label_key}
    arguments = {"name": builder.info.full_name, "language": language, **keys}
    total = sum(info.num_examples for info in builder.info.splits.values())
    return Source("tfds", builder.info.full_name, licence or TERMS, items, arguments, total)


def _tfds_builder(name: str, data_dir: os.PathLike | str | None) -> Any:
    """Load a builder whose files can be read."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError("source tfds needs tensorflow-datasets: pip install 'tensorflow-datasets>=4.9.10'.") from error
    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    except Exception as error:  # tfds raises a dozen kinds for names, configs, versions and broken folders
        raise UserError(f"TFDS has no data set {name!r} in {data_dir or 'its default folder'} ({error}).") from error
    if not builder.info.splits or builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"TFDS {name!r} is not built with array_record files in {builder.data_dir}: build it with "
            f"file_format='array_record' first."
        )
    return builder


def _tfds_examples(builder: Any, split: str, image_key: str) -> Any:
    """Return the examples of a split, with encoded pictures."""
    import tensorflow_datasets as tfds

    decoders: Any = tfds.decode.SkipDecoding()  # keep the encoded bytes
    for part in reversed(image_key.split(".")):
        decoders = {part: decoders}
    return builder.as_data_source(split=split, decoders=decoders)


def _nested(tree: Any, key: str, complaint: str) -> Any:
    """Return the part of a tree at a key with dots."""
    for part in key.split("."):
        try:
            tree = tree[part]
        except (KeyError, TypeError) as error:
            raise UserError(f"{complaint} {key!r}: give the path of an existing one, parts joined by dots.") from error
    return tree


def _texts(value: Any) -> list[str]:
    """Return one text or several as a list."""
    values = [value] if isinstance(value, (bytes, str)) else list(value)
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in values]
