"""What a run's folder tells of its weights: the data they have heard, and how well they did on which clips."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gamut.errors import CheckpointError
from gamut.models.find import find_weights, metadata_of, told
from gamut.models.weights import file_sha256
from gamut.numbers import RATE, bands
from gamut.recipe import schema
from gamut.recipe.policy import hop
from gamut.track.checkpoints import epochs_at
from gamut.track.run import RESULT, START, RunFolder


@dataclass(frozen=True)
class Story:
    """Of weights, for whoever gets them. Empty or 0 where the run does not say."""

    run: str = ""  # the run's name
    sha256: str = ""  # of the file that the weights were in
    which: str = ""  # of the run's weights, in words
    index: str = ""  # fingerprint of the shard set
    began_with: str = ""  # sha256 of the weights that the run began with
    clips: int = 0  # heard, one as often as it was drawn
    hours: float = 0.0  # of sound that went through the model meanwhile, all views of a clip
    epochs: float = 0.0
    metric: str = ""  # the one that the run is judged by
    score: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    scored_on: str = ""
    selected: str = ""  # how the epoch was chosen
    by_class: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, values: dict[str, Any]) -> Story:
        """What `asdict` gave; what this version does not know is left out."""
        return cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})


def story_of(weights: Path, recipe: schema.Recipe) -> Story:
    """Raises CheckpointError where the file is damaged."""
    run = RunFolder.find(weights)
    if run is None:
        return Story(recipe.run.name, file_sha256(weights))
    step, epochs = _moment(weights, run)
    clips, hours = _heard(run.metrics, recipe, step)
    which = told(weights).removeprefix(str(weights)).lstrip(", ")
    result = _result(run.path)
    scores = {}
    # What was scored is the run's own choice of weights: a checkpoint on the way there has no score of its own.
    if result and weights.resolve() == _chosen(run):
        scores = {
            "metric": str(result.get("metric", "")),
            "score": result.get("score"),
            "metrics": {name: value for name, value in result.get("metrics", {}).items() if value is not None},
            "scored_on": f"{result.get('clips', 0)} clips of {_folds(recipe, result)}",
            "selected": str(result.get("selected", "")),
            "by_class": [value for value in result.get("by_class") or [] if value is not None],
        }
    return Story(
        run=recipe.run.name,
        sha256=file_sha256(weights),
        which=which,
        index=run.index(),
        began_with=_began_with(run.path),
        clips=clips,
        hours=hours,
        epochs=epochs,
        **scores,  # type: ignore[arg-type]
    )


def _moment(weights: Path, run: RunFolder) -> tuple[int | None, float]:
    """(steps, epochs) that the weights had been trained for; None: all that the run tells of."""
    at = epochs_at(weights.parent)
    if at is not None:
        return at
    best = metadata_of(weights).get("best", {}).get("epoch", 0)
    return _step_at(run.metrics, float(best)), float(best)


def _lines(metrics: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    except (OSError, ValueError):
        return []


def _step_at(metrics: Path, epochs: float) -> int | None:
    """The last step of so many epochs."""
    steps = [line["step"] for line in _lines(metrics) if "epoch" in line and line["epoch"] < epochs and "step" in line]
    return max(steps, default=None)


def _heard(metrics: Path, recipe: schema.Recipe, last: int | None) -> tuple[int, float]:
    """(clips, hours of sound as the model saw it) of the steps up to `last`, as the lines of metrics tell; of a step
    that was taken twice, after a kill, once."""
    lines = {line["step"]: line for line in _lines(metrics) if {"step", "seconds_per_step"} <= line.keys()}
    special = int(recipe.model.pooling == "cls") + int(recipe.model.distilled)
    views = recipe.views.count * recipe.asit.clones + recipe.views.local_count
    # Seconds of a patch; where resolutions or poolings are drawn, the mean of them.
    resolutions, poolings = recipe.views.resolutions, recipe.views.poolings
    frame = sum(map(hop, resolutions)) / len(resolutions) * sum(poolings) / len(poolings) / RATE
    patch = recipe.model.stride * frame / bands(recipe.model.stride)
    patch /= (1 - recipe.augment.drop_tokens) * (1 - recipe.asit.unseen) * recipe.asit.clones
    before, heard, seconds = 0, 0.0, 0.0
    for step in sorted(step for step in lines if last is None or step <= last):
        line, seconds_since = lines[step], lines[step]["seconds_per_step"] * (step - before)
        before = step
        clips, tokens = (line.get(f"{name}_per_second", 0.0) * seconds_since for name in ("clips", "tokens"))
        heard += clips
        if recipe.features or recipe.encoder:  # there a clip is one token
            seconds += clips * recipe.head.seconds
        else:
            seconds += (tokens - clips * views * special) * patch * (1 - line.get("padding_share", 0.0))
    return round(heard), seconds / 3600


def _result(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError):
        return {}


def _chosen(run: RunFolder) -> Path | None:
    try:
        return find_weights(run.path).resolve()
    except CheckpointError:
        return None


def _folds(recipe: schema.Recipe, result: dict[str, Any]) -> str:
    names = ", ".join(map(str, result.get("test", ())))
    return f"the test folds {names} (column {recipe.folds.column})" if names else "the test folds"


def _began_with(folder: Path) -> str:
    try:
        return str(json.loads((folder / START).read_bytes())["init"].get("sha256", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
