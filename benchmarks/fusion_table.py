"""The lines of `ablate.py` as a Markdown table: mean and spread over seeds."""

import collections
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from fusion_rows import BUDGET, ROWS
from runs import replace

Line = dict[str, Any]
MARK = "<!-- below: written by hand -->"
UNSEEN = {"emoji_views": "twemoji"}  # the view of a set that no row trains on
HEAD = (
    "| row | seeds | R@1 i2t | R@1 t2i | R@10 i2t | R@10 t2i | rSum | re-ranked: R@1 | rSum "
    "| ITM alone on the shortlist: rSum | {extra}drift |"
)
INTRO = """# The fusion family: what each part is worth

Written by `benchmarks/ablate.py` from the runs in the .jsonl beside it (config, overrides, seconds, machine and all
recalls of every run are there). Mean ± standard deviation over seeds, in %; every row of a set has the same budget of
steps and pairs. Cached tokens of a frozen EfficientNet-Lite0, frozen MiniLM, heads from CCA; the rows "fine-tuned
towers" train both towers from pixels of the same size, with random crops. Drift: 1 - cosine of the student's and the
teacher's embeddings of the evaluation pictures after training, without dropout.
"""
QUICKSTART = ("quickstart", "quickstart at this budget")
FULL = {
    "ReCap": ("ReCap", "full"),
    "MTGFE": ("MTGFE", "full: the three and ITC"),
    "Adequate Alignment": ("Adequate Alignment", "full: ITC + IMS + LMIM + fusion"),
}
RECAP, MTGFE, ALIGNED, TUNED = (*FULL, "fine-tuned towers")
PARTS = {
    "residual attention": "without residual attention (plain EMA)",
    "LM": "without LM",
    "ITM": "without ITM",
    "queues": "without queues",
    "distillation": "without distillation",
}
COMPARED = (  # (in words, a row, the row it is compared with)
    *((f"{name}, full, over the quickstart", row, QUICKSTART) for name, row in FULL.items()),
    *((f"the same, fine-tuned towers: {name}", (TUNED, f"{name}, full"), (TUNED, "quickstart")) for name in FULL),
    *((f"ReCap: {part}", FULL[RECAP], (RECAP, row)) for part, row in PARTS.items()),
    ("ReCap: the momentum's ramp over 0", FULL[RECAP], (RECAP, "momentum 0")),
    ("ReCap: the momentum's ramp over 0.99", FULL[RECAP], (RECAP, "momentum 0.99")),
    ("ReCap: the momentum's ramp over 0.995", FULL[RECAP], (RECAP, "momentum 0.995")),
    *(
        (
            f"ReCap, the student evaluated: the momentum's ramp over {m}",
            (RECAP, "full, the student evaluated"),
            (RECAP, f"momentum {m}, the student evaluated"),
        )
        for m in (0.99, 0.995)
    ),
    (
        "ReCap, the student evaluated: residual attention at momentum 0.995",
        (RECAP, "momentum 0.995, the student evaluated"),
        (RECAP, "momentum 0.995 without residual attention, the student evaluated"),
    ),
    (
        "ReCap: distillation where heads start at random",
        (RECAP, "heads start at random, distilled"),
        (RECAP, "heads start at random, not distilled"),
    ),
    ("MTGFE: MLM beside ITM", (MTGFE, "ITM + MLM"), (MTGFE, "ITM")),
    ("MTGFE: MVJRC beside ITM", (MTGFE, "ITM + MVJRC"), (MTGFE, "ITM")),
    ("MTGFE: both beside ITM", (MTGFE, "ITM + MLM + MVJRC (the abstract's three)"), (MTGFE, "ITM")),
    ("MTGFE: ITC beside the three", FULL[MTGFE], (MTGFE, "ITM + MLM + MVJRC (the abstract's three)")),
    ("Adequate Alignment: IMS", (ALIGNED, "ITC + IMS"), (ALIGNED, "ITC")),
    ("Adequate Alignment: LMIM", (ALIGNED, "ITC + IMS + LMIM"), (ALIGNED, "ITC + IMS")),
    ("Adequate Alignment: fusion's ITM, on the embeddings", FULL[ALIGNED], (ALIGNED, "ITC + IMS + LMIM")),
    ("Adequate Alignment: GPO over the mean", FULL[ALIGNED], (ALIGNED, "mean in place of GPO")),
    ("Adequate Alignment: GPO over the maximum", FULL[ALIGNED], (ALIGNED, "max in place of GPO")),
    (
        "Adequate Alignment from a random start: GPO over the mean",
        (ALIGNED, "GPO alone, from a random start"),
        (ALIGNED, "mean alone, from a random start"),
    ),
    (
        "Adequate Alignment from a random start: GPO over the maximum",
        (ALIGNED, "GPO alone, from a random start"),
        (ALIGNED, "max alone, from a random start"),
    ),
    (
        "Adequate Alignment, fine-tuned towers: LMIM",
        (TUNED, "Adequate Alignment, full"),
        (TUNED, "Adequate Alignment without LMIM"),
    ),
    (
        "Adequate Alignment, fine-tuned towers: IMS",
        (TUNED, "Adequate Alignment without LMIM"),
        (TUNED, "Adequate Alignment without LMIM and IMS"),
    ),
)


def spread(values: Iterable[float], places: int = 1) -> str:
    """Format a list of numbers as "mean ± standard deviation"; the mean alone for one number."""
    values = list(values)
    numbers = [statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{number:.{places}f}" for number in numbers)


def kept_text(path: pathlib.Path) -> str:
    """Return the text below the marker line of an older file."""
    return path.read_text("utf-8").partition(MARK)[2] if path.is_file() else "\n"


def recalls(lines: list[Line], kind: str, view: str = "") -> list[dict[str, Any]]:
    """Return one summary per seed: of a view, or the mean over the views."""
    return [(line["views"][view] if view else line["mean"]).get(kind) for line in lines]


def cell(tables: list[dict | None], pick: Any) -> str:
    """Format a cell over seeds; "" where the row has no such table."""
    return spread(pick(table) for table in tables) if all(tables) else ""


def both(tables: list[dict | None], k: str = "R@1") -> str:
    """Format R@k in both directions."""
    return " / ".join(cell(tables, lambda t, d=d: t[d][k]) for d in ("i2t", "t2i")) if all(tables) else ""


def row_cells(lines: list[Line], unseen: str) -> list[str]:
    """Format the cells behind a row's name."""
    itc, rerank = recalls(lines, "itc"), recalls(lines, "rerank")
    cells = [
        str(len(lines)),
        *(cell(itc, lambda t, d=d, k=k: t[d][k]) for k in ("R@1", "R@10") for d in ("i2t", "t2i")),
    ]
    cells += [cell(itc, lambda t: t["rSum"]), both(rerank), cell(rerank, lambda t: t["rSum"])]
    cells.append(cell(rerank, lambda t: t["alone"]["rSum"]))
    if unseen:
        own = recalls(lines, "rerank", unseen)
        cells.append(both(own if all(own) else recalls(lines, "itc", unseen)))
    drift = [line["drift"]["image"] for line in lines if "drift" in line]
    return [*cells, f"{statistics.fmean(drift):.4f}" if len(drift) == len(lines) else ""]


def section(name: str, lines: list[Line]) -> list[str]:
    """Format the table of one data set."""
    unseen = UNSEEN.get(name, "")
    head = HEAD.format(extra=f"{unseen} (never trained on): R@1 (re-ranked, if the row is) | " if unseen else "")
    found = collections.defaultdict(list)
    for line in lines:
        found[line["system"], line["row"]].append(line)
    text = [f"\n## {name}: {', '.join(BUDGET[name])}\n"]
    for system in dict.fromkeys(row.system for row in ROWS):
        rows = [row for row in ROWS if row.system == system and (system, row.name) in found]
        if rows:
            text += [f"\n**{system}**\n", head, "|" + " --- |" * (head.count("|") - 1)]
            text += ["| " + " | ".join([row.name, *row_cells(found[system, row.name], unseen)]) + " |" for row in rows]
    return text


def paired(lines: list[Line], kind: str) -> dict[tuple[str, str], dict[int, float]]:
    """Return the rSum of every row by seed, of the embeddings ("itc") or re-ranked."""
    found: dict[tuple[str, str], dict[int, float]] = collections.defaultdict(dict)
    for line in lines:
        if line["mean"].get(kind):
            found[line["system"], line["row"]][line["seed"]] = line["mean"][kind]["rSum"]
    return found


def difference(tables: dict, one: tuple[str, str], other: tuple[str, str]) -> str:
    """Format the mean and spread of one row minus another, with a sign before the mean.

    Over the seeds that both have; "" without any.
    """
    mine, theirs = tables.get(one, {}), tables.get(other, {})
    found = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    return f"{'+' if statistics.fmean(found) > 0 else ''}{spread(found)}" if found else ""


def differences(lines: list[Line]) -> list[str]:
    """Format each comparison of `COMPARED`, paired by seed: runs of one seed see the same batches, so noise is less."""
    tables = [paired(lines, kind) for kind in ("itc", "rerank")]
    rows = []
    for says, one, other in COMPARED:
        cells = [difference(table, one, other) for table in tables]
        rows += [f"| {says} | {' | '.join(cells)} |"] if any(cells) else []
    if not rows:
        return []
    head = "| what it adds to rSum, seed by seed | embeddings | re-ranked |"
    return ["\n**Differences**\n", head, "| --- | --- | --- |", *rows]


def write_table(lines: list[Line], path: pathlib.Path) -> None:
    """Write all sets that have lines; text below the marker line of an older file is kept."""
    text, kept = [INTRO], kept_text(path)
    for name in BUDGET:
        own = [line for line in lines if line["set"] == name]
        text += [*section(name, own), *differences(own)] if own else []
    replace(path, "\n".join(text) + f"\n\n{MARK}{kept}")
