"""`python -m gamut.probe`: a table, scores.json and pictures of a run's checkpoints, or one sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from gamut.models.vit import VisionTransformer
from gamut.models.weights import save_weights
from gamut.probe.__main__ import main
from gamut.probe.labelled import PROBED, labelled
from gamut.recipe.resolved import resolved_yaml
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.track import figures
from gamut.track.metrics import MetricsFile


def checkpoint(run: Path, recipe: Recipe, step: int, seed: int) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    vit = VisionTransformer(recipe.model, seed=seed)
    weights = {f"teacher.backbone.{name}": value for name, value in vit.state_dict().items()}
    save_weights(folder / "objective.safetensors", weights, {})
    (folder / "state.json").write_text(
        json.dumps({"state": {"step": step, "epoch": step // 10, "step_in_epoch": 0, "epoch_steps": 10}})
    )


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Path:
    """A run whose first checkpoint is its untrained network, as the seed makes it."""
    folder = tmp_path / "run"
    checkpoint(folder, recipe, 10, recipe.seed)
    checkpoint(folder, recipe, 20, 7)
    (folder / "checkpoints" / ".saving-step-00000030").mkdir()
    (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
    file = MetricsFile(folder / "metrics.jsonl", 1)
    file.append({"probe/linear/cls": 0.25}, step=0)
    file.close()
    return folder


def test_a_run_is_scored_checkpoint_by_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "subset.fold=[1,2,3]"]) == 0
    printed = capsys.readouterr().out
    assert "36 clips scored in 3 folds" in printed
    scores = json.loads((run / "probe" / "scores.json").read_text())
    assert [(entry["name"], entry["step"], entry["epochs"]) for entry in scores] == [
        ("before training", 0, 0.0), ("step-00000010", 10, 1.0), ("step-00000020", 20, 2.0),
    ]  # fmt: skip
    first, same, other = (entry["scores"] for entry in scores)
    assert {name for name in first if name.endswith("logmel")} == {"probe/knn/logmel", "probe/linear/logmel"}
    assert same == {name: value for name, value in first.items() if not name.endswith("logmel")}
    assert other != same
    assert "epoch" in printed
    for kind in ("cls", "mean", "both"):  # whole, in the 80 columns of a pipe
        assert f"{100 * other[f'probe/knn/{kind}']:.1f} / {100 * other[f'probe/linear/{kind}']:.1f} │" in printed
    for name in ("curves", "embedding", "attention-0", "attention-1"):
        assert (run / "probe" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_curves_have_what_the_run_logged_of_the_same_clips_alone(
    run: Path, recipe: Recipe, labelled_set: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[dict] = []

    def curves(logged: dict, now: dict, title: str) -> Figure:
        drawn.append(logged)
        return Figure()

    monkeypatch.setattr(figures, "probe_curves", curves)
    clips, _ = labelled(recipe, labelled_set)
    assert clips is not None
    (run / PROBED).write_text(json.dumps({"digest": clips.digest(recipe.probe), "kinds": ["cls"]}))
    assert main([str(run)]) == 0
    assert "without" not in capsys.readouterr().out
    assert main([str(run), "subset.fold=[1,2]"]) == 0
    assert "the curves do without" in capsys.readouterr().out
    assert drawn == [{"probe/linear/cls": ([0], [0.25])}, {}]


OF_OTHER_STAGES = ("augment", "folds", "finetune", "head", "features", "encoder", "extract")


def test_a_checkpoint_and_weights_alone(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    where = ["probe.train={fold: [1,2]}", "probe.test={fold: [3]}", "--out", str(tmp_path / "out")]
    assert main([str(run / "checkpoints" / "step-00000020"), *where]) == 0
    one = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [entry["step"] for entry in one] == [0, 20]
    assert one[0]["scores"]["probe/clips"] == 12
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, VisionTransformer(recipe.model, seed=7), {})
    file = tmp_path / "own.yaml"
    keep = replace(recipe, probe=replace(recipe.probe, data=recipe.data), data="/nowhere")
    sections = yaml.safe_load(resolved_yaml(keep))
    file.write_text(yaml.safe_dump({k: v for k, v in sections.items() if k not in OF_OTHER_STAGES}))
    assert main([str(weights), "--recipe", str(file), *where]) == 0
    same = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [entry["step"] for entry in same] == [0, -1]
    assert same[1]["scores"] == one[1]["scores"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/nowhere"], "There is no /nowhere"),
        (["{tmp}"], "is not in a run folder"),
        (["{begun}"], "has published no checkpoint yet"),
        (["{run}", "probe.clipps=3"], "probe.clips"),
        (["{run}", "subset.fold=[1]"], "nothing to probe"),
        (["{run}", "model.depth=3"], "no tensor"),
    ],
)
def test_a_mistake_is_a_sentence(
    words: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "recipe.yaml", tmp_path / "begun")
    places = {"run": run, "tmp": tmp_path / "empty", "begun": tmp_path / "begun"}
    assert main([word.format(**places) for word in words]) == 2
    assert said in capsys.readouterr().err


def test_unreadable_sets_are_a_sentence_too(
    run: Path, recipe: Recipe, labelled_set: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(labelled_set.folder, tmp_path / "damaged")
    for tar in folder.glob("*.tar"):
        tar.write_bytes(np.zeros(tar.stat().st_size, np.uint8).tobytes())
    assert main([str(run), f"probe.data={folder}"]) == 2
    assert "None of the clips" in capsys.readouterr().err
