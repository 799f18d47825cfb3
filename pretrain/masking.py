"""Masking: what of a clip's views is hidden from the student, and what stands there instead.

Group-masked model learning: blocks hide a share of a spectrogram's pixels. They overlap, have a uniform start and a
uniform size of up to `time_share` T by `frequency_share` F, are cut at the border, and are laid down until the target
share of *pixels* is hidden, so a patch may be hidden in part (ASiT, section III-A and the published sampler). Aligned
ones are a patch high and wide at least, and start before the last row and column of patches where they reach it from
there. In other variants a block reaches over all frequencies (`time`) or over all of the segment's time (`frequency`),
or blocks are all that is not hidden (`inverse`; data2vec 2.0, EAT). All blocks of all segments are drawn and laid at
once, on the training device.

Where the student encodes visible patches alone, so many of them as the plan says, masks are adjusted to that number.

What is hidden is filled with zeros, noise, or what another clip of the same pack has there. Zeros come after
normalisation, so they are the data's mean. Which clip is copied from depends on the plan's pack alone, not on how many
packs a rank joins.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from gamut.audio.frames import frame_table
from gamut.audio.logmel import unpatch
from gamut.compiler import compiled_function
from gamut.models.layout import BANDS, Kept, Layout, drop_tokens
from gamut.numbers import BINS, PATCH
from gamut.randomness import Begun, Purpose, begun, integers_torch, key_torch, normal_torch, uniform_torch
from gamut.recipe import schema

# Aligned sizes below it are all of one patch: the last row or column would be reached from nowhere but itself.
TWO = PATCH + PATCH // 2
CHUNK = 60  # blocks laid by one matrix product: 4**-60 is still a normal float32
NOISE = 0.5  # standard deviation of the noise: that of the data, after (x - mean) / (2 * std)


@dataclass(frozen=True)
class Blocks:
    """Which blocks a mask is made of."""

    shape: str = "blocks"  # blocks | time (all bins of whole frames) | frequency (all frames of whole bins)
    time_share: float = 0.3  # blocks are up to so much of the segment's frames high
    frequency_share: float = 0.3  # and up to so much of the bins wide
    aligned: bool = False  # start and size rounded to the patch grid

    @property
    def least(self) -> int:
        """Frames or bins that a block has at least, before it is cut at the border."""
        return PATCH if self.aligned else 1


@dataclass(frozen=True)
class Masks:
    """What is hidden of S segments joined end to end, N = sum of frames."""

    pixels: torch.Tensor  # bool [N, 128]
    patches: torch.Tensor  # bool [N / 16 * 8, 256]: the same, cut like the patches
    touched: torch.Tensor  # bool [N / 16 * 8]: patches hidden wholly or in part


class Hidden(NamedTuple):
    """C clips with V views each, masked and filled."""

    patches: torch.Tensor  # float32 [N, 256]: what the student sees
    masks: Masks
    alone: torch.Tensor  # int64 []: clips to be filled from another clip that had none in their pack
    kept: Kept | None  # the patches that the student encodes; None: all

    def first(self, patches: int) -> Hidden:
        """The first so many patches, a whole number of views, for looking at."""
        masks = self.masks
        pixels = masks.pixels[: patches * 256 // BINS]
        return self._replace(
            patches=self.patches[:patches],
            masks=Masks(pixels, masks.patches[:patches], masks.touched[:patches]),
            kept=None,
        )


def mask_keys(seed: int, epoch: int, clip_id: torch.Tensor, draw: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """int64 [S]: the key of every segment's mask."""
    return mask_key(begun(seed, epoch, clip_id, draw, view))


def mask_key(segments: Begun) -> torch.Tensor:
    """int64 [S]: the key of every segment's mask, from the segments' own (seed, epoch, clip id, draw, view)."""
    return key_torch(segments, Purpose.MASK)


def hide(
    clean: torch.Tensor,
    where: Layout,
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    keys: torch.Tensor,
    views: int,
    pack_clips: tuple[int, ...],
    options: schema.Asit,
    compiled: bool = False,
) -> Hidden:
    """Mask the views and fill what is hidden as the recipe says. The keys alone decide, and for copies the pack.

    clean: float32 [N, 256], normalised patches; frames: int64 [S = C * V], and `sizes` the same as Python numbers;
    keys: int64 [S], from `mask_keys`; views: V; pack_clips: clips of each pack, in order;
    compiled: as in `block_masks`.
    """
    inverse = options.mask_shape == "inverse" and options.mask_target > 0
    shape = "blocks" if options.mask_shape == "inverse" else options.mask_shape
    blocks = Blocks(shape, options.mask_time_share, options.mask_frequency_share, options.mask_aligned)
    target, most = mask_targets(keys, options.mask_target, options.mask_target_least), options.mask_target
    if inverse:
        target, most = 1.0 - target, 1.0 - (options.mask_target_least or most)
    clip = torch.arange(len(sizes) // views, device=clean.device)
    other, copied = clip, torch.zeros_like(keys, dtype=torch.bool)
    alone = keys.new_zeros(())
    copies = options.mask_fill == "clip" or options.mask_copied > 0
    if copies:
        other = other_clips(keys[::views], pack_clips)  # all views of a clip are copied from the same one
        if options.mask_copied:
            copied = copied_views(keys, options.mask_copied)
            target = torch.where(copied, options.mask_copied_share, target)
            most = max(most, options.mask_copied_share)
        if options.mask_fill == "clip":
            copied = torch.ones_like(copied)
    masks = block_masks(keys, frames, sizes, target, blocks, most, compiled)
    if inverse:
        masks = _cut(~masks.pixels)
    kept = None
    if options.unseen:
        # MASK: what is drawn of the masks has no key of three parts.
        drawn = keys, Purpose.MASK
        kept = drop_tokens(drawn, frames, sizes, options.unseen, first=masks.patches.all(1))
        masks = showing(masks, kept.patch)

    if options.mask_fill == "noise":
        hidden = torch.where(masks.patches, noise(keys, where), clean)
    else:
        hidden = clean.masked_fill(masks.patches, 0.0)
    if copies:
        copy = masks.patches & copied[where.owner][:, None]
        hidden = torch.where(copy, of_others(clean, where, other, views), hidden)
        alone = (copied.view(-1, views).any(1) & (other == clip)).sum()
    return Hidden(hidden, masks, alone, kept)


def mask_targets(keys: torch.Tensor, most: float, least: float | None) -> torch.Tensor:
    """float64 [S]: the share of each segment that is to be hidden: `most`, or drawn from U(least, most) by its key."""
    if least is None:
        return torch.full(keys.shape, most, dtype=torch.float64, device=keys.device)
    return least + (most - least) * uniform_torch(key_torch(keys, Purpose.MASK_TARGET)).double()


def draw_blocks(keys: torch.Tensor, frames: torch.Tensor, number: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """(first frame, end frame, first bin, end bin), int64 [4, S, n], half-open and cut at the border.

    keys: int64 [S]; frames: int64 [S]; number: int64 [n], of the blocks. Sizes are uniform in
    1 .. floor(share * extent) - 1, as in the published code; aligned, from 16, then rounded to patches.
    """
    which = torch.arange(4, device=keys.device)[:, None, None]
    extent, least = frames[:, None], blocks.least
    tallest = (extent.double() * blocks.time_share).long().clamp_min(least + 1)
    widest = max(least + 1, int(BINS * blocks.frequency_share))
    rows, columns = extent, BINS
    if blocks.aligned:
        rows, columns = extent - PATCH * (tallest > TWO), BINS - PATCH * (widest > TWO)
    beyond = torch.stack([rows, torch.full_like(extent, columns), tallest, torch.full_like(extent, widest)])
    low = which // 2 * least if blocks.aligned else which // 2  # a call less on a GPU
    drawn = integers_torch(key_torch(keys[:, None], number, which), low, beyond)
    top, left, height, width = drawn.unbind()
    if blocks.aligned:
        top, left = top // PATCH * PATCH, left // PATCH * PATCH
        height, width = (height + PATCH // 2) // PATCH * PATCH, (width + PATCH // 2) // PATCH * PATCH
    bottom, right = torch.minimum(top + height, extent), (left + width).clamp_max(BINS)
    if blocks.shape == "time":
        left, right = torch.zeros_like(left), torch.full_like(right, BINS)
    elif blocks.shape == "frequency":
        top, bottom = torch.zeros_like(top), extent.expand_as(bottom)
    return torch.stack([top, bottom, left, right])


def block_masks(
    keys: torch.Tensor,
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    target: float | torch.Tensor,
    blocks: Blocks = Blocks(),
    most: float | None = None,
    compiled: bool = False,
) -> Masks:
    """Masks of S segments, reproducible from one key a segment, whatever segments lie beside it.

    keys: int64 [S]; frames: int64 [S], multiples of 16; sizes: the same as Python numbers.
    target: the share of pixels to hide, or float64 [S], a share a segment of at most `most`. 0 hides nothing.
    compiled: by torch.compile, as a model's blocks are.
    """
    device = frames.device
    if isinstance(target, torch.Tensor):
        assert most is not None, "the largest share must be known without asking the device"
    else:
        most = target
        target = torch.full((len(sizes),), target, dtype=torch.float64, device=device)
    if not sizes or most <= 0.0:
        return _cut(torch.zeros(sum(sizes), BINS, dtype=torch.bool, device=device))
    wanted = (frames.double() * BINS * target).ceil().long()
    if len(set(sizes)) == 1:
        count = enough_blocks(sizes[0], most, blocks)
        return _cut(_lay(keys, frames, wanted, sizes[0], count, blocks, compiled).view(-1, BINS))
    # Together with those of about its length only, so that a long segment does not make room for many short ones.
    laid, begin, length = [], [0] * len(sizes), 0
    for numbers in _of_a_length(sizes):
        at = torch.tensor(numbers).to(device, non_blocking=True)
        lengths = {sizes[number] for number in numbers}
        longest, count = max(lengths), max(enough_blocks(length, most, blocks) for length in lengths)
        laid.append(_lay(keys[at], frames[at], wanted[at], longest, count, blocks, compiled).view(-1, BINS))
        for number in numbers:
            begin[number] = length
            length += longest
    owner, time = frame_table(frames, sizes)
    first = torch.tensor(begin).to(device, non_blocking=True)
    return _cut(torch.index_select(torch.cat(laid), 0, first[owner] + time))


@lru_cache(4096)
def enough_blocks(frames: int, target: float, blocks: Blocks) -> int:
    """How many blocks hide a share `target` (below 1) of all segments but one in about a million; a multiple of CHUNK.

    As many as hide it in expectation, and a margin. A corner of 1 - target of the segment, at the first frame and bin,
    where the fewest blocks lie, is missed by a block with a chance of target: large blocks vary by 1 / (1 - target) in
    number. Many small ones vary by the root of it.
    """
    time = frequency = np.ones(1)
    if blocks.shape != "frequency":
        time = _chances(frames, blocks.time_share, blocks)
    if blocks.shape != "time":
        frequency = _chances(BINS, blocks.frequency_share, blocks)
    apart = max(1, len(time) // 64)
    missed = 1.0 - np.outer(time[apart // 2 :: apart], frequency)  # a chance a pixel, of some of the frames
    count = bisect_left(range(1 << 24), True, key=lambda number: bool((missed**number).mean() <= 1.0 - target))
    return CHUNK * math.ceil((count + max(7.0 * math.sqrt(count), 24.0 / (1.0 - target))) / CHUNK)


def _chances(extent: int, share: float, blocks: Blocks) -> np.ndarray:
    """float64 [extent]: the chance of each place along an axis to lie in a block of `draw_blocks`."""
    largest = max(blocks.least + 1, int(extent * share))
    size, place = np.arange(blocks.least, largest), np.arange(extent)
    beyond = extent
    if blocks.aligned:
        beyond -= PATCH * (largest > TWO)
        size, place = (size + PATCH // 2) // PATCH * PATCH, place // PATCH * PATCH + PATCH - 1
    # Those of the starts up to `place` reach it that lie less than a block's size before it.
    shorter = np.searchsorted(size, place + 1)
    starts = np.concatenate([[0], size.cumsum()])[shorter] + (len(size) - shorter) * (place + 1)
    late = (place + 1 - beyond).clip(0)  # where no block starts
    return (starts / len(size) - late) / beyond


def _of_a_length(sizes: tuple[int, ...]) -> list[list[int]]:
    """Segment numbers in groups within which no length is twice another's."""
    groups: dict[int, list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size.bit_length(), []).append(number)
    return list(groups.values())


def _lay(
    keys: torch.Tensor,
    frames: torch.Tensor,
    wanted: torch.Tensor,
    longest: int,
    count: int,
    blocks: Blocks,
    compiled: bool,
) -> torch.Tensor:
    """bool [S, longest, 128]: blocks laid one after the other until `wanted` (int64 [S]) pixels are hidden.

    The order of the blocks matters, since laying stops at the target. Block b of a chunk covers its pixels with weight
    4**-b; a pixel's exponent then tells the first block that covers it (the later ones add less than a third), so one
    matrix product replaces the loop over blocks.
    """
    device, segments = frames.device, len(keys)
    draw: Callable[..., torch.Tensor] = draw_blocks
    lay: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _lay_chunk
    given = [keys, frames, wanted[:, None]]
    if compiled:
        draw, lay = compiled_function(draw_blocks), compiled_function(_lay_chunk)
        # Tensors of their own, and never one segment alone, for which torch would compile anew.
        given = [torch.cat([part] * 2) if segments == 1 else part.clone() for part in given]
    keys, frames, wanted = given
    rows, drawn = len(keys), draw(keys, frames, torch.arange(count, device=device), blocks)
    weight = 4.0 ** -torch.arange(CHUNK, device=device, dtype=torch.float32)
    hidden = torch.zeros(rows, longest, BINS, dtype=torch.bool, device=device)
    covered = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    for begin in range(0, count, CHUNK):
        if device.type == "cpu" and bool((covered >= wanted).all()):
            break  # nothing would change; elsewhere asking would wait for the device
        some = drawn[..., begin : begin + CHUNK]
        hidden, covered = lay(some.clone() if compiled else some, weight, wanted, hidden, covered)
    return hidden[:segments]


def _lay_chunk(
    drawn: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor, hidden: torch.Tensor, covered: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`hidden` and `covered` (int64 [S, 1], pixels) once the blocks `drawn` (int64 [4, S, CHUNK]) are laid as well."""
    top, bottom, left, right = drawn.unbind()
    segments, device = len(hidden), hidden.device
    time = torch.arange(hidden.shape[1], device=device)
    bins = torch.arange(BINS, device=device)
    in_time = (time[:, None] >= top[:, None]) & (time[:, None] < bottom[:, None])
    in_bins = (bins >= left[..., None]) & (bins < right[..., None])
    cover = torch.bmm(in_time * weight, in_bins.float())  # [S, longest, 128]
    first = -((torch.frexp(cover)[1] - 1).div(2, rounding_mode="floor"))  # cover in [4**-b, 4**-b * 4/3]
    first = torch.where(cover > 0, first, CHUNK)
    fresh = torch.where(hidden, CHUNK, first).flatten(1).long()
    histogram = torch.zeros(segments, CHUNK + 1, dtype=torch.int64, device=device)
    histogram.scatter_add_(1, fresh, fresh.new_ones(()).expand_as(fresh))
    after = covered + histogram[:, :CHUNK].cumsum(1)  # pixels hidden once block b is laid
    laid = (torch.cat([covered, after[:, :-1]], 1) < wanted).sum(1)  # blocks laid before the target was reached
    hidden = hidden | (fresh < laid[:, None]).view_as(hidden)
    last = after.gather(1, (laid - 1).clamp_min(0)[:, None])
    return hidden, torch.where(laid[:, None] > 0, last, covered)


def _cut(pixels: torch.Tensor) -> Masks:
    grid = pixels.view(-1, PATCH, BINS // PATCH, PATCH).transpose(1, 2)
    patches = grid.reshape(-1, PATCH * PATCH)
    return Masks(pixels, patches, patches.any(1))


def showing(masks: Masks, kept: torch.Tensor) -> Masks:
    """The masks, changed so that just the patches `kept` (int64 [K]) are not hidden wholly: those of them that were are
    shown."""
    unseen = torch.ones_like(masks.touched).index_fill(0, kept, False)[:, None]
    patches = (masks.patches & ~masks.patches.all(1, keepdim=True)) | unseen
    return Masks(unpatch(patches), patches, patches.any(1))


def noise(keys: torch.Tensor, where: Layout) -> torch.Tensor:
    """N(0, 0.5^2), float32 [N, 256], from one key a segment (int64 [S])."""
    within = where.time * BANDS + where.frequency
    pixel = torch.arange(256, device=keys.device)
    parts = keys[where.owner][:, None], Purpose.FILL, within[:, None] * 256 + pixel
    return normal_torch(key_torch(*parts)) * NOISE


def other_clips(keys: torch.Tensor, pack_clips: tuple[int, ...]) -> torch.Tensor:
    """int64 [C]: another clip of each clip's pack, all equally likely; the clip itself where it is alone.

    keys: int64 [C], one a clip; pack_clips: clips of each pack, in order.
    """
    assert sum(pack_clips) == len(keys), f"packs of {pack_clips} clips are not {len(keys)} clips"
    counts = torch.tensor(pack_clips, dtype=torch.int64)
    both = torch.stack([counts, counts.cumsum(0) - counts]).repeat_interleave(counts, dim=1, output_size=len(keys))
    count, first = both.to(keys.device, non_blocking=True)
    own = torch.arange(len(keys), device=keys.device) - first
    further = 1 + integers_torch(key_torch(keys, Purpose.PARTNER), 0, (count - 1).clamp_min(1))
    return first + (own + further) % count


def copied_views(keys: torch.Tensor, chance: float) -> torch.Tensor:
    """bool [S]: the views whose mask is replaced by a copy from another clip. keys: int64 [S]."""
    return uniform_torch(key_torch(keys, Purpose.FILL)) < chance


def of_others(clean: torch.Tensor, where: Layout, other: torch.Tensor, views: int) -> torch.Tensor:
    """What the same region of the other clip's view of the same number has, [N, 256] from clean patches [N, 256].

    other: int64 [C], from `other_clips`; segment = clip * views + view. Of a shorter view the time wraps around.
    """
    view = torch.arange(views, device=other.device)
    segment = (other[:, None] * views + view).reshape(-1)[where.owner]
    patches = where.columns * BANDS
    first = patches.cumsum(0) - patches
    patch = first[segment] + where.time % where.columns[segment] * BANDS + where.frequency
    return torch.index_select(clean, 0, patch)
