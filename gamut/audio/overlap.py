"""Patches that overlap: 16x16, less than 16 apart in time and in frequency (AST: 10)."""

from __future__ import annotations

import torch

from gamut.audio.frames import frame_table
from gamut.audio.logmel import patches
from gamut.patches import PATCH, columns


def cut(log_mel: torch.Tensor, frames: torch.Tensor, sizes: tuple[int, ...], stride: int = PATCH) -> torch.Tensor:
    """Patches [sum(columns * rows), 256] of segments of `frames` frames [N, 128]: `patches`, at any stride.

    Time-major within each segment, pixel 16 * t + f inside a patch. No patch reaches over the end of its segment; what
    is left of its frames, and of the mel bins, is in none. frames: int64 [S]; sizes: the same as Python numbers.
    """
    if stride == PATCH:
        return patches(log_mel)
    wide = columns(frames, stride)
    owner, column = frame_table(wide, tuple(columns(size, stride) for size in sizes))
    start = (frames.cumsum(0) - frames)[owner] + column * stride
    rows = start[:, None] + torch.arange(PATCH, device=start.device)
    tall = torch.index_select(log_mel, 0, rows.flatten()).unflatten(0, (-1, PATCH))  # [columns, 16, 128]
    return tall.unfold(2, PATCH, stride).transpose(1, 2).reshape(-1, PATCH * PATCH)
