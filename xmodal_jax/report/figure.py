"""report.png: the report as one picture, for a README."""

from typing import Any

from xmodal_jax.drawing import EDGE, GREY, RIGHT, beside, framed, grid, opened, stacked, text_block, with_margin
from xmodal_jax.report.charts import bar_chart, code_charts, curve_chart
from xmodal_jax.report.content import CAPTIONED, Content, Query, Sample

WIDTH = 1400  # px without the margin
DPI = 125  # of the charts: their text is as large as that around them
COLUMNS = 2  # of text queries, and of charts
GAP = 40  # px between columns
HALF = (WIDTH - GAP) // 2
TILE = 130  # px of an answer
SAMPLE_GAP = 16  # px between captioned pictures


def picture(content: Content) -> Any:
    """The whole report as one Pillow image."""
    charts = [stacked([heading("Retrieval"), opened(bar_chart(content, "png", HALF / DPI, DPI))])]
    if content.curves:
        tiles = [opened(curve_chart(curve, "png", HALF / 2 / DPI, 1.75, DPI)) for curve in content.curves]
        charts.append(stacked([heading("Losses"), grid(tiles, 2, 0)]))
    coded = [opened(chart) for _, chart in code_charts(content, "png", width=HALF / DPI, dpi=DPI)]
    blocks = [
        text_block(content.name, WIDTH, 34, bold=True),
        text_block(" · ".join(content.facts), WIDTH, 16, GREY),
        beside(charts, GAP),
        *([heading("Codes", WIDTH), beside(coded, GAP)] if coded else []),
    ]
    if content.to_left:
        tiles = grid([query_block(query) for query in content.to_left], COLUMNS, GAP, 16)
        words = f"{content.names[1].capitalize()} to {content.gallery}; right answers in green"
        blocks += [heading(words, WIDTH), tiles]
    if content.samples:
        blocks += [heading("Captions: written, and true", WIDTH), beside(map(sample, content.samples), SAMPLE_GAP)]
    return with_margin(stacked(blocks, 14))


def heading(words: str, width: int = HALF) -> Any:
    """A section's title, with air above it."""
    return stacked([text_block(" ", width, 8), text_block(words, width, 24, bold=True)], 0)


def query_block(query: Query) -> Any:
    """The words or the picture, and the best answers: pictures in a row, or words below each other."""
    if any(answer.picture is not None for answer in query.answers):
        answers = beside(
            [
                framed(answer.picture, TILE, RIGHT if answer.right else EDGE, 5 if answer.right else 2)
                for answer in query.answers
            ],
            6,
        )
    else:
        answers = stacked(
            [
                text_block(answer.caption, HALF, 16, RIGHT if answer.right else GREY, lines=1)
                for answer in query.answers
            ],
            2,
        )
    asks = text_block(query.text, HALF, 19) if query.picture is None else framed(query.picture, TILE)
    return stacked([asks, answers], 4)


def sample(shown: Sample) -> Any:
    """A captioned picture: what the decoder wrote, then a true caption."""
    width = (WIDTH - (CAPTIONED - 1) * SAMPLE_GAP) // CAPTIONED
    words = [text_block(shown.caption or "(nothing)", width, 16, bold=True, lines=3)]
    words.append(text_block(f"true: {shown.truths[0]}", width, 15, GREY, lines=3))
    return stacked([framed(shown.picture, width), *words], 6)
