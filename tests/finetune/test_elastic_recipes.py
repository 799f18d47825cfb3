"""ElasticAST's recipes and those of the standard AST beside them say what the paper says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from finetune.objective import Classify
from gamut.data.assemble import assemble
from gamut.plan import plan_epoch
from gamut.recipe import schema
from gamut.recipe.find import list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import evaluation_policy, training_policy
from gamut.shards import Index
from gamut.shards.select import select
from gamut.train.engine import parameter_groups
from gamut.train.objective import Moment
from launchers.corpus import synthesise
from tests.shards.layouts import convert

RESOLUTIONS = [c / 10 for c in range(10, 41, 2)]


@dataclass(frozen=True)
class Row:
    """What the paper says of a data set."""

    lr: float
    epochs: int
    loss: str
    metric: str
    mixed: bool  # resolution; else native length
    gamma: tuple[float, int] | None
    statistics: tuple[float | None, float | None]


TABLE = {
    "audioset": Row(1e-5, 15, "bce", "auto", True, (0.5, 2), (-4.414, 4.905)),
    "vggsound": Row(1e-5, 40, "bce", "accuracy", True, (0.75, 10), (-5.08, 4.453)),
    "voxceleb": Row(1e-5, 40, "ce", "auto", False, (0.75, 5), (-5.8425, 3.88305)),
    "epic": Row(1e-4, 30, "ce", "auto", False, None, (None, None)),
}
STANDARD_EPOCHS = {"audioset": 5, "vggsound": 40, "voxceleb": 30, "epic": 30}


@pytest.mark.parametrize("name", TABLE)
def test_elastic_ast(name: str) -> None:
    recipe, row = load_recipe("finetune", f"elastic_{name}"), TABLE[name]
    assert (recipe.optim.lr, recipe.epochs, recipe.optim.lr_base_batch) == (row.lr, row.epochs, 0)
    assert (recipe.finetune.loss, recipe.finetune.metric) == (row.loss, row.metric)
    assert (recipe.front.mean, recipe.front.std) == row.statistics
    policy = training_policy(recipe)
    assert policy.packs * (policy.clips or 0) == 12
    assert (policy.crop_frames, policy.pad_to) == (None, None)  # no length but the clip's own
    if row.mixed:
        assert recipe.views.resolutions == RESOLUTIONS
        assert (recipe.augment.time_mask, recipe.augment.time_scale) == (192, "resolution")
        assert policy.mixup == (0.5 if name == "audioset" else 0.0)
        assert evaluation_policy(recipe).hops == (160,)
    else:
        assert policy.max_frames == recipe.model.table_frames == 3072
        assert (recipe.augment.time_mask, recipe.augment.time_scale) == (192, "length")
    assert recipe.augment.frequency_mask == 48
    model = schema.Model(positions="factorised", pooling="attention", drop_path=0.0)
    model_says = (model.dim, model.depth, model.heads, model.positions, model.pooling, model.pooling_heads)
    mine = recipe.model
    assert (mine.dim, mine.depth, mine.heads, mine.positions, mine.pooling, mine.pooling_heads) == model_says
    optim = recipe.optim
    if row.gamma:
        assert (optim.name, optim.betas, optim.weight_decay, optim.weight_decay_end) == (
            "adam",
            (0.95, 0.999),
            5e-7,
            5e-7,
        )
        assert (optim.schedule, optim.gamma, optim.gamma_from, optim.gamma_every) == ("gamma", *row.gamma, 1)
        assert (optim.warmup_steps, optim.undecayed) == (1000, "nothing")
    else:
        assert (optim.schedule, optim.gamma) == ("gamma", 1.0)  # constant once warm
        assert (optim.name, optim.betas, optim.weight_decay) == ("adamw", (0.9, 0.999), 1e-4)
        assert (optim.warmup_steps, optim.warmup_epochs, optim.warmup_start) == (None, 2, 0.01)
    assert (recipe.plan.weights == "balanced") == (name == "audioset")
    assert recipe.finetune.average_from is None


@pytest.mark.parametrize("name", TABLE)
def test_the_standard_ast_differs_in_length_model_and_epochs_alone(name: str) -> None:
    elastic, ast = load_recipe("finetune", f"elastic_{name}"), load_recipe("finetune", f"ast_{name}")
    assert (ast.model.positions, ast.model.pooling, ast.model.table_frames) == ("learned", "cls", 1024)
    policy = training_policy(ast)
    assert (policy.crop_frames, policy.pad, ast.views.pad_with, policy.hops) == (1024, True, "zero", (160,))
    assert policy.packs * (policy.clips or 0) == 12
    assert ast.epochs == STANDARD_EPOCHS[name]
    assert (ast.optim, ast.folds, ast.plan) == (elastic.optim, elastic.folds, elastic.plan)
    assert ast.augment == elastic.augment
    assert (ast.finetune.loss, ast.finetune.metric) == (elastic.finetune.loss, elastic.finetune.metric)
    other = ["views.frames=null", "views.pad_to=1024", "views.resolutions=[2.0]", "model.table_frames=512"]
    at_2 = training_policy(load_recipe("finetune", f"ast_{name}", other))
    assert (at_2.pad_to, at_2.hops) == (1024, (320,))


def test_the_small_ones_are_alike_too() -> None:
    for elastic, ast in (("elastic_tiny", "ast_tiny"), ("elastic_esc10", "ast_esc10")):
        one, other = load_recipe("finetune", elastic), load_recipe("finetune", ast)
        assert (one.optim, one.step, one.folds, one.data) == (other.optim, other.step, other.folds, other.data)
        assert one.augment == other.augment
        assert (one.model.dim, one.model.depth, one.model.heads) == (
            other.model.dim,
            other.model.depth,
            other.model.heads,
        )


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("recipes")
    synthesise(folder / "corpus", 24, seconds=1.0)
    assert convert("esc50", folder / "corpus", folder / "shards") == 0
    return Index.open(Path(folder / "shards"))


@pytest.mark.parametrize("name", [name for name in list_recipes("finetune") if name.startswith(("ast", "elastic"))])
def test_every_recipe_is_planned_and_takes_a_step(index: Index, name: str) -> None:
    size = ["model.dim=24", "model.depth=1", "model.heads=2", "model.pooling_heads=2", "precision=fp32"]
    recipe = load_recipe("finetune", name, size)
    if recipe.views.frames:  # a tenth of AST's length will do
        recipe = replace(recipe, views=replace(recipe.views, frames=112))
    clips = select(index, {}, recipe.plan.weights)
    epoch = plan_epoch(clips, 0, 0, training_policy(recipe))
    task = Classify(recipe, len(index.labels), -5.0, 4.0, seed=0, device=torch.device("cpu"))
    now = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.0)
    batch = assemble(index, epoch, range(epoch.packs))
    assert batch.clips == epoch.draws_before(1)
    loss, _ = task.loss(task.model, task.prepare(batch, now), {"clips_with_labels": float(batch.clips)}, now)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for group in parameter_groups(task.model, task.parameter_groups()) for p in group["params"]]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)
