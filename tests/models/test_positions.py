"""Position tables: first columns for short segments, torch's interpolation for long ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gamut.models.layout import layout
from gamut.models.positions import factorised_positions, grid_positions, resampling, resize_grid, stretch

DIM = 6


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("old", "new"), [(37, 31), (37, 62), (5, 187), (7, 8), (9, 1), (1, 4)])
def test_resampling_equals_torch(old: int, new: int) -> None:
    grid = random(old, 8, DIM)  # the reference in float64: torch computes coordinates, too, in the input's type
    bicubic = F.interpolate(grid.double().permute(2, 0, 1)[None], size=(new, 8), mode="bicubic", align_corners=False)
    expected = bicubic[0].permute(1, 2, 0).reshape(new, 8 * DIM)
    assert (stretch(grid.reshape(old, -1), new, "bicubic") - expected).abs().max() <= 2e-6
    linear = F.interpolate(grid[:, 0].double().T[None], size=new, mode="linear", align_corners=False)[0].T
    assert (stretch(grid[:, 0], new, "linear") - linear).abs().max() <= 2e-6


def test_short_segments_take_the_first_columns_and_long_ones_a_stretched_table() -> None:
    sizes = (16, 80, 64, 112, 176, 112)
    where = layout(torch.tensor(sizes), sizes, class_token=True)
    grid, time, frequency = random(5 * 8, DIM), random(5, DIM), random(8, DIM)
    mine = grid_positions(grid, where).split([size // 2 for size in sizes])
    theirs = factorised_positions(time, frequency, where).split([size // 2 for size in sizes])
    for size, learned, factorised in zip(sizes, mine, theirs):
        columns = size // 16
        if columns <= 5:
            assert torch.equal(learned, grid[: columns * 8])
            over_time = time[:columns]
        else:
            assert torch.equal(learned, stretch(grid.reshape(5, -1), columns, "bicubic").reshape(-1, DIM))
            over_time = stretch(time, columns, "linear")
        assert torch.equal(factorised.reshape(columns, 8, DIM), over_time[:, None] + frequency[None])


def test_gradient_reaches_the_table_through_a_longer_segment() -> None:
    where = layout(torch.tensor([112, 48]), (112, 48), class_token=False)
    table = random(5 * 8, DIM).requires_grad_()
    weight = random(10 * 8, DIM)
    (grid_positions(table, where) * weight).sum().backward()
    expected = resampling(5, 7, "bicubic").T @ weight[:56].reshape(7, -1)
    expected[:3] += weight[56:].reshape(3, -1)
    assert table.grad is not None
    assert (table.grad - expected.reshape(40, DIM)).abs().max() <= 1e-5


def test_first_stretched_in_an_evaluation_then_trained() -> None:
    where = layout(torch.tensor([144]), (144,), class_token=False)
    table = random(3 * 8, DIM).requires_grad_()
    with torch.inference_mode():
        before = grid_positions(table, where).clone()
    after = grid_positions(table, where)
    after.sum().backward()
    assert torch.equal(before, after)


@pytest.mark.parametrize("like", ["asit", "ast"])
def test_saved_grid_is_fitted_once_as_torch_does_it(like: str) -> None:
    saved = random(37, 8, DIM)
    assert torch.equal(resize_grid(saved, 37, 8, like), saved)
    image = saved.double().permute(2, 0, 1)[None]
    kind = "bilinear" if like == "ast" else "bicubic"
    for columns in (31, 62):
        expected = F.interpolate(image, size=(columns, 8), mode=kind, align_corners=False)[0].permute(1, 2, 0)
        if like == "ast" and columns < 37:
            expected = saved[3:34]  # AST: from 37 // 2 - 31 // 2 on
        assert (resize_grid(saved, columns, 8, like) - expected).abs().max() <= 2e-6
    overlapping = F.interpolate(image, size=(60, 12), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert (resize_grid(saved, 60, 12, like) - overlapping).abs().max() <= 2e-6


def test_ast_takes_the_middle_of_its_table_or_stretches_it_linearly() -> None:
    sizes = (16, 80, 64, 112, 176, 112)
    where = layout(torch.tensor(sizes), sizes, class_token=True, stride=10)
    table = random(11, 12, DIM)  # 116 frames
    mine = grid_positions(table.flatten(0, 1), where, "ast").split([12 * width for width in where.widths])
    assert where.widths == (1, 7, 5, 10, 17, 10)
    for width, got in zip(where.widths, mine):
        expected = table[5 - width // 2 :][:width]
        if width > 11:
            image = table.double().permute(2, 0, 1)[None]
            expected = F.interpolate(image, size=(width, 12), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        assert (got.unflatten(0, (width, 12)) - expected).abs().max() <= 2e-6
