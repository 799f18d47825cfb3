"""`python -m gamut.probe RUN`: what a run's checkpoints know of a labelled set, as a table, a curve and pictures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from gamut.commands import command, parser_of
from gamut.errors import CheckpointError, RecipeError, RunError
from gamut.probe.labelled import Labelled, labelled, read_probed
from gamut.recipe.load import load_recipe, override
from gamut.recipe.schema import Recipe
from gamut.track import figures
from gamut.track.checkpoints import epochs_at
from gamut.track.metrics import History
from gamut.track.run import RECIPE, RunFolder

EXAMPLES = """examples:
    python -m gamut.probe runs/asit_tiny
    python -m gamut.probe runs/asit_b probe.data=shards/esc50 --out runs/asit_b/esc50
    python -m gamut.probe runs/asit_tiny/checkpoints/step-00002400 "probe.train={fold: [1,2]}" "probe.test={fold: [3]}"
    python -m gamut.probe weights.safetensors --recipe asit_b probe.data=shards/esc50"""


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of(
        "probe",
        "Score checkpoints by k-NN and logistic regression on whole labelled clips, beside the untrained "
        "network and the log-mel's own mean and deviation.",
        EXAMPLES,
    )
    parser.add_argument("what", type=Path, help="a run folder (all its checkpoints), a checkpoint, or a weights file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as probe.data=shards/esc50")
    parser.add_argument("--recipe", help="the pretraining recipe of weights that lie in no run folder")
    parser.add_argument("--out", type=Path, help="where scores and pictures go; RUN/probe by default")
    options = parser.parse_intermixed_args(argv)
    recipe, run = _recipe(options.what, options.recipe, options.overrides)
    out = options.out or (run.path if run else options.what.resolve().parent) / "probe"
    clips = _clips(recipe)
    found = list(_checkpoints(options.what))

    from gamut.models.find import find_weights, told  # here: torch takes its time, and what is asked for is there
    from gamut.shards.trained import trained_front

    newest = find_weights(found[-1][2])
    front = trained_front(newest, recipe)

    from gamut.probe.command import score
    from gamut.probe.features import kinds

    console = Console()
    console.print(f"probe: {clips}", highlight=False, soft_wrap=True)
    more = f", and {len(found) - 1} checkpoints before it" if found[1:] else ""
    console.print(f"weights: {told(newest)}{more}", highlight=False, soft_wrap=True)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    scores = score(replace(recipe, front=front), clips, found, out, console)
    _show(console, scores, kinds(recipe))
    history = History.read(run.metrics) if run is not None else History()
    logged = {name: history.series(name) for name in sorted(history.points) if re.match(r"probe/(knn|linear)/", name)}
    if run is not None and logged and read_probed(run.path).get("digest") != clips.digest(recipe.probe):
        said = "what the run logged is not known to be of these clips: the curves do without"
        console.print(said, highlight=False, soft_wrap=True)
        logged = {}
    _keep(out, scores, logged, f"{recipe.run.name}: {clips.index.name}")
    console.print(f"scores, curves and pictures: {out}", highlight=False, soft_wrap=True)
    return 0


def _recipe(what: Path, name: str | None, overrides: list[str]) -> tuple[Recipe, RunFolder | None]:
    """(the recipe that the weights were trained with, its run)."""
    if name:
        return load_recipe("pretrain", name, overrides), None
    if not what.exists():
        raise RunError(f"There is no {what}. Name a run folder, a checkpoint or a file of weights.")
    run = RunFolder.find(what)
    if run is None and RunFolder.rounds(what):
        raise RunError(f"{what} is a fine-tuning of several rounds. Name a pretraining, or the folder of one round.")
    if run is None and RunFolder.inside(what):
        raise RunError(f"{what} is a folder of runs. Name one of them, such as {RunFolder.inside(what)[0]}.")
    if run is None:
        raise RunError(
            f"{what} is not in a run folder: name the recipe that it was trained with, such as --recipe asit_b."
        )
    return override(run.recipe, overrides), run


def _clips(recipe: Recipe) -> Labelled:
    found, reason = labelled(recipe)
    if found is None:
        raise RecipeError(
            f"There is nothing to probe: {reason}. Name a labelled set with probe.data=FOLDER, or clips with "
            "probe.train={...} and probe.test={...}."
        )
    return found


def _checkpoints(what: Path) -> Iterator[tuple[int, float, Path]]:
    """(step, epochs, what to load) in order of steps; -1 where they are not known."""
    run = RunFolder(what)
    is_run = run.checkpoints.folder.is_dir() or (what / RECIPE).is_file()
    places = run.checkpoints.saved()[::-1] if is_run else [what]
    if not places:
        raise CheckpointError(f"The run {what} has published no checkpoint yet, or they were removed.")
    for place in places:
        step, epochs = epochs_at(place) or (-1, -1.0)
        yield step, epochs, place


def _show(console: Console, scores: list[dict], kinds: list[str]) -> None:
    """A row for each network, k-NN and linear probe side by side: numbers that an 80-column terminal shows whole."""
    table = Table(Column(no_wrap=True), Column("epoch", justify="right"), title="k-NN / linear probe, %")
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    baseline = scores[0]["scores"]
    for entry in scores:
        both = [[100 * entry["scores"][f"probe/{how}/{kind}"] for how in ("knn", "linear")] for kind in kinds]
        name = {0: "untrained", -1: entry["name"]}.get(entry["step"], f"step {entry['step']}")
        epoch = "" if entry["epochs"] < 0 else f"{entry['epochs']:.4g}"
        table.add_row(name, epoch, *(f"{knn:.1f} / {linear:.1f}" for knn, linear in both))
    console.print(table)
    console.print(
        f"mean and deviation of the log-mel: k-NN {baseline['probe/knn/logmel']:.1%}, linear "
        f"{baseline['probe/linear/logmel']:.1%}",
        highlight=False,
        soft_wrap=True,
    )


def _keep(out: Path, scores: list[dict], logged: dict[str, tuple[list[int], list[float]]], title: str) -> None:
    """scores.json, and the curve over steps: what the run logged, and what was scored now."""
    (out / "scores.json").write_text(json.dumps(scores, indent=2))
    now = {
        name: [(entry["step"], entry["scores"][name]) for entry in scores if name in entry["scores"]]
        for name in scores[0]["scores"]
        if re.match(r"probe/(knn|linear)/", name)
    }
    figure = figures.probe_curves(logged, now, title)
    figure.savefig(out / "curves.png", dpi=110)


if __name__ == "__main__":
    sys.exit(main())
