"""Two runs side by side, and the best of many."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import RunError
from gamut.evaluate import METRICS
from gamut.evaluate.paired import difference
from gamut.evaluate.scores import Scores
from gamut.recipe.resolved import differences, may_change
from gamut.runs.find import look, run_at
from gamut.runs.show import weights_of
from gamut.runs.standing import Standing, standing
from gamut.runs.words import change, footnote, lower_is_better, marked, number, table
from gamut.track.run import SCORES

UNTOLD = "(not said)"


def print_comparison(one: Path, other: Path) -> None:
    """Recipes as a diff, scores side by side, and the interval of their difference where both were scored on the same
    clips. Raises RunError where one of them is no run."""
    two = [standing(*run_at(place)) for place in (one, other)]
    first, second = two
    print(f"--- {first.path}: {first.stage}, {first.state}\n+++ {second.path}: {second.stage}, {second.state}")
    changed = differences(first.recipe, second.recipe)
    decisive = {key: values for key, values in changed.items() if not may_change(key)}
    for key, (then, now) in sorted(decisive.items()):
        for sign, value, recipe in (("-", then, first.recipe), ("+", now, second.recipe)):
            print(f"{sign} {key}: {_value(value) if key in recipe else UNTOLD}")
    if not decisive:
        print("Their recipes are the same in all that decides numbers.")
    if rest := sorted(set(changed) - set(decisive)):
        print(f"Also different, without an effect on numbers: {', '.join(rest)}")
    print()
    names = [*first.scores, *(name for name in second.scores if name not in first.scores)]
    rows = []
    for name in names:
        values = [run.scores.get(name, math.nan) for run in two]
        shown = ["" if math.isnan(value) else number(name, value) for value in values]
        if name == first.metric == second.metric:
            shown = [marked(score, run.seen) for score, run in zip(shown, two)]
        rows.append((name, *shown, "" if math.isnan(values[1] - values[0]) else change(name, values[1] - values[0])))
    print(table(("score", first.path.name, second.path.name, "difference"), rows))
    for run in two:
        if told := footnote(run.seen):
            print(f"{run.path.name}: {told}")
    for line in _intervals(first, second):
        print(line)
    if first.index and second.index and first.index != second.index:
        print(f"They are of different shard sets: {first.index} and {second.index}.")
    for problem in (*first.problems, *second.problems):
        print(f"damaged: {problem}")


def _value(value: Any) -> str:
    return "null" if value is None else str(value)


def _intervals(first: Standing, second: Standing) -> list[str]:
    """What the difference of the main score is worth: of each pair of rounds of one name, with scores of the same
    clips."""
    rounds = {one.path.name: one for one in first.rounds or (first,)}
    lines = []
    for one in second.rounds or (second,):
        mate = rounds.get(one.path.name) if second.rounds else first
        if mate is None or one.metric not in METRICS or one.metric != mate.metric:
            continue
        try:
            a, b = (Scores.load(each.path / SCORES) for each in (mate, one))
        except (OSError, ValueError, KeyError):
            continue
        if not np.array_equal(a.key, b.key) or not np.array_equal(a.target, b.target):
            lines.append(f"{one.path.name}: scored on other clips, so without an interval")
            continue
        found = difference([b], [a], METRICS[one.metric]) if METRICS[one.metric].has_interval else None
        if found is not None:
            lines.append(f"{one.path.name}: {one.metric} {found.told(METRICS[one.metric])}")
    return lines


def print_best(folder: Path, by: str | None, lowest: bool) -> None:
    """The best run by each main score, or by one score: runs on other data are not compared with each other.

    Raises RunError where no run has that score.
    """
    runs = [standing(run, rounds) for run, rounds in look(folder).groups]
    groups: dict[tuple[str, str, str, str], list[Standing]] = {}
    for one in runs:
        name = by or one.metric
        if name and not math.isnan(one.scores.get(name, math.nan)):
            where = (str(one.recipe.get("data", "")), one.index, one.stage, _tests(one))
            groups.setdefault((name, *where[1:]), []).append(one)
    if not groups:
        known = sorted({name for one in runs for name in one.scores})
        raise RunError(
            f"No run in {folder} has a score{f' {by}' if by else ''}. Scores there: {', '.join(known) or 'none'}."
        )
    for (name, *_), group in sorted(groups.items()):
        down = lowest or lower_is_better(name)
        group.sort(key=lambda one: one.scores[name], reverse=not down)
        best = group[0]
        print(f"{name}, {best.stage} on {best.recipe.get('data') or '?'}{_of(best)}: the best of {len(group)}")
        rows = [(marked(number(name, one.scores[name]), one.seen), str(one.path), one.state) for one in group]
        print(table((name, "run", "state"), rows))
        if told := footnote(sum(one.seen for one in group)):
            print(told)
        for each in best.rounds or (best,):
            print(f"weights: {weights_of(each.path)}")
        print()


def _tests(one: Standing) -> str:
    """The folds that scores are of: of other ones they say something else."""
    folds = sorted({str(each.recipe.get("folds.test")) for each in one.rounds or (one,)})
    return " ".join(folds) if one.stage == "finetune" else ""


def _of(one: Standing) -> str:
    return f", test folds {_tests(one)}" if _tests(one) else ""
