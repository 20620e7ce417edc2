"""MVSEN part by part, beside the hinge and the contrast that have no graph.

    xmodal data concepts --data data/flickr8k --count 300
    python benchmarks/mvsen.py --data flickr8k=data/flickr8k --out benchmarks/results/mvsen

Every row has the same features, heads, batches and steps, and is evaluated once, after its last step: by the cosine of
its embeddings, and re-ranked by its graph's score, which is added to the cosine or takes its place.
"""

import collections
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from runs import Line, Row, Table, table_main

from xmodal_jax.eval.evaluate import evaluate

CONFIG = "configs/mvsen.py"
SETS = ("flickr8k",)
ITC = "'itc': {'student_keys': True, 'queue': 0, 'alpha': 0.0}"
GRAPH = "'hinge': {'scorer': True, 'mean_steps': '2 epochs', 'draw': 0.05, 'candidates': 4}"
TEXTS = "'text_text': {'kind': 'hinge', 'pair': ('text', 'text2'), 'weight': 0.5, 'mean_steps': '1 epoch'}"
LABELS = "'multilabel': {'target': 'concepts', 'weight': 0.5}"
TWO_SIZES = ("data.features=('lite0-160', 'lite0-224')", "eval.flip=True")

FROM_CCA = (
    "joint.start=cca",
    "joint.start_ridge=0.3",
    "encoders.image.head_dropout=0.65",
    "encoders.text.head_dropout=0.45",
    "optimizer.weight_decay=0.1",
    "optimizer.groups=(('[/_]head/', 0.1),)",
)


def only(*objectives: str) -> str:
    """Return the override that replaces all objectives."""
    return f"objectives={{{', '.join(objectives)}}}"


ROWS = (
    Row("MVSEN", "full", CONFIG, (), SETS, seeds=3),
    Row("embeddings", "hinge", CONFIG, (only("'hinge': {'mean_steps': '1 epoch'}"), "eval.rerank=()"), SETS, seeds=3),
    Row("embeddings", "contrast", CONFIG, (only(ITC), "eval.rerank=()"), SETS, seeds=1),
    Row("MVSEN without", "both further tasks", CONFIG, (only(GRAPH, ITC),), SETS, seeds=1),
    Row("MVSEN without", "text-text matching", CONFIG, (only(GRAPH, ITC, LABELS),), SETS, seeds=1),
    Row("MVSEN without", "classification", CONFIG, (only(GRAPH, ITC, TEXTS),), SETS, seeds=1),
    Row("MVSEN without", "intra-modal interaction", CONFIG, ("scorer.intra=False",), SETS, seeds=1),
    Row("MVSEN without", "inter-modal interaction", CONFIG, ("scorer.inter=False",), SETS, seeds=1),
    Row("MVSEN with", "1 layer", CONFIG, ("scorer.layers=1",), SETS, seeds=1),
    Row("MVSEN with", "2 layers", CONFIG, ("scorer.layers=2",), SETS, seeds=1),
    Row("MVSEN with", "graphs apart", CONFIG, ("scorer.cascade=False",), SETS, seeds=1),
    Row("MVSEN with", "features of two sizes", CONFIG, TWO_SIZES, SETS, seeds=1),
    Row("MVSEN with", "heads from CCA", CONFIG, FROM_CCA, SETS, seeds=1),
    Row("MVSEN with", "heads from CCA, two sizes", CONFIG, (*FROM_CCA, *TWO_SIZES), SETS, seeds=1),
    Row("SGR", "", "configs/mvsen.py:sgr", (), SETS, seeds=1),
)


def command(row: Row, name: str, data: str, seed: int) -> tuple[str, list[str]]:
    """Return the config of a run and its overrides, the folder first."""
    return row.config, [f"data.path={data}", f"seed={seed}", "eval.keep_best=", *row.overrides]


def result(assembly: Any, params: Any, state: Any, workdir: pathlib.Path) -> Line:
    """Return the tables of the embeddings and of the longest shortlist, and the losses of the last step."""
    tables = evaluate(assembly, params)["mean"]
    rerank = tables.get("rerank") or {}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line for line in lines if "eval" not in line][-1]
    longest = {"rerank": rerank[max(rerank, key=int)]} if rerank else {}
    return {"steps": assembly.config.steps, "losses": losses, "itc": tables["itc"]} | longest


COLUMNS: tuple[tuple[str, Callable[[Line], Any]], ...] = (
    ("embeddings", lambda line: line["itc"]),
    ("+ score", lambda line: line.get("rerank")),
    ("score alone", lambda line: line.get("rerank", {}).get("alone")),
)


def shown(values: list[float]) -> str:
    """Format the mean of some seeds, with the half range where there are several."""
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else ""


def write(lines: list[Line], path: pathlib.Path) -> None:
    """Write the table: rSum of each way to rank, R@1 of the best of them, steps and minutes."""
    rows: dict[tuple[str, str], list[Line]] = collections.defaultdict(list)
    for line in lines:
        rows[line["system"], line["row"]].append(line)
    heads = [f"rSum, {name}" for name, _ in COLUMNS] + ["R@1 i2t", "R@1 t2i", "seeds", "steps", "minutes"]
    text = f"| method | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}\n"
    for row in [(row.system, row.name) for row in ROWS if (row.system, row.name) in rows]:
        own = rows[row]
        ranked = [[table["rSum"] for line in own if (table := value(line))] for _, value in COLUMNS]
        best = [line.get("rerank") or line["itc"] for line in own]
        cells = [shown(values) for values in ranked]
        cells += [shown([table[side]["R@1"] for table in best]) for side in ("i2t", "t2i")]
        minutes = statistics.mean(line["seconds"]["train"] for line in own) / 60
        cells += [str(len(own)), str(own[0]["steps"]), f"{minutes:.0f}"]
        text += f"| {': '.join(filter(None, row))} | {' | '.join(cells)} |\n"
    path.write_text(text, "utf-8")


TABLE = Table(ROWS, command, result, write)

if __name__ == "__main__":
    table_main(TABLE, __doc__ or "", "benchmarks/results/mvsen", 3)
