"""The charts of a report, drawn by matplotlib (extra `demo`) without any window."""

import io
from typing import Any

from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import DIRECTIONS, retrieval_rows
from xmodal_jax.report.content import Content, Curve

COLOURS = {"i2t": "#1f5fa8", "t2i": "#e07b00"}
PALE = {"i2t": "#a9c3e0", "t2i": "#f3cc9b"}  # the floors
TITLES = {
    "itc": "contrastive (itc)",
    "itm": "matching (itm)",
    "mlm": "masked words (mlm)",
    "lm": "captioning (lm)",
    "hash": "codes (hash)",
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
    axes.set_title(TITLES.get(curve.name, curve.name), fontsize=10, loc="left")
    axes.set_xlabel("pairs seen", fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    return saved(figure, kind, dpi)


def recall_bars(content: Content, measure: str = "R@1") -> list[tuple[str, dict[str, float], bool]]:
    """(label, {direction: recall}, is a floor) of every bar: floors first, then the rows of this run."""
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
        bars.append((label, {side: row.summary[side][measure] for side in DIRECTIONS}, False))
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
    handles = [Patch(color=COLOURS[side], label=words) for side, words in DIRECTIONS.items()]
    handles.append(Patch(color="#cccccc", label="pale: floors"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return saved(figure, kind, dpi)
