"""Several runs side by side: what each came to, what their differences are worth, and in what their recipes differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gamut.evaluate import METRICS, Metric
from gamut.evaluate.bootstrap import ends, paired_bootstrap, resampled
from gamut.report.document import Block, Heading, Table, Text
from gamut.report.recipes import decides, show
from gamut.report.sections import duration, lasted
from gamut.report.told import Told
from gamut.runs.words import number

CLASSES = 30  # in which runs differ most


@dataclass(frozen=True)
class Difference:
    """Of two runs on the clips that both were scored on; low and high: its 95 % interval, nan where there is none."""

    mean: float
    low: float
    high: float
    clips: int


def difference(one: Told, other: Told) -> Difference | str:
    """What the first is better by, clips drawn for both together; or why that cannot be said.

    Over rounds and seeds it is the mean: of a clip, where the metric is a mean over clips, else of every two rounds
    that share clips.
    """
    names = {str(part.result["metric"]) for run in (one, other) for part in run.scored}
    if len(names) != 1 or not one.scored or not other.scored:
        return "they are not scored by the same metric" if len(names) > 1 else "one of them is not scored"
    (name,) = names
    if name not in METRICS:
        return f"the metric {name} is not known here"
    if list(one.labels) != list(other.labels):
        return "they tell other classes apart"
    metric: Metric = METRICS[name]
    if metric.by_clip:
        return _by_clip(one, other, metric)
    means, draws, clips = [], [], set()
    for a in (part.scores for part in one.scored):
        for b in (part.scores for part in other.scored):
            if a is None or b is None:
                continue
            shared, mine, its = np.intersect1d(a.key, b.key, return_indices=True)
            if not len(shared):
                continue
            clips |= {*shared.tolist()}
            pair = [(each.target[rows], each.logits[rows]) for each, rows in ((a, mine), (b, its))]
            means.append(metric.score(*pair[0]) - metric.score(*pair[1]))
            some = [resampled(metric, *each) for each in pair]
            if some[0] is not None and some[1] is not None:
                draws.append(some[0] - some[1])
    if not means:
        return "they were not scored on the same clips"
    low, high = ends(np.mean(draws, axis=0)) if draws else (math.nan, math.nan)
    return Difference(float(np.mean(means)), low, high, len(clips))


def _by_clip(one: Told, other: Told, metric: Metric) -> Difference | str:
    values = []
    for run in (one, other):
        found: dict[str, list[float]] = {}
        for scores in (part.scores for part in run.scored):
            if scores is not None and metric.by_clip:
                for key, value in zip(scores.key.tolist(), metric.by_clip(scores.target, scores.logits).tolist()):
                    found.setdefault(key, []).append(value)
        values.append({key: sum(some) / len(some) for key, some in found.items()})
    shared = sorted(values[0].keys() & values[1].keys())
    if not shared:
        return "they were not scored on the same clips"
    a, b = (np.array([each[key] for key in shared]) for each in values)
    return Difference(*paired_bootstrap(a, b), len(shared))


def side_by_side(runs: Sequence[Told]) -> list[Block]:
    """A row a run, then what every other one differs by from the first."""
    rows = []
    for run in runs:
        stands = run.standing
        score = "" if math.isnan(stands.score) else number(stands.metric, stands.score)
        if stands.interval:
            score += " [{}, {}]".format(*(number(stands.metric, end) for end in stands.interval))
        elif not math.isnan(stands.deviation):
            score += f" ± {number(stands.metric, stands.deviation)}"
        epochs = f"{stands.epoch} of {stands.epochs}" if stands.epochs else str(stands.epoch)
        rows.append([run.name, stands.state, stands.metric, score, str(len(run.parts)), epochs, duration(lasted(run))])
    head = ["run", "state", "score", "", "rounds", "epochs", "time"]
    blocks: list[Block] = [Heading("Side by side"), Table(head, rows, words=3)]
    first, *others = runs
    rows = []
    for run in others:
        found = difference(run, first)
        if isinstance(found, str):
            blocks.append(Text(f"{run.name} and {first.name}: no difference, since {found}."))
            continue
        metric = METRICS[first.scored[0].result["metric"]]
        low, high = (metric.show_difference(end).removesuffix(" points") for end in (found.low, found.high))
        interval = "" if math.isnan(found.low) else f"{low} to {high}"
        rows.append([f"{run.name} - {first.name}", metric.show_difference(found.mean), interval, str(found.clips)])
    if rows:
        blocks += [
            Heading("Differences", 3),
            Table(["", "difference", "95 % interval", "shared clips"], rows),
            Text("Paired bootstrap over the clips that both were scored on. Without 0 in it: more than luck."),
        ]
    return blocks + [Text(f"{run.name} is damaged: {problem}.", True) for run in runs for problem in run.problems]


def recipes(runs: Sequence[Told]) -> list[Block]:
    """Keys that decide numbers and are not the same in all runs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.standing.recipe if decides(key)))
    rows = []
    for key in keys:
        values = [show(run.standing.recipe[key]) if key in run.standing.recipe else "" for run in runs]
        if len({*values}) > 1 and not key.startswith("run."):
            rows.append([key, *values])
    places = [[key, *(str(run.standing.recipe.get(key, "")) for run in runs)] for key in ("data", "init", "features")]
    places = [row for row in places if len({*row[1:]}) > 1]
    head = ["key", *(run.name for run in runs)]
    blocks: list[Block] = [Heading("Recipes")]
    if not rows and not places:
        return [*blocks, Text("They are the same in all that decides numbers.")]
    return [*blocks, Table(head, [*places, *rows], words=len(head))]


def classes(runs: Sequence[Told]) -> list[Block]:
    """Each class's number, those in which the runs lie furthest apart first."""
    some = [run for run in runs if run.scored and list(run.labels) == list(runs[0].labels)]
    lead = "recall" if some and some[0].parts[0].exclusive else "AP"
    columns = []
    for run in some:
        found = [table[lead] for part in run.scored if len((table := part.by_class()).get(lead, ())) == len(run.labels)]
        if found:
            known = (~np.isnan(found)).sum(axis=0)
            columns.append((run, np.nansum(found, axis=0) / np.where(known > 0, known, np.nan)))
    if len(columns) < 2:
        return []
    values = np.stack([column for _, column in columns], axis=1)
    there = np.flatnonzero(~np.isnan(values).any(axis=1))
    order = there[np.argsort(-np.ptp(values[there], axis=1), kind="stable")]
    head = ["class", *(run.name for run, _ in columns)]
    rows = [[runs[0].labels[one], *(f"{value:.3f}" for value in values[one])] for one in order.tolist()]
    what = "accuracy" if lead == "recall" else "average precision"
    blocks: list[Block] = [Heading("Classes"), Text(f"Their {what}, those first in which the runs differ most.")]
    more = [Table(head, rows, folded=f"All {len(rows)} classes")] if len(rows) > CLASSES else []
    return [*blocks, Table(head, rows[:CLASSES]), *more]
