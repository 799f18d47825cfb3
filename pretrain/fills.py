"""What stands where a mask hides: zeros, noise, or what another clip of the same pack has there.

Zeros come after normalisation, so they are the data's mean (ASiT, section III-A). Which clip is copied from depends on
the plan's pack alone, not on how many packs a rank joins.
"""

from __future__ import annotations

import torch

from gamut.models.layout import ROWS, Layout
from gamut.randomness import Purpose, integers_torch, key_torch, normal_torch, uniform_torch

NOISE = 0.5  # standard deviation of the noise: that of the data, after (x - mean) / (2 * std)


def noise(keys: torch.Tensor, where: Layout) -> torch.Tensor:
    """N(0, 0.5^2), float32 [N, 256], from one key a segment (int64 [S])."""
    within = where.time * ROWS + where.frequency
    pixel = torch.arange(256, device=keys.device)
    parts = keys[where.owner][:, None], Purpose.FILL, within[:, None] * 256 + pixel
    return normal_torch(key_torch(*parts)) * NOISE


def other_clips(keys: torch.Tensor, pack_sizes: tuple[int, ...]) -> torch.Tensor:
    """int64 [C]: another clip of each clip's pack, all equally likely; the clip itself where it is alone.

    keys: int64 [C], one a clip; pack_sizes: clips of each pack, in order.
    """
    assert sum(pack_sizes) == len(keys), f"packs of {pack_sizes} clips are not {len(keys)} clips"
    sizes = torch.tensor(pack_sizes, dtype=torch.int64)
    both = torch.stack([sizes, sizes.cumsum(0) - sizes]).repeat_interleave(sizes, dim=1)
    count, first = both.to(keys.device, non_blocking=True)
    own = torch.arange(len(keys), device=keys.device) - first
    further = 1 + integers_torch(key_torch(keys, Purpose.PARTNER), 0, (count - 1).clamp_min(1))
    return first + (own + further) % count


def copied_clips(keys: torch.Tensor, chance: float) -> torch.Tensor:
    """bool [C]: the clips whose mask is replaced by a copy from another clip. keys: int64 [C]."""
    return uniform_torch(key_torch(keys, Purpose.FILL)) < chance


def of_others(clean: torch.Tensor, where: Layout, other: torch.Tensor, views: int) -> torch.Tensor:
    """What the same region of the other clip's view of the same number has, [N, 256] from clean patches [N, 256].

    other: int64 [C], from `other_clips`; segment = clip * views + view. Of a shorter view the time goes round.
    """
    view = torch.arange(views, device=other.device)
    segment = (other[:, None] * views + view).reshape(-1)[where.owner]
    patches = where.columns * ROWS
    first = patches.cumsum(0) - patches
    patch = first[segment] + where.time % where.columns[segment] * ROWS + where.frequency
    return torch.index_select(clean, 0, patch)
