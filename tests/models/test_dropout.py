"""Which tokens are dropped, and that a model on the rest is the same model."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from scipy.stats import chisquare

from gamut.models.dropout import drop_tokens
from gamut.models.layout import layout
from gamut.models.positions import factorised_positions, grid_positions
from gamut.models.vit import VisionTransformer
from gamut.recipe import schema

SIZES = (32, 16, 96, 48)
COUNT = (15, 8, 43, 1)


def keys(segments: int, seed: int = 0) -> tuple[int | torch.Tensor, ...]:
    return seed, 1, torch.arange(segments) * 7919 + 3, torch.zeros(segments, dtype=torch.int64), 0


def test_so_many_of_each_segment_stay_in_their_order_whatever_else_is_packed() -> None:
    kept = drop_tokens(keys(4), torch.tensor(SIZES), SIZES, torch.tensor(COUNT), COUNT)
    assert (kept.patch.diff() > 0).all()
    edges = torch.tensor([0, *SIZES]).cumsum(0) // 2
    mine = [kept.patch[(kept.patch >= a) & (kept.patch < b)] - a for a, b in pairwise(edges)]
    assert [len(part) for part in mine] == list(COUNT)
    for number, part in enumerate(mine):
        own = tuple(p[number : number + 1] if isinstance(p, torch.Tensor) else p for p in keys(4))
        one, size = (COUNT[number],), (SIZES[number],)
        assert torch.equal(drop_tokens(own, torch.tensor(size), size, torch.tensor(one), one).patch, part)
    assert not torch.equal(
        kept.patch, drop_tokens(keys(4, 1), torch.tensor(SIZES), SIZES, torch.tensor(COUNT), COUNT).patch
    )
    assert not len(
        drop_tokens(keys(0), torch.zeros(0, dtype=torch.int64), (), torch.zeros(0, dtype=torch.int64), ()).patch
    )


def test_every_choice_is_equally_likely() -> None:
    n = 5600
    sizes, count = (16,) * n, (5,) * n
    kept = drop_tokens(keys(n), torch.tensor(sizes), sizes, torch.tensor(count), count).patch.view(n, 5) % 8
    number = {choice: i for i, choice in enumerate(combinations(range(8), 5))}
    times = torch.bincount(torch.tensor([number[tuple(row)] for row in kept.tolist()]), minlength=len(number))
    assert chisquare(times.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("class_token", [True, False])
def test_the_tokens_that_stay_keep_their_places(class_token: bool) -> None:
    frames, count = torch.tensor(SIZES), torch.tensor(COUNT)
    kept = drop_tokens(keys(4), frames, SIZES, count, COUNT)
    whole, some = layout(frames, SIZES, class_token), layout(frames, SIZES, class_token, kept)
    assert some.lengths == tuple(n + class_token for n in COUNT)
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
    kept = drop_tokens(keys(4), frames, SIZES, torch.tensor(COUNT), COUNT)
    where = layout(frames, SIZES, vit.class_token, kept)
    together = vit.pool(vit(pixels[kept.patch], where), where)
    first = 0
    for number, size in enumerate(SIZES):
        own = tuple(p[number : number + 1] if isinstance(p, torch.Tensor) else p for p in keys(4))
        one = drop_tokens(own, frames[number : number + 1], (size,), torch.tensor(COUNT[number : number + 1]),
                          COUNT[number : number + 1])  # fmt: skip
        alone = layout(frames[number : number + 1], (size,), vit.class_token, one)
        result = vit.pool(vit(pixels[first : first + size // 2][one.patch], alone), alone)
        assert (together[number] - result[0]).abs().max() <= 1e-5
        first += size // 2
