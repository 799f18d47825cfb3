"""Which tokens are dropped, and that a model on the rest is the same model."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gamut.models.layout import drop_tokens, layout
from gamut.models.positions import factorised_positions, grid_positions
from gamut.models.vit import VisionTransformer
from gamut.plan import Policy
from gamut.plan.crops import view_tokens
from gamut.recipe import schema

SIZES = (32, 16, 96, 48)
SHARES = {0.1: (15, 8, 44, 22), 0.9: (2, 1, 5, 3)}  # of the patches that are dropped -> those that stay


def keys(segments: int, seed: int = 0) -> tuple[int | torch.Tensor, ...]:
    return seed, 1, torch.arange(segments) * 7919 + 3, torch.zeros(segments, dtype=torch.int64), 0


@pytest.mark.parametrize("share", SHARES)
def test_so_many_of_each_segment_stay_in_their_order_whatever_else_is_packed(share: float) -> None:
    kept = drop_tokens(keys(4), torch.tensor(SIZES), SIZES, share)
    assert tuple(kept.counts.tolist()) == kept.sizes == SHARES[share]
    assert (kept.patch.diff() > 0).all()
    edges = torch.tensor([0, *SIZES]).cumsum(0) // 2
    mine = [kept.patch[(kept.patch >= a) & (kept.patch < b)] - a for a, b in pairwise(edges)]
    assert [len(part) for part in mine] == list(SHARES[share])
    for number, part in enumerate(mine):
        own = tuple(p[number : number + 1] if isinstance(p, torch.Tensor) else p for p in keys(4))
        size = (SIZES[number],)
        assert torch.equal(drop_tokens(own, torch.tensor(size), size, share).patch, part)
    assert not torch.equal(kept.patch, drop_tokens(keys(4, 1), torch.tensor(SIZES), SIZES, share).patch)
    assert not len(drop_tokens(keys(0), torch.zeros(0, dtype=torch.int64), (), share).patch)


@settings(max_examples=100)
@given(st.lists(st.integers(1, 400).map(lambda n: 16 * n), max_size=8), st.floats(0, 0.9), st.sampled_from([16, 10]))
def test_plan_and_device_count_alike(sizes: list[int], share: float, stride: int) -> None:
    kept = drop_tokens(keys(len(sizes)), torch.tensor(sizes, dtype=torch.int64), tuple(sizes), share, stride)
    policy = Policy(packs=1, clips=1, drop_tokens=share, stride=stride, class_token=False)
    assert kept.sizes == tuple(kept.counts.tolist()) == tuple(view_tokens(np.array(sizes, np.int64), policy).tolist())


def test_every_choice_is_equally_likely() -> None:
    n = 5600
    sizes = (16,) * n
    kept = drop_tokens(keys(n), torch.tensor(sizes), sizes, 0.4).patch.view(n, 5) % 8
    number = {choice: i for i, choice in enumerate(combinations(range(8), 5))}
    times = torch.bincount(torch.tensor([number[tuple(row)] for row in kept.tolist()]), minlength=len(number))
    assert chisquare(times.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("class_token", [True, False])
def test_the_tokens_that_stay_keep_their_places(class_token: bool) -> None:
    frames = torch.tensor(SIZES)
    kept = drop_tokens(keys(4), frames, SIZES, 0.1)
    whole, some = layout(frames, SIZES, class_token), layout(frames, SIZES, class_token, kept)
    assert some.lengths == tuple(n + class_token for n in SHARES[0.1])
    assert some.tokens == sum(some.lengths) == len(some.segment) == some.cu_seqlens[-1]
    for name in ("time", "frequency", "owner"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[kept.patch])
    assert sorted(some.patch.tolist() + some.cls.tolist()) == list(range(some.tokens))
    assert torch.equal(some.segment[some.patch], some.owner)
    assert torch.equal(some.segment[some.cls], torch.arange(4)[: len(some.cls)])
    table = torch.randn(3 * 8, 5, generator=torch.Generator().manual_seed(0))  # 48 frames: one segment is longer
    assert torch.equal(grid_positions(table, some), grid_positions(table, whole)[kept.patch])
    time, frequency = table[:3], table[:8]
    assert torch.equal(
        factorised_positions(time, frequency, some), factorised_positions(time, frequency, whole)[kept.patch]
    )


@pytest.mark.parametrize("pooling", ["cls", "attention", "mean"])
def test_a_packed_forward_equals_one_clip_at_a_time(pooling: str) -> None:
    model = schema.Model(dim=32, depth=2, heads=2, table_frames=48, pooling=pooling, pooling_heads=2)
    vit = VisionTransformer(model, seed=0).eval()
    frames = torch.tensor(SIZES)
    pixels = torch.randn(sum(SIZES) // 2, 256, generator=torch.Generator().manual_seed(1))
    kept = drop_tokens(keys(4), frames, SIZES, 0.9)
    where = layout(frames, SIZES, vit.class_token, kept)
    together = vit.pool(vit(pixels[kept.patch], where), where)
    first = 0
    for number, size in enumerate(SIZES):
        own = tuple(p[number : number + 1] if isinstance(p, torch.Tensor) else p for p in keys(4))
        one = drop_tokens(own, frames[number : number + 1], (size,), 0.9)
        alone = layout(frames[number : number + 1], (size,), vit.class_token, one)
        result = vit.pool(vit(pixels[first : first + size // 2][one.patch], alone), alone)
        assert (together[number] - result[0]).abs().max() <= 1e-5
        first += size // 2
