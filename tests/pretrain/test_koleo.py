"""KoLeo: against a loop over pairs, and that it looks at the clips of a pack, view by view, on whatever rank."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gamut.models.pooling import band_means
from pretrain import losses
from pretrain.asit import Asit
from pretrain.views import neighbourhoods
from tests.asit import NOW, RECIPE, objective, whole_step
from tests.close import assert_close
from tests.packs import packed, part

ALONE = {"weight_reconstruction": 1e-9, "weight_local": 0.0, "weight_global": 0.0, "weight_koleo": 1.0}


def by_pairs(vectors: np.ndarray, group: list[int]) -> float:
    """-log of each row's distance to the nearest other of its group, one pair after the other."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    total = 0.0
    for i, one in enumerate(unit):
        others = [np.linalg.norm(one - other) for j, other in enumerate(unit) if j != i and group[j] == group[i]]
        total -= math.log(min(others)) if others else 0.0
    return total


def test_it_is_the_log_of_the_distance_to_the_nearest_of_the_group() -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 5))
    group = [0, 1, 0, 1, 0, 2, 1, 0, -7]  # the last one and the one of group 2 have no neighbours
    got = losses.koleo(torch.from_numpy(vectors).float(), torch.tensor(group)).item()
    assert got == pytest.approx(by_pairs(vectors, group), abs=1e-4)
    assert losses.koleo(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).item() == 0.0


def test_its_gradient_is_that_of_the_definition() -> None:
    vectors = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: losses.koleo(x, group), vectors)


def test_equal_clips_get_a_gradient_that_ends() -> None:
    """Two clips of digital silence are the same vector, and nearly so after an update."""
    silence = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    for apart in (0.0, 1e-9, 1e-5):
        vectors = torch.cat([silence, silence + apart, torch.randn(2, 8)]).requires_grad_()
        losses.koleo(vectors, torch.zeros(4, dtype=torch.int64)).backward()
        assert torch.isfinite(vectors.grad).all()
        assert vectors.grad.norm() < 2 / losses.NEAREST


def test_following_it_moves_neighbours_apart() -> None:
    vectors = (torch.randn(20, 16, generator=torch.Generator().manual_seed(0)) * 0.1 + 1.0).requires_grad_()
    group = torch.zeros(20, dtype=torch.int64)
    before = by_pairs(vectors.detach().numpy(), [0] * 20)
    optimiser = torch.optim.SGD([vectors], lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        losses.koleo(vectors, group).backward()
        optimiser.step()
    assert by_pairs(vectors.detach().numpy(), [0] * 20) < before - 20 * 0.5


def test_rows_are_means_over_time_of_every_row_of_patches() -> None:
    task = objective()
    batch = packed([96, 32, 48], views=1)
    where = task.model.backbone.layout(batch.frames, batch.sizes)
    tokens = torch.randn(where.tokens, 32, generator=torch.Generator().manual_seed(0))
    got = band_means(tokens, where)
    for segment in range(3):
        for row in range(8):
            of_row = (where.owner == segment) & (where.frequency == row)
            expected = tokens[where.patch[of_row]].mean(0)
            assert_close(got[segment, row * 32 : (row + 1) * 32], expected, 1e-6)


def pooling_by(pooling: str, **changes: object) -> Asit:
    model = replace(RECIPE.model, pooling=pooling, pooling_heads=2)
    recipe = replace(RECIPE, model=model, asit=replace(RECIPE.asit, **changes))  # type: ignore[arg-type]
    return Asit(recipe, -4.0, 4.0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("koleo_on", "pooling"), [("rows", "cls"), ("pooled", "cls"), ("pooled", "attention"), ("pooled", "mean")]
)
def test_a_step_is_the_same_however_its_packs_are_dealt(koleo_on: str, pooling: str) -> None:
    batch = packed([96] * 4 + [48] * 6, views=2, packs=(3, 2))
    together = whole_step(pooling_by(pooling, **ALONE, koleo_on=koleo_on), [batch])
    parts = [part(batch, 0, 3), part(batch, 3, 5)]
    one_by_one = whole_step(pooling_by(pooling, **ALONE, koleo_on=koleo_on), parts)
    assert one_by_one[0] == pytest.approx(together[0], rel=1e-5)
    assert one_by_one[1]["loss/koleo"] == pytest.approx(together[1]["loss/koleo"], rel=1e-5)
    for name, gradient in together[2].items():
        assert_close(one_by_one[2][name], gradient, 3e-6, name)


def test_its_loss_is_the_mean_over_clips_that_have_a_neighbour() -> None:
    """Of packs of 3, 1 and 2 clips: five clips in two views, by the vectors of the student."""
    batch = packed([96] * 12, views=2, packs=(3, 1, 2))
    task = objective(**ALONE)
    seen = {}
    task.model.register_forward_hook(lambda module, given, out: seen.update(vectors=out.vectors))
    _, metrics, gradients = whole_step(task, [batch])
    assert task.prepare(batch, NOW).counts[task.count_names.index("neighbours")] == 10
    group = [0, 1, 0, 1, 0, 1, 2, 3, 4, 5, 4, 5]
    assert metrics["loss/koleo"] == pytest.approx(by_pairs(seen["vectors"].detach().numpy(), group) / 10, rel=1e-4)
    assert gradients["backbone.patch_embed.proj.weight"].norm() > 1e-3


def test_local_crops_have_no_neighbours() -> None:
    batch = replace(packed([96, 96, 32] * 3, views=3, packs=(2, 1)), local_views=1)
    group = neighbourhoods(batch).tolist()
    assert group[0] == group[3] != group[1] == group[4]
    assert group[6] not in group[:6]
    assert group[7] not in group[:6]
    crops = group[2::3]
    assert all(group.count(number) == 1 for number in crops)


def test_packs_without_clips_add_nothing() -> None:
    empty, batch = packed([], views=2), packed([96] * 4, views=2)
    with_it = whole_step(objective(**ALONE), [empty, batch, empty])
    assert with_it[0] == pytest.approx(whole_step(objective(**ALONE), [batch])[0], rel=1e-6)


@pytest.mark.parametrize("weight_global", [0.0, 1.0])
def test_attention_pooling_runs_once_and_learns_from_it(weight_global: float) -> None:
    """A module that runs twice in a forward is what ZeRO-2 has been wrong about."""
    task = pooling_by("attention", **(ALONE | {"weight_global": weight_global}), koleo_on="pooled")
    runs = []
    task.model.backbone.attn_pool.register_forward_hook(lambda *_: runs.append(1))
    _, _, gradients = whole_step(task, [packed([96] * 4, views=2)])
    assert len(runs) == 1
    assert all(gradient.any() for name, gradient in gradients.items() if "attn_pool" in name and "bias" not in name)


def test_off_it_costs_and_changes_nothing() -> None:
    batch = packed([96] * 4, views=2)
    off, on = (whole_step(objective(weight_koleo=weight), [batch]) for weight in (0.0, 0.5))
    assert "loss/koleo" not in off[1]
    for name in ("loss/reconstruction", "loss/local", "loss/global"):
        assert on[1][name] == off[1][name]
    assert on[0] == pytest.approx(off[0] + 0.5 * on[1]["loss/koleo"], rel=1e-6)
    assert {name for name, _ in objective(weight_koleo=0.5).model.named_parameters()} == set(off[2])


def test_the_teacher_computes_no_vectors() -> None:
    recipe = replace(RECIPE, asit=replace(RECIPE.asit, weight_koleo=0.1))
    task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
    seen = []
    task.teacher.register_forward_hook(lambda module, given, out: seen.append(out.vectors))
    whole_step(task, [packed([96] * 4, views=2)])
    assert seen == [None]
