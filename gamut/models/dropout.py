"""Token dropout: a part of each segment's patches does not reach the model (published ElasticAST, in training)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gamut.models.layout import Kept
from gamut.patches import PATCH, columns, rows
from gamut.randomness import Purpose, key_torch


def drop_tokens(
    keys: tuple[int | torch.Tensor, ...],
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    count: torch.Tensor,
    count_sizes: tuple[int, ...],
    stride: int = PATCH,
) -> Kept:
    """Which patches stay: of each segment `count` of them, every subset of that size equally likely.

    keys: (seed, epoch, clip id, draw, view), integers or int64 [S]; frames, count: int64 [S], and both as Python
    numbers. stride: of the patches. The plan says how many; the keys alone say which, whatever else is in the batch.
    Each patch gets a hash, and the segment's lowest stay, in their order.
    """
    device = frames.device
    total = sum(columns(size, stride) for size in sizes) * rows(stride)
    patches = columns(frames, stride) * rows(stride)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), patches, output_size=total)
    first = patches.cumsum(0) - patches
    within = torch.arange(total, device=device) - first[owner]
    parts = [part[owner] if isinstance(part, torch.Tensor) else part for part in keys]
    by_hash = torch.argsort(key_torch(*parts, Purpose.DROP_TOKEN, within, device=device), stable=True)
    by_segment = by_hash[torch.argsort(owner[by_hash], stable=True)]  # segments in order, each by hash
    chosen = sum(count_sizes)
    start = torch.repeat_interleave(first - F.pad(count.cumsum(0), (1, 0))[:-1], count, output_size=chosen)
    patch = by_segment[start + torch.arange(chosen, device=device)]
    return Kept(torch.sort(patch).values, count, count_sizes)
