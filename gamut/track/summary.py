"""The rounds of a fine-tuning as one run of MLflow: the mean over folds and seeds, with its spread, above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from gamut.recipe.schema import Recipe
from gamut.track.feed import give_data, give_params, metric_name, source
from gamut.track.store import connect, experiment_id, tagged_run


def feed_summary(
    uri: str, recipe: Recipe, folder: Path, rounds: Mapping[str, Mapping[str, Any]], files: Sequence[Path]
) -> str:
    """Log the mean of all rounds and what lies around it, in a run called as the recipe's; its id.

    folder: of the rounds, whose one summary this is; rounds: what result.json says of each, by its own run's id; files:
    artifacts. A metric that all rounds have is there as `test/NAME`, with `_std`, `_min` and `_max`; its step is how
    many rounds there are, so that a command that is repeated with more seeds adds points. Giving the same again
    changes nothing. Raises whatever MLflow raises.
    """
    client = connect(uri)
    from mlflow.entities import Metric

    results = list(rounds.values())
    tags = {"gamut.kind": "summary", "gamut.folder": str(folder.resolve())}
    place = experiment_id(client, uri, recipe.track.experiment)
    made = tagged_run(client, place, recipe.run.name, tags, **source(recipe))
    run = str(made.info.run_id)
    give_params(client, run, recipe)
    give_data(client, run, recipe, str(results[0].get("index", "")))
    values = {"rounds": float(len(results)), "clips": float(sum(result["clips"] for result in results))}
    for name in results[0]["metrics"]:
        of = [result["metrics"].get(name) for result in results]
        if None not in of:
            found = {"": fmean(of), "_std": pstdev(of), "_min": min(of), "_max": max(of)}
            values |= {f"test/{name}{ending}": value for ending, value in found.items()}
    step = len(results)
    points = [
        Metric(metric_name(key), value, made.info.start_time, step)
        for key, value in values.items()
        if all(point.step != step for point in client.get_metric_history(run, metric_name(key)))
    ]
    if points:
        client.log_batch(run, metrics=points)
    for each in rounds:
        client.set_tag(each, "mlflow.parentRunId", run)
    for file in files:
        client.log_artifact(run, str(file), "report")
    client.set_terminated(run, "FINISHED")
    return run
