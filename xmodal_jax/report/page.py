"""report.html: one file without links, readable on a phone, light or dark as the reader's system is."""

import base64
from html import escape
from typing import Any

from xmodal_jax.drawing import data_url
from xmodal_jax.eval.tables import (
    Grid,
    codes_grid,
    further_grids,
    label_grid,
    language_grid,
    notes,
    recall_cells,
    recall_names,
    retrieval_grid,
)
from xmodal_jax.report.charts import (
    bars_height,
    by_languages,
    chart,
    code_charts,
    direction_words,
    draw_bars,
    draw_curve,
    draw_evaluations,
    draw_languages,
    languages_height,
)
from xmodal_jax.report.content import Content, Query, Sample, names_of

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5d6776;--page:#fff;--card:#f5f7f9;--line:#dfe4ea;--right:#1a9641}
@media(prefers-color-scheme:dark){
:root{--ink:#e4e8ee;--soft:#98a3b1;--page:#14171b;--card:#1d2228;--line:#333b45;--right:#4cc26f}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;padding:1rem;
max-width:76rem}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:1.8rem 0 .5rem}
h3{font-size:1rem;margin:1rem 0 .3rem}p{margin:.3rem 0}
.note,small{color:var(--soft);font-size:.85rem}
.top{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem;align-items:start;
margin-top:.8rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:.8rem 0}
.tile,.facts,.top>div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem}
.tile b{display:block;font-size:1.55rem;line-height:1.2}.tile small{display:block}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;margin:0;font-size:.85rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.5rem 0 1rem}table{border-collapse:collapse;font-size:.82rem;white-space:nowrap;
font-variant-numeric:tabular-nums}
th,td{padding:.2rem .55rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}tr.floor{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));gap:.5rem}
.charts.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr))}
.charts img,.top>div>img{display:block;width:100%;height:auto}
.queries{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1rem 1.6rem}
.query b{display:block;overflow-wrap:anywhere}
.answers{display:grid;grid-template-columns:repeat(5,1fr);gap:.3rem;margin-top:.2rem}
figure{margin:0;font-size:.72rem;line-height:1.25;overflow-wrap:anywhere}
figure img{display:block;width:100%;aspect-ratio:1;object-fit:contain;border:2px solid var(--line);background:#fff;
border-radius:4px}
.right img{border:4px solid var(--right)}
.sample{display:grid;grid-template-columns:6.5rem 1fr;gap:.7rem}ol{margin:0;padding-left:1.3rem;font-size:.9rem}
li.right{color:var(--right);font-weight:600}.sample p{margin:0 0 .2rem}
"""


def page(content: Content) -> str:
    """Return the whole report as HTML."""
    parts = [
        f"<h1>{escape(content.run)}</h1>",
        "".join(f'<p class="note">{escape(remark)}</p>' for remark in content.remarks),
        tiles(content),
        overview(content),
        retrieval_section(content),
        languages_section(content),
        codes_section(content),
        curves_section(content),
        queries_section(content),
        samples_section(content),
    ]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f"<head>{meta}<title>{escape(content.run)}</title><style>{STYLE}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body>{"".join(parts)}</body></html>\n'


def tiles(content: Content) -> str:
    """Return the recall of the embeddings in large figures, chance beside it, and of the codes."""
    mean, names = content.result["mean"], recall_names(content.result)
    first, *others = names
    chance = {side: vars(floor)[side].get(first) for floor in content.floors[:1] for side in ("i2t", "t2i")}
    found = []
    for side, words in direction_words(content).items():
        recall = mean["itc"][side]
        more = " · ".join(f"{name} {recall[name]:.1f}" for name in others if name in recall)
        random = f" · chance {chance[side]:.1f}" if chance.get(side) is not None else ""
        found.append((f"{recall[first]:.1f} %", f"{words} {first}{random}", more))
    found.append((f"{mean['itc']['rSum']:.1f}", "rSum of the embeddings", "all recalls added"))
    if "codes" in mean:
        found.append((f"{mean['codes']['rSum']:.1f}", "rSum of the codes", f"{mean['codes']['bits']:.0f} bits each"))
    made = (
        f"<div class='tile'><b>{big}</b>{escape(words)}<small>{escape(more)}</small></div>"
        for big, words, more in found
    )
    return f'<div class="tiles">{"".join(made)}</div>'


def overview(content: Content) -> str:
    """Return the bars, the evaluations while training, and how run and report were made, side by side."""
    bars = chart(lambda axes: draw_bars(axes, content), 3.9, bars_height(content))
    cards = [chart_tag(bars, f"{content.measure} beside the floors")]
    if content.evaluations:
        curve = chart(lambda axes: draw_evaluations(axes, content), 3.9, 2.7)
        cards.append(chart_tag(curve, f"{content.measure} while training"))
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in content.facts.items())
    made = "".join(f"<div>{card}</div>" for card in cards)
    return f'<div class="top">{made}<dl class="facts">{facts}</dl></div>'


def image_tag(data: bytes, words: str) -> str:
    """Return an inline picture with its caption as the alternative text."""
    return f'<img src="{data_url(data)}" alt="{escape(words, quote=True)}">'


def chart_tag(svg: bytes, words: str) -> str:
    """Return an inline chart."""
    data = base64.b64encode(svg).decode("ascii")
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(words, quote=True)}">'


def table(grid: Grid, floors: int = 0) -> str:
    """Return a table that scrolls by itself on a narrow screen; the last `floors` rows are greyed."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in grid.head)
    rows = []
    for number, row in enumerate(grid.rows):
        mark = ' class="floor"' if number >= len(grid.rows) - floors else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def named_grid(result: dict[str, Any]) -> Grid:
    """Return the retrieval table, whose first column has the name of the ranked side."""
    grid = retrieval_grid(result)
    return Grid([names_of(result)[0], *grid.head[1:]], grid.rows)


def retrieval_section(content: Content) -> str:
    """Return the retrieval table with the floors below it, further tables, and how the numbers were made."""
    grid, names = named_grid(content.result), recall_names(content.result)
    shown = [["floor", floor.name, *recall_cells(vars(floor), names), "", "", ""] for floor in content.floors]
    pairs = content.result.get("pairs", {})
    more = "".join(f"<h3>{escape(name)}</h3>{table(named_grid(own))}" for name, own in pairs.items())
    more += "".join(f"<h3>{escape(name)}</h3>{table(grid)}" for name, grid in further_grids(content.result))
    said = notes(content.result) + [f"{floor.name}: {floor.origin}." for floor in content.floors]
    return (
        "<h2>Retrieval</h2>"
        + table(Grid(grid.head, [*grid.rows, *shown]), len(shown))
        + more
        + "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in said)
    )


def languages_section(content: Content) -> str:
    """Return the chart and the table of each pair with captions in several languages; "" without any."""
    made = []
    for name, own in by_languages(content.result).items():
        drawn = chart(lambda axes, own=own: draw_languages(axes, own), 4.2, languages_height(own))
        grid, title = language_grid(own), f"<h3>{escape(name)}</h3>" if name else ""
        made.append(f'{title}<div class="charts wide"><div>{chart_tag(drawn, "recall by language")}</div></div>')
        made.append(table(grid) if grid else "")
    return f"<h2>Languages</h2>{''.join(made)}" if made else ""


def codes_section(content: Content) -> str:
    """Return tables and charts of codes of every length: bytes against recall, MAP and precision by labels."""
    tables = "".join(table(grid) for grid in (codes_grid(content.result), label_grid(content.result)) if grid)
    charts = "".join(f"<div>{chart_tag(svg, words)}</div>" for words, svg in code_charts(content))
    return f'<h2>Codes</h2>{tables}<div class="charts wide">{charts}</div>' if tables else ""


def curves_section(content: Content) -> str:
    """Return the charts of the losses."""
    if not content.curves:
        return "<h2>Losses</h2><p>The work directory has no metrics.jsonl.</p>"
    made = (
        (curve.name, chart(lambda axes, curve=curve: draw_curve(axes, curve), 2.6, 1.9)) for curve in content.curves
    )
    charts = "".join(f"<div>{chart_tag(svg, f'loss {name}')}</div>" for name, svg in made)
    return f'<h2>Losses</h2><div class="charts">{charts}</div>'


def queries_section(content: Content) -> str:
    """Return both sides' queries with their best answers, such as words with pictures; "" without the data set."""
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
    """Return one query with its answers: pictures side by side, or a list of words."""
    pictured = any(answer.picture is not None for answer in query.answers)
    answers = picture_answers(query) if pictured else word_answers(query)
    rank = f"<small>first right answer at rank {query.rank:.4g}</small>"  # a tie has a fractional one
    if query.picture is None:
        return f'<div class="query"><b>{escape(query.text)}</b>{rank}{answers}</div>'
    figure = f"<figure>{image_tag(query.picture, 'query')}</figure>"
    return f'<div class="sample">{figure}<div>{answers}{rank}</div></div>'


def picture_answers(query: Query) -> str:
    """Return answers that are pictures, with their captions below."""
    figures = "".join(
        f'<figure class="{"right" if answer.right else "wrong"}">{image_tag(answer.picture, answer.caption)}'
        f"<figcaption>{escape(answer.caption)}</figcaption></figure>"
        for answer in query.answers
        if answer.picture is not None
    )
    return f'<div class="answers">{figures}</div>'


def word_answers(query: Query) -> str:
    """Return answers that are words, or of a medium that has no pictures."""
    items = "".join(
        f'<li class="right">{escape(answer.caption)} ✓</li>' if answer.right else f"<li>{escape(answer.caption)}</li>"
        for answer in query.answers
    )
    return f"<ol>{items}</ol>"


def samples_section(content: Content) -> str:
    """Return captions of the decoder beside the true ones."""
    if not content.samples:
        return ""
    return f"<h2>Captions</h2><div class='queries'>{''.join(map(sample, content.samples))}</div>"


def sample(shown: Sample) -> str:
    """Return one captioned picture."""
    truths = "".join(f"<p class='note'>true: {escape(truth)}</p>" for truth in shown.truths)
    written = escape(shown.caption) or "(nothing)"
    figure = f"<figure>{image_tag(shown.picture, shown.truths[0])}</figure>"
    return f'<div class="sample">{figure}<div><p><b>{written}</b></p>{truths}</div></div>'
