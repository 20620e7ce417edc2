"""The charts of a report, drawn by matplotlib (extra `demo`) without any window."""

import io
from typing import Any

from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import CEILING, DIRECTIONS, by_length, directions, recall_names, retrieval_rows
from xmodal_jax.report.content import Content, Curve

COLOURS = {"i2t": "#1f5fa8", "t2i": "#e07b00"}
PALE = {"i2t": "#a9c3e0", "t2i": "#f3cc9b"}  # the floors
TITLES = {
    "itc": "contrastive (itc)",
    "itm": "matching (itm)",
    "mlm": "masked words (mlm)",
    "lm": "captioning (lm)",
}


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of width x height inches and its one axes. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the report needs matplotlib; install it with: pip install 'xmodal_jax[demo]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def saved(figure: Any, kind: str, dpi: int = 100) -> bytes:
    """The figure as "svg" or "png" bytes."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=dpi)
    return file.getvalue()


def curve_chart(curve: Curve, kind: str, width: float = 2.6, height: float = 2.0, dpi: int = 100) -> bytes:
    """One loss over the pairs seen; sizes in inches."""
    figure, axes = new_figure(width, height)
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.plot(
        curve.pairs, curve.values, color=COLOURS["i2t"], linewidth=1.6, marker="." if len(curve.pairs) < 30 else ""
    )
    title = f"codes ({curve.name})" if curve.name.startswith("hash") else TITLES.get(curve.name, curve.name)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("pairs seen", fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    return saved(figure, kind, dpi)


def direction_words(content: Content) -> dict[str, str]:
    """What the two directions are called: "image to text" and its inverse, or the fields' names, as "depth>text"."""
    named = directions(content.result)
    return {side: words if named[side] == side else named[side] for side, words in DIRECTIONS.items()}


def recall_bars(content: Content, measure: str = "R@1") -> list[tuple[str, dict[str, float], bool]]:
    """(label, {direction: recall}, is none of this run) of every bar: floors first, then the rows of this run."""
    bars = [
        (floor.name, {"i2t": floor.i2t[measure], "t2i": floor.t2i[measure]}, True)
        for floor in content.floors
        if measure in floor.i2t and measure in floor.t2i
    ]
    rows = retrieval_rows(content.result)
    whole = {"mean of the views", "views averaged"}
    kept = [row for row in rows if row.view in whole] or rows
    for row in kept:
        label = f"this run: {row.name}" + (", views averaged" if row.view == "views averaged" else "")
        best = row.name == CEILING
        bars.append((CEILING if best else label, {side: row.summary[side][measure] for side in DIRECTIONS}, best))
    return bars


def bar_chart(content: Content, kind: str, width: float = 5.2, dpi: int = 100) -> bytes:
    """R@1 of this run beside the floors, in both directions; each label stands above its bars, so it fits a phone."""
    bars = recall_bars(content)
    figure, axes = new_figure(width, 0.46 * len(bars) + 0.9)
    from matplotlib.patches import Patch

    for number, (label, recalls, is_floor) in enumerate(bars):
        axes.text(0, number - 0.3, label, va="bottom", fontsize=9, fontweight="normal" if is_floor else "bold")
        for offset, side in ((-0.14, "i2t"), (0.14, "t2i")):
            axes.barh(number + offset, recalls[side], 0.26, color=(PALE if is_floor else COLOURS)[side])
            axes.text(recalls[side], number + offset, f" {recalls[side]:.1f}", va="center", fontsize=7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(bars) - 0.6, -0.9)
    axes.margins(x=0.12)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("R@1, %", fontsize=9)
    handles = [Patch(color=COLOURS[side], label=words) for side, words in direction_words(content).items()]
    handles.append(Patch(color="#cccccc", label="pale: floors"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return saved(figure, kind, dpi)


def precision_chart(
    tables: dict[str, Any], named: dict[str, str], kind: str, width: float = 3.4, dpi: int = 100
) -> bytes:
    """Precision over recall of the codes within each Hamming radius, every length of the code; dotted: a random order.

    `tables` are those of one view (or the mean of views), `named` the words for each direction. Relevant is a shared
    label where there are labels, else the pair.
    """
    figure, axes = new_figure(width, 0.85 * width)
    labelled, lengths = "label_curves" in tables, by_length(tables)
    for number, (bits, own) in enumerate(lengths, 1):
        curves = own["label_curves"] if labelled else own["codes"]["curves"]
        for side, words in named.items():
            points = [
                (recall, precision)
                for recall, precision in zip(curves[side]["recall"], curves[side]["precision"], strict=True)
                if precision is not None
            ]
            axes.plot(
                *zip(*points, strict=True),
                color=COLOURS[side],
                linewidth=1.6,
                alpha=number / len(lengths),
                marker=".",
                label=f"{words}, {bits} bits" if number == len(lengths) else None,
            )
    for side in DIRECTIONS:
        chance = (tables["labels"] if labelled else tables["codes"]["precision"])[side]["P random"]
        axes.axhline(chance, color=COLOURS[side], linewidth=1, linestyle=":")
    axes.set_title(
        f"precision over recall, right: {'a shared label' if labelled else 'the pair'}", fontsize=9, loc="left"
    )
    paler = "; paler: fewer bits" if len(lengths) > 1 else ""
    axes.set_xlabel(f"recall within the Hamming radius{paler}", fontsize=8)
    axes.set_ylabel("precision", fontsize=8)
    return legible(figure, axes, kind, dpi)


def bits_chart(
    tables: dict[str, Any], named: dict[str, str], kind: str, measure: str, width: float = 3.4, dpi: int = 100
) -> bytes:
    """Recall of the codes over their length; dashed: the float embeddings, dotted: a random order. See `precision_chart`."""
    figure, axes = new_figure(width, 0.85 * width)
    lengths = by_length(tables)
    for side, words in named.items():
        recalls = [own["codes"][side][measure] for _, own in lengths]
        axes.plot([bits for bits, _ in lengths], recalls, color=COLOURS[side], marker="o", markersize=4, label=words)
        axes.axhline(tables["itc"][side][measure], color=COLOURS[side], linewidth=1, linestyle="--")
        axes.axhline(tables["codes"]["chance"][side][measure], color=COLOURS[side], linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks([bits for bits, _ in lengths], [str(bits) for bits, _ in lengths])
    axes.minorticks_off()
    axes.set_title(f"{measure} over the code's length; dashed: embeddings, dotted: random", fontsize=9, loc="left")
    axes.set_xlabel("bits", fontsize=8)
    axes.set_ylabel(f"{measure}, %", fontsize=8)
    return legible(figure, axes, kind, dpi)


def legible(figure: Any, axes: Any, kind: str, dpi: int) -> bytes:
    """The figure with small ticks, a grid, a legend and both axes from zero."""
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
    return saved(figure, kind, dpi)


def code_charts(content: Content, kind: str, **size: Any) -> list[tuple[str, bytes]]:
    """(words, chart) of the codes over the mean of the views; none where the evaluation has no codes.

    Recall over the length of the code is drawn where there are several.
    """
    tables = content.result["mean"]
    if "curves" not in tables.get("codes", {}):
        return []
    measure, named = recall_names(content.result)[-1], direction_words(content)
    drawn = [("precision over recall of the codes", precision_chart(tables, named, kind, **size))]
    if tables.get("nested"):
        drawn.append((f"{measure} over bits", bits_chart(tables, named, kind, measure, **size)))
    return drawn
