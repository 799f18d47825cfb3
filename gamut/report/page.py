"""A document as one HTML page that needs nothing but itself: pictures and sounds lie in it, nothing is fetched."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from html import escape

from gamut.report import charts
from gamut.report.document import (
    Bars,
    Block,
    Calibration,
    Charts,
    Document,
    Facts,
    Heading,
    Matrix,
    Mistake,
    Mistakes,
    Pictures,
    Table,
    Text,
)

STYLE = """
:root { --ink: #1d2430; --soft: #5d6675; --line: #dfe3ea; --paper: #fff; --back: #f5f6f9; --accent: #3060b0; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "Noto Color Emoji", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; }
h3 { font-size: 14.5px; margin: 20px 0 8px; }
p { margin: 8px 0; }
.lead, .note, figcaption { color: var(--soft); }
nav { margin: 14px 0 18px; display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 6px 20px 18px;
  margin: 16px 0; }
h2 { font-size: 19px; margin: 12px 0 10px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 10px 0; }
.facts div { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.facts dt, .facts dd { margin: 0; font-size: 13px; color: var(--soft); }
.facts dd:nth-child(2) { font-size: 22px; font-weight: 600; color: var(--ink); line-height: 1.3; }
.facts dl { margin: 0; }
.facts.small { grid-template-columns: repeat(auto-fill, minmax(125px, 1fr)); gap: 8px; }
.facts.small div { border: none; padding: 2px 0; }
.facts.small dd:nth-child(2) { font-size: 16px; }
.warning { background: #fff6e2; border: 1px solid #ecd6a0; border-radius: 8px; padding: 8px 12px; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 14px; margin: 8px 0; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; text-align: left; white-space: nowrap; }
th, td { padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { min-width: 3em; max-width: 34em; overflow-wrap: break-word; }
th.number, td.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
table.bars td:first-child { min-width: 8em; }
.bar { width: 190px; height: 11px; margin-top: 6px; background: #e9edf4; border-radius: 3px; }
.bar i { display: block; height: 100%; background: var(--accent); border-radius: 3px; }
details { margin: 12px 0 4px; }
summary { cursor: pointer; color: var(--accent); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); gap: 14px 22px; }
figure { margin: 6px 0; min-width: 0; }
figure.one { max-width: 460px; }
figcaption { font-size: 13.5px; margin-bottom: 3px; }
svg.chart { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 10.5px; }
svg.matrix text { font-size: inherit; fill: var(--ink); }
svg .axis { font-size: 10px; }
svg .grid { stroke: var(--line); }
svg .mark { stroke: #98a1b0; stroke-dasharray: 4 3; }
svg .frame { fill: none; stroke: var(--line); }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px; color: var(--soft); margin-top: 4px; }
.legend span::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  background: var(--c, transparent); margin-right: 5px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 18px; }
.pictures img { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); gap: 16px; }
.mistake { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; min-width: 0; }
.mistake img { width: 100%; height: 110px; display: block; border-radius: 4px; image-rendering: auto; }
.mistake audio { width: 100%; height: 34px; margin-top: 6px; }
.mistake p { margin: 6px 0 0; font-size: 14px; }
.mistake .key { font-size: 12.5px; color: var(--soft); }
.said { list-style: none; margin: 4px 0 0; padding: 0; font-size: 14px; }
.said li { display: flex; justify-content: space-between; gap: 10px; }
.right { color: #1f7a49; } .wrong { color: #b23a24; }
@media (max-width: 600px) { main { padding: 16px 10px 40px; } section { padding: 4px 12px 14px; }
  h1 { font-size: 22px; }
  .bar { width: 90px; } th, td { padding-right: 12px; } .facts { grid-template-columns: 1fr 1fr; gap: 8px; } }
@media print { section { break-inside: avoid; border: none; } body { background: none; } }
"""


def page(document: Document) -> str:
    """The page's text. Everything that came from a run is escaped."""
    named = [block for block in document.blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{_anchor(one.text)}">{escape(one.text)}</a>' for one in named)
    parts, inside = [], False
    for block in document.blocks:
        if isinstance(block, Heading) and block.level == 2:
            parts.append("</section>" * inside + f'<section id="{_anchor(block.text)}">')
            inside = True
        parts.append(_block(block))
    parts.append("</section>" * inside)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # What is in the page may be shown and heard; nothing may be fetched or run, whatever a name holds.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:; media-src data:">'
        f"<title>{escape(document.title)}</title><style>{STYLE}</style></head>\n<body><main><h1>{escape(document.title)}</h1>"
        f'<p class="lead">{escape(document.lead)}</p><nav>{links}</nav>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text, warning):
            return f'<p class="{"warning" if warning else "note"}">{escape(text)}</p>'
        case Facts(facts, small):
            return f'<div class="facts{" small" * small}">{"".join(_fact(*fact) for fact in facts)}</div>'
        case Table():
            return _folded(_table(block), block.folded)
        case Bars():
            return _folded(_bars(block), block.folded)
        case Charts(drawn, folded):
            return _folded(f'<div class="charts">{"".join(map(charts.chart, drawn))}</div>', folded)
        case Matrix():
            return charts.matrix(block)
        case Calibration():
            return charts.reliability(block)
        case Pictures(pictures):
            shown = [
                f'<figure><figcaption>{escape(one.title)}</figcaption><img loading="lazy" alt="{escape(one.title)}" '
                f'src="{_data("image/png", one.png)}"></figure>'
                for one in pictures
            ]
            return f'<div class="pictures">{"".join(shown)}</div>'
        case Mistakes(some):
            return f'<div class="mistakes">{"".join(map(_mistake, some))}</div>'


def _fact(what: str, value: str, more: str) -> str:
    return f"<div><dl><dt>{escape(what)}</dt><dd>{escape(value)}</dd><dd>{escape(more)}</dd></dl></div>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marked = [f"<{tag}{_number(n >= table.words)}>{escape(cell)}</{tag}>" for n, cell in enumerate(cells)]
        return f"<tr>{''.join(marked)}</tr>"

    head = f"<thead>{row(table.head, 'th')}</thead>" if any(table.head) else ""
    body = "".join(row(cells, "td") for cells in table.rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _bars(of: Bars) -> str:
    name, value, *more = of.head
    head = f"<th>{escape(name)}</th><th></th>" + "".join(
        f"<th{_number(True)}>{escape(one)}</th>" for one in (value, *more)
    )
    rows = []
    for bar in of.bars:
        width = 0.0 if math.isnan(bar.share) else 100 * min(max(bar.share, 0.0), 1.0)
        cells = "".join(f"<td{_number(True)}>{escape(one)}</td>" for one in (bar.value, *bar.more))
        drawn = f'<div class="bar"><i style="width:{width:.1f}%"></i></div>'
        rows.append(f"<tr><td>{escape(bar.name)}</td><td>{drawn}</td>{cells}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table class="bars">{body}</table></div>'


def _mistake(one: Mistake) -> str:
    image = f'<img alt="log-mel of the clip" src="{_data("image/png", one.spectrogram)}">' if one.spectrogram else ""
    sound = f'<audio controls preload="metadata" src="{_data("audio/flac", one.sound)}"></audio>' if one.sound else ""
    said = "".join(
        f'<li><span class="{"right" if name in one.truth else "wrong"}">{escape(name)}</span>{share:.0%}</li>'
        for name, share in one.said
    )
    truth = escape(", ".join(one.truth) or "none of the classes")
    where = f"{one.key}, {one.where}" if one.where else one.key
    return (
        f'<div class="mistake">{image}{sound}<p>is <b>{truth}</b>, was taken for</p><ul class="said">{said}</ul>'
        f'<p class="key">{escape(where)}</p></div>'
    )


def _folded(shown: str, title: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{shown}</details>" if title else shown


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
