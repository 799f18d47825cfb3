"""Where the tokens of a pack belong, and which of them there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gamut.numbers import PATCH, bands, columns
from gamut.numbers import kept as kept_of
from gamut.randomness import Begun, Purpose, key_torch

BANDS = bands()  # patches over frequency where they lie side by side: 128 mel bins of 16


class Kept(NamedTuple):
    """The patches of S segments that the model gets, where some are dropped."""

    patch: torch.Tensor  # int64 [K], ascending numbers among all patches of the batch
    counts: torch.Tensor  # int64 [S], how many of each segment
    sizes: tuple[int, ...]  # `counts` as Python numbers


@dataclass(frozen=True)
class Layout:
    """S segments one after the other; each is its class tokens, if there are any, and then its patches, time-major.

    Tensors are on the batch's device; what Python must know is kept as Python numbers, so that no step waits for the
    device.
    """

    cu_seqlens: torch.Tensor  # int32 [S + 1]; segment s owns tokens [cu_seqlens[s], cu_seqlens[s + 1])
    lengths: tuple[int, ...]  # tokens of each segment
    max_length: int  # of the longest
    tokens: int  # of all
    segment: torch.Tensor  # int64 [tokens], segment of each token
    patch: torch.Tensor  # int64 [patches], token number of each patch
    owner: torch.Tensor  # int64 [patches], segment of each patch
    cls: torch.Tensor  # int64 [S], token number of each CLS, and after it comes the distillation token; or empty
    time: torch.Tensor  # int64 [patches], column of each patch within its segment
    frequency: torch.Tensor  # int64 [patches], band of each patch, 0 the lowest
    columns: torch.Tensor  # int64 [S], columns of patches, dropped ones included
    widths: tuple[int, ...]  # `columns` as Python numbers
    bands: int = BANDS  # patches of a column
    special: int = 0  # tokens before the patches of a segment: none, CLS, or CLS and distillation

    @property
    def segments(self) -> int:
        return len(self.lengths)


def layout(
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    class_token: bool,
    kept: Kept | None = None,
    *,
    distilled: bool = False,
    stride: int = PATCH,
    high: int | None = None,
) -> Layout:
    """Lay out segments of `frames` (int64 [S], on the batch's device; `sizes` the same as Python numbers) frames.

    kept: which of their patches there are, as from `drop_tokens`; each has its own time and frequency still. None: all.
    distilled: a distillation token follows each CLS. stride: of the patches. high: of them in a column, where it is not
    those of 128 mel bins. A model knows what it needs of these
    (`VisionTransformer.layout`). Raises ValueError for a length that is not a multiple of 16: the front end gives whole
    patches only.
    """
    odd = [size for size in sizes if size % PATCH or size <= 0]
    if odd or len(frames) != len(sizes):
        raise ValueError(f"Segments must have a positive multiple of {PATCH} frames, not {odd or sizes}.")
    device = frames.device
    special, high = int(class_token) + int(distilled), high or bands(stride)
    widths = tuple(columns(size, stride) for size in sizes)
    counts = tuple(width * high for width in widths)
    patches = sum(counts)

    wide = columns(frames, stride)
    count = wide * high
    segments = torch.arange(len(sizes), device=device)
    owner = torch.repeat_interleave(segments, count, output_size=patches)
    number = torch.arange(patches, device=device)
    within = number - torch.repeat_interleave(count.cumsum(0) - count, count, output_size=patches)
    if kept is not None:
        owner, within, number = owner[kept.patch], within[kept.patch], number[: len(kept.patch)]
        count, counts = kept.counts, kept.sizes
    lengths = tuple(patches + special for patches in counts)
    total = sum(lengths)
    length = count + special
    starts = F.pad(length.cumsum(0), (1, 0))
    return Layout(
        cu_seqlens=starts.to(torch.int32),
        lengths=lengths,
        max_length=max(lengths, default=0),
        tokens=total,
        segment=torch.repeat_interleave(segments, length, output_size=total),
        patch=number + (owner + 1) * special,
        owner=owner,
        cls=starts[:-1] if class_token else starts[:0],
        time=within // high,
        frequency=within % high,
        columns=wide,
        widths=widths,
        bands=high,
        special=special,
    )


def drop_tokens(
    keys: tuple[int | torch.Tensor | Begun, ...],
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    share: float,
    stride: int = PATCH,
    first: torch.Tensor | None = None,
) -> Kept:
    """Which patches stay where `share` of each segment's is dropped (published ElasticAST, in training):
    `gamut.numbers.kept` of them, as the plan counts them too, every subset of that size equally likely. first: bool
    [patches], those that are dropped before any other.

    keys: (seed, epoch, clip id, draw, view), integers or int64 [S]; frames: int64 [S], and as Python numbers. stride:
    of the patches. The keys alone say which, whatever else is in the batch. Each patch gets a hash, and the segment's
    lowest stay, in their order.
    """
    device = frames.device
    high = bands(stride)
    total = sum(columns(size, stride) for size in sizes) * high
    count_sizes = tuple(kept_of(columns(size, stride) * high, share) for size in sizes)
    patches = columns(frames, stride) * high
    count = patches - (patches.double() * share).floor().long()  # the same on the device, which is not waited for
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), patches, output_size=total)
    begin = patches.cumsum(0) - patches
    within = torch.arange(total, device=device) - begin[owner]
    parts = [part[owner] if isinstance(part, (torch.Tensor, Begun)) else part for part in keys]
    by_hash = torch.argsort(key_torch(*parts, Purpose.DROP_TOKEN, within, device=device), stable=True)
    order = owner if first is None else 2 * owner + first
    by_segment = by_hash[torch.argsort(order[by_hash], stable=True)]  # segments in order, each by hash
    chosen = sum(count_sizes)
    start = torch.repeat_interleave(begin - F.pad(count.cumsum(0), (1, 0))[:-1], count, output_size=chosen)
    patch = by_segment[start + torch.arange(chosen, device=device)]
    return Kept(torch.sort(patch).values, count, count_sizes)
