"""The sections of a report that the scores of clips fill: numbers, confusion, classes, calibration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from gamut.evaluate.decisions import calibration
from gamut.evaluate.ranking import mean_of_known
from gamut.report.document import Bar, Bars, Block, Calibration, Facts, Heading, Matrix, Table, Text
from gamut.report.told import NUMBERS, Part, Told
from gamut.runs.words import marked, number, seen_by

PLOTTED = 100  # classes whose confusion is drawn
SHOWN = 60  # classes whose bars are shown at once; of more the worst and the best
ENDS = 20
PAIRS = 12  # of classes that are taken for each other


def scores(run: Told) -> list[Block]:
    if not run.scored:
        return []
    rows, names = [], list(dict.fromkeys(name for part in run.scored for name in _numbers(part)))
    for part in run.scored:
        result = part.result
        interval = ", ".join(number(result["metric"], end) for end in result.get("interval") or ())
        best = result.get("best") or {}
        selected = str(result.get("selected") or result.get("judged") or "")
        told = f"{number(result['metric'], best['score'])} at {best['epoch']:g}, on {best['chosen_on']}" if best else ""
        score = number(result["metric"], result["score"]) + (f" [{interval}]" if interval else "")
        score = marked(score, seen_by([result]))
        folds = ", ".join(map(str, result.get("test", ())))
        rows.append([folds, str(result.get("seed", "")), selected, told, str(result.get("clips", "")), score])
    head = ["test folds", "seed", "scored is the", "best epoch", "clips", run.scored[0].result["metric"]]
    means = []
    for name in names:
        values = [_numbers(part).get(name, math.nan) for part in run.scored]
        deviation = f"± {number(name, statistics.pstdev(values))}" if len(values) > 1 else ""
        means.append((name, number(name, statistics.fmean(values)), deviation))
    left = [
        f"{count} {name.replace('_', ' ')}"
        for name in (run.scored[0].result.get("left_out") or {})
        if (count := sum(int((part.result.get("left_out") or {}).get(name, 0)) for part in run.scored))
    ]
    blocks: list[Block] = [Heading("Scores"), Table(head, rows, words=4), Facts(means, small=True)]
    return blocks + ([Text(f"Left out of the means: {', '.join(left)}.")] if left else [])


def _numbers(part: Part) -> dict[str, float]:
    """Every number of a round, as a share of 1."""
    found = {**(part.result.get("metrics") or {}), **(part.result.get("more_metrics") or {})}
    found = {part.result["metric"]: part.result["score"], **found}
    counts = ("classes_without_positives", "classes_without_events")
    return {name: float(value) for name, value in found.items() if value is not None and name not in counts}


def confusion(run: Told) -> list[Block]:
    counts = [np.asarray(part.result.get("confusion") or []) for part in run.scored]
    counts = [one for one in counts if one.shape == (len(run.labels), len(run.labels)) and len(run.labels)]
    if not counts:
        return []
    total = np.sum(counts, axis=0)
    wrong = total * (1 - np.eye(len(total), dtype=int))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [
        (int(row), int(column)) for row, column in zip(*np.unravel_index(worst, wrong.shape)) if wrong[row, column]
    ]
    of = total.sum(axis=1)
    rows = [[run.labels[a], run.labels[b], str(total[a, b]), f"{total[a, b] / of[a]:.0%}"] for a, b in pairs]
    blocks: list[Block] = [Heading("Confusion")]
    if len(total) <= PLOTTED:
        blocks.append(Matrix(total, run.labels))
    if rows:
        blocks += [Heading("Most often taken for each other", 3)]
        blocks += [Table(["is", "was taken for", "clips", "of the class"], rows, words=2)]
    return blocks


def classes(run: Told) -> list[Block]:
    """A bar a class: how many of its clips are right where classes exclude each other, else its average precision."""
    tables = [found for part in run.scored if (found := part.by_class()) and len(found["clips"]) == len(run.labels)]
    if not tables:
        return []
    clips = np.sum([table["clips"] for table in tables], axis=0)
    means = {name: mean_of_known(np.stack([table[name] for table in tables])) for name in NUMBERS}
    lead = "recall" if run.parts[0].exclusive else "AP"
    others = [name for name in NUMBERS if name != lead]
    order = [int(one) for one in np.argsort(np.nan_to_num(means[lead], nan=-1.0), kind="stable")[::-1] if clips[one]]
    head = ["class", "accuracy" if lead == "recall" else lead, "clips", *others]

    def bar(one: int) -> Bar:
        more = [f"{clips[one]:.0f}", *(_or_nothing(means[name][one]) for name in others)]
        return Bar(run.labels[one], float(means[lead][one]), _or_nothing(means[lead][one]), more)

    bars = [bar(one) for one in order]
    blocks: list[Block] = [Heading("Classes")]
    if len(bars) <= SHOWN:
        blocks.append(Bars(head, bars))
    else:
        blocks += [Heading(f"The {ENDS} best", 3), Bars(head, bars[:ENDS])]
        blocks += [Heading(f"The {ENDS} worst", 3), Bars(head, bars[-ENDS:][::-1])]
        blocks += [Bars(head, bars, folded=f"All {len(bars)} classes")]
    bare = int((clips == 0).sum())
    rounds = f"Means over {len(tables)} rounds. " if len(tables) > 1 else ""
    said = rounds + (f"{bare} classes have no clip among those scored." if bare else "")
    return blocks + ([Text(said.strip())] if said else [])


def calibrated(runs: Sequence[Told]) -> list[Block]:
    lines = []
    for run in runs:
        if (pooled := run.pooled()) is not None:
            lines.append((run.name, calibration(pooled.target, pooled.logits, run.parts[0].exclusive)))
    if not lines:
        return []
    said = "; ".join(f"{name + ': ' if len(lines) > 1 else ''}{found.error:.3f}" for name, found in lines)
    of = (
        " of the clips of all rounds together, not the mean of rounds:"
        if any(len(run.scored) > 1 for run in runs)
        else ""
    )
    what = "the class that was said" if runs[0].parts[0].exclusive else "every class of every clip"
    return [
        Heading("Calibration"),
        Text(f"Expected calibration error{of} {said}."),
        Text(f"How often {what} is right, by the probability it was said with."),
        Calibration(lines),
    ]


def _or_nothing(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
