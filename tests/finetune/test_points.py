"""What a model is given at a point of a sweep, and what that costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.objective import Classify
from finetune.points import LENGTHS, RESOLUTIONS, Point, at, is_standard
from finetune.sweep import grid
from finetune.sweep_score import forward_flops
from gamut.errors import RecipeError, RunError
from gamut.plan import Clips, plan_evaluation
from gamut.recipe import schema
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import evaluation_policy
from tests.packs import packed


def clips(*seconds: float) -> Clips:
    n = len(seconds)
    samples = np.array([round(16_000 * one) for one in seconds])
    return Clips(np.arange(n), np.arange(n) + 7, np.zeros(n), samples, np.full(n, 1000))


def frames(name: str, point: Point, *overrides: str) -> tuple[list[int], list[int]]:
    """(frames, hop) of clips of 2, 10 and 31 s at a point."""
    recipe = at(load_recipe("finetune", name, overrides), point)
    epoch = plan_evaluation(clips(2, 10, 31), evaluation_policy(recipe))
    assert not recipe.model.table_frames % 16
    return epoch.frames[:, 0].tolist(), epoch.hop[:, 0].tolist()


def test_the_papers_grid() -> None:
    assert len(LENGTHS) == 25
    assert {256, 384, 400, 1024, 1600, 3072} <= set(LENGTHS)
    assert [f"{c:.1f}" for c in RESOLUTIONS] == [f"{c / 10:.1f}" for c in range(10, 41, 2)]
    assert [str(point) for point in grid("512,256", "1.5", True)] == ["256 frames", "512 frames", "C = 1.5", "native"]


@pytest.mark.parametrize(("lengths", "resolutions"), [("none", "none"), ("256,x", "none"), ("none", "1;2")])
def test_a_grid_of_nothing_or_of_words_is_refused(lengths: str, resolutions: str) -> None:
    with pytest.raises(RunError, match=r"(nothing to score|must be numbers)"):
        grid(lengths, resolutions, False)


def test_elastic_ast_cuts_and_never_pads() -> None:
    assert frames("elastic_voxceleb", Point("length", 512)) == ([192, 512, 512], [160] * 3)
    assert frames("elastic_voxceleb", Point("length", 3072)) == ([192, 992, 3072], [160] * 3)
    assert frames("elastic_voxceleb", Point("native")) == ([192, 992, 3072], [160] * 3)
    assert frames("elastic_audioset", Point("native")) == ([192, 992, 2992], [160] * 3)  # its limit of 30 s
    assert frames("elastic_audioset", Point("resolution", 4.0)) == ([48, 240, 736], [640] * 3)


def test_the_standard_ast_cuts_or_pads_to_the_point() -> None:
    assert frames("ast_voxceleb", Point("length", 512)) == ([512] * 3, [160] * 3)
    assert frames("ast_voxceleb", Point("native")) == ([1024] * 3, [160] * 3)
    model = at(load_recipe("finetune", "ast_voxceleb", ["model.table_like=asit"]), Point("length", 512)).model
    assert (model.table_like, model.table_frames) == ("ast", 1024)


def test_the_standard_ast_keeps_its_length_in_time_at_every_resolution() -> None:
    assert frames("ast_audioset", Point("resolution", 2.0)) == ([512] * 3, [320] * 3)
    assert frames("ast_audioset", Point("resolution", 3.0)) == ([336] * 3, [480] * 3)
    at_4 = ["views.frames=null", "views.pad_to=1024", "views.resolutions=[4.0]", "model.table_frames=256"]
    assert frames("ast_audioset", Point("native"), *at_4) == ([256] * 3, [640] * 3)
    assert frames("ast_audioset", Point("resolution", 1.0), *at_4) == ([1024] * 3, [160] * 3)
    in_frames = ["views.frames=256", "views.resolutions=[4.0]", "model.table_frames=256"]
    assert frames("ast_audioset", Point("resolution", 1.0), *in_frames) == ([1024] * 3, [160] * 3)


def test_pooled_models_are_scored_with_pooled_frames() -> None:
    recipe = load_recipe("finetune", "elastic_vggsound_pooled")
    assert at(recipe, Point("resolution", 3.0)).views.poolings == [3]
    assert at(recipe, Point("resolution", 3.0)).views.resolutions == [1.0]
    assert at(recipe, Point("resolution", 1.2)).views.resolutions == [1.2]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (Point("length", 100), "multiple of 16"),
        (Point("length", 0), "multiple of 16"),
        (Point("resolution", 1.001), "hop"),
    ],
)
def test_points_that_cannot_be(point: Point, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        at(load_recipe("finetune", "elastic_voxceleb"), point)


def test_at_a_point_longer_clips_are_cut() -> None:
    assert (
        at(load_recipe("finetune", "elastic_voxceleb", ["views.too_long=error"]), Point("length", 256)).views.too_long
        == "cut"
    )


def test_crops_that_are_not_padded_are_no_standard_ast() -> None:
    assert is_standard(load_recipe("finetune", "ast_epic").views)
    assert not is_standard(load_recipe("finetune", "ast_epic", ["views.pad=false", "views.pad_with=silence"]).views)


@pytest.mark.parametrize(
    "kind", [{"pooling": "cls"}, {"pooling": "attention"}, {"pooling": "mean"}, {"distilled": True, "stride": 10}]
)
def test_operations_are_those_that_torch_counts(kind: dict) -> None:
    model = schema.Model(dim=32, depth=2, heads=2, table_frames=96, pooling_heads=4, mlp_ratio=3.0, **kind)
    recipe = schema.Recipe(stage="finetune", model=model)
    task = Classify(recipe, 7, -4.0, 4.0, seed=0, device=torch.device("cpu"))
    batch = packed([32, 96, 16], [[1], [3], [0]])
    inputs = task._inputs(batch, training=False)
    task.model.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.model(inputs.patches, inputs.where, None)
    expected = forward_flops(np.array(inputs.where.lengths), model, 7).sum()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)  # the pooling's query is mapped once a batch
