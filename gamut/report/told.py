"""All that a run's folder tells, for a report: whole, half, damaged or of an earlier version."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import GamutError
from gamut.evaluate.scores import Scores, numbers_of
from gamut.models.find import metadata_of
from gamut.runs.find import run_at
from gamut.runs.standing import Standing, recent, standing
from gamut.track.metrics import Attempt, History
from gamut.track.run import BEST, CLASSES, METRICS, RESULT, SCORES, SUMMARY

NUMBERS = ("AP", "AUC", "precision", "recall", "F1", "ECE")  # of a class, as in CLASSES


@dataclass(frozen=True)
class Part:
    """A round of a fine-tuning, or a run that has none."""

    path: Path
    standing: Standing
    history: History
    result: dict[str, Any] = field(default_factory=dict)  # {} before it is scored
    problems: tuple[str, ...] = ()

    @cached_property
    def scores(self) -> Scores | None:
        """Of the selected epoch; None where they are not there, or damaged."""
        try:
            scores = Scores.load(self.path / SCORES)
            return scores if len(scores.target) and np.isfinite(scores.logits).all() else None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    @property
    def exclusive(self) -> bool:
        """Whether its classes exclude each other."""
        return self.standing.recipe.get("finetune.loss") == "ce"

    def attempts(self) -> list[tuple[Attempt, float, float]]:
        """(attempt, first step, seconds it lasted), in order: up to its end, or to the last line that is known of it;
        nan for the step of one that took none."""
        attempts = [self.history.attempts[number] for number in sorted(self.history.attempts)]
        lines = sorted((when, step) for points in self.history.points.values() for step, (_, when) in points.items())
        found = []
        for attempt, after in zip(attempts, [*attempts[1:], None]):
            until = math.inf if after is None else after.started
            own = [(when, step) for when, step in lines if attempt.started <= when < until]
            last = max([attempt.started, *(when for when, _ in own)]) if attempt.ended is None else attempt.ended
            first = float(min((step for _, step in own), default=math.nan))
            found.append((attempt, first, max(0.0, last - attempt.started)))
        return found

    def by_class(self) -> dict[str, np.ndarray]:
        """clips and NUMBERS, float64 [classes] each, nan where a class has no such number; {} without scores."""
        try:
            with (self.path / CLASSES).open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            return {
                name: np.array([float(row[name]) if row[name] else math.nan for row in rows])
                for name in ("clips", *NUMBERS)
            }
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            pass
        if self.scores is None:
            return {}
        numbers = numbers_of(self.scores, self.exclusive).by_class
        return {name: getattr(numbers, name) for name in ("clips", *NUMBERS)}


@dataclass(frozen=True)
class Told:
    """A run: `parts` are its rounds, or the run itself."""

    name: str
    standing: Standing
    parts: Sequence[Part]
    labels: Sequence[str]  # of the classes that its scores are of; () where there are none

    @property
    def path(self) -> Path:
        return self.standing.path

    @property
    def scored(self) -> list[Part]:
        return [part for part in self.parts if part.result]

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(problem for part in self.parts for problem in part.problems))

    def pooled(self) -> Scores | None:
        """The scores of all rounds below each other; None where no round has any."""
        some = [part.scores for part in self.parts if part.scores is not None]
        some = [one for one in some if one.target.shape[1:] == some[0].target.shape[1:]]
        if not some:
            return None
        row, target, logits, key = (
            np.concatenate([getattr(one, name) for one in some]) for name in ("row", "target", "logits", "key")
        )
        return Scores(row, target, logits, key=key)


def tell(place: Path) -> Told:
    """What the run in a folder, or one of its rounds, tells. Raises RunError where there is none."""
    path, rounds = run_at(Path(place).expanduser().resolve())
    stands = standing(path, rounds)
    parts = [_part(one) for one in stands.rounds or (stands,)]
    inside = 1 if rounds else len(Path(str(stands.recipe.get("run.name") or path.name)).parts)  # a round's: RUN/ROUND
    return Told("/".join(path.parts[-inside:]), stands, parts, _labels(path, parts))


def _part(stands: Standing) -> Part:
    history, _ = recent(stands.path / METRICS, None)
    result: dict[str, Any] = {}
    try:
        found = json.loads((stands.path / RESULT).read_bytes())
        result = found if isinstance(found, dict) and isinstance(found.get("score"), int | float) else {}
    except (OSError, ValueError):
        pass
    return Part(stands.path, stands, history, result, stands.problems)


def _labels(path: Path, parts: Sequence[Part]) -> tuple[str, ...]:
    """Names of the classes in their order, from whichever file still has them; `class 7` where none does."""
    classes = next((part.scores.target.shape[1] for part in parts if part.scores is not None), 0)
    for part in parts:
        for named in (_of_weights, _of_classes):
            labels = named(part.path)
            if labels and len(labels) == (classes or len(labels)):
                return labels
    try:
        labels = tuple(map(str, json.loads((path / SUMMARY).read_bytes())["labels"]))
    except (OSError, ValueError, KeyError, TypeError):
        labels = ()
    return labels if labels and len(labels) == classes else tuple(f"class {number}" for number in range(classes))


def _of_weights(path: Path) -> tuple[str, ...]:
    try:
        return tuple(map(str, metadata_of(path / BEST).get("labels", ())))
    except (GamutError, OSError, ValueError):
        return ()


def _of_classes(path: Path) -> tuple[str, ...]:
    try:
        with (path / CLASSES).open(newline="", encoding="utf-8") as file:
            return tuple(row["label"] for row in csv.DictReader(file))
    except (OSError, ValueError, KeyError, csv.Error):
        return ()
