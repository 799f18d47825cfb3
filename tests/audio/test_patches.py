"""Overlapping patches are those that a strided window of each segment gives, whatever lies beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.audio.logmel import cut, patches
from gamut.models.layout import layout
from gamut.numbers import bands, columns

MEL = torch.randn(16 * 40, 128, generator=torch.Generator().manual_seed(0))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 8), max_size=4), st.integers(1, 16))
def test_each_segment_is_cut_by_a_strided_window(widths: list[int], stride: int) -> None:
    sizes = tuple(16 * width for width in widths)
    frames = torch.tensor(sizes, dtype=torch.int64)
    got = cut(MEL[: sum(sizes)], frames, sizes, stride)
    parts = [part.unfold(0, 16, stride).unfold(1, 16, stride) for part in MEL[: sum(sizes)].split(list(sizes)) if sizes]
    expected = torch.cat([torch.zeros(0, 256), *(part.reshape(-1, 256) for part in parts)])
    assert torch.equal(got, expected)
    where = layout(frames, sizes, class_token=False, stride=stride)
    assert (len(got), where.bands) == (where.tokens, bands(stride))
    assert where.widths == tuple(part.shape[0] for part in parts)


def test_side_by_side_they_are_the_usual_patches() -> None:
    frames = torch.tensor([32, 96])
    assert torch.equal(cut(MEL[:128], frames, (32, 96)), patches(MEL[:128]))


@pytest.mark.parametrize(
    ("frames", "stride", "grid"), [(1024, 10, (101, 12)), (1024, 16, (64, 8)), (128, 10, (12, 12))]
)
def test_grids_of_ast(frames: int, stride: int, grid: tuple[int, int]) -> None:
    assert (columns(frames, stride), bands(stride)) == grid
