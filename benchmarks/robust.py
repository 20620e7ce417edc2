"""Wrong pairs: RCAR and what it is compared with, at several rates of noise made on purpose.

    xmodal data noise --data data/flickr8k --out data/flickr8k-complete40 --kind complete --rate 0.4
    python benchmarks/robust.py --data clean=data/flickr8k --data complete40=data/flickr8k-complete40 --out robust.md

For the row that takes its trust from one look at frozen towers, aligned by CCA on the same wrong pairs:

    xmodal data embed --data data/flickr8k-complete40 --config configs/rcar.py --config.joint.start=cca --name cca

A set is a rate of noise; every row of a set has the same steps. A run is evaluated on clean captions after each epoch:
"last" is the last epoch, which needs no choice; "best" is the best one on the very pictures that are shown, a bound on
what early stopping could give.
"""

import collections
import json
import pathlib
import statistics
from typing import Any

from runs import Line, Row, Table, table_main

CONFIG = "configs/rcar.py"
SETS = ("clean", "complete20", "complete40", "complete60", "complete80", "partial40")
FEW = ("clean", "complete40", "complete80")
PLAIN = "'student_keys': True, 'queue': 0, 'alpha': 0.0"
HINGE = "'margin': 0.2, 'mean_steps': '1 epoch'"
MIXTURE = "'refurbish': {'measured': 'teacher', 'average': 0.5, 'warmup': '2 epochs', 'period': '1 epoch'}"
INSIDE = "'ims': {'weight': 0.1}"
GAUSSIAN = "objectives.refurbish.mixture=gaussian"
STORED = ("data.embeddings=cca", "objectives.refurbish.measured=stored", "objectives.refurbish.warmup=1 epoch")


def only(objectives: str) -> tuple[str, ...]:
    """Return the override that replaces all objectives."""
    return (f"objectives={{{objectives}}}",)


ROWS = (
    Row("undefended", "hinge", CONFIG, only(f"'hinge': {{{HINGE}}}"), SETS, seeds=3),
    Row("RCAR", "hinge", CONFIG, (), SETS, seeds=3),
    Row("undefended", "ITC", CONFIG, only(f"'itc': {{{PLAIN}}}"), SETS, seeds=3),
    Row("RCAR", "ITC", CONFIG, only(f"'itc': {{{PLAIN}, 'robust': 'refurbish'}}, {MIXTURE}, {INSIDE}"), SETS, seeds=3),
    Row("parts", "hinge and contrast inside each side", CONFIG, only(f"'hinge': {{{HINGE}}}, {INSIDE}"), FEW, seeds=1),
    Row(
        "parts",
        "hinge and refurbished targets",
        CONFIG,
        only(f"'hinge': {{{HINGE}, 'robust': 'refurbish'}}, {MIXTURE}"),
        FEW,
        seeds=1,
    ),
    Row("parts", "RCAR: hinge, Gaussian mixture", CONFIG, (GAUSSIAN,), SETS, seeds=1),
    Row(
        "parts",
        "RCAR: ITC, Gaussian mixture",
        CONFIG,
        (*only(f"'itc': {{{PLAIN}, 'robust': 'refurbish'}}, {MIXTURE}, {INSIDE}"), GAUSSIAN),
        SETS,
        seeds=1,
    ),
    Row(
        "parts",
        "RCAR: hinge, losses by a second pass",
        CONFIG,
        ("objectives.refurbish.second_pass=True", "objectives.refurbish.average=0.0"),
        ("complete40",),
        seeds=1,
    ),
    Row("others", "hinge, trust from frozen towers", CONFIG, STORED, FEW, seeds=1),
    Row("others", "complementary (RCL)", CONFIG, only("'complementary': {}"), FEW, seeds=1),
    Row("others", "ITC, momentum targets", CONFIG, only("'itc': {'queue': 4096, 'alpha': 0.4}"), FEW, seeds=1),
)


def command(row: Row, name: str, data: str, seed: int) -> tuple[str, list[str]]:
    """Return the config of a run and its overrides, the folder first."""
    return row.config, [f"data.path={data}", f"seed={seed}", *row.overrides]


def result(assembly: Any, params: Any, state: Any, workdir: pathlib.Path) -> Line:
    """Return what is kept of a run: rSum and R@1 of each epoch, and the numbers about its pairs."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = [line for line in lines if "eval" in line]
    tables = [line["eval"]["itc"] for line in found]
    notes = [line["eval"].get("memory", {}).get("refurbish", {}) for line in found]
    kept = ("auc", "auc_posterior", "trusted_right", "trusted_wrong", "trusted")
    return {
        "steps": [line["step"] for line in found],
        "rSum": [table["rSum"] for table in tables],
        "R@1": [[table[side]["R@1"] for side in ("i2t", "t2i")] for table in tables],
        "pairs": [{name: note[name] for name in kept if note.get(name) is not None} for note in notes],
    }


def shown(values: list[float], digits: int = 1) -> str:
    """Format the mean of some seeds, with the half range where there are several."""
    if not values:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def write(lines: list[Line], path: pathlib.Path) -> None:
    """Write the table: rSum of the last and the best epoch by set, and the AUC of the last epoch."""
    by_row: dict[tuple[str, str], dict[str, list[Line]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for line in lines:
        by_row[line["system"], line["row"]][line["set"]].append(line)
    head = "| method | " + " | ".join(SETS) + " |\n| --- |" + " --- |" * len(SETS) + "\n"
    parts = []
    for title, value, digits in (
        ("rSum after the last epoch (mean, half range over seeds)", lambda line: line["rSum"][-1], 1),
        ("rSum of the best epoch on the same pictures", lambda line: max(line["rSum"]), 1),
        ("AUC of right against wrong pairs by their loss, last epoch", lambda line: line["pairs"][-1].get("auc"), 3),
    ):
        rows = []
        for (system, name), sets in by_row.items():
            cells = [[x for x in map(value, sets[own]) if x is not None] for own in SETS]
            if any(cells):
                rows.append(f"| {system}: {name} | " + " | ".join(shown(own, digits) for own in cells) + " |\n")
        parts.append(f"{title}\n\n{head}{''.join(rows)}")
    path.write_text("\n".join(parts), "utf-8")


TABLE = Table(ROWS, command, result, write, quick=True)

if __name__ == "__main__":
    table_main(TABLE, __doc__ or "", "benchmarks/results/robust.md", 3)
