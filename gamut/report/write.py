"""Reports as files: what they hold is put together here, and their size is bounded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from gamut.errors import RunError
from gamut.files import write_text
from gamut.report import scored, sections
from gamut.report.document import Document
from gamut.report.mistakes import mistakes
from gamut.report.page import page
from gamut.report.plain import plain
from gamut.report.told import Told, tell

PAGE, PLAIN = "report.html", "report.md"


def report(places: Sequence[Path], out: Path | None = None) -> tuple[Path, Path]:
    """Write the report on a run, or on several side by side, and return (page, Markdown).

    out: the folder, made if need be; without one a single run's own, and `report` in the current one for several.
    Raises RunError where a place is no run, or the folder cannot be written.
    """
    runs = [tell(place) for place in places]
    folder = out or (runs[0].path if len(runs) == 1 else Path("report"))
    document = of_one(runs[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, page(document))
        write_text(folder / PLAIN, plain(document, folder.resolve()))
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror or error}. Name another folder with --out."
        ) from error
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


def _lead(run: Told) -> str:
    recipe = run.standing.recipe
    what = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}.get(run.standing.stage, "Run")
    data = Path(str(recipe.get("data") or "")).name
    rounds = f", {len(run.parts)} rounds" if len(run.parts) > 1 else ""
    day = time.strftime("%Y-%m-%d", time.gmtime(run.standing.touched))
    return f"{what}{f' on {data}' if data else ''}{rounds}; last written to on {day}"
