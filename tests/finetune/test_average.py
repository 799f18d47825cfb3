"""The mean of weights over epochs: kept with checkpoints, scored, and taken off again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.average import COUNT, PREFIX, WeightAverage
from finetune.evaluation import evaluate
from finetune.objective import Classify
from gamut.errors import CheckpointError, RecipeError
from gamut.export.__main__ import main as export
from gamut.models.weights import load_backbone
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import evaluation_policy
from gamut.shards import Index
from gamut.shards.select import select
from tests.close import assert_close
from tests.train.ranks import run

from .tuning import tune


def linear(seed: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 2)


def test_it_is_the_mean_and_the_model_gets_its_own_weights_back() -> None:
    models = [linear(seed) for seed in range(4)]
    average = WeightAverage()
    for model in models:
        average.add(model.state_dict())
    expected = torch.stack([model.weight.detach() for model in models]).mean(0)
    model, own = models[-1], models[-1].weight.detach().clone()
    with average.inside(model):
        assert_close(model.weight, expected, 1e-7)
    assert torch.equal(model.weight, own)
    with WeightAverage().inside(model):  # of nothing
        assert torch.equal(model.weight, own)


def test_it_goes_on_from_a_checkpoint() -> None:
    whole, stopped, resumed = WeightAverage(), WeightAverage(), WeightAverage()
    for seed in range(3):
        whole.add(linear(seed).state_dict())
    stopped.add(linear(0).state_dict())
    stopped.add(linear(1).state_dict())
    resumed.load(stopped.tensors(), linear(0))
    resumed.add(linear(2).state_dict())
    assert all(torch.equal(value, resumed.tensors()[name]) for name, value in whole.tensors().items())
    resumed.load({}, linear(0))  # of a checkpoint before the first epoch that counts
    assert not resumed.tensors()
    with pytest.raises(CheckpointError, match="has no tensor bias"):
        resumed.load({COUNT: torch.tensor([2]), PREFIX + "weight": torch.zeros(2, 3)}, linear(0))


def test_an_average_of_no_epoch_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"finetune.average_from \(5\) is after the last of 4 epochs"):
        load_recipe("finetune", "elastic_tiny", ["epochs=4", "finetune.average_from=5"])


SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "model.pooling_heads=2", "step.packs=2", "step.tokens=256"]
SMALL += ["epochs=3", "loader.workers=0", "track.mlflow=off", "run.threads=1", "checkpoint.keep_every=1"]
SMALL += ["front.mean=-5", "front.std=4", "optim.lr=3e-2"]


STAGE = "deepspeed.zero_optimization.stage"


LONG = [pytest.param(engine, marks=pytest.mark.long) for engine in (f"{STAGE}=3", f"{STAGE}=2", "engine=oss")]


@pytest.mark.parametrize("engine", [f"{STAGE}=1", *LONG])
def test_a_run_is_scored_with_the_mean_over_its_epochs(small_set: Path, tmp_path: Path, engine: str) -> None:
    line = ["elastic_esc10", f"data={small_set}", f"run.folder={tmp_path}", "run.name=tuned", engine, *SMALL]
    line += ["finetune.average_from=2"]
    assert run(1, tune, line) == [0]
    (folder,) = (tmp_path / "tuned").glob("test-*")
    kept = [load_file(path / "model.safetensors") for path in sorted((folder / "checkpoints").glob("step-*"))]
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    mean = load_file(newest / "objective.safetensors")
    assert mean[COUNT].tolist() == [2]
    for name in kept[0]:
        expected = torch.stack([kept[1][name], kept[2][name]]).mean(0)
        assert_close(mean[PREFIX + name], expected, 1e-7, name)
        assert not torch.equal(kept[1][name], kept[2][name]) or "norm1.bias" in name, name
    recipe = load_recipe("finetune", line[0], line[1:])
    index = Index.open(small_set)
    task = Classify(recipe, len(index.labels), *index.normalisation(recipe.front), seed=0, device=torch.device("cpu"))
    task.model.load_state_dict({name: mean[PREFIX + name] for name in kept[0]})
    clips = select(index, {"fold": [5]})
    scores = evaluate(task, index, clips, evaluation_policy(recipe), workers=0)
    with np.load(folder / "scores.npz", allow_pickle=False) as said:
        assert np.abs(said["logits"] - scores.logits).max() < 1e-5
    assert load_backbone(task.model.backbone, folder).prefix == "average.backbone."
    assert export([str(tmp_path / "tuned"), "--to", "safetensors", str(tmp_path / "exported")]) == 0
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    for name in kept[0]:
        assert torch.equal(exported[name], mean[PREFIX + name]), name
