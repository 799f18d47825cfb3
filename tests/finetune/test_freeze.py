"""finetune.freeze: only the classifier learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.objective import Classify
from gamut.models.find import find_weights
from gamut.models.vit import VisionTransformer
from gamut.models.weights import load_weights
from gamut.recipe import schema
from gamut.recipe.check_stages import finetuning
from gamut.recipe.load import load_recipe
from tests.train.ranks import run

from .tuning import tune

TINY = ["model.dim=24", "model.depth=2", "model.heads=2", "model.table_frames=48", "views.frames=32", "epochs=3"]


def backbone(folder: Path, pooling: str = "mean") -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of weights, and what is in it."""
    model = schema.Model(dim=24, depth=2, heads=2, table_frames=48, pooling=pooling, init_std=0.3)
    state = VisionTransformer(model, seed=7).state_dict()
    torch.save({f"backbone.{name}": value for name, value in state.items()}, folder / "backbone.pth")
    return folder / "backbone.pth", state


@pytest.mark.parametrize(
    "words",
    [
        [],
        pytest.param(["deepspeed.zero_optimization.stage=3"], marks=pytest.mark.long),
        pytest.param(["engine=oss"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_the_backbone_stays_and_the_classifier_learns(tmp_path: Path, small_set: Path, words: list[str]) -> None:
    init, before = backbone(tmp_path)
    line = ["demo", *TINY, f"data={small_set}", f"run.folder={tmp_path}", "run.name=x", "run.threads=1", *words]
    line += [f"init={init}", "model.pooling=rows", "finetune.freeze=true", "track.mlflow=off", "loader.workers=0"]
    line += ["optim.lr=0.01"]
    assert run(1, tune, line) == [0]
    after, _ = load_weights(find_weights(tmp_path / "x"))
    assert all(torch.equal(after[f"backbone.{name}"], value) for name, value in before.items())
    recipe = load_recipe("finetune", line[0], line[1:])
    fresh = Classify(recipe, 6, 0.0, 1.0, seed=recipe.seed, device=torch.device("cpu")).model.head.linear.weight
    assert after["head.linear.weight"].shape == (6, 8 * 24)
    assert (after["head.linear.weight"] - fresh).abs().max() > 1e-3


def test_attention_pooling_learns_too() -> None:
    model = schema.Model(dim=24, depth=1, heads=2, pooling="attention", pooling_heads=2, table_frames=48)
    recipe = schema.Recipe(stage="finetune", model=model, init="x", finetune=schema.Finetune(freeze=True))
    network = Classify(recipe, 3, 0.0, 1.0, seed=0, device=torch.device("cpu")).model
    learns = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad
    }
    assert learns == {"head.norm", "head.linear", "backbone.attn_pool"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "finetune.freeze keeps the backbone as it is, and without an init"),
        ({"init": "x", "encoder": "whisper"}, "does not go with encoder; to keep the encoder, extract its features"),
        ({"init": "x", "features": "cache"}, "does not go with features, which are frozen already"),
    ],
)
def test_what_it_needs(given: dict[str, str], said: str) -> None:
    recipe = schema.Recipe(stage="finetune", finetune=schema.Finetune(freeze=True), **given)  # type: ignore[arg-type]
    assert [sentence for keys, sentence in finetuning(recipe) if "finetune.freeze" in keys and said in sentence]
