"""The charts of a report, drawn by matplotlib (extra `demo`) without any window.

Each `draw_...` function fills the axes that it is given, so that the page and the picture show the same charts.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import CEILING, DIRECTIONS, by_length, directions, recall_names, retrieval_rows
from xmodal_jax.report.content import Content, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"i2t": "#3b82d6", "t2i": "#e07b00"}
PALE = 0.4  # opacity of what is not of this run
INK = "#7d8794"  # of words and axes on a page: legible on white and on black
ON_PAGE: Any = {  # matplotlib names the keys one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "xmodal",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
}
TITLES = {
    "itc": "contrastive (itc)",
    "itm": "matching (itm)",
    "mlm": "masked words (mlm)",
    "lm": "captioning (lm)",
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty matplotlib figure, sizes in inches. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the report needs matplotlib; install it with: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def chart(draw: Callable[[Axes], None], width: float, height: float) -> bytes:
    """Return one chart as SVG without a background, sizes in inches."""
    figure, file = new_figure(width, height), io.BytesIO()
    from matplotlib import rc_context

    with rc_context(ON_PAGE):
        axes = figure.subplots()
        draw(axes)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def draw_curve(axes: Axes, curve: Curve) -> None:
    """Draw one loss over the pairs seen."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    title = f"codes ({curve.name})" if curve.name.startswith("hash") else TITLES.get(curve.name, curve.name)
    axes.plot(
        curve.pairs, curve.values, color=COLOURS["i2t"], linewidth=1.6, marker="." if len(curve.pairs) < 30 else ""
    )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    plain(axes, title, "pairs seen")


def draw_evaluations(axes: Axes, content: Content) -> None:
    """Draw the recall of the quick evaluations over the steps of training, in both directions."""
    from matplotlib.ticker import MaxNLocator

    measure = content.measure
    for side, words in direction_words(content).items():
        found = [(step, recall[side][measure]) for step, recall in content.evaluations if measure in recall[side]]
        axes.plot(*zip(*found, strict=True), color=COLOURS[side], linewidth=1.6, marker=".", label=words)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(fontsize=7, frameon=False)
    plain(axes, f"{measure} while training, %", "step")


def direction_words(content: Content) -> dict[str, str]:
    """Return the names of the two directions: "image to text" and its inverse, or of the fields, as "depth>text"."""
    named = directions(content.result)
    return {side: words if named[side] == side else named[side] for side, words in DIRECTIONS.items()}


def recall_bars(content: Content) -> list[tuple[str, dict[str, float], bool]]:
    """Return (label, {direction: recall}, whether it is a floor) for every bar: floors first, then the run's rows."""
    measure = content.measure
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


def draw_bars(axes: Axes, content: Content) -> None:
    """Draw the recall of the run beside the floors; each label stands above its bars, so that it fits a phone."""
    from matplotlib.patches import Patch

    bars = recall_bars(content)
    for number, (label, recalls, is_floor) in enumerate(bars):
        axes.text(0, number - 0.3, label, va="bottom", fontsize=9, fontweight="normal" if is_floor else "bold")
        for offset, side in ((-0.14, "i2t"), (0.14, "t2i")):
            alpha = PALE if is_floor else 1
            axes.barh(number + offset, recalls[side], 0.26, color=COLOURS[side], alpha=alpha)
            axes.text(recalls[side], number + offset, f" {recalls[side]:.1f}", va="center", fontsize=7)
    axes.set_ylim(len(bars) - 0.6, -0.9)
    axes.margins(x=0.12)
    handles = [Patch(color=COLOURS[side], label=words) for side, words in direction_words(content).items()]
    handles.append(Patch(color=INK, alpha=PALE, label="pale: floors"))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        fontsize=8,
        frameon=False,
        borderaxespad=0,
        columnspacing=1,
    )
    plain(axes, "", f"{content.measure}, %")
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)


def bars_height(content: Content) -> float:
    """Return the height of `draw_bars` in inches."""
    return 0.44 * len(recall_bars(content)) + 0.9


def draw_precision(axes: Axes, tables: dict[str, Any], named: dict[str, str]) -> None:
    """Draw precision over recall of the codes within each Hamming radius, for each length of code.

    Dotted is a random order. `tables` are those of one view (or the mean of views), `named` the words for each
    direction. Relevant is a shared label where there are labels, else the pair.
    """
    labelled, lengths = "label_curves" in tables, by_length(tables)
    for number, (bits, own) in enumerate(lengths, 1):
        curves = own["label_curves"] if labelled else own["codes"]["curves"]
        for side, words in named.items():
            points = [
                (recall, precision)
                for recall, precision in zip(curves[side]["recall"], curves[side]["precision"], strict=True)
                if precision is not None
            ]
            label = f"{words}, {bits} bits" if number == len(lengths) else None
            alpha = number / len(lengths)
            axes.plot(*zip(*points, strict=True), color=COLOURS[side], alpha=alpha, marker=".", label=label)
    for side in DIRECTIONS:
        chance = (tables["labels"] if labelled else tables["codes"]["precision"])[side]["P random"]
        axes.axhline(chance, color=COLOURS[side], linewidth=1, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
    paler = "; paler: fewer bits" if len(lengths) > 1 else ""
    right = "a shared label" if labelled else "the pair"
    plain(axes, f"precision, right: {right}", f"recall within the Hamming radius{paler}")


def draw_bits(axes: Axes, tables: dict[str, Any], named: dict[str, str], measure: str) -> None:
    """Draw recall of the codes over their length, with the embeddings dashed and a random order dotted.

    Arguments as in `draw_precision`.
    """
    lengths = by_length(tables)
    for side, words in named.items():
        recalls = [own["codes"][side][measure] for _, own in lengths]
        axes.plot([bits for bits, _ in lengths], recalls, color=COLOURS[side], marker="o", markersize=4, label=words)
        axes.axhline(tables["itc"][side][measure], color=COLOURS[side], linewidth=1, linestyle="--")
        axes.axhline(tables["codes"]["chance"][side][measure], color=COLOURS[side], linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks([bits for bits, _ in lengths], [str(bits) for bits, _ in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
    plain(axes, f"{measure}, %; dashed: embeddings, dotted: random", "bits of the code")


def plain(axes: Axes, title: str, across: str) -> None:
    """Give axes a title, a grid, small ticks and no frame."""
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(across, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def code_charts(content: Content, width: float = 3.4) -> list[tuple[str, bytes]]:
    """Return (words, chart) of the codes over the mean of the views; none where the evaluation has no codes.

    Recall over the length of the code is drawn where there are several.
    """
    tables = content.result["mean"]
    if "curves" not in tables.get("codes", {}):
        return []
    measure, named = recall_names(content.result)[-1], direction_words(content)
    size = width, 0.75 * width
    drawn = [("precision over recall of the codes", chart(lambda axes: draw_precision(axes, tables, named), *size))]
    if tables.get("nested"):
        drawn.append((f"{measure} over bits", chart(lambda axes: draw_bits(axes, tables, named, measure), *size)))
    return drawn
