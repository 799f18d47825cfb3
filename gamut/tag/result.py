"""What tagging a recording gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Span:
    """A stretch of a recording with the probability of every class, float32 [classes]."""

    start: float  # seconds
    end: float
    probabilities: np.ndarray

    def top(self, count: int, among: np.ndarray | None = None, least: float | np.ndarray = 0.0) -> list[int]:
        """Class ids, the most probable first: of the classes `among` (None: all) that have probability `least`, one for
        all or float [classes], up to `count`. Classes are chosen before the best are, so a filter never empties the
        list by itself."""
        ids = np.arange(len(self.probabilities)) if among is None else among
        ids = ids[self.probabilities[ids] >= np.broadcast_to(least, self.probabilities.shape)[ids]]
        return ids[np.argsort(-self.probabilities[ids], kind="stable")][:count].tolist()


@dataclass(frozen=True)
class Words:
    """A segment of text."""

    start: float  # seconds
    end: float
    text: str

    def later(self, seconds: float) -> Words:
        """The same, so much later."""
        return Words(round(self.start + seconds, 2), round(self.end + seconds, 2), self.text)


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
    least: float | np.ndarray = 0.0  # probability, of all classes or of each

    def of(self, tagged: Tagged, span: Span) -> list[tuple[str, float]]:
        """(name, probability), the most probable first."""
        found = span.top(self.count, self.among, self.least)
        return [(tagged.labels[one], float(span.probabilities[one])) for one in found]
