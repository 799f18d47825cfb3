"""Several runs side by side: what each came to, what their differences are worth, and in what their recipes differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gamut.evaluate import METRICS, paired
from gamut.evaluate.paired import Difference
from gamut.evaluate.ranking import mean_of_known
from gamut.progress import duration
from gamut.recipe.resolved import decides
from gamut.report.document import Block, Heading, Table, Text
from gamut.report.recipes import show
from gamut.report.sections import lasted
from gamut.report.told import Told
from gamut.runs.words import footnote, marked, number

CLASSES = 30  # in which runs differ most


def difference(one: Told, other: Told) -> Difference | str:
    """What the first is better by; or why that cannot be said."""
    names = {str(part.result["metric"]) for run in (one, other) for part in run.scored}
    if len(names) != 1 or not one.scored or not other.scored:
        return "they are not scored by the same metric" if len(names) > 1 else "one of them is not scored"
    (name,) = names
    if name not in METRICS:
        return f"the metric {name} is not known here"
    if list(one.labels) != list(other.labels):
        return "they tell other classes apart"
    mine, its = ([part.scores for part in run.scored if part.scores is not None] for run in (one, other))
    return paired.difference(mine, its, METRICS[name]) or "they were not scored on the same clips"


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
        score = marked(score, stands.seen)
        epochs = f"{stands.epoch} of {stands.epochs}" if stands.epochs else str(stands.epoch)
        rows.append([run.name, stands.state, stands.metric, score, str(len(run.parts)), epochs, duration(lasted(run))])
    head = ["run", "state", "score", "", "rounds", "epochs", "time"]
    blocks: list[Block] = [Heading("Side by side"), Table(head, rows, words=3)]
    blocks += [Text(f"{run.name}: {told}.", True) for run in runs if (told := footnote(run.standing.seen))]
    first, *others = runs
    rows = []
    for run in others:
        found = difference(run, first)
        if isinstance(found, str):
            blocks.append(Text(f"{run.name} and {first.name}: no difference, since {found}."))
            continue
        metric = METRICS[first.scored[0].result["metric"]]
        interval = found.interval(metric).replace(", ", " to ")
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
        if len({*values}) > 1:
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
            columns.append((run, mean_of_known(np.stack(found))))
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
