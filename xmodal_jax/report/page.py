"""report.html: one file without links, readable on a phone."""

import base64
from html import escape
from typing import Any

from xmodal_jax.drawing import data_url
from xmodal_jax.eval.tables import (
    Grid,
    codes_grid,
    further_grids,
    label_grid,
    notes,
    recall_cells,
    recall_names,
    retrieval_grid,
)
from xmodal_jax.report.charts import bar_chart, code_charts, curve_chart
from xmodal_jax.report.content import Content, Query, Sample, names_of

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;margin:0 auto;padding:1rem;max-width:70rem}
h1{font-size:1.6rem;margin:.3rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}p{margin:.4rem 0}
.facts,.note{color:#566070;font-size:.9rem}
.scroll{overflow-x:auto;margin:.6rem 0 1.2rem}table{border-collapse:collapse;font-size:.85rem;white-space:nowrap}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e3e7ec}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}tr.floor{color:#566070}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr));gap:.5rem}
.charts img,.wide img{width:100%;height:auto}.wide{max-width:34rem}
.queries{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,31rem),1fr));gap:1rem 2rem}
.query b{display:block;overflow-wrap:anywhere}.query small{color:#566070}
.top{display:grid;grid-template-columns:repeat(5,1fr);gap:.4rem}
figure{margin:0;font-size:.75rem;line-height:1.25;overflow-wrap:anywhere}
figure img{width:100%;aspect-ratio:1;object-fit:contain;box-sizing:border-box;border:2px solid #d5dae1;background:#fff}
.right img{border:4px solid #1a9641}
.sample{display:grid;grid-template-columns:7rem 1fr;gap:.8rem}ol{margin:0;padding-left:1.4rem}
li.right{color:#1a9641;font-weight:600}.sample p{margin:0 0 .3rem}
"""


def page(content: Content) -> str:
    """The whole report as HTML."""
    parts = [
        f"<h1>{escape(content.name)}</h1>",
        f'<p class="facts">{escape(" · ".join(content.facts))}</p>',
        retrieval_section(content),
        codes_section(content),
        curves_section(content),
        queries_section(content),
        samples_section(content),
    ]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f"<head>{meta}<title>{escape(content.name)}: report</title><style>{STYLE}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body>{"".join(parts)}</body></html>\n'


def image_tag(data: bytes, words: str) -> str:
    """An inline picture with its caption as the alternative text."""
    return f'<img src="{data_url(data)}" alt="{escape(words, quote=True)}">'


def chart_tag(svg: bytes, words: str) -> str:
    """An inline chart."""
    data = base64.b64encode(svg).decode("ascii")
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(words, quote=True)}">'


def table(grid: Grid, floors: int = 0) -> str:
    """A table that scrolls by itself on a narrow screen; the last `floors` rows are greyed."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in grid.head)
    rows = []
    for number, row in enumerate(grid.rows):
        mark = ' class="floor"' if number >= len(grid.rows) - floors else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def named_grid(result: dict[str, Any]) -> Grid:
    """The retrieval table, with what is ranked by its own name."""
    grid = retrieval_grid(result)
    return Grid([names_of(result)[0], *grid.head[1:]], grid.rows)


def retrieval_section(content: Content) -> str:
    """Bars, the retrieval table with the floors below it, and how the numbers were made."""
    grid, names = named_grid(content.result), recall_names(content.result)
    shown = [["floor", floor.name, *recall_cells(vars(floor), names), "", "", ""] for floor in content.floors]
    pairs = content.result.get("pairs", {})
    more = "".join(f"<h3>{escape(name)}</h3>{table(named_grid(own))}" for name, own in pairs.items())
    more += "".join(f"<h3>{escape(name)}</h3>{table(grid)}" for name, grid in further_grids(content.result))
    said = notes(content.result) + [f"{floor.name}: {floor.origin}." for floor in content.floors]
    return (
        f"<h2>Retrieval</h2><p class='wide'>{chart_tag(bar_chart(content, 'svg'), 'R@1 beside the floors')}</p>"
        + table(Grid(grid.head, [*grid.rows, *shown]), len(shown))
        + more
        + "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in said)
    )


def codes_section(content: Content) -> str:
    """Codes of every length: bytes against recall, MAP and precision by labels, and their charts."""
    tables = "".join(table(grid) for grid in (codes_grid(content.result), label_grid(content.result)) if grid)
    charts = "".join(f"<div>{chart_tag(svg, words)}</div>" for words, svg in code_charts(content, "svg"))
    return f'<h2>Codes</h2>{tables}<div class="charts">{charts}</div>' if tables else ""


def curves_section(content: Content) -> str:
    """The loss of each objective."""
    if not content.curves:
        return "<h2>Losses</h2><p>The work directory has no metrics.jsonl.</p>"
    charts = "".join(
        f"<div>{chart_tag(curve_chart(curve, 'svg'), f'loss {curve.name}')}</div>" for curve in content.curves
    )
    return f'<h2>Losses</h2><div class="charts">{charts}</div>'


def queries_section(content: Content) -> str:
    """Both sides' queries with their best answers, such as words with pictures; nothing without the data set."""
    if not content.to_left:
        return ""
    one, two = content.names
    asks = "captions" if two == "words" else two
    return (
        f"<h2>{escape(two.capitalize())} to {escape(one)}</h2><p class='note'>Evenly spaced {escape(asks)} of the "
        f"split, among its {escape(content.gallery)}, ranked by the embeddings. Right answers are framed in green.</p>"
        f"<div class='queries'>{''.join(map(query_block, content.to_left))}</div>"
        f"<h2>{escape(one.capitalize())} to {escape(two)}</h2>"
        f"<div class='queries'>{''.join(map(query_block, content.to_right))}</div>"
    )


def query_block(query: Query) -> str:
    """One query with its answers: pictures side by side, or a list of words."""
    pictured = [answer.picture for answer in query.answers if answer.picture is not None]
    answers = picture_answers(query) if pictured else word_answers(query)
    rank = f'<small class="note">first right answer at rank {query.rank:.4g}</small>'  # a tie has a fractional one
    if query.picture is None:
        return f'<div class="query"><b>{escape(query.text)}</b>{rank}{answers}</div>'
    figure = f"<figure>{image_tag(query.picture, 'query')}</figure>"
    return f'<div class="sample">{figure}<div>{answers}{rank}</div></div>'


def picture_answers(query: Query) -> str:
    """Answers that are pictures, with their captions below."""
    figures = "".join(
        f'<figure class="{"right" if answer.right else "wrong"}">{image_tag(answer.picture, answer.caption)}'
        f"<figcaption>{escape(answer.caption)}</figcaption></figure>"
        for answer in query.answers
    )
    return f'<div class="top">{figures}</div>'


def word_answers(query: Query) -> str:
    """Answers that are words, or of a medium that has no pictures."""
    items = "".join(
        f'<li class="right">{escape(answer.caption)} ✓</li>' if answer.right else f"<li>{escape(answer.caption)}</li>"
        for answer in query.answers
    )
    return f"<ol>{items}</ol>"


def samples_section(content: Content) -> str:
    """Captions of the decoder beside the true ones."""
    if not content.samples:
        return ""
    return f"<h2>Captions</h2><div class='queries'>{''.join(map(sample, content.samples))}</div>"


def sample(shown: Sample) -> str:
    """One captioned picture."""
    truths = "".join(f"<p class='note'>true: {escape(truth)}</p>" for truth in shown.truths)
    written = escape(shown.caption) or "(nothing)"
    figure = f"<figure>{image_tag(shown.picture, shown.truths[0])}</figure>"
    return f'<div class="sample">{figure}<div><p><b>{written}</b></p>{truths}</div></div>'
