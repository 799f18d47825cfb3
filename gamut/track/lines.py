"""Curves over something other than steps (lengths, resolutions) in MLflow: a run a curve, below one that has the files.

MLflow's axis is the step: here it is the place on the curve, a whole number. What is shown is a function of the curves:
giving the same ones again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gamut.track.feed import metric_name
from gamut.track.store import connect, experiment_id, tagged_run

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]  # name of a run -> metric -> (place, value)


def feed_curves(uri: str, experiment: str, name: str, curves: Curves, files: Sequence[Path]) -> bool:
    """Log each of the curves as a child of a run called `name`, which gets the files. False: they were there already.

    Raises whatever MLflow raises; what an attempt that failed left is used by the next.
    """
    client = connect(uri)
    from mlflow.entities import Metric

    place = experiment_id(client, uri, experiment)
    digest = hashlib.sha256(json.dumps(curves, sort_keys=True).encode()).hexdigest()[:16]
    parent = tagged_run(client, place, name, {"gamut.kind": "curves", "gamut.curves": digest})
    if parent.data.tags.get("gamut.whole"):
        return False
    for line, metrics in curves.items():
        tags = {"mlflow.parentRunId": parent.info.run_id, "gamut.kind": "curve", "gamut.curve": line}
        run = tagged_run(client, place, line, tags)
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
