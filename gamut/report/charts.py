"""Lines, confusion and calibration as SVG that lies in the page and scales with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from gamut.report.document import Calibration, Chart, Line, Matrix

COLOURS = ("#3060b0", "#d1603d", "#2f8f5b", "#8a55b5", "#b8891d", "#c2457f", "#3a9aa8", "#6b6b6b", "#7d4a2b", "#8fae2e")
WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 26
POINTS = 240  # of a line: of more, each is the mean of its neighbours
NAMED = 12  # lines in a legend


def chart(of: Chart) -> str:
    """Lines on one pair of axes; a dashed line across time where an attempt went on, and a legend of several."""
    lines = [_thinned(line) for line in of.lines]
    lines = [line for line in lines if len(line.x)]
    title = f"<figcaption>{escape(of.title)}</figcaption>"
    if not lines:
        return f"<figure>{title}<p>no finite value</p></figure>"
    x = _axis([value for line in lines for value in line.x])
    y = _axis([value for line in lines for value in line.y])
    parts = _frame(x, y, of.across)
    for mark in of.marks:
        if x[0] <= mark <= x[1]:
            at = _across(mark, x)
            parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for number, line in enumerate(lines):
        points = " ".join(f"{_across(a, x):.1f},{_up(b, y):.1f}" for a, b in zip(line.x, line.y))
        dots = len(line.x) <= 30
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" stroke="{colour}"/>')
        if dots:
            parts += [
                f'<circle cx="{_across(a, x):.1f}" cy="{_up(b, y):.1f}" r="2.2" fill="{colour}"><title>{a:g}: {b:.5g}'
                "</title></circle>"
                for a, b in zip(line.x, line.y)
            ]
    return f"<figure>{title}{_svg(parts, of.title)}{_legend([line.name for line in lines])}</figure>"


def reliability(of: Calibration) -> str:
    """What was said against what was true, and how many decisions each point stands for in its size."""
    parts = _frame((0.0, 1.0), (0.0, 1.0), "probability that was said")
    a, b = (_across(0, (0, 1)), _up(0, (0, 1))), (_across(1, (0, 1)), _up(1, (0, 1)))
    parts.append(f'<line class="mark" x1="{a[0]}" y1="{a[1]}" x2="{b[0]}" y2="{b[1]}"/>')
    for number, (_, found) in enumerate(of.lines):
        colour = COLOURS[number % len(COLOURS)]
        some = np.flatnonzero(found.clips > 0)
        most = max(float(found.clips.max()), 1.0)
        places = [(_across(found.said[n], (0, 1)), _up(found.true[n], (0, 1))) for n in some]
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" stroke="{colour}"/>')
        for n, (x, y) in zip(some, places):
            size = 1.5 + 5 * math.sqrt(float(found.clips[n]) / most)
            told = f"said {found.said[n]:.2f}, true {found.true[n]:.2f}, {found.clips[n]:.0f} decisions"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{colour}" fill-opacity=".55"><title>{told}'
                "</title></circle>"
            )
    legend = _legend([name for name, _ in of.lines])
    return (
        f'<figure class="one"><figcaption>share that is right</figcaption>{_svg(parts, "calibration")}{legend}</figure>'
    )


def matrix(of: Matrix) -> str:
    """Rows are what clips are, columns what was said; the darker, the larger a share of the row. Counts of few classes
    stand in their cells, others come up at a pointer."""
    n = len(of.labels)
    side = 30 if n <= 20 else 14 if n <= 50 else 8
    font = min(11, side - 1)
    shown = [_cut(label) for label in of.labels]
    margin = 8 + 0.62 * font * max((_wide(label) for label in shown), default=0)
    parts = []
    totals = of.counts.sum(axis=1)
    for row in range(n):
        middle = margin + (row + 0.5) * side
        name = escape(shown[row])
        parts.append(f'<text x="{margin - 4:.0f}" y="{middle + font / 3:.1f}" text-anchor="end">{name}</text>')
        turn = f"rotate(-90 {middle + font / 3:.1f} {margin - 4:.0f})"
        parts.append(f'<text x="{middle + font / 3:.1f}" y="{margin - 4:.0f}" transform="{turn}">{name}</text>')
    for row, column in zip(*(places.tolist() for places in np.nonzero(of.counts))):
        count = int(of.counts[row, column])
        share = count / totals[row]
        x, y = margin + column * side, margin + row * side
        colour = "#2f8f5b" if row == column else "#c8472f"
        told = escape(f"{of.labels[row]} taken for {of.labels[column]}: {count} of {int(totals[row])}")
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" fill="{colour}" '
            f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{told}</title></rect>'
        )
        if n <= 20:
            ink = "#fff" if share > 0.5 else "#222"
            place = f'x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle"'
            parts.append(f'<text {place} style="fill:{ink}">{count}</text>')
    whole = margin + n * side
    frame = f'<rect x="{margin:.1f}" y="{margin:.1f}" width="{n * side}" height="{n * side}" class="frame"/>'
    return (
        f'<div class="wide"><svg class="matrix" role="img" aria-label="confusion" width="{whole + 2:.0f}" '
        f'height="{whole + 2:.0f}" viewBox="0 0 {whole + 2:.0f} {whole + 2:.0f}" font-size="{font}">'
        f"{''.join(parts)}{frame}</svg></div>"
        '<p class="note">Rows: what clips are. Columns: what they were taken for.</p>'
    )


def _thinned(line: Line) -> Line:
    """Without what is not finite, and with POINTS points at most."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    there = np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) > POINTS:
        ends = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
        size = np.diff([*ends, len(x)])
        x, y = np.add.reduceat(x, ends) / size, np.add.reduceat(y, ends) / size
    return Line(line.name, x.tolist(), y.tolist())


def _axis(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - spare, high + spare


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends, at most so many and a few.

    >>> ticks(0.1, 4.3)
    [1.0, 2.0, 3.0, 4.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * size for size in (1, 2, 5, 10) if power * size >= rough), 10 * power)
    first = math.ceil(low / step)
    return [float(number * step) for number in range(first, math.floor(high / step) + 1)]


def _frame(x: tuple[float, float], y: tuple[float, float], across: str) -> list[str]:
    parts = []
    for tick in ticks(*y):
        at = _up(tick, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in ticks(*x, most=4):
        parts.append(
            f'<text x="{_across(tick, x):.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">{_short(tick)}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end" class="axis">{escape(across)}</text>')
    return parts


def _svg(parts: Sequence[str], label: str) -> str:
    drawn = "".join(parts)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">{drawn}</svg>'


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    entries = [
        f'<span style="--c:{COLOURS[n % len(COLOURS)]}">{escape(name)}</span>' for n, name in enumerate(names[:NAMED])
    ]
    more = f"<span>and {len(names) - NAMED} more</span>" if len(names) > NAMED else ""
    return f'<div class="legend">{"".join(entries)}{more}</div>'


def _across(value: float, x: tuple[float, float]) -> float:
    return LEFT + (value - x[0]) / (x[1] - x[0]) * (WIDTH - LEFT - RIGHT)


def _up(value: float, y: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (value - y[0]) / (y[1] - y[0]) * (HEIGHT - TOP - BOTTOM)


def _short(value: float) -> str:
    """A number of an axis: `1.5`, `20k`, `3e-05`"""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def _cut(label: str, most: int = 24) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _wide(label: str) -> float:
    """The width of a text in letters; those of East Asia and pictures are as wide as two."""
    return sum(2.0 if ord(letter) > 0x2E80 else 1.0 for letter in label)
