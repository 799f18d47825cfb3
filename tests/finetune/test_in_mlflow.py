"""A fine-tuning of several rounds in MLflow: their mean above them, and what each came to as artifacts."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from gamut.embed.load import load
from gamut.recipe.schema import Recipe
from gamut.track.store import connect, experiment_id, quiet
from gamut.track.summary import feed_summary
from tests.train import ranks

from .tuning import tune

quiet()
from mlflow.tracking import MlflowClient  # noqa: E402

TINY = ["model.dim=16", "model.depth=1", "model.heads=2", "model.table_frames=48", "views.frames=48", "epochs=1"]
TINY += ["front.mean=0", "front.std=1", "step.packs=1", "loader.workers=0", "run.threads=1", "folds.train=[1]"]


@pytest.fixture(scope="module")
def tuned(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """(folder of runs, what was typed): two folds of one seed."""
    runs = tmp_path_factory.mktemp("runs")
    line = ["esc10", f"data={small_set}", f"run.folder={runs}", "run.name=x", "init=", *TINY]
    assert ranks.run(1, tune, [*line, "folds.test=[[4],[5]]"]) == [0]
    return runs, line


def test_the_mean_stands_above_its_rounds(tuned: tuple[Path, list[str]], tmp_path: Path) -> None:
    runs, line = tuned
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    place = [client.get_experiment_by_name("gamut").experiment_id]

    def of(kind: str) -> list:
        return list(client.search_runs(place, filter_string=f"tags.`gamut.kind` = '{kind}'"))

    (summary,) = of("summary")
    rounds = of("run")
    assert summary.info.run_name == "x"
    assert {each.info.run_name for each in rounds} == {"x/test-4-seed-0", "x/test-5-seed-0"}
    assert {each.data.tags["mlflow.parentRunId"] for each in rounds} == {summary.info.run_id}
    assert {each.data.tags["mlflow.parentRunId"] for each in of("attempt")} == {each.info.run_id for each in rounds}

    results = [json.loads(path.read_bytes()) for path in (runs / "x").glob("*/result.json")]
    scores = [result["score"] for result in results]
    found = summary.data.metrics
    assert found["test/accuracy"] == pytest.approx(statistics.fmean(scores))
    assert found["test/accuracy_std"] == pytest.approx(statistics.pstdev(scores))
    assert (found["test/accuracy_min"], found["test/accuracy_max"]) == (min(scores), max(scores))
    assert (found["rounds"], found["clips"]) == (2, sum(result["clips"] for result in results))
    assert summary.data.params["model.dim"] == "16"
    for run in (summary, *rounds):
        assert run.data.tags["mlflow.source.name"] == "gamut finetune"
        (data,) = run.inputs.dataset_inputs
        assert data.dataset.name == "shards"
        assert data.dataset.digest == results[0]["index"][:36]

    assert {file.path for file in client.list_artifacts(summary.info.run_id, "report")} == {
        f"report/{name}" for name in ("report.html", "report.md", "summary.json")
    }
    for run in rounds:
        there = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert there >= {"recipe.yaml", "result.json", "classes.csv", "report", "model"}
    model = load(client.download_artifacts(rounds[0].info.run_id, "model", str(tmp_path)))
    assert len(model.labels) == 6

    before = client.get_metric_history(summary.info.run_id, "test/accuracy")
    assert ranks.run(1, tune, [*line, "folds.test=[[4],[5]]"]) == [0]  # all is there
    assert len(of("summary")) == 1
    assert client.get_metric_history(summary.info.run_id, "test/accuracy") == before


def test_more_rounds_are_another_point_and_other_rounds_another_run(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    place = experiment_id(client, uri, "gamut")
    ids = [client.create_run(place).info.run_id for _ in range(3)]
    scored = [{"index": "abc", "clips": 4, "metrics": {"mAP": score, "AUC": None}} for score in (0.25, 0.75)]
    recipe = Recipe(stage="finetune", data="sets/one")
    first = feed_summary(uri, recipe, {ids[0]: scored[0]}, [])
    for _ in range(2):
        assert first == feed_summary(uri, recipe, dict(zip(ids, scored)), [])
    points = client.get_metric_history(first, "test/mAP")
    assert [(point.step, point.value) for point in points] == [(1, 0.25), (2, 0.5)]
    assert "test/AUC" not in client.get_run(first).data.metrics
    assert {client.get_run(each).data.tags["mlflow.parentRunId"] for each in ids[:2]} == {first}

    # One is done again: the mean is of what there is now, and a run of the same name that begins anew is another one.
    feed_summary(uri, recipe, dict(zip(ids, [scored[0], scored[0]])), [])
    assert client.get_run(first).data.metrics["test/mAP"] == 0.25
    assert feed_summary(uri, recipe, {ids[2]: scored[1]}, []) != first
