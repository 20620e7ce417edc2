"""The lines of `hashing.py` as Markdown tables, and the plot of bytes per item against recall."""

import collections
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from fusion_table import MARK, kept_text, spread
from hashing_rows import BUDGET, LABELS, PAIRS, ROWS
from runs import replace

from xmodal_jax.config_file import freeze, load
from xmodal_jax.errors import UserError
from xmodal_jax.eval.retrieval import TIE_RULE

Line = dict[str, Any]
SIDES = ("i2t", "t2i")
INTRO = """# Hashing: recall and MAP of codes, and what they cost

Written by `benchmarks/hashing.py` from the runs in the .jsonl beside it (config, overrides, seconds and machine of
every run are there). Frozen towers, cached tokens of an EfficientNet-Lite0 and MiniLM, unless the row says otherwise.
Recall and mR in %, by Hamming distance, expected over ties; mean ± standard deviation where there are several seeds.
"Text towers" and "picture towers" from scratch learn from the training pairs alone, beside the frozen tower of the
other side. CCA signs and CMFH see pairs alone; label codes (ridge regression) and CMHR-DRN see the labels.
"""


def by_row(lines: Iterable[Line]) -> dict[tuple[str, str], list[Line]]:
    """Group the lines by (system, row), in the order of `ROWS`."""
    found = collections.defaultdict(list)
    for line in lines:
        found[line["system"], line["row"]].append(line)
    return {(row.system, row.name): found[row.system, row.name] for row in ROWS if (row.system, row.name) in found}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Format a table as Markdown lines."""
    return ["", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), ""]


def recalls(tables: list[Line]) -> list[str]:
    """Format the cells R@1, 5, 10 of both directions and mR."""
    cells = [spread(own[side][f"R@{k}"] for own in tables) for side in SIDES for k in (1, 5, 10)]
    return [*cells, spread(own["mR"] for own in tables)]


def code_cells(lines: list[Line], bits: str) -> list[str]:
    """Format a row of codes: bytes, recall, and mR before the signs and of the embedding.

    The numbers before their signs are there for some codes only.
    """
    before = [line["relaxed"][bits]["mR"] for line in lines if bits in line["relaxed"]]
    floats = [spread(before) if before else "", spread(line["itc"]["mR"] for line in lines)]
    return [f"{bits} bits", str(int(bits) // 8), *recalls([line["codes"][bits] for line in lines]), *floats]


RECALLS = [f"{side} R@{k}" for side in SIDES for k in (1, 5, 10)] + ["mR"]
HEAD = ["stored as", "bytes", *RECALLS, "mR before the sign", "mR of the embedding"]


def stored(lines: list[Line]) -> list[tuple[str, int, list[Line]]]:
    """List the ways to store the items of a row's models, as (words, bytes of an item, tables).

    Embeddings come first, then codes, longest first.
    """
    first = lines[0]
    lengths = sorted(first["codes"], key=int, reverse=True)
    size = int(first["codes"][lengths[0]]["float_bytes"])
    kinds = [("float32", size, [line["itc"] for line in lines]), ("int8", size // 4, [line["int8"] for line in lines])]
    return kinds + [(f"{bits} bits", int(bits) // 8, [line["codes"][bits] for line in lines]) for bits in lengths]


def pair_section(name: str, lines: list[Line], folder: pathlib.Path) -> list[str]:
    """Format the instance-level tables of one data set.

    Each model of several lengths at all of them, then models of one length, then the linear floors.
    """
    rows, text = by_row(lines), [f"\n## {name}, the very pair: {', '.join(BUDGET[name])}"]
    for (system, row), own in rows.items():
        if len(own[0]["codes"]) > 1:
            text += [f"\n**{system}**, {row}; seeds: {len(own)}"]
            floats = [[words, str(size), *recalls(tables), "", ""] for words, size, tables in stored(own)[:2]]
            codes = [code_cells(own, bits) for bits in sorted(own[0]["codes"], key=int, reverse=True)]
            text += table(HEAD, [*floats, *codes, chance_cells(own[0])])
    for system in dict.fromkeys(system for system, _ in rows):
        own = [found for (other, _), found in rows.items() if other == system and len(found[0]["codes"]) == 1]
        cells = [code_cells(found, bits) for found in own for bits in found[0]["codes"]]
        if own:
            cells.append(chance_cells(own[0][0]))
            text += [f"\n**{system}**, a model for each length; seeds: {len(own[0])}", *table(HEAD, cells)]
    for method, lengths in floors(folder, name, lines[0]).items():
        cells = [[f"{bits} bits", str(int(bits) // 8), *recalls([own])] for bits, own in lengths.items()]
        text += [f"\n**{method}**, linear, on the means of the same features", *table(HEAD[:-2], cells)]
    return text


def chance_cells(line: Line) -> list[str]:
    """Format the row of a random order."""
    chance = next(iter(line["codes"].values()))["chance"]
    found = [chance[side][f"R@{k}"] for side in SIDES for k in (1, 5, 10)]
    return ["chance", "0", *(f"{value:.1f}" for value in [*found, statistics.fmean(found)]), "", ""]


def floors(folder: pathlib.Path, name: str, line: Line) -> dict[str, dict[str, Any]]:
    """Read {method: {bits: table}} from `hashing_floors-NAME.json`; empty without the file.

    Where a set has labels the tables are theirs.

    Raises:
        UserError: the file is of other pictures, captions or labels than the run of `line`, or of another rule for
            ties.
    """
    path, found = folder / f"hashing_floors-{name}.json", collections.defaultdict(dict)
    if not path.is_file():
        return found
    told, config = json.loads(path.read_text("utf-8")), freeze(load(line["config"], line["overrides"]))
    data = config.data
    here = {"language": data.languages[0], "train_views": sorted(data.views), "views": sorted(config.eval_data.views)}
    here |= {"flip": data.augment.flip > 0, "of": line["data"]}
    other = [key for key, value in here.items() if told.get(key) != value]
    if other:
        raise UserError(
            f"{path} has {told.get(other[0]) if other else ''} as {''.join(other[:1])}, the runs have "
            f"{here[other[0]] if other else ''}; make it again with hashing_floors.py"
        )
    for row in told["rows"]:
        if "labels" not in row and row["ties"] != TIE_RULE:
            raise UserError(
                f"{path} counts ties by another rule ({row.get('ties')}); make it again with hashing_floors.py"
            )
        found[row["method"]][str(row["bits"])] = row.get("labels", row)
    return found


def label_section(name: str, lines: list[Line], folder: pathlib.Path) -> list[str]:
    """Format MAP@ALL of one data set: the floors, then the rows, and how often a row has the value of CCA's signs."""
    linear, cells = floors(folder, name, lines[0]), []

    def means(tables):
        return [spread((own[side]["MAP@ALL"] for own in tables), 3) for side in SIDES]

    for method, lengths in linear.items():
        cells += [[method, bits, "", *means([own]), *random_of(own), ""] for bits, own in lengths.items()]
    for (_, row), own in by_row(lines).items():
        for bits in own[0]["labels"]:
            tables = [line["labels"][bits] for line in own]
            cells.append(
                [
                    f"CMHR-DRN, {row}",
                    bits,
                    str(len(own)),
                    *means(tables),
                    *random_of(tables[0]),
                    times(tables, linear.get("CCA signs", {}).get(bits)),
                ]
            )
    head = ["method", "bits", "seeds", "MAP@ALL i2t", "t2i", "random i2t", "t2i", "over CCA signs"]
    return [f"\n## {name}, a shared label: {', '.join(BUDGET[name])}", *table(head, cells)]


def random_of(own: dict[str, Any]) -> list[str]:
    """Format MAP of random codes in both directions."""
    return [f"{own[side]['MAP@ALL random']:.3f}" for side in SIDES]


def times(tables: list[dict[str, Any]], floor: dict[str, Any] | None) -> str:
    """Format MAP as a multiple of the floor's, both directions."""
    if floor is None:
        return ""

    def mean(side):
        return statistics.fmean(own[side]["MAP@ALL"] for own in tables)

    return " / ".join(f"{mean(side) / floor[side]['MAP@ALL']:.2f}" for side in SIDES)


def write_all(lines: list[Line], path: pathlib.Path) -> None:
    """Write the tables of all sets that have lines, and the plot.

    Text below the marker line of an older file is kept.
    """
    text = [INTRO]
    for name in BUDGET:
        own = [line for line in lines if line["set"] == name]
        if own and name in PAIRS:
            text += pair_section(name, own, path.parent)
        elif own and name in LABELS:
            text += label_section(name, own, path.parent)
    kept = kept_text(path)
    replace(path, "\n".join(text) + f"\n\n{MARK}{kept}")
    pairs = [line for line in lines if line["set"] in PAIRS]
    if pairs:
        storage_plot(pairs, path.with_suffix(".png"))


def curve(lines: list[Line], pick: Callable[[str], bool]) -> list[tuple[int, float]]:
    """Return (bytes, mean R@10 of both directions in %) of the stored items whose words `pick` takes."""

    def mean(tables):
        return statistics.fmean(own[side]["R@10"] for own in tables for side in SIDES)

    return sorted((size, mean(tables)) for words, size, tables in stored(lines) if pick(words))


def storage_plot(lines: list[Line], path: pathlib.Path) -> None:
    """Plot R@10 by the bytes of an item: float32 and int8 embeddings, codes of a nested model, and of a model each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes, rows = figure.subplots(), by_row(lines)
    for number, system in enumerate(("TECMH", "ViT2CMH")):
        colour, own = f"C{number}", {row: found for (name, row), found in rows.items() if name == system}
        for row, found in own.items():
            if row.startswith("nested: "):
                axes.plot(
                    *zip(*curve(found, lambda words: "bits" in words), strict=True),
                    "o-",
                    color=colour,
                    label=f"{system}, nested codes",
                )
                for words, marker in (("float32", "s"), ("int8", "^")):
                    point = curve(found, lambda given, words=words: given == words)
                    axes.plot(*zip(*point, strict=True), marker, color=colour, label=f"{system}, {words}")
        single = sorted(
            point
            for row, found in own.items()
            if row.endswith("alone")
            for point in curve(found, lambda w: "bits" in w)
        )
        if single:
            axes.plot(*zip(*single, strict=True), "x--", color=colour, label=f"{system}, a model for each length")
    for number, (method, lengths) in enumerate(floors(path.parent, lines[0]["set"], lines[0]).items()):

        def mean(own):
            return statistics.fmean(own[side]["R@10"] for side in SIDES)

        points = [(int(bits) // 8, mean(own)) for bits, own in lengths.items()]
        axes.plot(*zip(*points, strict=True), "--", color=("0.2", "0.6")[number % 2], label=f"{method}, linear")
    chance = next(iter(lines[0]["codes"].values()))["chance"]
    axes.axhline(statistics.fmean(chance[side]["R@10"] for side in SIDES), color="0.5", ls=":", label="chance")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("bytes of an item")
    axes.set_ylabel("R@10, mean of both directions (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
