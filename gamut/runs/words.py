"""Sizes, ages, scores and tables in words: plain text that no width cuts, for eyes and for grep."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gamut.evaluate import METRICS

SEEN = "seen_in_pretraining"  # in a result: how many of the scored clips the run behind init was trained on
SHARES = ("probe/knn/", "probe/linear/")  # scores that are shares of 1, and no metrics


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side.

    >>> print(table(["a", "bc"], [["10", "2"]]))
    a   bc
    10  2
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines)


def of_bytes(size: float) -> str:
    """`3.2 MB`"""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.2g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def since(when: float) -> str:
    """How long ago a time (seconds since 1970) was: `3 h`"""
    seconds = max(0.0, time.time() - when)
    for length, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def of_score(name: str, value: float) -> str:
    """`mAP 31.2%`, `loss 5.261`, `linear probe/cls 61.3%`"""
    return f"{name} {number(name, value)}" if name and not math.isnan(value) else ""


def number(name: str, value: float) -> str:
    """A score as its metric is shown: in percent where it is a share of 1."""
    bare = name.rpartition("/")[2]
    if bare in METRICS:
        return METRICS[bare].show(value)
    return f"{value:.1%}" if name.startswith(SHARES) else f"{value:.4g}"


def seen_by(results: Iterable[Mapping[str, Any]]) -> int:
    """How many of the clips that score them the run behind `init` was trained on."""
    return sum(int(result.get(SEEN) or 0) for result in results)


def marked(score: str, seen: int) -> str:
    """
    >>> marked("71.2%", 0), marked("71.2%", 160)
    ('71.2%', '71.2% *')
    """
    return f"{score} *" if seen and score else score


def footnote(seen: int, scored: int = 0) -> str:
    """What the asterisk says, for below a table or a picture; empty where nothing is marked.

    >>> footnote(160, 400)
    '* 160 of the 400 scored clips were trained on before, by the run behind init'
    """
    of = f" of the {scored:,}" if scored else ""
    return f"* {seen:,}{of} scored clips were trained on before, by the run behind init" if seen else ""


def noted(text: str, note: str) -> str:
    """A text, such as a title, with a note below where there is one."""
    return f"{text}\n{note}" if note else text


def change(name: str, value: float) -> str:
    """A difference of two scores, in the unit of `number`: `+1.2 points`, `-0.034`"""
    bare = name.rpartition("/")[2]
    if bare in METRICS:
        return METRICS[bare].show_difference(value)
    return f"{100 * value:+.1f} points" if name.startswith(SHARES) else f"{value:+.4g}"


def lower_is_better(name: str) -> bool:
    """Whether the best score of this name is the lowest: a loss, a calibration error, a metric that says so."""
    bare = name.rpartition("/")[2]
    if bare in METRICS:
        return not METRICS[bare].higher_is_better
    return name == "loss" or name.startswith("loss/") or bare == "ECE"
