"""The losses. `OBJECTIVES` is the only place that names the kinds for the config."""

from typing import Any

from xmodal_jax.config_build import EPOCHS, build
from xmodal_jax.data.fields import batch_fields
from xmodal_jax.errors import UserError
from xmodal_jax.objectives.alignment import IMS, LMIM
from xmodal_jax.objectives.answer import VQA
from xmodal_jax.objectives.base import Objective, in_steps
from xmodal_jax.objectives.complementary import Complementary
from xmodal_jax.objectives.contrastive import ITC
from xmodal_jax.objectives.distill import Distill
from xmodal_jax.objectives.fused import Fused
from xmodal_jax.objectives.hash_contrast import HashContrast, HashSupCon
from xmodal_jax.objectives.hashing import Hash, HashDistance, HashEuclidean, HashQuality, HashTriplet
from xmodal_jax.objectives.hinge import Hinge
from xmodal_jax.objectives.language import LM, MLM
from xmodal_jax.objectives.matching import ITM
from xmodal_jax.objectives.multilabel import MultiLabel
from xmodal_jax.objectives.multiview import MVJRC
from xmodal_jax.objectives.robust import Refurbish
from xmodal_jax.objectives.sigmoid import SigLIP
from xmodal_jax.objectives.transfer import Transfer
from xmodal_jax.plugins import find_class
from xmodal_jax.settings import Config
from xmodal_jax.types import DataFacts

OBJECTIVES: dict[str, type[Objective]] = {
    "itc": ITC,
    "siglip": SigLIP,
    "hinge": Hinge,
    "complementary": Complementary,
    "refurbish": Refurbish,
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
    "transfer": Transfer,
    "multilabel": MultiLabel,
    "answer": VQA,
}


def build_objectives(section: dict[str, Any], rows: int = 0) -> dict[str, Objective]:
    """Build {name: objective} from `config.objectives`, where each entry has a `kind` and the fields of that kind.

    `kind` defaults to the entry's name; a user's own class is "my_loss.py:MyLoss". Entries of weight 0 are left out:
    their passes are never traced. Raises UserError for an unknown kind or field, for two entries that put different
    keys into one ring, and for a batch of `rows` (0: any) that does not suit one of them.
    """
    built = {}
    for name, fields in section.items():
        where = f"config.objectives.{name}"
        if not hasattr(fields, "items"):
            raise UserError(f"{where} is {fields!r}; write a dict such as {{'kind': 'itc'}}")
        fields = dict(fields)
        cls = find_class(fields.pop("kind", name), f"{where}.kind", OBJECTIVES, Objective)
        if "name" in fields:
            raise UserError(f"{where}.name is {fields['name']!r}; the entry's own key is its name")
        objective = build(cls, fields | {"name": name}, where)
        if objective.weight != 0:
            built[name] = objective
            refuse_uneven(objective, rows, where)
    if not built:
        raise UserError(f"config.objectives has no objective with a weight; write one of {', '.join(OBJECTIVES)}")
    refuse_mixed_rings(built)
    refuse_alone(built, rows)
    return built


def fit_objectives(objectives: dict[str, Objective], config: Config, facts: DataFacts) -> dict[str, Objective]:
    """Complete the objectives from the data; raise UserError if one does not fit the config or the data."""
    for name, item in objectives.items():
        where = f"config.objectives.{name}"
        refuse_unread(item, where, config, facts)
        refuse_period(item, where)
        item.check_fit(where, config, facts)
    return {name: in_steps(item, facts).fitted(facts) for name, item in objectives.items()}


def refuse_unread(objective: Objective, where: str, config: Config, facts: DataFacts) -> None:
    """Refuse an objective that reads a field which the batch does not have."""
    have = batch_fields(config, facts)
    for field in objective.reads:
        if field not in have:
            raise UserError(f"{where} reads '{field}' of the batch, which is not there; {hint(field, config)}")


def refuse_period(objective: Objective, where: str) -> None:
    """Refuse a `period` that is neither steps nor epochs; a class may set one without a field."""
    period = objective.period
    if isinstance(period, str) and EPOCHS.fullmatch(period) is None:
        raise UserError(f"{where}.period is {period!r}; write a number of steps such as 1000, or '2 epochs'")


def hint(field: str, config: Config) -> str:
    """Return advice on how the config can give a batch the missing `field`."""
    name, _, what = field.partition("/")
    if what == "teacher":
        return "write config.data.embeddings=NAME, made by `xmodal data embed`"
    if name == "pair":
        return "write config.data.unit='pair'"
    if field == "labels" and config.data.labels:
        return "the data set has no labels: prepare one that has, or write by_label=False or target='concepts'"
    if field == "labels":
        return "write config.data.labels=True"
    if field == "concepts":
        return "write config.data.concepts=NAME, made by `xmodal data concepts`"
    fields = config.data.fields
    if what == "language" and name in fields:
        return f"config.data.fields.{name} has no captions of one language each; write a field that has"
    seen = name.rstrip("2") if name.rstrip("2") in fields else next(iter(fields))
    return f"add config.data.fields.{name}, such as {{'of': '{seen}'}}, or write some of {', '.join(fields)}"


def refuse_uneven(objective: Objective, rows: int, where: str) -> None:
    """Refuse an `every` that does not divide the batch of `rows` (0: any)."""
    if rows and rows % objective.every:
        raise UserError(
            f"{where}.every is {objective.every}, which does not divide the batch of {rows} rows; write a divisor, "
            "1 for all rows"
        )


def refuse_alone(objectives: dict[str, Objective], rows: int) -> None:
    """Refuse a batch of `rows` (0: any) that leaves a loss one row and no queue, and thus no negative."""
    for name in lonely(objectives):
        own = rows // objectives[name].every
        if rows and own <= 1:
            raise UserError(
                f"config.objectives.{name} tells a row from others, and has {own} row of config.batch_size={rows}; "
                "write a larger batch_size"
            )


def lonely(objectives: dict[str, Objective]) -> tuple[str, ...]:
    """Return the names of objectives that have no negatives but those of the batch."""
    filled = {ring for item in objectives.values() if item.queue or item.table for ring in item.more_negatives}
    return tuple(name for name, item in objectives.items() if item.contrasts and not item.more_negatives & filled)


def refuse_mixed_rings(objectives: dict[str, Objective]) -> None:
    """Refuse two objectives that put different keys of one field into one ring."""
    first: dict[str, tuple[str, str]] = {}
    for name, item in objectives.items():
        for place, how in item.fills.items():
            other, theirs = first.setdefault(place, (name, how))
            if how != theirs:
                raise UserError(
                    f"config.objectives.{other} ({theirs}) and config.objectives.{name} ({how}) put different keys "
                    f"into one ring, '{place}'; write config.objectives.{name}.keys='{name}' for a ring of its own, "
                    "or queue=0"
                )


def parts(objectives: dict[str, Objective]) -> frozenset[str]:
    """Return the model's modules that these objectives use beyond the encoders."""
    return frozenset().union(*(item.parts for item in objectives.values()))
