"""What tagging a recording gives, and how it is shown: as a table, as JSON a line a recording, as CSV a line a tag."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("file", "start", "end", "label", "probability")


@dataclass(frozen=True)
class Span:
    """A stretch of a recording with the probability of every class, float32 [classes]."""

    start: float  # seconds
    end: float
    probabilities: np.ndarray

    def top(self, count: int, among: np.ndarray | None = None, least: float = 0.0) -> list[int]:
        """Class ids, the most probable first: of the classes `among` (None: all) that have probability `least`, up to
        `count`. Classes are chosen before the best are, so a filter never empties the list by itself."""
        ids = np.arange(len(self.probabilities)) if among is None else among
        order = ids[np.argsort(-self.probabilities[ids], kind="stable")]
        return [int(one) for one in order[:count] if self.probabilities[one] >= least]


@dataclass(frozen=True)
class Words:
    """A segment of text."""

    start: float  # seconds
    end: float
    text: str


@dataclass(frozen=True)
class Tagged:
    """All about one recording."""

    path: Path
    seconds: float
    labels: tuple[str, ...]  # of the classes; empty where there is no head
    spans: tuple[Span, ...]
    text: str | None = None  # None: no text was asked for
    words: tuple[Words, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Which of a span's classes are shown."""

    count: int = 5
    among: np.ndarray | None = None  # int64, class ids; None: all
    least: float = 0.0  # probability

    def of(self, tagged: Tagged, span: Span) -> list[tuple[str, float]]:
        """(name, probability), the most probable first."""
        found = span.top(self.count, self.among, self.least)
        return [(tagged.labels[one], float(span.probabilities[one])) for one in found]


def as_json(tagged: Tagged, choice: Choice) -> str:
    """One line."""
    content: dict = {"file": str(tagged.path), "seconds": round(tagged.seconds, 4)}
    if tagged.labels:
        content["spans"] = [
            {
                "start": span.start,
                "end": span.end,
                "tags": [{"label": name, "probability": round(p, 6)} for name, p in choice.of(tagged, span)],
            }
            for span in tagged.spans
        ]
    if tagged.text is not None:
        content["text"] = tagged.text
        content["segments"] = [{"start": one.start, "end": one.end, "text": one.text} for one in tagged.words]
    return json.dumps(content, ensure_ascii=False)


def as_csv(tagged: Tagged, choice: Choice) -> str:
    """Lines in `COLUMNS`; a segment of text has the label `text` and the text in place of the probability."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for span in tagged.spans:
        for name, probability in choice.of(tagged, span):
            writer.writerow([tagged.path, span.start, span.end, name, f"{probability:.6f}"])
    for one in tagged.words:
        writer.writerow([tagged.path, one.start, one.end, "text", one.text.strip()])
    return out.getvalue().rstrip("\n")


def as_table(tagged: Tagged, choice: Choice, width: int | None = None) -> str:
    """For people."""
    table = Table(title=Text(f"{tagged.path}, {tagged.seconds:.1f} s"), title_justify="left")
    table.add_column("seconds", justify="right")
    table.add_column("tags" if tagged.labels else "text")
    rows: list[tuple[float, int, str, Text]] = []  # names and text may have brackets, which are no markup
    for span in tagged.spans:
        tags = ", ".join(f"{name} {p:.0%}" for name, p in choice.of(tagged, span)) or "-"
        rows.append((span.start, 1, f"{span.start:.1f} - {span.end:.1f}", Text(tags)))
    for one in tagged.words:
        rows.append((one.start, 0, f"{one.start:.1f} - {one.end:.1f}", Text(one.text.strip(), "italic")))
    for _, _, when, what in sorted(rows, key=lambda row: row[:2]):
        table.add_row(when, what)
    out = io.StringIO()
    Console(file=out, width=width or 110).print(table)
    return out.getvalue().rstrip("\n")
