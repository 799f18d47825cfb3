"""The results of a study: all numbers, tables over seeds, and a figure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from gamut.errors import RunError
from gamut.track.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNTRAINED, LOGMEL = "untrained", "log-mel"
HOW = (("knn", "k-NN"), ("linear", "linear probe"))
Key = tuple[str, int, str]  # recipe, seed, task


def collect(
    probes: Mapping[Key, Sequence[Mapping[str, Any]]], tuned: Mapping[Key, float], tokens: Mapping[str, int]
) -> dict[str, Any]:
    """All scores by task and arm. probes: what `gamut.probe` wrote for each run, the untrained network first.

    {task: {arm: {"tokens": [...], "probe": {"linear/cls": [[score a seed] a checkpoint]}, "finetune": [score a seed]}}}
    with the arms `log-mel` (no network: one number a probe) and `untrained` (the first recipe's network) before the
    recipes. Tokens are those that a run had processed at each checkpoint, 0 first.

    Raises RunError where a recipe's seeds were not probed after the same epochs, so that they have no mean.
    """
    report: dict[str, Any] = {}
    for task in dict.fromkeys(key[2] for key in probes):
        recipes = list(dict.fromkeys(recipe for recipe, _, of in probes if of == task))
        arms: dict[str, Any] = {LOGMEL: {}, UNTRAINED: {}}
        for recipe in recipes:
            runs = [found for (arm, _, of), found in probes.items() if (arm, of) == (recipe, task)]
            # Steps may differ with the seed: packs are filled with clips of other lengths.
            epochs = [[round(entry["epochs"]) for entry in run] for run in runs]
            for other in epochs:
                if other != epochs[0]:
                    raise RunError(
                        f"The runs of {recipe} were probed on {task} after {_listed(epochs[0])} epochs, and with "
                        f"another seed after {_listed(other)}: give another --out, or remove the runs that "
                        "differ from the others."
                    )
            last = max(entry["step"] for entry in runs[0])
            names = [name.removeprefix("probe/") for name in runs[0][1]["scores"] if name != "probe/clips"]
            arms[recipe] = {
                "tokens": [round(tokens[recipe] * entry["step"] / last) for entry in runs[0]],
                "probe": {
                    name: [[run[at]["scores"][f"probe/{name}"] for run in runs] for at in range(len(runs[0]))]
                    for name in names
                },
            }
            if recipe == recipes[0]:
                arms[UNTRAINED] = {"probe": {name: arms[recipe]["probe"][name][:1] for name in names}}
                first = runs[0][0]["scores"]
                arms[LOGMEL] = {"probe": {f"{how}/logmel": [[first[f"probe/{how}/logmel"]]] for how, _ in HOW}}
        for arm in (UNTRAINED, *recipes):
            scores = [score for (one, _, of), score in tuned.items() if (one, of) == (arm, task)]
            arms[arm] |= {"finetune": scores} if scores else {}
        report[task] = arms
    return report


def _listed(epochs: Sequence[int]) -> str:
    return ", ".join(map(str, epochs))


def spread(scores: Sequence[float]) -> str:
    """`84.3 ± 0.6`, in percent: mean and standard deviation over seeds (n - 1)."""
    values = 100 * np.asarray(scores)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Two tables a task, with a row for each score: the arms at their ends; each recipe's gain over the arm before.

    Three recipes fit into 80 columns, since names are broken at `/` and `_`.
    """
    for task, arms in report.items():
        names = list(dict.fromkeys(name for arm in arms.values() for name in arm["probe"] if "logmel" not in name))
        rows = [*names, *(["fine-tuned"] if any("finetune" in arm for arm in arms.values()) else [])]
        recipes = [name for name in arms if name not in (LOGMEL, UNTRAINED)]
        known = [f"{title} {spread(arms[LOGMEL]['probe'][f'{how}/logmel'][-1])}" for how, title in HOW]
        ends = _table(f"{task}, %", f"log-mel: {', '.join(known)}", [UNTRAINED, *recipes])
        gains = _table(f"{task}: points above {'the arm before' if recipes[1:] else UNTRAINED}", "", recipes)
        for row in rows:
            scores = [_scores(arms[name], row) for name in (UNTRAINED, *recipes)]
            title = row.replace("knn", "k-NN").replace("/", " ")
            ends.add_row(title, *(spread(found) if found else "" for found in scores))
            steps = pairwise(scores)
            gains.add_row(title, *(f"{100 * (np.mean(b) - np.mean(a)):+.1f}" if a and b else "" for a, b in steps))
        yield from (ends, gains)


def _table(title: str, caption: str, arms: Sequence[str]) -> Table:
    table = Table("", title=title, title_justify="left", caption=caption, caption_justify="left")
    for arm in arms:
        table.add_column(re.sub(r"([/_])", r"\1\n", arm), justify="right")
    return table


def _scores(arm: Mapping[str, Any], row: str) -> list[float]:
    """An arm's scores at its end, one a seed; none where it has none of this row."""
    return arm.get("finetune", []) if row == "fine-tuned" else arm["probe"].get(row, [[]])[-1]


def plot(report: Mapping[str, Any], kind: str) -> Figure:
    """A row a task: k-NN and linear probe of one kind of vector over tokens of pretraining (means, and the range over
    seeds), and the scores after fine-tuning by seed."""
    tuned = any("finetune" in arm for arms in report.values() for arm in arms.values())
    figure = new_figure(10.5 if tuned else 8, 3.1 * len(report))
    grid = figure.subplots(len(report), 3 if tuned else 2, squeeze=False)
    for axes, (task, arms) in zip(grid, report.items()):
        trained = {name: arm for name, arm in arms.items() if name not in (LOGMEL, UNTRAINED)}
        for axis, (how, title) in zip(axes, HOW):
            axis.axhline(
                100 * arms[LOGMEL]["probe"][f"{how}/logmel"][0][0], color="grey", linestyle="--", label="log-mel"
            )
            for number, (name, arm) in enumerate(trained.items()):
                if f"{how}/{kind}" not in arm["probe"]:
                    continue
                across = np.asarray(arm["tokens"]) / 1e6
                scores = 100 * np.asarray(arm["probe"][f"{how}/{kind}"])
                axis.plot(across, scores.mean(1), marker=".", color=f"C{number}", label=name)
                axis.fill_between(across, scores.min(1), scores.max(1), color=f"C{number}", alpha=0.15, linewidth=0)
            axis.set_title(f"{task}: {title} ({kind})", fontsize=9)
            axis.set_xlabel("million tokens of pretraining")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("score, %")
        axes[0].legend(fontsize=7)
        bars = {name: arm["finetune"] for name, arm in arms.items() if "finetune" in arm}
        for place, (name, scores) in enumerate(bars.items()):
            colour = "grey" if name == UNTRAINED else f"C{list(trained).index(name)}"
            axes[2].bar(place, 100 * np.mean(scores), color=colour, alpha=0.5)
            axes[2].scatter([place] * len(scores), 100 * np.asarray(scores), color="black", s=10, zorder=3)
        if bars:
            axes[2].set_xticks(range(len(bars)), list(bars), rotation=20, ha="right", fontsize=7)
            axes[2].set_title(f"{task}: fine-tuned", fontsize=9)
            lowest = min(min(scores) for scores in bars.values())
            axes[2].set_ylim(bottom=max(0.0, 100 * lowest - 10))
        elif tuned:
            axes[2].set_axis_off()
    return figure
