"""A document as Markdown: tables where the page has bars and cells, a row of little blocks where it has a curve."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from gamut.report.document import (
    Bars,
    Block,
    Calibration,
    Charts,
    Document,
    Facts,
    Heading,
    Line,
    Matrix,
    Mistakes,
    Pictures,
    Table,
    Text,
)
from gamut.track.tables import markdown

BLOCKS = "▁▂▃▄▅▆▇█"
LONG = 32  # blocks of a curve
CELLS = 20  # classes whose confusion is a table


def plain(document: Document, folder: Path) -> str:
    """The text of a file in `folder`, from which pictures are linked to where they lie."""
    parts = [f"# {_text(document.title)}", _text(document.lead), *(_block(block, folder) for block in document.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_text(text)}"
        case Text(text, warning):
            return ("**Beware:** " if warning else "") + _text(text)
        case Facts(facts, _):
            return "\n".join(
                f"- {_text(what)}: **{_text(value)}**{_text(more and f' ({more})')}" for what, value, more in facts
            )
        case Table(head, rows, folded, _):
            return _titled(_table(head, rows), folded)
        case Bars(head, bars, folded):
            return _titled(_table(head, [[bar.name, bar.value, *bar.more] for bar in bars]), folded)
        case Charts(drawn, folded):
            rows = [
                [f"{chart.title}{f', {line.name}' if len(chart.lines) > 1 else ''}", *_curve(line)]
                for chart in drawn
                for line in chart.lines
            ]
            marks = sorted({f"{mark:,.0f}" for chart in drawn for mark in chart.marks})
            went_on = f"\n\nAnother attempt went on at step {', '.join(marks)}." if marks else ""
            return _titled(_table(["metric", "first", "lowest", "highest", "last", "curve"], rows) + went_on, folded)
        case Matrix(counts, labels):
            if len(labels) > CELLS:
                return ""
            rows = [
                [label, *(str(count) if count else "" for count in row.tolist())] for label, row in zip(labels, counts)
            ]
            return _table(["is, taken for", *labels], rows)
        case Calibration(lines):
            rows = [
                [name, f"{said:.2f}", f"{true:.2f}", f"{clips:.0f}"]
                for name, found in lines
                for said, true, clips in zip(found.said, found.true, found.clips)
                if clips
            ]
            return _table(["run", "said", "true", "decisions"], rows)
        case Pictures(pictures):
            return "\n\n".join(f"![{_text(one.title)}](<{os.path.relpath(one.file, folder)}>)" for one in pictures)
        case Mistakes(some):
            rows = [
                [one.key, one.where, ", ".join(one.truth), ", ".join(f"{name} {share:.0%}" for name, share in one.said)]
                for one in some
            ]
            return _table(["clip", "round", "is", "was taken for"], rows)


def _curve(line: Line) -> list[str]:
    values = np.asarray(line.y, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return [""] * 5
    ends = np.linspace(0, len(values), min(LONG, len(values)) + 1).astype(int)
    low, high = float(values.min()), float(values.max())
    means = [float(values[a:b].mean()) for a, b in pairwise(ends)]
    size = (high - low) or math.inf
    drawn = "".join(BLOCKS[min(int((mean - low) / size * len(BLOCKS)), len(BLOCKS) - 1)] for mean in means)
    return [*(f"{one:.4g}" for one in (values[0], low, high, values[-1])), drawn]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown([*map(_text, head)], [[*map(_text, row)] for row in rows])


def _titled(text: str, title: str) -> str:
    return f"### {_text(title)}\n\n{text}" if title else text


def _text(text: str) -> str:
    """A text of which Markdown makes nothing: no HTML, no cells, no emphasis.

    >>> print(_text("<b>|a_b|"))
    &lt;b&gt;\\|a\\_b\\|
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split()) if "\n" in text else text)
