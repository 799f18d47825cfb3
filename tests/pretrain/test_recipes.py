"""Every pretraining recipe resolves, is planned, and takes a step at a tiny size."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from gamut.data.assemble import assemble
from gamut.plan import plan_epoch
from gamut.recipe.find import list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import training_policy
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from pretrain.asit import Asit
from pretrain.network import AsitNetwork
from tests.asit import NOW, whole_step
from tests.packs import packed

SIZE = ("model.dim=24", "model.depth=2", "model.heads=2", "model.pooling_heads=2", "asit.hidden=24")
SIZE += ("asit.bottleneck=16", "asit.prototypes=32", "precision=fp32", "plan.lookahead=8", "subset={}", "init=")

LOSSES = ("reconstruction", "local", "global", "koleo")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A dozen clips of noise of 0.5 to 2 s."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "set"
    rng = np.random.default_rng(0)
    for number in range(12):
        wave = rng.normal(scale=2000, size=8000 + 2000 * number).round().astype(np.int16)
        path = source / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, wave, 16000, subtype="PCM_16")
    assert shards(["convert", "folder", str(source), str(folder), "--workers", "1"]) == 0
    return Index.open(folder)


def tiny(name: str) -> Recipe:
    """The recipe with everything that is one of its choices, at a size for a test."""
    recipe = load_recipe("pretrain", name)
    crops = [f"views.{key}={value}" for key, value in (("frames", 96), ("local_frames", 48)) if recipe.views.frames]
    budget = ["step.packs=2", f"step.clips={min(3, recipe.step.clips)}" if recipe.step.clips else "step.tokens=300"]
    heads = []
    if recipe.asit.prototypes_data:
        heads.append("asit.prototypes_data=16")
    if recipe.asit.reconstruction_hidden:
        heads.append("asit.reconstruction_hidden=24")
    if recipe.asit.reconstruction_bottleneck:
        heads.append("asit.reconstruction_bottleneck=24")
    return load_recipe("pretrain", name, [*SIZE, *crops, *budget, *heads, "model.table_frames=96"])


@pytest.mark.parametrize("name", list_recipes("pretrain"))
def test_a_recipe_takes_a_step(name: str, index: Index) -> None:
    recipe = tiny(name)
    epoch = plan_epoch(index.table(), recipe.seed, 0, training_policy(recipe))
    assert epoch.draws == len(index)
    task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
    batches = [assemble(index, epoch, [pack]) for pack in range(epoch.packs)]
    loss, metrics, gradients = whole_step(task, batches)
    on = [loss for loss in LOSSES if getattr(recipe.asit, f"weight_{loss}")]
    assert {f"loss/{loss}" for loss in on} == {key for key in metrics if key.startswith("loss/")}
    assert np.isfinite(loss)
    share = metrics["mask/pixels"]
    if recipe.asit.mask_target:
        copied = recipe.asit.mask_copied * recipe.asit.mask_copied_share
        least = recipe.asit.mask_target_least or recipe.asit.mask_target
        assert copied + (1 - recipe.asit.mask_copied) * least - 0.15 < share < recipe.asit.mask_target + 0.1
    else:
        assert share == 0
    frozen = ("last_layer", "projection_data.weight") if recipe.asit.freeze_output_epochs else ()
    still = [name for name, gradient in gradients.items() if not gradient.any()]
    assert [name for name in still if not any(part in name for part in (*frozen, "qkv.bias"))] == []
    task.after_step(NOW)


def test_the_rows_of_table_three() -> None:
    rows = {name.split("/")[1]: load_recipe("pretrain", name) for name in list_recipes("pretrain") if "table3/" in name}
    assert len(rows) == 8
    wanted = {
        "reconstruction_unmasked": (1, 0, 0, 0.0),
        "global": (0, 0, 1, 0.0),
        "local": (0, 1, 0, 0.7),
        "reconstruction": (1, 0, 0, 0.7),
        "local_global": (0, 1, 1, 0.7),
        "reconstruction_global": (1, 0, 1, 0.7),
        "reconstruction_local": (1, 1, 0, 0.7),
        "all": (1, 1, 1, 0.7),
    }
    for name, recipe in rows.items():
        weights = tuple(getattr(recipe.asit, f"weight_{loss}") for loss in LOSSES[:3])
        assert (*weights, recipe.asit.mask_target) == wanted[name]
        assert (recipe.model.dim, recipe.epochs, recipe.run.name) == (384, 10, f"table3/{name}")


def test_the_published_recipes() -> None:
    late, early = load_recipe("pretrain", "asit_b_published"), load_recipe("pretrain", "asit_b_published_v1")
    for recipe in (late, early):
        assert (recipe.views.count, recipe.views.frames) == (2, 592)
        assert (recipe.epochs, recipe.model.dim) == (100, 768)
        assert (recipe.optim.clip, recipe.optim.clip_each, recipe.engine) == (3.0, True, "oss")
        asit = recipe.asit
        assert (asit.local_on, asit.reconstruction_last_gelu) == ("all", True)
        assert (asit.teacher_temperature_start, asit.teacher_temperature) == (0.04, 0.07)
    assert (late.views.local_count, late.views.local_frames, early.views.local_count) == (4, 192, 0)
    assert [recipe.step.packs * (recipe.step.clips or 0) for recipe in (late, early)] == [80, 128]
    assert (bool(late.init), early.init) == (True, "")
    assert (late.asit.gain, late.asit.freeze_output_epochs) == ("trained", 1)
    assert (early.asit.gain, early.asit.freeze_output_epochs) == ("fixed", 0)
    weights = [(one.asit.weight_global, one.asit.weight_local, one.asit.weight_reconstruction) for one in (late, early)]
    assert weights == [(0.5, 0.5, 1.0), (1.0, 1.0, 2.0)]
    heads = [(one.asit.reconstruction_hidden, one.asit.reconstruction_bottleneck) for one in (late, early)]
    assert heads == [(768, 768), (768, 128)]
    assert (late.views.roll, early.views.roll) == (0.0, 0.5)
    assert (late.asit.mask_target, late.asit.mask_target_least, late.asit.mask_copied) == (0.5, None, 0.0)
    assert (early.asit.mask_target, early.asit.mask_target_least, early.asit.mask_copied) == (0.7, 0.5, 0.5)
    assert (late.asit.heads, late.asit.prototypes_data) == ("shared", None)
    assert (early.asit.heads, early.asit.prototypes_data) == ("partly", 1024)
    assert (late.asit.teacher_temperature_epochs, early.asit.teacher_temperature_epochs) == (5, 30)


def test_the_first_published_network_has_as_many_parameters() -> None:
    """95,449,729 are trained there; its transposed convolution has one bias, where 256 pixels have one each here."""
    recipe = load_recipe("pretrain", "asit_b_published_v1")
    with torch.device("meta"):
        network = AsitNetwork(recipe.model, recipe.asit, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 95_449_729 + 255


def test_the_small_recipe_takes_every_variant_by_its_keys(index: Index) -> None:
    elastic = ["model.positions=factorised", "views.frames=null", "views.pad=false", "views.resolutions=[1.0,2.0]"]
    elastic += ["step.clips=null", "step.tokens=600", "step.packs=2"]
    for keys in (
        ["asit.mask_target=0", "asit.weight_local=0", "asit.weight_global=0", "views.frames=96"],
        ["asit.weight_local=0", "asit.weight_global=0", "views.frames=96"],
        elastic,
    ):
        recipe = load_recipe("pretrain", "asit_tiny", [*SIZE, *keys])
        epoch = plan_epoch(index.table(), recipe.seed, 0, training_policy(recipe))
        task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
        loss, metrics, _ = whole_step(task, [assemble(index, epoch, range(epoch.packs))])
        on = [name for name in LOSSES if getattr(recipe.asit, f"weight_{name}")]
        assert loss == pytest.approx(sum(metrics[f"loss/{name}"] for name in on), rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_shares_of_figure_three_are_hidden(share: float) -> None:
    """And a little more: the last block laid goes beyond."""
    recipe = load_recipe("pretrain", "table3/all", [*SIZE, "model.table_frames=96", f"asit.mask_target={share}"])
    task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
    hidden = task.prepare(packed([96] * 80, views=2), NOW).inputs.own.masks.pixels.view(80, -1).double().mean(1)
    assert hidden.min() >= share
    assert hidden.mean() < share + 0.03
