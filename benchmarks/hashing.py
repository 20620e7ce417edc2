"""Train and evaluate every row of the hashing table, and write the table and the plot of storage against recall.

    python benchmarks/hashing.py --data flickr8k=DIR [--data emoji_views=DIR] [--data openclipart=DIR] [--seeds 1] \\
      [--only TECMH] [--keep RUNS]

Rows and budgets are in benchmarks/hashing_rows.py. Each run is one line of `--out`.jsonl; the same command goes on
after the last line, and `--out`.md and `--out`.png are written anew after each run. The floors of the label-level sets
are read from `hashing_floors-SET.json` beside it, which benchmarks/hashing_floors.py makes. One process for each set, a
core each, may share `--out`.
"""

import pathlib
from typing import Any

from hashing_rows import PAIRS, ROWS, command
from hashing_table import write_all
from report import data_facts
from runs import Line, Table, last_metrics, table_main

from xmodal_jax.data.card import Card
from xmodal_jax.errors import run_script
from xmodal_jax.eval.evaluate import evaluate
from xmodal_jax.eval.retrieval import TIE_RULE
from xmodal_jax.eval.tables import by_length

LENGTHY = ("curves", "precision", "optimistic", "pessimistic")  # hundreds of numbers that the table has no use for


def result(assembly: Any, params: Any, state: Any, workdir: pathlib.Path) -> Line:
    """Return the losses and the tables of one run, the mean over the views.

    The tables are "itc", "int8", and by length "codes", "relaxed" and "labels".
    """
    tables = evaluate(assembly, params)["mean"]
    found = {"itc": tables["itc"], "int8": tables["int8"], "codes": {}, "relaxed": {}, "labels": {}}
    found["data"] = data_facts(Card.load(assembly.config.data.path))
    for bits, own in by_length(tables):
        if "relaxed" in own:
            found["relaxed"][str(bits)] = own["relaxed"]
        found["codes"][str(bits)] = {name: value for name, value in own["codes"].items() if name not in LENGTHY}
        if "labels" in own:
            found["labels"][str(bits)] = own["labels"]
    return {"metrics": last_metrics(workdir), **found}


def of_this_tie_rule(line: Line) -> bool:
    """Return True if recall of codes was measured by the rule for ties that holds now; MAP has had one rule only."""
    return line["set"] not in PAIRS or all(own["ties"] == TIE_RULE for own in line["codes"].values())


TABLE = Table(ROWS, command, result, write_all, of_this_tie_rule)


def main() -> None:
    """Run what is missing, write the table."""
    table_main(TABLE, __doc__.splitlines()[0], "benchmarks/results/hashing", 1)


if __name__ == "__main__":
    run_script(main)
