"""The charts of a report, drawn by matplotlib (extra `demo`) without any window.

Each `draw_...` function fills the axes that it is given, so that the page and the picture show the same charts.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xmodal_jax.errors import UserError
from xmodal_jax.eval.languages import is_english, ranked
from xmodal_jax.eval.tables import CEILING, DIRECTIONS, by_length, directions, recall_names, retrieval_rows
from xmodal_jax.report.content import Content, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"i2t": "#3b82d6", "t2i": "#e07b00"}
TRAINED = {"seen": ("#3b82d6", ""), "unseen": ("#e0a000", "////")}  # colour and hatch of bars of languages
LEGEND: Any = {  # above the axes
    **{"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "fontsize": 8, "frameon": False},
    **{"borderaxespad": 0, "columnspacing": 1},
}
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
    axes.legend(handles=handles, **LEGEND)
    plain(axes, "", f"{content.measure}, %")
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)


def bars_height(content: Content) -> float:
    """Return the height of `draw_bars` in inches."""
    return 0.44 * len(recall_bars(content)) + 0.9


def draw_languages(axes: Axes, result: dict[str, Any]) -> None:
    """Draw the embeddings' recall in each language of a result, the best on top; English is bold, with a dashed line.

    The numbers stand in a column at the right, where no bar or line crosses them.
    """
    bars, groups = ranked(result), result["by_language"]
    for place, (code, recall) in enumerate(bars):
        english, (colour, hatch) = is_english(code), TRAINED["seen" if code in groups["seen"] else "unseen"]
        axes.barh(place, recall, 0.78, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        style: dict[str, Any] = {"va": "center", "fontsize": 8, "fontweight": "bold" if english else "normal"}
        axes.text(-0.015, place, code, ha="right", transform=axes.get_yaxis_transform(), **style)
        axes.text(1.09, place, f"{recall:.1f}", ha="right", transform=axes.get_yaxis_transform(), **style)
        if english:
            axes.axvline(recall, color=INK, linewidth=1, linestyle="--", zorder=0)
    plain(axes, "", f"{recall_names(result)[0]} of the embeddings, mean of both directions, %")
    axes.set(xlim=(0, None), ylim=(len(bars) - 0.4, -0.6), yticks=[])
    axes.set_axisbelow(True)
    axes.legend(**LEGEND, handles=language_handles(result))


def language_handles(result: dict[str, Any]) -> list[Any]:
    """Return the entries of the legend of `draw_languages`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    groups = result["by_language"]
    handles: list[Any] = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=f"{name} ({len(groups[name])})")
        for name, (colour, hatch) in TRAINED.items()
        if groups[name]
    ]
    english = [code for code, _ in ranked(result) if is_english(code)]
    return handles + [
        Line2D([], [], color=INK, linewidth=1, linestyle="--", label=f"English ({code})") for code in english
    ]


def languages_height(result: dict[str, Any]) -> float:
    """Return the height of `draw_languages` in inches."""
    return 0.19 * len(ranked(result)) + 0.9


def by_languages(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parts of a result with captions in several languages, by what they are called: "" or the pair."""
    parts = {"": result} | result.get("pairs", {})
    return {name: own for name, own in parts.items() if "by_language" in own}


def languages_picture(result: dict[str, Any]) -> bytes:
    """Draw recall by language as a PNG, for each pair of fields with captions in several languages side by side."""
    parts = list(by_languages(result).values())
    figure, file = new_figure(5.0 * len(parts), max(map(languages_height, parts)) + 0.3), io.BytesIO()
    panels = figure.subplots(1, len(parts), squeeze=False, gridspec_kw={"wspace": 0.1})[0]
    for axes, own in zip(panels, parts, strict=True):
        draw_languages(axes, own)
        axes.set_title(" and ".join(own["pair"]), fontsize=10, loc="left", pad=18)
    figure.savefig(file, format="png", dpi=150, facecolor="white")
    return file.getvalue()


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
