"""How a run stands, as far as its files tell. Whatever is damaged, absent or of another version is said, not raised."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gamut.errors import GamutError, RunError
from gamut.recipe.resolved import read_values
from gamut.runs.words import seen_by
from gamut.settings import flatten
from gamut.track.metrics import History
from gamut.track.run import RECIPE, RESULT, SUMMARY, RunFolder, read_record

TAIL = 1 << 21  # bytes of metrics.jsonl, from its end, that are read to see where a run stands
SCORED = ("test/", "validation/", "probe/linear/", "probe/knn/")
# What the status that an attempt ended with means; one that ended without a word was killed.
STATES = {"finished": "finished", "preempted": "stopped", "failed": "failed", None: "killed"}
ORDER = ("running", "damaged", "failed", "killed", "stopped", "not begun", "finished")  # of rounds, what is told first


@dataclass(frozen=True)
class Standing:
    """One run, or the rounds of a fine-tuning as one."""

    path: Path
    state: str  # one of ORDER
    recipe: Mapping[str, Any] = field(default_factory=dict)  # flat, by the names of today; {} where it cannot be read
    step: int = 0
    epoch: int = 0  # the one that it is in, or ended in, from 1; 0 where it has none
    attempts: int = 0
    touched: float = 0.0  # seconds since 1970 of its last line
    size: int = 0  # bytes
    metric: str = ""  # the name of its main score
    scores: Mapping[str, float] = field(default_factory=dict)  # all that it is known by
    deviation: float = math.nan  # of the main score over rounds
    interval: tuple[float, ...] = ()  # (low, high) of the main score
    seen: int = 0  # clips that score it and that the run behind init was trained on
    index: str = ""  # fingerprint of the shard set
    holder: str = ""  # who runs it
    rate: float = math.nan  # clips a second, last measured
    left: float = math.nan  # seconds to the end, at the rate of its last attempt
    facts: Mapping[str, Any] = field(default_factory=dict)  # of its last attempt
    problems: tuple[str, ...] = ()
    rounds: tuple[Standing, ...] = ()

    @property
    def stage(self) -> str:
        return str(self.recipe.get("stage", "?"))

    @property
    def epochs(self) -> int:
        return int(self.recipe.get("epochs") or 0)

    @property
    def score(self) -> float:
        return self.scores.get(self.metric, math.nan)


def standing(path: Path, rounds: Sequence[Path] = ()) -> Standing:
    """Of the run in a folder; with rounds, of the fine-tuning that they are of."""
    return _of_rounds(path, [standing(each) for each in rounds]) if rounds else _of_run(path)


def _of_run(path: Path) -> Standing:
    problems: list[str] = []
    recipe: dict[str, Any] = {}
    attempts = 0
    try:
        recipe = flatten(read_values(path / RECIPE), mappings=True)
    except GamutError as error:
        problems.append(str(error))
    try:
        attempts = int(read_record(path).get("attempt", 0))
    except (RunError, OSError) as error:
        problems.append(str(error))
    run = RunFolder(path)
    history, damaged = recent(run.metrics)
    if damaged:
        problems.append(f"{run.metrics} has {damaged} lines that cannot be read")
    result: dict[str, Any] = {}
    if (path / RESULT).is_file():
        try:
            result = dict(json.loads((path / RESULT).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{path / RESULT} cannot be read: {error}")
    scores = scores_of(history, result)
    steps = [step for points in history.points.values() for step in points]
    epoch = history.series("epoch")[1]
    holder = ""
    with contextlib.suppress(OSError):  # another user's: the files alone tell
        holder = run.holder()
    return Standing(
        path=path,
        state=_state(history, holder, bool(result), problems),
        recipe=recipe,
        step=max(steps, default=0),
        epoch=int(epoch[-1]) + 1 if epoch else 0,
        attempts=max([attempts, *history.attempts]),
        touched=_touched(run),
        size=size_of(path),
        metric=_main(recipe, result, scores),
        scores=scores,
        interval=tuple(result.get("interval") or ()),
        seen=seen_by([result]),
        index=str(result.get("index") or run.index()),
        holder=holder,
        rate=(history.series("clips_per_second")[1] or [math.nan])[-1],
        left=_left(history, int(recipe.get("epochs") or 0)),
        facts=history.last_attempt.facts if history.last_attempt else {},
        problems=tuple(problems),
    )


def _of_rounds(path: Path, rounds: Sequence[Standing]) -> Standing:
    """The newest round's recipe, mean scores over the rounds that have a result."""
    lead = max(rounds, key=lambda one: one.touched)
    done = [one for one in rounds if (one.path / RESULT).is_file()] or list(rounds)
    names = [name for name in done[0].scores if all(name in one.scores for one in done)]
    scores = {name: statistics.fmean(one.scores[name] for one in done) for name in names}
    state = min((one.state for one in rounds), key=ORDER.index)
    if state == "finished" and not (path / SUMMARY).is_file():
        state = "stopped"  # between two rounds
    return Standing(
        path=path,
        state=state,
        recipe=lead.recipe,
        step=sum(one.step for one in rounds),
        epoch=lead.epoch,
        attempts=max(one.attempts for one in rounds),
        touched=lead.touched,
        size=size_of(path),
        metric=lead.metric,
        scores=scores,
        deviation=statistics.pstdev(one.score for one in done) if len(done) > 1 else math.nan,
        interval=done[0].interval if len(done) == 1 else (),
        seen=sum(one.seen for one in done),
        index=lead.index,
        holder=next((one.holder for one in rounds if one.holder), ""),
        rate=lead.rate,
        left=lead.left,
        facts=lead.facts,
        problems=tuple(problem for one in rounds for problem in one.problems),
        rounds=tuple(rounds),
    )


def recent(path: Path, most: int | None = TAIL) -> tuple[History, int]:
    """What the last bytes of metrics.jsonl say (None: all of it), and how many of their lines cannot be read."""
    history, damaged = History(), 0
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                file.seek(size - most)
                file.readline()
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # being written, or torn by a kill: an attempt that goes on cuts it off
                try:
                    history.take(json.loads(raw))
                except (ValueError, TypeError, KeyError, AttributeError):
                    damaged += 1
    except OSError:
        pass
    return history, damaged


def scores_of(history: History, result: Mapping[str, Any]) -> dict[str, float]:
    """What a run is known by: of a finished round the numbers of its result; and the last value of the losses, and of
    every score that was logged."""
    given = {**(result.get("more_metrics") or {}), **(result.get("metrics") or {})}
    if "metric" in result and "score" in result:
        given[str(result["metric"])] = result["score"]
    found = {str(name): float(value) for name, value in given.items() if isinstance(value, int | float)}
    for name in sorted(history.points):
        values = history.series(name)[1]
        if values and (name == "loss" or name.startswith(("loss/", *SCORED))):
            found[name] = values[-1]
    return found


def _main(recipe: Mapping[str, Any], result: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    """The name of the score that a run is shown with."""
    if result.get("metric") in scores:
        return str(result["metric"])
    asked = str(recipe.get("finetune.metric", ""))
    asked = ("accuracy" if recipe.get("finetune.loss") == "ce" else "mAP") if asked in ("", "auto") else asked
    wanted = [f"test/{asked}", f"validation/{asked}", "probe/linear/cls"]
    probes = [name for name in scores if name.startswith("probe/linear/") and not name.endswith("/logmel")]
    return next((name for name in [*wanted, *probes, "loss"] if name in scores), "")


def _state(history: History, holder: str, result: bool, problems: Sequence[str]) -> str:
    last = history.last_attempt
    if holder:
        return "running"
    if result:
        return "finished"
    if last is None:
        return "damaged" if problems else "not begun"
    return STATES.get(last.status, "killed")


def _left(history: History, epochs: int) -> float:
    last = history.last_attempt
    points = (
        [] if last is None else [each for each in history.points.get("epoch", {}).values() if each[1] >= last.started]
    )
    (first, began), (now, then) = (min(points), max(points)) if points else ((0.0, 0.0), (0.0, 0.0))
    return max(0.0, epochs - now) * (then - began) / (now - first) if now > first else math.nan


def _touched(run: RunFolder) -> float:
    for path in (run.metrics, run.path / RECIPE, run.path):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return time.time()


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, at any depth; one that goes meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
