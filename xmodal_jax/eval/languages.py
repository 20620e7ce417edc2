"""Summarise retrieval by language: which captions a split has, and means over the languages of its tables.

Languages that the run was trained on ("seen") and others ("unseen") have means of their own, as papers on multilingual
retrieval tabulate them.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import EvalSplit
from xmodal_jax.eval.folds import mean_tables

Tables = dict[str, Any]


def spoken(data: DataConfig, split: EvalSplit, names: list[str]) -> dict[str, dict[str, int]]:
    """Count the captions of each language that a field of the pair reads: {field: {code: captions}}, maybe 0.

    `names` is the card's list of languages, `data` the section of the config as evaluation reads it.
    """
    found = {}
    for side in (split.left, split.right):
        if side.language is not None:
            counts = np.bincount(side.language, minlength=len(names))
            asked = getattr(data.fields[side.field], "languages", ()) or data.languages
            found[side.field] = {code: int(counts[names.index(code)]) for code in dict.fromkeys(asked)}
    return found


def told_apart(spoken: Tables) -> str:
    """Return the field whose languages have tables of their own: the last of `spoken` with captions in several."""
    return [field for field, counts in spoken.items() if sum(map(bool, counts.values())) > 1][-1]


def by_language(tables: Mapping[str, Tables], trained: Collection[str]) -> Tables:
    """Average the tables of several languages, {code: tables}, over all and over those that were trained on or not.

    Returns:
      {"seen": [codes], "unseen": [codes], "mean", "mean_seen", "mean_unseen": what all of these languages have, number
        by number}; a mean over no language is left out.
    """
    groups = {"seen": [code for code in tables if code in trained]}
    groups |= {"unseen": [code for code in tables if code not in trained]}
    means = {f"mean_{name}": _mean([tables[code] for code in codes]) for name, codes in groups.items() if codes}
    return {**groups, "mean": _mean(list(tables.values())), **means}


def _mean(tables: list[Tables]) -> Tables:
    """Average what all tables have; counts of records and captions, which are no tables, are left out."""
    kinds = [{name: own for name, own in table.items() if isinstance(own, dict)} for table in tables]
    common = set.intersection(*(set(flatten_dict(own)) for own in kinds))
    mean = flatten_dict(mean_tables(kinds))
    return unflatten_dict({path: value for path, value in mean.items() if path in common})


def ranked(result: Tables) -> list[tuple[str, float]]:
    """List (code, recall in %) of a result's languages, the best first: R@1 (the smallest k), mean of both directions.

    There are none in a result of one language.
    """
    own = result["mean"].get("languages", {}) if "by_language" in result else {}
    sides = {code: (tables["itc"]["i2t"], tables["itc"]["t2i"]) for code, tables in own.items()}
    first = {code: [next(iter(side.values())) for side in both] for code, both in sides.items()}
    return sorted(((code, sum(both) / 2) for code, both in first.items()), key=lambda item: (-item[1], item[0]))


def is_english(code: str) -> bool:
    """Return True for a code of English, such as "en" or "en-GB"."""
    return code.partition("-")[0] == "en"
