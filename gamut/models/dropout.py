"""Token dropout: a part of each segment's patches does not reach the model (published ElasticAST, in training)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gamut.models.layout import Kept
from gamut.numbers import PATCH, bands, columns, kept
from gamut.randomness import Purpose, key_torch


def drop_tokens(
    keys: tuple[int | torch.Tensor, ...],
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    share: float,
    stride: int = PATCH,
) -> Kept:
    """Which patches stay where `share` of each segment's is dropped: `gamut.numbers.kept` of them, as the plan counts
    them too, every subset of that size equally likely.

    keys: (seed, epoch, clip id, draw, view), integers or int64 [S]; frames: int64 [S], and as Python numbers. stride:
    of the patches. The keys alone say which, whatever else is in the batch. Each patch gets a hash, and the segment's
    lowest stay, in their order.
    """
    device = frames.device
    high = bands(stride)
    total = sum(columns(size, stride) for size in sizes) * high
    count_sizes = tuple(kept(columns(size, stride) * high, share) for size in sizes)
    patches = columns(frames, stride) * high
    count = patches - (patches.double() * share).floor().long()  # the same on the device, which is not waited for
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
