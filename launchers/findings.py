"""The results of a study: all numbers, tables over seeds, and a figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from gamut.errors import RunError
from gamut.runs.words import footnote, marked, noted
from gamut.track.figures import new_figure
from gamut.track.metrics import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNTRAINED, LOGMEL = "untrained", "log-mel"
HOW = (("knn", "k-NN"), ("linear", "linear probe"))
COSTS = {  # what scores can be shown over: title and unit
    "tokens": ("million tokens of pretraining", 1e6),
    "flops": ("TFLOP of pretraining", 1e12),
    "seconds": ("CPU seconds of pretraining", 1.0),
}
Key = tuple[str, int, str]  # recipe, seed, task


def collect(
    probes: Mapping[Key, Sequence[Mapping[str, Any]]],
    tuned: Mapping[Key, float],
    tokens: Mapping[str, int],
    flops: Mapping[str, float],
    seconds: Callable[[str, int, Sequence[int]], list[float]],
    seen: Mapping[Key, int] | None = None,
) -> dict[str, Any]:
    """All scores by task and arm. probes: what `gamut.probe` wrote for each run, the untrained network first.

    {task: {arm: {"tokens": [...], "flops": [...], "seconds": [...], "probe": {"linear/cls": [[score a seed] a
    checkpoint]}, "finetune": [score a seed]}}} with the arms `log-mel` (no network: one number a probe) and `untrained`
    (the first recipe's network) before the recipes. Tokens and operations are those of a run at each checkpoint, 0
    first; `seconds(recipe, seed, steps)` gives a run's CPU seconds at these steps (none: not known), whose mean over
    seeds is kept. seen: of a fine-tuning, how many of the clips that score it its pretraining had heard; of an arm that
    has such, it is kept as "finetune_seen".

    Raises RunError where a recipe's seeds were not probed after the same epochs, so that they have no mean.
    """
    report: dict[str, Any] = {}
    for task in dict.fromkeys(key[2] for key in probes):
        recipes = list(dict.fromkeys(recipe for recipe, _, of in probes if of == task))
        arms: dict[str, Any] = {LOGMEL: {}, UNTRAINED: {}}
        for recipe in recipes:
            seeds, runs = zip(*((seed, run) for (arm, seed, of), run in probes.items() if (arm, of) == (recipe, task)))
            # Steps may differ with the seed: packs are filled with clips of other lengths.
            epochs = [[round(entry["epochs"]) for entry in run] for run in runs]
            for other in epochs:
                if other != epochs[0]:
                    raise RunError(
                        f"The runs of {recipe} were probed on {task} after {_listed(epochs[0])} epochs, and with "
                        f"another seed after {_listed(other)}: give another --out, or remove the runs that "
                        "differ from the others."
                    )
            share = np.array([entry["step"] for entry in runs[0]]) / max(entry["step"] for entry in runs[0])
            took = [seconds(recipe, seed, [entry["step"] for entry in run]) for seed, run in zip(seeds, runs)]
            names = [name.removeprefix("probe/") for name in runs[0][1]["scores"] if name != "probe/clips"]
            arms[recipe] = {
                "tokens": np.rint(tokens[recipe] * share).astype(int).tolist(),
                "flops": (flops[recipe] * share).tolist(),
                **({"seconds": np.mean(took, axis=0).tolist()} if all(took) else {}),
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
            before = sum(count for (one, _, of), count in (seen or {}).items() if (one, of) == (arm, task))
            arms[arm] |= {"finetune_seen": before} if before else {}
        report[task] = arms
    return report


def spent(history: History, steps: Sequence[int]) -> list[float]:
    """CPU seconds of a run's first rank up to each of these steps, from the means in its metrics; none where they do
    not tell."""
    logged, means = history.series("cpu_seconds_per_step")
    if not logged:
        return []
    ends = np.concatenate([[0.0], np.cumsum(np.diff([0, *logged]) * means)])
    return np.interp(steps, [0, *logged], ends).tolist()


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
        before = {name: arms[name].get("finetune_seen", 0) for name in (UNTRAINED, *recipes)}
        told = noted(f"log-mel: {', '.join(known)}", footnote(max(before.values())))
        ends = _table(f"{task}, %", told, [UNTRAINED, *recipes])
        gains = _table(f"{task}: points above {'the arm before' if recipes[1:] else UNTRAINED}", "", recipes)
        for row in rows:
            scores = [_scores(arms[name], row) for name in (UNTRAINED, *recipes)]
            title = row.replace("knn", "k-NN").replace("/", " ")
            shown = [spread(found) if found else "" for found in scores]
            if row == "fine-tuned":
                shown = [marked(score, before[name]) for score, name in zip(shown, before)]
            ends.add_row(title, *shown)
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


def paths(report: Mapping[str, Any], kind: str) -> Iterator[Table]:
    """A table a task, with a row for each checkpoint of each recipe: what it had cost, and both probes of one kind."""
    for task, arms in report.items():
        table = Table("", title=f"{task}, {kind}: what it costs", title_justify="left")
        for column in ("million tokens", "TFLOP", "CPU seconds", *(f"{title}, %" for _, title in HOW)):
            table.add_column(column, justify="right")
        for name, arm in arms.items():
            scores = [arm["probe"].get(f"{how}/{kind}") for how, _ in HOW]
            if "tokens" not in arm or None in scores:
                continue
            for at, tokens in enumerate(arm["tokens"]):
                seconds = f"{arm['seconds'][at]:.0f}" if "seconds" in arm else ""
                cost = f"{tokens / 1e6:.2f}", f"{arm['flops'][at] / 1e12:.3g}", seconds
                table.add_row("" if at else name, *cost, *(spread(found[at]) for found in scores))
        yield table


def plot(report: Mapping[str, Any], kind: str, over: str = "tokens") -> Figure:
    """A row a task: k-NN and linear probe of one kind of vector over what pretraining cost (one of COSTS; means, and
    the range over seeds), and the scores after fine-tuning by seed."""
    label, unit = COSTS[over]
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
                if f"{how}/{kind}" not in arm["probe"] or over not in arm:
                    continue
                across = np.asarray(arm[over]) / unit
                scores = 100 * np.asarray(arm["probe"][f"{how}/{kind}"])
                axis.plot(across, scores.mean(1), marker=".", color=f"C{number}", label=name)
                axis.fill_between(across, scores.min(1), scores.max(1), color=f"C{number}", alpha=0.15, linewidth=0)
            axis.set_title(f"{task}: {title} ({kind})", fontsize=9)
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("score, %")
        axes[0].legend(fontsize=7)
        bars = {name: arm["finetune"] for name, arm in arms.items() if "finetune" in arm}
        for place, (name, scores) in enumerate(bars.items()):
            colour = "grey" if name == UNTRAINED else f"C{list(trained).index(name)}"
            axes[2].bar(place, 100 * np.mean(scores), color=colour, alpha=0.5)
            axes[2].scatter([place] * len(scores), 100 * np.asarray(scores), color="black", s=10, zorder=3)
        if bars:
            names = [marked(name, arms[name].get("finetune_seen", 0)) for name in bars]
            axes[2].set_xticks(range(len(bars)), names, rotation=20, ha="right", fontsize=7)
            axes[2].set_title(f"{task}: fine-tuned", fontsize=9)
            lowest = min(min(scores) for scores in bars.values())
            axes[2].set_ylim(bottom=max(0.0, 100 * lowest - 10))
        elif tuned:
            axes[2].set_axis_off()
    return figure
