"""Masks: the published sampler's statistics, a slow reference, every shape, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gamut.numbers import BINS
from gamut.randomness import key_torch
from pretrain.masking import Blocks, _chances, block_masks, draw_blocks, mask_keys, mask_targets
from tests.close import assert_close


def keys(n: int, salt: int = 0) -> torch.Tensor:
    return mask_keys(salt, 0, torch.arange(n), torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64))


def one_by_one(key: torch.Tensor, frames: int, target: float, shape: Blocks) -> np.ndarray:
    """Lay block after block until the target share is hidden: what the matrix product must equal."""
    blocks = draw_blocks(key[None], torch.tensor([frames]), torch.arange(600), shape)
    mask = np.zeros((frames, BINS), dtype=bool)
    for top, bottom, left, right in zip(*(edge[0].tolist() for edge in blocks), strict=True):
        if mask.sum() >= target * mask.size:
            break
        mask[top:bottom, left:right] = True
    return mask


SHAPES = [
    Blocks(),
    Blocks(aligned=True),
    Blocks("time"),
    Blocks("frequency", aligned=True),
    Blocks(time_share=0.6, frequency_share=0.1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", [0.1, 0.3, 0.7, 0.9])
def test_equals_laying_blocks_one_by_one(target: float, shape: Blocks) -> None:
    sizes = (592, 288, 96, 16, 592, 288)
    key = keys(len(sizes), salt=3)
    masks = block_masks(key, torch.tensor(sizes), sizes, target, shape)
    start = 0
    for number, frames in enumerate(sizes):
        found = masks.pixels[start : start + frames].numpy()
        np.testing.assert_array_equal(found, one_by_one(key[number], frames, target, shape))
        assert found.mean() >= target
        start += frames


@pytest.mark.parametrize(
    ("shape", "target"),
    [
        (Blocks(), 0.95),
        pytest.param(Blocks(time_share=1.0, frequency_share=1.0), 0.99, marks=pytest.mark.long),
        pytest.param(Blocks(time_share=1.0, frequency_share=1.0), 0.9, marks=pytest.mark.long),
        pytest.param(Blocks(time_share=0.3, frequency_share=1.0), 0.9, marks=pytest.mark.long),
        pytest.param(Blocks(time_share=0.05, frequency_share=0.05), 0.3, marks=pytest.mark.long),
        pytest.param(Blocks(time_share=1.0, aligned=True), 0.9, marks=pytest.mark.long),
        pytest.param(Blocks("time"), 0.9, marks=pytest.mark.long),
        (Blocks("frequency"), 0.95),
    ],
    ids=str,
)
def test_every_segment_reaches_its_target(target: float, shape: Blocks) -> None:
    sizes = (32, 64) * 500
    found = block_masks(keys(1000), torch.tensor(sizes), sizes, target, shape).pixels.split(sizes)
    assert min(mask.double().mean().item() for mask in found) >= target


def test_a_target_a_segment() -> None:
    sizes = (96, 96, 320, 96, 96)
    key = keys(5, salt=4)
    target = torch.tensor([0.2, 0.9, 0.5, 0.0, 0.7], dtype=torch.float64)
    masks = block_masks(key, torch.tensor(sizes), sizes, target, most=0.9)
    for number, found in enumerate(masks.pixels.split(sizes)):
        np.testing.assert_array_equal(found, one_by_one(key[number], sizes[number], float(target[number]), Blocks()))


def test_a_target_range_is_uniform_and_changes_only_how_many_blocks_are_laid() -> None:
    key = keys(2000)
    drawn = mask_targets(key, 0.7, 0.5)
    assert drawn.dtype == torch.float64
    assert 0.5 <= drawn.min() < 0.502
    assert 0.698 < drawn.max() < 0.7
    assert drawn.mean().item() == pytest.approx(0.6, abs=0.003)
    assert drawn.std().item() == pytest.approx(0.2 / 12**0.5, abs=0.003)
    assert torch.equal(mask_targets(key, 0.7, None), torch.full((2000,), 0.7, dtype=torch.float64))
    frames, sizes = torch.full((20,), 192), (192,) * 20
    least = block_masks(key[:20], frames, sizes, 0.5).pixels
    ranged = block_masks(key[:20], frames, sizes, drawn[:20], most=0.7).pixels
    most = block_masks(key[:20], frames, sizes, 0.7).pixels
    assert not (least & ~ranged).any()  # the same blocks in the same order, only more of them
    assert not (ranged & ~most).any()


def test_whole_time_rows_and_whole_frequency_columns() -> None:
    frames, sizes = torch.full((8,), 192), (192,) * 8
    rows = block_masks(keys(8), frames, sizes, 0.6, Blocks("time")).pixels
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert 0.6 <= rows.float().mean() < 0.75
    columns = block_masks(keys(8), frames, sizes, 0.6, Blocks("frequency")).pixels.view(8, 192, BINS)
    assert torch.equal(columns, columns[:, :1].expand_as(columns))
    assert 0.6 <= columns.float().mean() < 0.75


@pytest.mark.parametrize(
    ("target", "pixels", "touched", "whole"),
    [(0.7, 0.707, 0.911, 0.414), (0.5, 0.511, 0.767, 0.239), (0.3, 0.314, 0.542, 0.119)],
)
def test_statistics_of_the_published_sampler(target: float, pixels: float, touched: float, whole: float) -> None:
    n = 300
    masks = block_masks(keys(n), torch.full((n,), 592), (592,) * n, target)
    assert masks.pixels.float().mean().item() == pytest.approx(pixels, abs=0.003)
    assert masks.touched.float().mean().item() == pytest.approx(touched, abs=0.012)
    assert masks.patches.all(1).float().mean().item() == pytest.approx(whole, abs=0.015)


@pytest.mark.parametrize(
    ("aligned", "pixels", "touched", "whole"), [(False, 0.613, 0.852, 0.324), (True, 0.619, 0.619, 0.619)]
)
def test_statistics_of_the_published_target_range(aligned: bool, pixels: float, touched: float, whole: float) -> None:
    """The mean of 300 targets differs from that of the reference's 300 by 0.005 (one standard deviation)."""
    n = 300
    key = keys(n)
    target = mask_targets(key, 0.7, 0.5)
    masks = block_masks(key, torch.full((n,), 592), (592,) * n, target, Blocks(aligned=aligned), most=0.7)
    assert masks.pixels.float().mean().item() == pytest.approx(pixels, abs=0.012)
    assert masks.touched.float().mean().item() == pytest.approx(touched, abs=0.015)
    assert masks.patches.all(1).float().mean().item() == pytest.approx(whole, abs=0.02)


def test_sizes_of_the_published_aligned_blocks() -> None:
    """Of the published code: drawn from 16 on, rounded to patches, begun before the last row and column."""
    n = 200
    blocks = draw_blocks(keys(n), torch.full((n,), 592), torch.arange(500), Blocks(aligned=True))
    top, bottom, left, right = blocks.double()
    height, width = bottom - top, right - left
    assert not any(bool((edge % 16).any()) for edge in blocks)
    assert (int(top.max()), int(left.max())) == (592 - 32, 128 - 32)
    assert (int(top.min()), int(left.min())) == (0, 0)
    assert height.mean().item() == pytest.approx(89.8, abs=0.7)
    assert (width == 16).double().mean().item() == pytest.approx(0.363, abs=0.005)
    assert (height == 16).double().mean().item() == pytest.approx(0.051, abs=0.003)
    assert (height * width).mean().item() / 256 == pytest.approx(9.20, abs=0.05)


@pytest.mark.parametrize("frames", [16, 32, 96, 592])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_chance_of_a_place_is_what_blocks_show(frames: int, aligned: bool, share: float) -> None:
    shape = Blocks(time_share=share, frequency_share=share, aligned=aligned)
    top, bottom, left, right = draw_blocks(keys(200), torch.full((200,), frames), torch.arange(200), shape)
    for extent, begin, end in ((frames, top, bottom), (BINS, left, right)):
        place = torch.arange(extent)[:, None]
        begin, end = begin.flatten(), end.flatten()
        shown = torch.cat([((begin <= at) & (at < end)).double().mean(1) for at in place.split(64)])
        noise = 5 / float(shown.max() * len(begin)) ** 0.5  # standard deviations of the share seen
        assert_close(torch.from_numpy(_chances(extent, share, shape)), shown, within=noise)


def test_aligned_masks_hide_whole_patches_only() -> None:
    masks = block_masks(keys(20), torch.full((20,), 288), (288,) * 20, 0.6, Blocks(aligned=True))
    assert torch.equal(masks.touched, masks.patches.all(1))


def test_a_clip_s_mask_does_not_depend_on_its_neighbours() -> None:
    sizes = (96, 592, 320, 16)
    key = keys(4, salt=9)
    together = block_masks(key, torch.tensor(sizes), sizes, 0.7).pixels
    alone = [block_masks(key[i : i + 1], torch.tensor([size]), (size,), 0.7).pixels for i, size in enumerate(sizes)]
    assert torch.equal(together, torch.cat(alone))


def test_epochs_views_and_clips_get_masks_of_their_own() -> None:
    zero = torch.zeros(1, dtype=torch.int64)
    masks = {
        block_masks(mask_keys(seed, epoch, zero + clip, zero, zero + view), zero + 288, (288,), 0.7)
        .pixels.numpy()
        .tobytes()
        for seed in range(2)
        for epoch in range(2)
        for clip in range(2)
        for view in range(2)
    }
    assert len(masks) == 16


def test_nothing_hidden_at_target_zero_and_for_no_clip() -> None:
    assert not block_masks(keys(2), torch.tensor([96, 96]), (96, 96), 0.0).pixels.any()
    empty = torch.zeros(0, dtype=torch.int64)
    masks = block_masks(key_torch(empty, 1), empty, (), 0.7)
    assert masks.pixels.shape == (0, BINS)
    assert masks.patches.shape == (0, 256)


def test_patches_are_cut_like_the_model_s_tokens() -> None:
    sizes = (32,)
    masks = block_masks(keys(1), torch.tensor(sizes), sizes, 0.4)
    patch = masks.patches.view(2, 8, 16, 16)
    assert torch.equal(patch[1, 3], masks.pixels[16:32, 48:64])


@pytest.mark.parametrize("shape", ["blocks", "time"])
@pytest.mark.parametrize("frames", [16, 32, 48, 64, 80])
def test_aligned_blocks_reach_all_of_a_short_view(frames: int, shape: str) -> None:
    """Whose blocks are all of one patch: the last row of patches is hidden as often as any other."""
    number = torch.full((200,), frames)
    masks = block_masks(keys(200), number, (frames,) * 200, 0.7, Blocks(shape, aligned=True))
    hidden = masks.touched.view(200, frames // 16, 8).float()
    assert hidden.mean() >= 0.7
    assert (hidden.mean((0, 2)) > 0.55).all()
