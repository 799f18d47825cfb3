"""What longer pretraining is worth (ASiT, Figure 2): fine-tune from every kept checkpoint of a run, plot the scores.

The pretraining keeps them with `checkpoint.keep_every=n`. What is fine-tuned already is not done again, so the command
may be stopped, and repeated while the pretraining goes on.

Example:
    deepspeed pretrain/run.py asit_s data=shards/audioset checkpoint.keep_every=5
    python finetune/curve.py runs/asit_s as20k_s --zero --jobs 2 --out runs/curve data=shards/audioset finetune.seeds=3
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

import numpy as np
from rich.console import Console
from rich.table import Table

from finetune.jobs import Job, run_all
from gamut.commands import command, parser_of
from gamut.errors import CheckpointError
from gamut.evaluate import METRICS, Metric
from gamut.runs.words import footnote, marked, noted, seen_by
from gamut.track.figures import new_figure
from gamut.track.run import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def starts(run: Path, zero: bool) -> dict[int, str]:
    """Epochs of pretraining -> what to fine-tune from, in order; `zero`: also what the pretraining itself began with.

    Raises CheckpointError where the run has kept no checkpoint.
    """
    kept = RunFolder(run).checkpoints.kept()
    if not kept:
        raise CheckpointError(
            f"{run} keeps no checkpoints yet: pretrain with checkpoint.keep_every=n, which may also be set when a run "
            "goes on."
        )
    beginning = {0: RunFolder(run).recipe.init} if zero else {}
    return beginning | {epochs: str(path) for epochs, path in kept.items()}


def plot(points: dict[int, list[float]], metric: Metric, title: str) -> Figure:
    """Every round's score (dots) and their mean (line) over epochs of pretraining."""
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    epochs = list(points)
    axis.plot(epochs, [metric.scale * np.mean(points[epoch]) for epoch in epochs], marker="o")
    for epoch, scores in points.items():
        axis.scatter([epoch] * len(scores), [metric.scale * score for score in scores], color="black", s=10, zorder=3)
    axis.set_xlabel("epochs of pretraining")
    axis.set_ylabel(f"after fine-tuning: {metric.title}")
    axis.set_title(title)
    axis.grid(alpha=0.3)
    return figure


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("curve", __doc__)
    parser.add_argument("run", type=Path, help="the folder of a pretraining run")
    parser.add_argument("recipe", help="of fine-tuning")
    parser.add_argument("--zero", action="store_true", help="also from what the pretraining began with, as epoch 0")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, default=None, help="default: RUN/curve-RECIPE")
    parser.add_argument("overrides", nargs="*", help="a.b=c, passed on to every run")
    options = parser.parse_intermixed_args(argv)  # overrides may follow the options
    console = Console()
    out = options.out or options.run / f"curve-{Path(options.recipe).stem}"
    jobs = []
    for epochs, init in starts(options.run, options.zero).items():
        name = f"epoch-{epochs:04d}"
        arguments = (options.recipe, *options.overrides, f"run.folder={out}", f"run.name={name}", f"init={init}")
        jobs.append((epochs, Job(name, arguments, out / name)))
    console.print(f"Fine-tuning {options.recipe} from {len(jobs)} checkpoints of {options.run}", highlight=False)
    results = run_all([job for _, job in jobs], options.jobs, console)
    points = {epochs: [one["score"] for one in result["rounds"]] for (epochs, _), result in zip(jobs, results)}
    metric = METRICS[results[0]["metric"]]
    seen = dict(zip(points, (seen_by([result]) for result in results)))
    told = footnote(max(seen.values()))
    table = Table("epochs", f"{metric.name}, mean", "rounds", caption=told or None)
    for epochs, scores in points.items():
        mean = marked(metric.show(float(np.mean(scores))), seen[epochs])
        table.add_row(str(epochs), mean, " ".join(map(metric.show, scores)))
    console.print(table)
    report = {"run": str(options.run), "recipe": options.recipe, "metric": metric.name, "scores": points}
    (out / "curve.json").write_text(json.dumps(report, indent=2))
    title = noted(f"{options.run.name}, then {options.recipe}", told)
    plot(points, metric, title).savefig(out / "curve.png", dpi=110)
    console.print(f"the curve: {out / 'curve.png'}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
