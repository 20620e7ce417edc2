"""The losses. `OBJECTIVES` is the one place where a kind gets its name in the config."""

import dataclasses
from typing import Any

from xmodal_jax.config_build import build, unknown_key
from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.objectives.alignment import IMS, LMIM
from xmodal_jax.objectives.base import Objective
from xmodal_jax.objectives.contrastive import ITC, RING
from xmodal_jax.objectives.distill import Distill
from xmodal_jax.objectives.fused import Fused
from xmodal_jax.objectives.hash_contrast import HashContrast, HashSupCon
from xmodal_jax.objectives.hashing import Hash, HashDistance, HashEuclidean, HashQuality, HashTriplet
from xmodal_jax.objectives.language import LM, MLM
from xmodal_jax.objectives.matching import ITM
from xmodal_jax.objectives.multiview import MVJRC
from xmodal_jax.objectives.sigmoid import SigLIP
from xmodal_jax.plugins import load_class

OBJECTIVES: dict[str, type] = {
    "itc": ITC,
    "siglip": SigLIP,
    "ims": IMS,
    "lmim": LMIM,
    "itm": ITM,
    "mlm": MLM,
    "lm": LM,
    "hash": Hash,
    "hash_triplet": HashTriplet,
    "hash_euclidean": HashEuclidean,
    "hash_contrast": HashContrast,
    "hash_supcon": HashSupCon,
    "hash_quality": HashQuality,
    "hash_distance": HashDistance,
    "fused": Fused,
    "mvjrc": MVJRC,
    "distill": Distill,
}


def build_objectives(section: dict[str, Any], rows: int = 0) -> dict[str, Objective]:
    """`config.objectives` -> {name: objective}. Each entry has a `kind` (default: its name; see `class_of`) and the
    kind's fields.

    Entries whose weight is 0 are left out: their passes are never traced. Raises UserError for an unknown kind or field,
    for two entries that fill one queue, and for matching groups that do not fit a batch of `rows` (0: any).
    """
    built = {}
    for name, fields in section.items():
        where = f"config.objectives.{name}"
        refuse_unless(hasattr(fields, "items"), f"{where} is {fields!r}; write a dict such as {{'kind': 'itc'}}")
        fields = dict(fields)
        kind = fields.pop("kind", name)
        objective = build(class_of(kind, where), fields, where)
        if objective.weight != 0:
            built[name] = objective
            if rows and isinstance(objective, ITM):
                objective.group_size(rows, where)
            refuse_uneven(objective, rows, where)
    if not built:
        raise UserError(f"config.objectives has no objective with a weight; write one of {', '.join(OBJECTIVES)}")
    refuse_shared_queues(built)
    refuse_alone(built, rows)
    return built


def class_of(kind: str, where: str) -> type:
    """The class of a kind: one of `OBJECTIVES`, or a user's own by its place, such as "my_loss.py:MyLoss"."""
    if ":" in kind:
        found = load_class(kind, f"{where}.kind")
        lacking = [name for name in ("weight", "parts", "needs", "memory", "prepare") if not hasattr(found, name)]
        refuse_unless(
            not lacking,
            f"{where}.kind is '{kind}', which has no {', '.join(lacking)}; derive it from objectives.base.Plain and give "
            "it `weight: float = 1.0`",
        )
        return found
    if kind not in OBJECTIVES:
        raise unknown_key(kind, "config.objectives (kinds)", list(OBJECTIVES))
    return OBJECTIVES[kind]


def refuse_uneven(objective: Objective, rows: int, where: str) -> None:
    """Refuse an `every` that does not divide the batch of `rows` (0: any)."""
    every = getattr(objective, "every", 1)
    refuse_unless(
        every > 0 and (not rows or rows % every == 0),
        f"{where}.every is {every}, which does not divide the batch of {rows} rows; write a divisor, 1 for all rows",
    )


def refuse_alone(objectives: dict[str, Objective], rows: int) -> None:
    """Refuse a batch of `rows` (0: any) that leaves a loss one row and no queue: nothing would be a negative of it."""
    queues = {item.record for item in objectives.values() if getattr(item, "queue", 0)}
    for name, item in objectives.items():
        every = getattr(item, "every", 1)
        more = getattr(item, "queue", 0) or getattr(item, "table", 0) or (isinstance(item, IMS) and RING in queues)
        refuse_unless(
            rows == 0 or rows // every > 1 or not getattr(item, "contrasts", False) or bool(more),
            f"config.objectives.{name} tells a row from others, and has {rows // every} row of config.batch_size={rows}; "
            "write a larger batch_size",
        )


def refuse_shared_queues(objectives: dict[str, Objective]) -> None:
    """Refuse two objectives that fill the same queue: every pair would go in twice."""
    first: dict[str, str] = {}
    for name, item in objectives.items():
        if getattr(item, "queue", 0) and hasattr(item, "record"):
            other = first.setdefault(item.record, name)
            refuse_unless(
                other == name,
                f"config.objectives.{other}.queue and config.objectives.{name}.queue are one queue, '{item.record}', and "
                f"every pair would go in twice; write config.objectives.{name}.queue=0",
            )


def with_special_ids(objectives: dict[str, Objective], ids: dict[type, dict[str, int]]) -> dict[str, Objective]:
    """The objectives with the token ids that only the tokenizer knows ({class: {field: id}})."""
    own = lambda item: next((values for kind, values in ids.items() if isinstance(item, kind)), {})
    return {name: dataclasses.replace(item, **own(item)) for name, item in objectives.items()}


def parts(objectives: dict[str, Objective]) -> frozenset[str]:
    """The model's modules that these objectives use beyond the two towers."""
    return frozenset().union(*(item.parts for item in objectives.values()))
