"""Reports as files: what they hold is put together here, and their size is bounded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gamut.errors import RunError
from gamut.files import refusal, write_text
from gamut.recipe.schema import Recipe
from gamut.report import comparison, scored, sections
from gamut.report.artifacts import keep
from gamut.report.document import Document
from gamut.report.mistakes import mistakes
from gamut.report.page import page
from gamut.report.plain import plain
from gamut.report.told import Told, tell
from gamut.track.store import public, store_uri

PAGE, PLAIN = "report.html", "report.md"


def report(places: Sequence[Path], out: Path | None = None) -> tuple[Path, Path]:
    """Write the report on a run, or on several side by side, and return (page, Markdown).

    out: the folder, made if need be; without one a single run's own, and `report` in the current one for several.
    Raises RunError where a place is no run, or the folder is a file or cannot be written.
    """
    runs = [tell(place) for place in places]
    folder = out or (runs[0].path if len(runs) == 1 else Path("report"))
    if folder.is_file():
        raise RunError(f"{folder} is a file: a report is two files in a folder. Name that with --out.")
    document = of_one(runs[0]) if len(runs) == 1 else of_several(_apart(runs))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, page(document))
        write_text(folder / PLAIN, plain(document, folder.resolve()))
    except OSError as error:
        raise RunError(f"{refusal(error, folder)} Name another folder with --out.") from error
    return folder / PAGE, folder / PLAIN


def of_one(run: Told) -> Document:
    document = Document(run.name, _lead(run))
    document.blocks += [
        *sections.facts(run),
        *scored.scores(run),
        *sections.curves([run]),
        *sections.pictures(run),
        *scored.confusion(run),
        *scored.classes(run),
        *scored.calibrated([run]),
        *mistakes(run),
        *sections.cost([run]),
        *sections.what_it_was(run),
    ]
    return document


def of_several(runs: Sequence[Told]) -> Document:
    document = Document(" / ".join(run.name for run in runs), f"{len(runs)} runs side by side")
    document.blocks += [
        *comparison.side_by_side(runs),
        *comparison.recipes(runs),
        *sections.curves(runs),
        *comparison.classes(runs),
        *scored.calibrated([run for run in runs if run.scored]),
        *sections.cost(runs),
    ]
    return document


def _apart(runs: Sequence[Told]) -> list[Told]:
    """With names that differ: by as much of their paths as it takes."""
    most = max(len(run.path.parts) for run in runs)
    for length in range(1, most + 1):
        names = ["/".join(run.path.parts[-length:]) for run in runs]
        if len({*names}) == len(names):
            return [replace(run, name=name) for run, name in zip(runs, names)]
    return list(runs)


def at_end(place: Path, recipe: Recipe) -> None:
    """The report on a run that has just ended, in its folder; in MLflow an artifact beside recipe, scores and weights.
    Nothing that goes wrong here ends a run: it is a line of warning."""
    try:
        page_file, plain_file = report([place])
        print(f"report: {page_file}", flush=True)
    except Exception as error:  # whatever it is
        print(f"warning: no report on {place} ({type(error).__name__}: {error}).", flush=True)
        return
    if uri := store_uri(recipe):
        try:
            keep(uri, place, recipe, [page_file, plain_file])
        except Exception as error:  # MLflow and what lies below it raise what they like; the files are there
            said = (str(error).splitlines() or [""])[0][:200]
            print(f"warning: MLflow at {public(uri)} did not take what {place} came to ({said}).", flush=True)


def _lead(run: Told) -> str:
    recipe = run.standing.recipe
    what = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}.get(run.standing.stage, "Run")
    data = Path(str(recipe.get("data") or "")).name
    rounds = f", {len(run.parts)} rounds" if len(run.parts) > 1 else ""
    day = time.strftime("%Y-%m-%d", time.gmtime(run.standing.touched))
    return f"{what}{f' on {data}' if data else ''}{rounds}; last written to on {day}"
