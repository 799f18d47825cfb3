"""Augmentation of a ragged log-mel batch, on the device, from keys.

`keys` are the parts (seed, epoch, clip id, draw, view): integers, or int64 tensors [S]. The same parts give the same
augmentation whichever batch a segment is in. Nothing draws from a generator, and nothing waits for the device.
"""

from __future__ import annotations

import torch

from gamut.audio.frames import frame_table
from gamut.numbers import HOP
from gamut.randomness import Begun, Purpose, integers_torch, key_torch, uniform_torch

ROLL = 10  # frames
AST_FRAMES = 1024  # of AST's 10 s input, for which the papers name the widths of masks


def spec_augment(
    mel: torch.Tensor,
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    keys: tuple[int | torch.Tensor | Begun, ...],
    time_mask: int | torch.Tensor,
    frequency_mask: int | torch.Tensor,
    fill: float = 0.0,
) -> torch.Tensor:
    """One time mask and one frequency mask a segment (SpecAugment as AST uses it), before normalisation.

    Args:
        mel: log-mel frames [N, bins] of S segments; a new tensor is returned.
        frames: int64 [S], on the same device; `sizes` the same as Python numbers.
        time_mask, frequency_mask: a width is drawn from 0 .. maximum - 1 (U[0, maximum), whole frames or bins), at
            most the segment's own; its start so that it fits. int64 [S] gives a maximum a segment; 0 switches off.
        fill: the value that masked bins take.
    """
    if not len(mel):
        return mel
    bins = mel.shape[1]
    owner, time = frame_table(frames, sizes)
    begin, end = mask_span(keys, Purpose.SPEC_TIME, time_mask, frames)
    hidden = ((time >= begin[owner]) & (time < end[owner]))[:, None]
    begin, end = mask_span(keys, Purpose.SPEC_FREQUENCY, frequency_mask, torch.full_like(frames, bins))
    bin_number = torch.arange(bins, device=mel.device)
    masked = (bin_number >= begin[:, None]) & (bin_number < end[:, None])
    return mel.masked_fill(hidden | masked[owner], fill)


def time_maximum(
    time_mask: int, scale: str, frames: torch.Tensor, hop: torch.Tensor, pool: torch.Tensor | None = None
) -> int | torch.Tensor:
    """The maximum width of each segment's time mask, in frames: what `spec_augment` takes.

    scale: `none`: `time_mask` for all; `length`: time_mask * frames / 1,024 (ElasticAST, native length);
    `resolution`: time_mask / C (ElasticAST, mixed resolution), where a frame of the segment is C * 10 ms: C = hop x
    frames averaged into one. Rounded down. frames, hop, pool: int64 [S].
    """
    if scale == "length":
        return time_mask * frames // AST_FRAMES
    if scale == "resolution":
        return time_mask * HOP // (hop if pool is None else hop * pool)
    return time_mask


def random_noise(
    mel: torch.Tensor, frames: torch.Tensor, sizes: tuple[int, ...], keys: tuple[int | torch.Tensor | Begun, ...]
) -> torch.Tensor:
    """Noise and a roll in time, after normalisation (ASiT IV-B, in the form of AST's code).

    To every bin is added U(0, 1) x (U(0, 1) of the segment) / 10; then the segment is rolled by -10 .. 9 frames.
    mel [N, bins], frames int64 [S] and sizes as in `spec_augment`; a new tensor is returned.
    """
    if not len(mel):
        return mel
    bins = mel.shape[1]
    owner, time = frame_table(frames, sizes)
    scale = uniform_torch(key_torch(*keys, Purpose.NOISE_SCALE, device=mel.device)).expand(len(sizes))[owner] / 10.0
    parts = [part[owner][:, None] if isinstance(part, (torch.Tensor, Begun)) else part for part in keys]
    counter = time[:, None] * bins + torch.arange(bins, device=mel.device)
    noisy = mel + uniform_torch(key_torch(*parts, Purpose.NOISE, counter, device=mel.device)) * scale[:, None]
    roll = integers_torch(key_torch(*keys, Purpose.ROLL, device=mel.device), -ROLL, ROLL).expand(len(sizes))
    first = torch.arange(len(mel), device=mel.device) - time
    return torch.index_select(noisy, 0, first + (time - roll[owner]) % frames[owner])


def mask_span(
    keys: tuple[int | torch.Tensor | Begun, ...], purpose: Purpose, maximum: int | torch.Tensor, size: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(begin, end) of one mask a segment, int64 [S], along an axis of `size` [S]: its width is drawn from 0 ..
    maximum - 1, at most the size, and its start so that it fits."""
    width = integers_torch(key_torch(*keys, purpose, 0, device=size.device), 0, maximum)
    width = torch.minimum(width.expand(len(size)), size)
    begin = integers_torch(key_torch(*keys, purpose, 1, device=size.device), 0, size - width + 1)
    return begin, begin + width
