"""report.png: recall, curves and a few queries with their answers, as one picture for a README."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from xmodal_jax.data.image import decode
from xmodal_jax.report.charts import bars_height, draw_bars, draw_curve, draw_evaluations, new_figure
from xmodal_jax.report.content import TOP, Content, Query

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

WIDTH, DPI = 11.0, 120  # inches, and pixels of an inch
ROW = 1.25  # inches of a query
QUERIES = 4
RIGHT, EDGE = "#1a9641", "#c5ccd6"  # frames of right answers, and of all others


def picture(content: Content) -> bytes:
    """Draw the report as a PNG."""
    queries = content.to_left[:QUERIES]
    charts, shown = max(3.2, bars_height(content)), ROW * len(queries)
    figure, file = new_figure(WIDTH, charts + shown + 0.4), io.BytesIO()
    figure.suptitle(
        f"{content.run}: step {content.facts['step']}, {content.facts['data']}", x=0.01, ha="left", fontsize=13
    )
    parts = figure.subfigures(2 if queries else 1, 1, squeeze=False, height_ratios=[charts, shown] if queries else None)
    bars, lines = parts[0, 0].subplots(1, 2)
    draw_bars(bars, content)
    if content.evaluations:
        draw_evaluations(lines, content)
    elif content.curves:
        draw_curve(lines, content.curves[0])
    else:
        lines.set_axis_off()
    if queries:
        draw_queries(parts[1, 0], queries)
    figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return file.getvalue()


def draw_queries(figure: SubFigure, queries: list[Query]) -> None:
    """Draw a row for each query: the query, then its best answers, right ones in green."""
    for axes, query in zip(figure.subplots(len(queries), TOP + 1, squeeze=False), queries, strict=True):
        for place, tile in enumerate(axes):
            tile.set(xticks=[], yticks=[])
            tile.spines[:].set_visible(False)
            if place == 0:
                draw_tile(tile, query.picture, query.text)
            elif place <= len(query.answers):
                answer = query.answers[place - 1]
                draw_tile(tile, answer.picture, answer.caption)
                tile.spines[:].set(visible=True, color=RIGHT if answer.right else EDGE, linewidth=3)


def draw_tile(axes, data: bytes | None, words: str) -> None:
    """Draw a picture; the words where there is none."""
    if data is not None:
        axes.imshow(decode(data))
        return
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0.04, 0.5, shortened(words), va="center", fontsize=9, wrap=True)


def shortened(words: str, most: int = 90) -> str:
    """Cut words to a few lines of a tile, without signs that matplotlib would read as mathematics."""
    import textwrap

    return textwrap.fill(textwrap.shorten(words, most, placeholder=" …"), 22).replace("$", r"\$")
