"""What a sweep comes to: pictures, tables for people, spreadsheets and programs, and MLflow."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from finetune.points import Point
from gamut.evaluate import METRICS, Metric
from gamut.files import write_text
from gamut.recipe import schema
from gamut.track import figures, tables
from gamut.track.lines import feed_curves
from gamut.track.store import public, store_uri

COLUMNS = ("model", "seed", "test", "axis", "value", "metric", "score", "clips", "frames_a_clip", "tokens_a_clip",
           "gflop_a_clip", "ms_a_clip", "device", "threads", "run")  # fmt: skip
ACROSS = {"length": ("lengths", "frames"), "resolution": ("resolutions", "C: a hop of 10 ms * C")}


def report(out: Path, entries: list[dict[str, Any]], recipe: schema.Recipe, console: Console) -> None:
    """Write everything into `out`, print the table, and feed MLflow as the recipe says. entries: one a model, round and
    point, as `Scorer.score` gives them."""
    means = averaged(entries)
    metric = METRICS[entries[0]["metric"]]
    write_text(out / "sweep.json", json.dumps({"metric": metric.name, "points": means, "scores": entries}, indent=1))
    _spreadsheet(out / "sweep.csv", entries)
    write_text(out / "sweep.md", markdown(means, metric))
    files = [out / "sweep.json", out / "sweep.csv", out / "sweep.md"]
    for axis, (name, across) in ACROSS.items():
        lines = _lines(means, axis)
        if lines:
            stars = _native(means) if axis == "length" else None
            title = f"{recipe.folds.column} {', '.join(map(str, recipe.folds.test[0]))}: {entries[0]['clips']} clips"
            figures.sweep(lines, across, metric, title, stars).savefig(out / f"{name}.png", dpi=110)
            files.append(out / f"{name}.png")
    _show(console, means, metric)
    console.print(f"figures and tables: {out}", highlight=False, soft_wrap=True)
    _feed(out, means, recipe, files, console)


def averaged(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a model and point, in their order: the mean over seeds and folds, and the score's deviation."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["model"], entry["axis"], entry["value"]), []).append(entry)
    costs = ("frames_a_clip", "tokens_a_clip", "gflop_a_clip", "ms_a_clip")
    return [
        {
            "model": model,
            "axis": axis,
            "value": value,
            "score": float(np.mean([entry["score"] for entry in group])),
            "deviation": float(np.std([entry["score"] for entry in group])),
            "rounds": len(group),
        }
        | {cost: float(np.mean([entry[cost] for entry in group])) for cost in costs}
        for (model, axis, value), group in groups.items()
    ]


def _rows(means: list[dict[str, Any]]) -> tuple[list[str], dict[tuple[str, float], dict[str, dict[str, Any]]]]:
    """(models, point -> model -> its entry), in their order."""
    rows: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for entry in means:
        rows.setdefault((entry["axis"], entry["value"]), {})[entry["model"]] = entry
    return list(dict.fromkeys(entry["model"] for entry in means)), rows


def _score(entry: dict[str, Any], metric: Metric) -> str:
    shown = [f"{metric.scale * entry[key]:.{1 if metric.percent else 4}f}" for key in ("score", "deviation")]
    return " ± ".join(shown if entry["rounds"] > 1 else shown[:1])


def _cost(entry: dict[str, Any], metric: Metric) -> str:
    return f"{entry['tokens_a_clip']:.0f} / {entry['gflop_a_clip']:.3g} / {entry['ms_a_clip']:.3g}"


def _tables(means: list[dict[str, Any]], metric: Metric) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, heads, rows) of the two tables: scores, costs."""
    models, rows = _rows(means)
    titles = (metric.title, "tokens / GFLOP / ms a clip")
    return [
        (
            title,
            ["", *models],
            [[str(Point(*point)), *(cell(row[model], metric) for model in models)] for point, row in rows.items()],
        )
        for title, cell in zip(titles, (_score, _cost))
    ]


def markdown(means: list[dict[str, Any]], metric: Metric) -> str:
    """Both tables, a row a point, a column a model."""
    parts = []
    for title, heads, rows in _tables(means, metric):
        parts.append(tables.markdown([title, *heads[1:]], rows))
    return "\n\n".join(parts) + "\n"


def _show(console: Console, means: list[dict[str, Any]], metric: Metric) -> None:
    for title, heads, rows in _tables(means, metric):
        table = Table(*(Column(head, no_wrap=not number) for number, head in enumerate(heads)), title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _spreadsheet(path: Path, entries: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    table.writeheader()
    table.writerows({**entry, "test": " ".join(map(str, entry["test"]))} for entry in entries)
    write_text(path, text.getvalue())


def _lines(means: list[dict[str, Any]], axis: str) -> dict[str, tuple[list[float], list[float], list[float]]]:
    lines: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for entry in means:
        if entry["axis"] == axis:
            line = lines.setdefault(entry["model"], ([], [], []))
            for values, key in zip(line, ("value", "score", "deviation")):
                values.append(entry[key])
    return lines


def _native(means: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    return {entry["model"]: (entry["frames_a_clip"], entry["score"]) for entry in means if entry["axis"] == "native"}


def _feed(out: Path, means: list[dict[str, Any]], recipe: schema.Recipe, files: list[Path], console: Console) -> None:
    """A run a model; places are frames, and C in hundredths."""
    uri = store_uri(recipe)
    if uri is None:
        return
    places = {"length": ("over_frames", 1), "resolution": ("over_100_C", 100), "native": ("native", 1)}
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for entry in means:
        name, times = places[entry["axis"]]
        for key in ("score", "tokens_a_clip", "gflop_a_clip", "ms_a_clip"):
            of_model = curves.setdefault(entry["model"], {})
            of_model.setdefault(f"{key}/{name}", []).append((round(times * entry["value"]), entry[key]))
    try:
        feed_curves(uri, recipe.track.experiment, f"sweep {out.name}", curves, files)
    except Exception as error:  # MLflow and what lies below it raise what they like; the files are there
        reason = (str(error).splitlines() or [""])[0][:200]
        said = f"warning: MLflow at {public(uri)} did not take the sweep ({reason}); the files are in {out}. Repeat "
        console.print(f"{said}the command once it answers.", highlight=False, soft_wrap=True, markup=False)
