"""Curves over something other than steps (lengths, resolutions) in MLflow: a run a curve, below one that has the files.

MLflow's axis is the step: here it is the place on the curve, a whole number. What is shown is a function of the curves:
giving the same ones again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gamut.track.feed import metric_name
from gamut.track.store import quiet, warn_of_network

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]  # name of a run -> metric -> (place, value)


def feed_curves(uri: str, experiment: str, name: str, curves: Curves, files: Sequence[Path]) -> bool:
    """Log each of the curves as a child of a run called `name`, which gets the files. False: they were there already.

    Raises whatever MLflow raises; what an attempt that failed left is used by the next.
    """
    quiet()
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    if uri.startswith("sqlite:///"):
        warn_of_network(Path(uri.removeprefix("sqlite:///")))
    client = MlflowClient(tracking_uri=uri)
    place = _experiment(client, uri, experiment)
    digest = hashlib.sha256(json.dumps(curves, sort_keys=True).encode()).hexdigest()[:16]
    parent = _run(client, place, name, {"gamut.kind": "curves", "gamut.curves": digest})
    if parent.data.tags.get("gamut.whole"):
        return False
    for line, metrics in curves.items():
        tags = {"mlflow.parentRunId": parent.info.run_id, "gamut.kind": "curve", "gamut.curve": line}
        run = _run(client, place, line, tags)
        points = [
            Metric(metric_name(key), float(value), run.info.start_time, int(at))
            for key, values in metrics.items()
            if metric_name(key) not in run.data.metrics  # a metric's points come in one request, or not at all
            for at, value in values
        ]
        if points:
            client.log_batch(run.info.run_id, metrics=points)
        client.set_terminated(run.info.run_id, "FINISHED")
    for file in files:
        client.log_artifact(parent.info.run_id, str(file))
    client.set_tag(parent.info.run_id, "gamut.whole", "yes")
    client.set_terminated(parent.info.run_id, "FINISHED")
    return True


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = uri.startswith("sqlite:///")
    artifacts = Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts"
    return str(client.create_experiment(name, artifact_location=artifacts.as_uri() if local else None))


def _run(client: Any, experiment: str, name: str, tags: dict[str, str]) -> Any:
    """The run that has these tags, made where there is none."""
    query = " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items())
    found = client.search_runs([experiment], filter_string=query, max_results=1)
    return found[0] if found else client.create_run(experiment, run_name=name, tags=tags)


def _quoted(value: str) -> str:
    return value.replace("'", "''")
