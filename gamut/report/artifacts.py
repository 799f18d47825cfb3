"""What MLflow keeps of a run that has ended: its recipe, its report, its scores and its weights; of several rounds also
their mean."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamut.recipe.schema import Recipe
from gamut.track.checkpoints import Checkpoints
from gamut.track.feed import Feed
from gamut.track.run import BEST, CLASSES, RECIPE, RESULT, SUMMARY, RunFolder
from gamut.track.summary import feed_summary

WEIGHTS = "model"  # artifact: a folder that `gamut.load` opens
OF_A_CHECKPOINT = 4  # how often a checkpoint has the weights or as much: student, teacher, two moments


def keep(uri: str, place: Path, recipe: Recipe, report: Sequence[Path]) -> None:
    """Log what lies in the folder of a run, or of a fine-tuning's rounds. Raises whatever MLflow raises, and GamutError
    where the weights cannot be exported."""
    rounds: dict[str, dict[str, Any]] = {}
    for part in RunFolder.rounds(place):
        feed = Feed(RunFolder.last(part.path), part.recipe, uri)
        feed.keep(report)
        feed.keep([file for name in (RECIPE, RESULT, CLASSES) if (file := part.path / name).is_file()], None)
        _keep_weights(feed, part.path, 1e6 * recipe.track.weights_mb)
        if (part.path / RESULT).is_file():
            rounds[feed.run] = json.loads((part.path / RESULT).read_bytes())
    if len(rounds) > 1:
        feed_summary(uri, recipe, rounds, [*report, place / SUMMARY])


def _keep_weights(feed: Feed, place: Path, most: float) -> None:
    if _bytes_of_weights(place) > most:
        return
    from gamut.export.write import export  # here: it imports torch

    with tempfile.TemporaryDirectory(prefix="gamut-weights-") as folder:
        made = Path(folder) / place.name
        for _ in export(place, "safetensors", made):
            pass
        if _size(made) <= most:
            feed.keep_folder(made, WEIGHTS)


def _bytes_of_weights(place: Path) -> float:
    """Before they are exported: of a round its best epoch's, of a pretraining a guess by its newest checkpoint."""
    if (place / BEST).is_file():
        return (place / BEST).stat().st_size
    saved = Checkpoints(place / "checkpoints").saved()
    return _size(saved[0]) / OF_A_CHECKPOINT if saved else float("inf")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
