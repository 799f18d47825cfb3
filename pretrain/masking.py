"""Group-masked model learning: rectangular blocks hide a share of a spectrogram's pixels.

Blocks overlap, have a uniform start and a uniform size of up to `time_share` T by `frequency_share` F, are cut at the
border, and are laid down until the target share of *pixels* is hidden, so a patch may be hidden in part (ASiT, section
III-A and the published sampler). All blocks of all segments are drawn and laid at once, on the training device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gamut.randomness import Purpose, integers_torch, key_torch

BINS = 128
PATCH = 16
CHUNK = 60  # blocks laid by one matrix product: 4**-60 is still a normal float32


@dataclass(frozen=True)
class Masks:
    """What is hidden of S segments joined end to end, N = sum of frames."""

    pixels: torch.Tensor  # bool [N, 128]
    patches: torch.Tensor  # bool [N / 16 * 8, 256]: the same, cut like the patches
    touched: torch.Tensor  # bool [N / 16 * 8]: patches hidden wholly or in part


def draw_blocks(
    keys: torch.Tensor, frames: torch.Tensor, count: int, time_share: float, frequency_share: float, aligned: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(first frame, end frame, first bin, end bin), int64 [S, count] each, half-open and cut at the border.

    keys: int64 [S]; frames: int64 [S]. Sizes are uniform in 1 .. floor(share * extent) - 1, as in the published code.
    """
    number = torch.arange(count, device=keys.device)
    coordinate = [key_torch(keys[:, None], number, which) for which in range(4)]
    extent = frames[:, None]
    tallest = (extent.double() * time_share).long().clamp_min(2)
    widest = max(2, int(BINS * frequency_share))
    top = integers_torch(coordinate[0], 0, extent)
    left = integers_torch(coordinate[1], 0, BINS)
    height = integers_torch(coordinate[2], 1, tallest)
    width = integers_torch(coordinate[3], 1, widest)
    if aligned:
        top, left = top // PATCH * PATCH, left // PATCH * PATCH
        height = ((height + PATCH // 2) // PATCH * PATCH).clamp_min(PATCH)
        width = ((width + PATCH // 2) // PATCH * PATCH).clamp_min(PATCH)
    return top, torch.minimum(top + height, extent), left, (left + width).clamp_max(BINS)


def block_masks(
    keys: torch.Tensor,
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    target: float,
    time_share: float = 0.3,
    frequency_share: float = 0.3,
    aligned: bool = False,
) -> Masks:
    """Masks of S segments, reproducible from one key a segment.

    keys: int64 [S]; frames: int64 [S], multiples of 16; sizes: the same as Python numbers. A target of 0 hides nothing.

    The order of the blocks matters, since laying stops at the target. Block b of a chunk covers its pixels with weight
    4**-b; a pixel's exponent then tells the first block that covers it (the later ones add less than a third), so one
    matrix product replaces the loop over blocks.
    """
    device = frames.device
    total = sum(sizes)
    if total == 0 or target <= 0.0:
        pixels = torch.zeros(total, BINS, dtype=torch.bool, device=device)
        return _cut(pixels)
    longest = max(sizes)
    mean_block = 0.4 * time_share * 0.4 * frequency_share  # share of a view that a block covers, borders included
    count = CHUNK * math.ceil(1.6 * math.log(1.0 / max(1.0 - target, 1e-3)) / mean_block / CHUNK)
    top, bottom, left, right = draw_blocks(keys, frames, count, time_share, frequency_share, aligned)
    time = torch.arange(longest, device=device)
    bins = torch.arange(BINS, device=device)
    segments = len(sizes)
    pixels_of = (frames * BINS)[:, None]
    wanted = (pixels_of.double() * target).ceil().long()
    hidden = torch.zeros(segments, longest, BINS, dtype=torch.bool, device=device)
    covered = torch.zeros(segments, 1, dtype=torch.int64, device=device)
    weight = 4.0 ** -torch.arange(CHUNK, device=device, dtype=torch.float32)
    for begin in range(0, count, CHUNK):
        if device.type == "cpu" and bool((covered >= wanted).all()):
            break  # nothing would change; elsewhere asking would wait for the device
        span = slice(begin, begin + CHUNK)
        rows = (time[:, None] >= top[:, None, span]) & (time[:, None] < bottom[:, None, span])
        columns = (bins >= left[:, span, None]) & (bins < right[:, span, None])
        cover = torch.bmm(rows * weight, columns.float())  # [S, longest, 128]
        first = -((torch.frexp(cover)[1] - 1).div(2, rounding_mode="floor"))  # cover in [4**-b, 4**-b * 4/3]
        first = torch.where(cover > 0, first, CHUNK)
        fresh = torch.where(hidden, CHUNK, first).flatten(1).long()
        histogram = torch.zeros(segments, CHUNK + 1, dtype=torch.int64, device=device)
        histogram.scatter_add_(1, fresh, torch.ones_like(fresh))
        after = covered + histogram[:, :CHUNK].cumsum(1)  # pixels hidden once block b is laid
        laid = (torch.cat([covered, after[:, :-1]], 1) < wanted).sum(1)  # blocks laid before the target was reached
        hidden |= (fresh < laid[:, None]).view_as(hidden)
        covered = torch.where(laid > 0, after.gather(1, (laid - 1).clamp_min(0)[:, None])[:, 0], covered[:, 0])[:, None]
    if len(set(sizes)) == 1:
        return _cut(hidden.reshape(total, BINS))
    return _cut(hidden[time < frames[:, None]])


def _cut(pixels: torch.Tensor) -> Masks:
    grid = pixels.view(-1, PATCH, BINS // PATCH, PATCH).transpose(1, 2)
    patches = grid.reshape(-1, PATCH * PATCH)
    return Masks(pixels, patches, patches.any(1))


def mask_keys(seed: int, epoch: int, clip_id: torch.Tensor, draw: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """int64 [S]: the key of every segment's mask."""
    return key_torch(seed, epoch, clip_id, draw, view, Purpose.MASK, device=clip_id.device)
