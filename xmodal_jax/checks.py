"""Refuse what only the config, the objectives and the facts of the data together tell to be impossible.

Checks of the values of a config alone are in `config_checks`.
"""

import importlib.util
from typing import Any

from xmodal_jax.data.card import Card
from xmodal_jax.data.split import refuse_unknown
from xmodal_jax.errors import UserError
from xmodal_jax.objectives.base import Objective
from xmodal_jax.settings import Config, EvalConfig


def refuse_unbridged(config: Config, parts: dict[str, frozenset[str]]) -> None:
    """Refuse a bridge, which changes tokens, where embeddings of its encoders read none or are among them."""
    bridged = [name for name, used in parts.items() if "bridge" in used]
    for encoder in config.bridge.sides if bridged else ():
        pool = config.encoders[encoder].pool
        if not pool.endswith(("+attention", "+shared")):
            raise UserError(
                f"config.objectives.{bridged[0]}.bridge is True, but config.encoders.{encoder}.pool='{pool}' does not "
                f"read the tokens that the bridge changes; write config.encoders.{encoder}.pool=mean+attention"
            )
    if bridged and config.fusion.aggregated:
        raise UserError(
            f"config.objectives.{bridged[0]}.bridge is True, and config.fusion.aggregated adds embeddings to the "
            "tokens that the bridge's keys are made of; write config.fusion.aggregated=False"
        )


def refuse_unserved(config: Config, objectives: dict[str, Objective]) -> None:
    """Refuse objectives that an encoder of theirs cannot serve: a TF-IDF vector has no tokens, only BERT writes."""
    scorer: Any = config.scorer  # built from its section
    for name, item in objectives.items():
        refuse_other_query(config, name, item)
        refuse_unscored(config, name, item)
        reads = item.parts | ({"fusion"} if "scorer" in item.parts and scorer.reads_tokens else set())
        for field in item.reads:
            if field not in config.data.fields:
                continue
            encoder = config.data.fields[field].encoder
            own = config.encoders[encoder]
            asked = sorted(reads.intersection(own.lacks))
            if asked:
                raise UserError(
                    f"config.objectives.{name} needs {', '.join(asked)} of config.encoders.{encoder}, whose kind "
                    f"'{own.kind}' {own.why}; write config.encoders.{encoder}.kind=bert, or leave the objective out"
                )


def refuse_other_query(config: Config, name: str, objective: Objective) -> None:
    """Refuse an objective over fusion whose fields are not of the encoders of `config.fusion.pair`, in that order."""
    if "fusion" not in objective.parts or len(objective.reads) < 2:
        return
    pair, first, second = config.fusion.pair, *(config.data.fields[field].encoder for field in objective.reads[:2])
    if config.asking.necked or pair[0] == pair[1]:
        raise UserError(
            f"config.objectives.{name} fuses two encoders, and config.fusion.pair is {pair}, whose second must be "
            f"another one, of words; write config.fusion.pair={(first, second)}"
        )
    if (first, second) != pair:
        raise UserError(
            f"config.objectives.{name} reads {objective.reads[:2]}, of the encoders {(first, second)}, and fusion is "
            f"of {pair} (config.fusion.pair), the one that is read and the one that asks; write fields of these in "
            "this order"
        )


def refuse_unscored(config: Config, name: str, objective: Objective) -> None:
    """Refuse an objective on the pair score whose fields `config.scorer` does not serve in that order."""
    if "scorer" not in objective.parts or len(objective.reads) < 2:
        return
    scorer: Any = config.scorer  # built from its section
    first, second = (config.data.fields[field].encoder for field in objective.reads[:2])
    if not scorer.serves((first, second), config.fusion.pair):
        raise UserError(
            f"config.objectives.{name} scores {objective.reads[:2]}, of the encoders {(first, second)}, and "
            f"config.scorer of kind '{scorer.kind}' scores {config.fusion.pair} (config.fusion.pair), regions first "
            "and words second; write fields of these in this order"
        )


def refuse_impossible(config: Config, card: Card) -> None:
    """Refuse values that only the config and the data together can tell to be impossible."""
    if config.eval.every:
        card.split(config.data.eval_split)
    refuse_unfit_evaluation(config, card, config.data.eval_split)
    for name in config.log.to:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"config.log.to names '{name}', and that package is not installed; write pip install -e '.[{name}]'"
            )


def refuse_chunks(config: Config, objectives: dict[str, Objective], rows: int) -> None:
    """Refuse a chunk that does not give each of `rows` devices as many rows, and whole groups of matching."""
    if not config.chunk:
        return
    if config.chunk % rows != 0:
        raise UserError(
            f"config.chunk is {config.chunk}, which {rows} devices (data x fsdp) cannot share; write a multiple of "
            f"{rows}"
        )
    for name, objective in objectives.items():
        group, every = objective.group, objective.every
        if group is not None and config.chunk != config.batch_size and (group <= 0 or config.chunk % group != 0):
            raise UserError(
                f"config.objectives.{name}.group is {group}, and passes take {config.chunk} rows at a time "
                f"(config.chunk); write a group that divides {config.chunk}"
            )
        if group is None and config.chunk % every != 0:
            raise UserError(
                f"config.objectives.{name}.every is {every}, which does not divide config.chunk={config.chunk}; write "
                "a divisor"
            )


def refuse_unfit_evaluation(config: Config, card: Card, split: str = "") -> None:
    """Refuse views, languages, a gallery or folds (of `split`) of `config.eval` that the data set does not have."""
    gallery, path = config.eval.gallery, config.data.path
    refuse_unknown("config.eval.views", config.eval.views, card.views, path)
    refuse_unknown("config.eval.languages", config.eval.languages, card.languages, path)
    refuse_unknown("config.eval.gallery", gallery, list(card.splits), path)
    if len(set(gallery)) != len(gallery):
        raise UserError(f"config.eval.gallery is {gallery}; write each split once")
    if gallery and (not config.data.labels or not card.label_names):
        raise UserError(
            f"config.eval.gallery is {gallery}, which asks for shared labels, and {path} has none, or "
            "config.data.labels is False; write () for no gallery"
        )
    if split in card.splits:
        refuse_few_pictures(config.eval, split, card.splits[split]["records"])


def refuse_few_pictures(config: EvalConfig, split: str, pictures: int) -> None:
    """Raise UserError where a split of so many pictures cannot be cut into the folds of `config`."""
    needed = config.folds * config.fold_pictures
    if pictures < needed:
        raise UserError(
            f"config.eval.folds is {config.folds}, each of config.eval.fold_pictures={config.fold_pictures} pictures, "
            f"and split '{split}' has {pictures}, not {needed}; write fewer or smaller folds, or config.eval.folds=0 "
            "for none"
        )
