"""From what a clip's views are to what the student sees of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gamut.models.layout import Layout
from gamut.numbers import BINS
from gamut.recipe import schema
from pretrain import fills
from pretrain.masking import Blocks, Masks, block_masks, mask_targets


class Hidden(NamedTuple):
    """C clips with V views each, masked and filled."""

    patches: torch.Tensor  # float32 [N, 256]: what the student sees
    masks: Masks
    alone: torch.Tensor  # int64 []: clips to be filled from another clip that had none in their pack

    def first(self, patches: int) -> Hidden:
        """The first so many patches, a whole number of views."""
        masks = self.masks
        pixels = masks.pixels[: patches * 256 // BINS]
        return Hidden(
            self.patches[:patches], Masks(pixels, masks.patches[:patches], masks.touched[:patches]), self.alone
        )


def hide(
    clean: torch.Tensor,
    where: Layout,
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    keys: torch.Tensor,
    views: int,
    pack_sizes: tuple[int, ...],
    options: schema.Asit,
) -> Hidden:
    """Mask the views and fill what is hidden as the recipe says. The keys alone decide, and for copies the pack.

    clean: float32 [N, 256], normalised patches; frames: int64 [S = C * V], and `sizes` the same as Python numbers;
    keys: int64 [S], from `mask_keys`; views: V; pack_sizes: clips of each pack, in order.
    """
    blocks = Blocks(options.mask_shape, options.mask_time_share, options.mask_frequency_share, options.mask_aligned)
    target, most = mask_targets(keys, options.mask_target, options.mask_target_least), options.mask_target
    clip = torch.arange(len(sizes) // views, device=clean.device)
    other, copied = clip, torch.zeros_like(clip, dtype=torch.bool)
    copies = options.mask_fill == "clip" or options.mask_copied > 0
    if copies:
        of_clip = keys[::views]  # one decision a clip: both views are copied from the same one
        other = fills.other_clips(of_clip, pack_sizes)
        if options.mask_copied:
            copied = fills.copied_clips(of_clip, options.mask_copied)
            target = torch.where(copied.repeat_interleave(views), options.mask_copied_share, target)
            most = max(most, options.mask_copied_share)
        if options.mask_fill == "clip":
            copied = torch.ones_like(copied)
    masks = block_masks(keys, frames, sizes, target, blocks, most)

    if options.mask_fill == "noise":
        hidden = torch.where(masks.patches, fills.noise(keys, where), clean)
    else:
        hidden = clean.masked_fill(masks.patches, 0.0)
    if copies:
        copy = masks.patches & copied.repeat_interleave(views)[where.owner][:, None]
        hidden = torch.where(copy, fills.of_others(clean, where, other, views), hidden)
    return Hidden(hidden, masks, (copied & (other == clip)).sum())
