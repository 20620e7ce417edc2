"""The fields of a training batch: one description for the loader, the memory plan and the checks."""

from typing import Any

from xmodal_jax.data.readers import reader_classes
from xmodal_jax.types import DataFacts

Shape = tuple[tuple[int, ...], str]


def batch_fields(config: Any, facts: DataFacts) -> dict[str, Shape]:
    """Return {name: (shape of one row, dtype)} for each field of the training batches, named as in types.py."""
    data, readers = config.data, reader_classes(config.data.fields)
    found: dict[str, Shape] = {"id": ((), "int32"), "index": ((), "int32")}
    if data.unit == "pair":
        found["pair"] = ((), "int32")
    for name, own in data.fields.items():
        encoder, reader = config.encoders[own.encoder], readers[name]
        found[name] = encoder.input(facts.of(own.encoder))
        if reader.keyed:
            found[f"{name}/key"] = ((), "int32")
        if facts.starts and reader.worded:
            found[f"{name}/language"] = ((), "int32")
        if not own.required:
            found[f"{name}/valid"] = ((), "bool")
        if encoder.cache_tokens and reader.worded:
            found[f"{name}/tokens"] = ((encoder.extent, encoder.token_width), "float16")
        if data.embeddings and reader.embedded and not own.of and own.medium in facts.teacher_media:
            found[f"{name}/teacher"] = ((facts.teacher or config.joint.embed,), "float32")
    if facts.labels and data.labels:
        found["labels"] = ((facts.labels,), "float32")
    if facts.concepts and data.concepts:
        found |= {"concepts": ((facts.concepts,), "float32"), "concepts/valid": ((), "bool")}
    return found
