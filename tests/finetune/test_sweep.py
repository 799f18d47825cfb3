"""The sweep through the command that people type: scores of trained models, saved point by point, plotted, tabled."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from finetune import sweep, sweep_score
from gamut.models.weights import load_weights, save_weights
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import read_resolved, resolved_yaml
from launchers.corpus import synthesise
from tests.shards.layouts import convert
from tests.train.ranks import run

from .tuning import tune

SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "model.pooling_heads=2", "step.packs=2", "step.tokens=256"]
SMALL += ["epochs=1", "loader.workers=0", "run.threads=1", "front.mean=-5", "front.std=4", "views.max_seconds=null"]
LINE = ["--lengths", "32,96", "--resolutions", "1,2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ElasticAST of two seeds and a standard AST of one, of 64 frames, on clips of 0.8 s."""
    folder = tmp_path_factory.mktemp("sweep")
    synthesise(folder / "corpus", 30, seconds=0.8)
    assert convert("esc50", folder / "corpus", folder / "shards") == 0
    for name, more in (
        ("elastic_esc10", ["finetune.seeds=2"]),
        ("ast_esc10", ["views.frames=64", "model.table_frames=64", "finetune.average_from=1"]),
    ):
        line = [name, f"data={folder / 'shards'}", f"run.folder={folder / 'runs'}", *SMALL, *more]
        assert run(1, tune, line) == [0]
    return folder / "runs"


@pytest.fixture(scope="module")
def swept(runs: Path) -> Path:
    assert sweep.main([str(runs / "elastic_esc10"), str(runs / "ast_esc10"), *LINE]) == 0
    return runs / "sweep"


def entries(out: Path) -> list[dict]:
    return json.loads((out / "sweep.json").read_text())["scores"]


def test_every_model_seed_and_point_is_scored(swept: Path) -> None:
    found = entries(swept)
    points = {("length", 32.0), ("length", 96.0), ("resolution", 1.0), ("resolution", 2.0), ("native", 0.0)}
    for model, seeds in (("elastic_esc10", {0, 1}), ("ast_esc10", {0})):
        of_model = [entry for entry in found if entry["model"] == model]
        assert {(entry["axis"], entry["value"]) for entry in of_model} == points
        assert {entry["seed"] for entry in of_model} == seeds
        assert len(of_model) == len(points) * len(seeds)
    with (swept / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [entry["score"] for entry in found]


def test_native_scores_are_those_of_the_runs(runs: Path, swept: Path) -> None:
    """Of clips as the models take them, with the weights that the rounds selected (the AST's: a mean)."""
    for entry in entries(swept):
        result = json.loads((Path(entry["run"]) / "result.json").read_text())
        if entry["axis"] == "native":
            assert (entry["score"], entry["clips"]) == (result["score"], result["clips"])
            assert entry["metrics"] == result["metrics"]


def test_costs_are_the_plans(swept: Path) -> None:
    """Clips of 0.8 s have 78 frames: 64 in whole patches at C = 1, 32 at C = 2."""
    cost = {(e["model"], e["axis"], e["value"]): (e["frames_a_clip"], e["tokens_a_clip"]) for e in entries(swept)}
    elastic = {key[1:]: value for key, value in cost.items() if key[0] == "elastic_esc10"}
    assert elastic[("length", 32.0)] == elastic[("resolution", 2.0)] == (32, 16)
    assert elastic[("length", 96.0)] == elastic[("native", 0.0)] == (64, 32)
    ast = {key[1:]: value for key, value in cost.items() if key[0] == "ast_esc10"}
    assert (ast[("length", 32.0)], ast[("length", 96.0)], ast[("native", 0.0)]) == ((32, 17), (96, 49), (64, 33))
    assert ast[("resolution", 2.0)] == (32, 17)
    assert all(entry["gflop_a_clip"] > 0 and entry["ms_a_clip"] > 0 for entry in entries(swept))


def test_means_and_spread_are_in_the_table(swept: Path) -> None:
    scores = [e["score"] for e in entries(swept) if e["model"] == "elastic_esc10" and e["axis"] == "native"]
    cell = f"{100 * np.mean(scores):.1f} ± {100 * np.std(scores):.1f}"
    row = next(line for line in (swept / "sweep.md").read_text().splitlines() if line.startswith("| native"))
    assert row.split(" | ")[1] == cell
    for name in ("lengths.png", "resolutions.png"):
        assert (swept / name).stat().st_size > 10_000


def test_mlflow_has_a_run_a_model_once(runs: Path, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_score, "evaluate", None)  # nothing is scored again
    assert sweep.main([str(runs / "elastic_esc10"), str(runs / "ast_esc10"), *LINE]) == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gamut")
    curves = client.search_runs([experiment.experiment_id], "tags.`gamut.kind` = 'curve'")
    assert sorted(one.info.run_name for one in curves) == ["ast_esc10", "elastic_esc10"]
    history = client.get_metric_history(curves[0].info.run_id, "score/over_frames")
    assert [point.step for point in history] == [32, 96]
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`gamut.kind` = 'curves'")
    names = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert names == {"sweep.json", "sweep.csv", "sweep.md", "lengths.png", "resolutions.png"}


def test_more_points_cost_only_themselves(runs: Path, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    evaluate = sweep_score.evaluate
    monkeypatch.setattr(sweep_score, "evaluate", lambda *a, **b: (asked.append(1), evaluate(*a, **b))[1])
    line = [str(runs / "ast_esc10"), "--lengths", "32,48,96", "--resolutions", "none", "track.mlflow=off"]
    before = (swept / "sweep.json").read_text()
    assert sweep.main([*line, "--out", str(swept)]) == 0
    assert len(asked) == 1
    (swept / "sweep.json").write_text(before)


def test_mlflow_that_is_down_is_said_and_nothing_is_lost(runs: Path, swept: Path, tmp_path: Path, capsys) -> None:
    line = [str(runs / "ast_esc10"), "--lengths", "32", "--resolutions", "none", "--no-native", "--out", str(tmp_path)]
    assert sweep.main([*line, "track.mlflow=http://127.0.0.1:9"]) == 0
    assert "did not take the sweep" in capsys.readouterr().out
    assert (tmp_path / "sweep.md").is_file()


def test_what_cannot_be_swept_is_one_sentence(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ast = runs / "ast_esc10"
    (begun := tmp_path / "begun" / "test-5-seed-0").mkdir(parents=True)
    (begun / "recipe.yaml").write_bytes(next(ast.glob("test-*/recipe.yaml")).read_bytes())
    (whole := tmp_path / "whole").mkdir()
    end_to_end = load_recipe("finetune", "whisper_at_end_to_end", ["encoder=models/whisper"])
    (whole / "recipe.yaml").write_text(resolved_yaml(end_to_end))
    elsewhere = tmp_path / "elsewhere"  # the same model, scored on another fold
    elsewhere.mkdir()
    for path in ast.glob("test-*/re*"):
        (elsewhere / path.name).write_bytes(path.read_bytes())
    recipe = read_resolved(elsewhere / "recipe.yaml")
    folds = replace(recipe.folds, test=[[4]], train=[1, 2, 3])
    (elsewhere / "recipe.yaml").write_text(resolved_yaml(replace(recipe, folds=folds)))
    for words, said in (
        ([tmp_path / "none"], "no fine-tuning run"),
        ([tmp_path / "begun"], "is not finished"),
        ([tmp_path / "whole"], "of a head on an encoder"),
        ([ast, ast], "different names"),
        ([ast, "--lengths", "33"], "multiple of 16"),
        ([ast, "--lengths", "long"], "must be numbers"),
        ([ast, "optim.lrr=1"], "optim.lr"),
        ([ast, "data=/nowhere"], "no shards at /nowhere"),
        ([ast, elsewhere], "were not scored on the same clips (6 of"),
        (["data=/nowhere"], "at least one fine-tuning run"),
    ):
        assert sweep.main([str(word) for word in words]) == 2, words
        assert said in capsys.readouterr().err, words


def test_weights_of_another_model_are_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (source,) = (runs / "ast_esc10").glob("test-*")
    copy = tmp_path / "copy"
    (copy / "checkpoints" / "last").mkdir(parents=True)
    for name in ("recipe.yaml", "result.json"):
        (copy / name).write_bytes((source / name).read_bytes())
    (copy / "checkpoints" / "latest").write_text("last\n")
    newest = source / "checkpoints" / (source / "checkpoints" / "latest").read_text().strip()
    state, _ = load_weights(newest / "objective.safetensors")
    del state["average.head.linear.bias"]
    save_weights(copy / "checkpoints" / "last" / "objective.safetensors", state, {})
    assert sweep.main([str(copy), "--lengths", "32", "--out", str(tmp_path / "out")]) == 2
    assert "no tensor head.linear.bias" in capsys.readouterr().err
