"""Train and evaluate every row of the fusion table, and write the table.

    python benchmarks/ablate.py --data emoji_views=DIR [--data flickr8k=DIR] [--seeds 3] [--only ReCap]

Rows and budgets are in benchmarks/fusion_rows.py. Each run is one line of `--out`.jsonl; the same command goes on after
the last line and skips what is there, and `--out`.md is written anew from the lines after each run. A run that a signal
stopped is no line, and lines of another config, budget or overrides than the row has now are measured again. Before
ReCap's rows the data set needs its distillation teacher:

    xmodal data embed --data DIR --config configs/recap.py:start --config.data.path=DIR --name start

(`configs/recap.py:start_flickr8k` for Flickr8k). Several processes, a core each, may share `--out`, best with other
sets or other `--only`.
"""

import pathlib
from typing import Any

import jax
from fusion_rows import ROWS, command
from fusion_table import write_table
from runs import Line, Table, last_metrics, table_main

from xmodal_jax.errors import run_script
from xmodal_jax.eval.evaluate import Evaluator, evaluate, head
from xmodal_jax.training.teacher import view

DRIFT_RECORDS = 500  # of the evaluation split, one caption each


def encoder_drift(assembly: Any, teacher: Any, student: Any) -> dict[str, float]:
    """Return 1 - the cosine of the student's and the teacher's embeddings, without dropout.

    Over the first `DRIFT_RECORDS` evaluation records. The drift in a run's log compares the student under dropout: at a
    rate of 0.7 that is nearly all of it.
    """
    config, evaluator = assembly.config, Evaluator(assembly, teacher)
    split = head(evaluator.open(config.data.eval_split, evaluator.views(config.data.eval_split)[0]), DRIFT_RECORDS)
    embedders = [Evaluator(assembly, params).embedder for params in (student, teacher)]
    found = {}
    for side in (split.left, split.right):
        own, other = (embedder.side(side, config.eval.batch_size).embed for embedder in embedders)
        found[side.field] = 1.0 - float((own * other).sum(1).mean())
    return found


def result(assembly: Any, params: Any, state: Any, workdir: pathlib.Path) -> Line:
    """Return the losses, the drift and the recall of one run."""
    tables, own = evaluate(assembly, params), jax.device_put((state.params, state.teacher), jax.devices()[0])
    return {
        "metrics": last_metrics(workdir),
        "drift": encoder_drift(assembly, view(*own), own[0]),
        "views": {view: summary(table) for view, table in tables["views"].items()},
        "mean": summary(tables["mean"]),
    }


def summary(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the retrieval numbers of one view: embeddings, and the shortest re-ranked list, which all rows have."""
    rerank = tables.get("rerank") or {}
    return {"itc": tables["itc"]} | ({"rerank": rerank[min(rerank, key=int)]} if rerank else {})


TABLE = Table(ROWS, command, result, write_table)


def main() -> None:
    """Run what is missing, write the table."""
    table_main(TABLE, __doc__.splitlines()[0], "benchmarks/results/fusion", 3)


if __name__ == "__main__":
    run_script(main)
