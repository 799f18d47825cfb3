"""Frames of a ragged log-mel: the segment of each, averages over several, and the padding of the standard AST."""

from __future__ import annotations

import torch

from gamut.numbers import PATCH, WINDOW


def frame_table(frames: torch.Tensor, sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(segment of each frame, frame number within its segment), int64 [N] each.

    frames: int64 [S]; sizes: the same as Python numbers, so that nothing waits for the device.
    """
    total = sum(sizes)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=frames.device), frames, output_size=total)
    return owner, torch.arange(total, device=frames.device) - (frames.cumsum(0) - frames)[owner]


def average_pool(
    mel: torch.Tensor, frames: torch.Tensor, sizes: tuple[int, ...], pool: torch.Tensor, pools: tuple[int, ...]
) -> torch.Tensor:
    """Means over time of `pool[s]` neighbouring frames of segment s (ElasticAST, ablation on VGGSound).

    mel: float32 [sum(frames * pool), bins], frames * pool frames a segment; frames, pool: int64 [S], and both as
    Python numbers. Returns [sum(frames), bins].
    """
    owner, time = frame_table(frames, sizes)
    span = pool[owner]
    raw = frames * pool
    first = (raw.cumsum(0) - raw)[owner] + time * span
    total = torch.index_select(mel, 0, first)
    for step in range(1, max(pools, default=1)):
        more = torch.index_select(mel, 0, first + torch.minimum(span - 1, torch.full_like(span, step)))
        total += torch.where((step < span)[:, None], more, 0.0)
    return total / span[:, None]


def zero_frames(
    mel: torch.Tensor,
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    length: torch.Tensor,
    hop: torch.Tensor,
    pool: torch.Tensor | None = None,
) -> torch.Tensor:
    """Set frames that are not entirely within a segment's own samples to 0.0, before normalisation (AST's padding).

    Under 16 frames are padded in the waveform, so the first 16 always stay. mel: [N, bins]; length, hop, pool:
    int64 [S], own samples, hop in samples, frames averaged into one; frames and sizes as in `frame_table`.
    """
    own = 1 + torch.div(length - WINDOW, hop, rounding_mode="floor")
    if pool is not None:
        own = torch.div(own, pool, rounding_mode="floor")
    owner, time = frame_table(frames, sizes)
    return mel.masked_fill((time >= own.clamp_min(PATCH)[owner])[:, None], 0.0)
