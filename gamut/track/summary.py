"""The rounds of a fine-tuning as one run of MLflow: the mean over folds and seeds, with its spread, above them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from gamut.recipe.schema import Recipe
from gamut.track.feed import give_data, give_params, metric_name, source
from gamut.track.store import connect, experiment_id, tagged_run

ABOVE = "mlflow.parentRunId"


def feed_summary(uri: str, recipe: Recipe, rounds: Mapping[str, Mapping[str, Any]], files: Sequence[Path]) -> str:
    """Log the mean of all rounds and what lies around it, in a run called as the recipe's; its id.

    rounds: what result.json says of each, by its own run's id; files: artifacts. It is the run that a round is below
    already, or a new one. A metric that all rounds have is there as `test/NAME`, with `_std`, `_min` and `_max`; its
    step is how many rounds there are, so that a command that is repeated with more seeds adds points. Giving the same
    again changes nothing. Raises whatever MLflow raises.
    """
    client = connect(uri)
    from mlflow.entities import Metric

    results = list(rounds.values())
    above = [client.get_run(each).data.tags.get(ABOVE) for each in rounds]
    run = next(filter(None, above), None) or _new(client, uri, recipe, next(iter(rounds)))
    for each in rounds:
        client.set_tag(each, ABOVE, run)
    give_params(client, run, recipe)
    give_data(client, run, recipe, str(results[0].get("index", "")))
    values = {"rounds": float(len(results)), "clips": float(sum(result["clips"] for result in results))}
    for name in results[0]["metrics"]:
        of = [result["metrics"].get(name) for result in results]
        if None not in of:
            found = {"": fmean(of), "_std": pstdev(of), "_min": min(of), "_max": max(of)}
            values |= {f"test/{name}{ending}": value for ending, value in found.items()}
    step, now = len(results), round(1000 * time.time())
    points = [Metric(metric_name(key), value, now, step) for key, value in values.items()]
    there = {
        (point.key, point.step, point.value) for new in points for point in client.get_metric_history(run, new.key)
    }
    if missing := [new for new in points if (new.key, new.step, new.value) not in there]:
        client.log_batch(run, metrics=missing)
    for file in files:
        client.log_artifact(run, str(file), "report")
    client.set_terminated(run, "FINISHED")
    return run


def _new(client: Any, uri: str, recipe: Recipe, first: str) -> str:
    """The run above rounds of which `first` is the first: one that an attempt cut short has made, or a new one."""
    tags = {"gamut.kind": "summary", "gamut.summary": first}
    place = experiment_id(client, uri, recipe.track.experiment)
    return str(tagged_run(client, place, recipe.run.name, tags, **source(recipe)).info.run_id)
