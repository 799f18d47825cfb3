"""What a report is made of, before it is a page or Markdown: blocks in order, all of their texts plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gamut.evaluate.decisions import Reliability


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2  # 2: a section, 3: within one


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Facts:
    """Numbers that a run is known by: what, its value, and what else is to say of it; `small`: one of many."""

    facts: Sequence[tuple[str, str, str]]
    small: bool = False


@dataclass(frozen=True)
class Table:
    """head and rows of texts; `folded`: shown once it is asked for, under this title."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""
    words: int = 1  # how many of the columns, from the left, are words; the others are numbers


@dataclass(frozen=True)
class Bar:
    name: str
    share: float  # of the bar's whole length, 0 to 1; nan: there is no number
    value: str
    more: Sequence[str] = ()  # further numbers


@dataclass(frozen=True)
class Bars:
    """A bar a row: `head` names what the rows are, the bar's number, and those beside it."""

    head: Sequence[str]
    bars: Sequence[Bar]
    folded: str = ""


@dataclass(frozen=True)
class Line:
    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Lines over steps; `marks`: steps at which another attempt went on."""

    title: str
    lines: Sequence[Line]
    marks: Sequence[float] = ()
    across: str = "step"


@dataclass(frozen=True)
class Charts:
    charts: Sequence[Chart]
    folded: str = ""


@dataclass(frozen=True)
class Matrix:
    """Confusion: counts int [classes, classes], row truth, column what was said."""

    counts: np.ndarray
    labels: Sequence[str]


@dataclass(frozen=True)
class Calibration:
    lines: Sequence[tuple[str, Reliability]]


@dataclass(frozen=True)
class Picture:
    title: str
    png: bytes
    file: Path


@dataclass(frozen=True)
class Pictures:
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Mistake:
    """A clip that a model was wrong about, with what there is to see and hear of it."""

    key: str
    truth: Sequence[str]
    said: Sequence[tuple[str, float]]  # (class, probability), the highest first
    where: str = ""  # the round
    spectrogram: bytes = b""  # PNG
    sound: bytes = b""  # FLAC


@dataclass(frozen=True)
class Mistakes:
    mistakes: Sequence[Mistake]


Block = Heading | Text | Facts | Table | Bars | Charts | Matrix | Calibration | Pictures | Mistakes


@dataclass
class Document:
    title: str
    lead: str  # one line below it
    blocks: list[Block] = field(default_factory=list)
